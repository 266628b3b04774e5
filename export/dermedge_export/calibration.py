"""Calibration images: what quantization looks at to learn the ranges of activations."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Json, Preprocess

COUNT = 300
MINIMUM = 32
SYNTHETIC_COUNT = 64


@dataclass(frozen=True, eq=False)
class Calibration:
    """Preprocessed images, uint8 [N, S, S, 3], with the sha256 of each image file, the split that they come from, and
    how many there are of each class and skin type.
    """

    images: NDArray[np.uint8]
    digests: tuple[str, ...]
    split: str
    classes: Mapping[str, int] = field(default_factory=dict)
    skin_types: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """sha256 over the digests of the images, in order."""
        return sha256_hex(canonical_json(list(self.digests)))

    def to_json(self) -> Json:
        """What a manifest records of it."""
        return {
            "digest": self.digest,
            "split": self.split,
            "count": len(self),
            "classes": dict(self.classes),
            "skin_types": dict(self.skin_types),
        }


def synthetic_calibration(spec: Preprocess, count: int = SYNTHETIC_COUNT) -> Calibration:
    """Drawn lesions, for an export without data; no accuracy may be expected of what is calibrated on them."""
    images = [
        preprocess(draw_lesion(seed).image, spec, exact=True) for seed in seeds.CALIBRATION[:count]
    ]
    return Calibration(
        np.stack(images), tuple(sha256_hex(image.tobytes()) for image in images), "procedural"
    )


def check_calibration(
    calibration: Calibration, held_out: Mapping[str, Collection[str]], name: str
) -> None:
    """Refuse images that quantization must not look at, or that tell it too little.

    Args:
        calibration: the images.
        held_out: digests by split of what the artifact is judged on.
        name: of the table, for messages.

    Raises:
        DataError: they overlap a split that judges, are fewer than 32, or all of one class.
    """
    for split, digests in held_out.items():
        shared = set(calibration.digests) & set(digests)
        if shared:
            raise DataError(
                f"{len(shared)} calibration images of {name} are in its {split} split too, which judges the result: "
                "calibrate on train images only (`dermedge data check` lists duplicates)."
            )
    if len(calibration) < MINIMUM:
        raise DataError(
            f"Only {len(calibration)} calibration images in {name}, {MINIMUM} are needed: add train images, or export "
            "in fp32 or fp16, which need none."
        )
    known = [label for label, count in calibration.classes.items() if count]
    if len(known) == 1 and sum(calibration.classes.values()) == len(calibration):
        raise DataError(
            f"All {len(calibration)} calibration images of {name} are {known[0]!r}: ranges of one class fit no other; "
            "add train images of further classes."
        )


def balanced_choice(labels: Sequence[str], count: int, seed: int = 0) -> list[int]:
    """Indices of at most `count` rows, the classes taken in turn, so that rare ones are seen; sorted."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    rows: dict[str, list[int]] = {}
    for index in order:
        rows.setdefault(labels[index], []).append(int(index))
    taken: list[int] = []
    queues = [rows[label] for label in sorted(rows)]
    while queues and len(taken) < count:
        for queue in queues:
            if len(taken) < count:
                taken.append(queue.pop())
        queues = [queue for queue in queues if queue]
    return sorted(taken)
