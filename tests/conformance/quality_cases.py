"""Tensors with the measures and the sentences of image quality."""

import numpy as np

from conformance.drawing import random_bytes
from conformance.writing import Files, cases_json
from dermedge_runtime.canonical_json import parse_json
from dermedge_runtime.errors import UsageError
from dermedge_runtime.quality import QualityLimits, describe_quality, measure_quality
from dermedge_runtime.spec import Json, to_json

LIMITS = QualityLimits(sharpness=535, dark=60, bright=215, glare=80)
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
    return {"quality.json": cases_json([*stored, *drawn])}


def draw_plane(size: int, seed: int, base: int, slope: int, noise: int) -> np.ndarray:
    """Draw a sloping plane with noise, uint8 [S, S, 3]."""
    x, y = np.arange(size)[None, :, None], np.arange(size)[:, None, None]
    random = random_bytes(seed, 3 * size * size).reshape(size, size, 3).astype(int)
    values = base + (slope * (x + y) >> 4) + (noise * random >> 8)
    return np.minimum(values, 255).astype(np.uint8)


def _case(case: Json, tensor: bytes, limits: QualityLimits) -> Json:
    size = case["size"]
    quality = measure_quality(np.frombuffer(tensor, np.uint8).reshape(size, size, 3))
    return {
        **case,
        "limits": to_json(limits),
        "quality": to_json(quality),
        "sentences": list(describe_quality(quality, limits)),
    }
