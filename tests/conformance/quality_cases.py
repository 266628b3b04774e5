"""Tensors and masks with the measures and the sentences of image quality."""

from collections.abc import Sequence

import numpy as np

from conformance.drawing import random_bytes
from conformance.writing import Files, cases_json
from dermedge_runtime.canonical_json import parse_json
from dermedge_runtime.errors import UsageError
from dermedge_runtime.quality import (
    QualityLimits,
    describe_lesion,
    describe_quality,
    measure_lesion,
    measure_quality,
)
from dermedge_runtime.spec import Json, to_json

LIMITS = QualityLimits(sharpness=535, dark=60, bright=215, glare=80, small=60, cut=300)
TENSORS = 6
# Size, base, slope, noise: a plane that rises with x + y, and noise on it.
DRAWN = (
    (16, 90, 40, 90),
    (31, 90, 40, 90),
    (64, 120, 0, 0),
    (96, 20, 8, 30),
    (97, 0, 21, 0),
    (160, 230, 0, 200),
    (160, 251, 0, 0),
    (191, 70, 8, 120),
    (192, 70, 8, 120),
    (224, 40, 12, 250),
    (384, 100, 3, 3),
    (512, 0, 0, 255),
)
# Size, and the left, upper, right and lower edge of a lesion; the last two are outside it.
BOXES = (
    (16, 0, 0, 0, 0),
    (16, 0, 0, 16, 16),
    (16, 0, 0, 1, 1),
    (17, 3, 5, 9, 11),
    (64, 0, 20, 40, 50),
    (64, 20, 0, 64, 64),
    (65, 1, 1, 64, 64),
    (160, 30, 40, 69, 80),  # the largest share below the limit
    (160, 30, 40, 69, 81),
    (160, 0, 0, 96, 96),  # the border equals the limit
    (160, 0, 0, 97, 97),
    (384, 383, 0, 384, 384),
)


def quality_files(images: Files) -> Files:
    """Return `quality.json`.

    Args:
        images: Files of `images.json`.
    """
    cases = parse_json(images["images.json"], "images.json", UsageError)["cases"]
    known = {case["tensor"]: case["preprocess"]["size"] for case in cases if "tensor" in case}
    chosen = sorted(known)[:: max(1, len(known) // TENSORS)]
    stored = [_case({"tensor": path, "size": known[path]}, images[path], LIMITS) for path in chosen]
    drawn = [
        _case(
            {"size": size, "seed": seed, "base": base, "slope": slope, "noise": noise},
            draw_plane(size, seed, base, slope, noise).tobytes(),
            LIMITS if seed % 4 else QualityLimits(sharpness=1000),
        )
        for seed, (size, base, slope, noise) in enumerate(DRAWN, start=1)
    ]
    boxes = [_mask_case(size, box, LIMITS) for size, *box in BOXES]
    unlimited = _mask_case(16, [0, 0, 0, 0], QualityLimits())
    return {"quality.json": cases_json([*stored, *drawn, *boxes, unlimited])}


def draw_plane(size: int, seed: int, base: int, slope: int, noise: int) -> np.ndarray:
    """Draw a sloping plane with noise, uint8 [S, S, 3]."""
    x, y = np.arange(size)[None, :, None], np.arange(size)[:, None, None]
    random = random_bytes(seed, 3 * size * size).reshape(size, size, 3).astype(int)
    values = base + (slope * (x + y) >> 4) + (noise * random >> 8)
    return np.minimum(values, 255).astype(np.uint8)


def draw_box(size: int, box: Sequence[int]) -> np.ndarray:
    """Draw a rectangular lesion, bool [S, S]; `box` is left, upper, right, lower."""
    left, upper, right, lower = box
    mask = np.zeros((size, size), bool)
    mask[upper:lower, left:right] = True
    return mask


def _mask_case(size: int, box: Sequence[int], limits: QualityLimits) -> Json:
    lesion = measure_lesion(draw_box(size, box))
    return {
        "size": size,
        "box": list(box),
        "limits": to_json(limits),
        "lesion": to_json(lesion),
        "sentences": list(describe_lesion(lesion, limits)),
    }


def _case(case: Json, tensor: bytes, limits: QualityLimits) -> Json:
    size = case["size"]
    quality = measure_quality(np.frombuffer(tensor, np.uint8).reshape(size, size, 3))
    return {
        **case,
        "limits": to_json(limits),
        "quality": to_json(quality),
        "sentences": list(describe_quality(quality, limits)),
    }
