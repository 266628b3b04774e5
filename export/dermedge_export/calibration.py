"""Calibration images: quantization reads the ranges of activations from them."""

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
    """A set of calibration images.

    Example:
        >>> from dermedge_export.calibration import synthetic_calibration
        >>> from dermedge_runtime.spec import Preprocess
        >>> calibration = synthetic_calibration(Preprocess(32), count=4)
        >>> len(calibration), calibration.images.shape
        (4, (4, 32, 32, 3))

    Attributes:
        images: Preprocessed images, uint8 [N, S, S, 3].
        digests: sha256 of each image file.
        split: Split that the images come from; `procedural` for synthetic lesions.
        classes: Number of images by class.
        skin_types: Number of images by Fitzpatrick skin type.
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
        """sha256 of the images' digests, in order."""
        return sha256_hex(canonical_json(list(self.digests)))

    def to_json(self) -> Json:
        """Return the record that a manifest keeps."""
        return {
            "digest": self.digest,
            "split": self.split,
            "count": len(self),
            "classes": dict(self.classes),
            "skin_types": dict(self.skin_types),
        }


def synthetic_calibration(spec: Preprocess, count: int = SYNTHETIC_COUNT) -> Calibration:
    """Return synthetic lesions, for an export without data.

    A model that is calibrated on them may lose accuracy on photographs.

    Args:
        spec: Preprocessing of the model.
        count: Number of lesions.
    """
    images = [
        preprocess(draw_lesion(seed).image, spec, exact=True) for seed in seeds.CALIBRATION[:count]
    ]
    return Calibration(
        np.stack(images), tuple(sha256_hex(image.tobytes()) for image in images), "procedural"
    )


def check_calibration(
    calibration: Calibration, held_out: Mapping[str, Collection[str]], name: str
) -> None:
    """Check that calibration images evaluate nothing, and are enough and diverse.

    Args:
        calibration: The images.
        held_out: Digests of the images of each split that evaluates the artifact.
        name: Name of the data set, for messages.

    Raises:
        DataError: The images overlap a held-out split, are fewer than 32, or all belong
            to one class.
    """
    for split, digests in held_out.items():
        shared = set(calibration.digests) & set(digests)
        if shared:
            raise DataError(
                f"{len(shared)} calibration images of {name} are in its {split} split too, which "
                "evaluates the result. Remove them from train; `dermedge data check` lists "
                "duplicates."
            )
    if len(calibration) < MINIMUM:
        raise DataError(
            f"{name} has only {len(calibration)} calibration images; {MINIMUM} are needed. "
            "Add train images, or export in fp32, which needs none."
        )
    known = [label for label, count in calibration.classes.items() if count]
    if len(known) == 1 and sum(calibration.classes.values()) == len(calibration):
        raise DataError(
            f"All {len(calibration)} calibration images of {name} are {known[0]!r}, and other "
            "classes have other activation ranges. Add train images of other classes."
        )


def balanced_choice(labels: Sequence[str], count: int) -> list[int]:
    """Return the sorted indices of a subset with as many rows per class as possible.

    The classes take turns, so each gives the same number of rows until it has no more.
    Rows of a class are drawn at random, with a fixed seed.

    Args:
        labels: Label of each row.
        count: Largest number of rows.

    Returns:
        Indices of at most `count` rows.
    """
    rng = np.random.default_rng(0)
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
