"""Random sizes, fits and backgrounds, with the SHA-256 of the tensor."""

import math
import random

from conformance.drawing import random_bytes
from conformance.writing import Files, cases_json
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Fit, Json, Preprocess, to_json

COUNT = 500
MOST_PIXELS = 120_000
FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")


def resize_files() -> Files:
    """Return `resize.json`."""
    draw = random.Random(12)
    return {"resize.json": cases_json([_case(draw, index) for index in range(COUNT)])}


def _case(draw: random.Random, index: int) -> Json:
    width = _side(draw, 2000)
    height = _side(draw, max(MOST_PIXELS // width, 16))
    if index % 2:
        width, height = height, width
    size = draw.choice((16, 32, 33, 48, 63, 64, 96, 100, 128, 160, 192, 224, 256))
    if index % 10 == 0:  # nothing to resize, in one direction at least
        width = size
    background = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
    spec = Preprocess(size, FITS[index % 3], background=background)
    seed = draw.randrange(1 << 32)
    pixels = random_bytes(seed, width * height * 3).reshape(height, width, 3)
    return {
        "width": width,
        "height": height,
        "seed": seed,
        "preprocess": to_json(spec),
        "sha256": sha256_hex(preprocess(pixels, spec).tobytes()),
    }


def _side(draw: random.Random, largest: int) -> int:
    """Return a side from 16 to `largest`; small sides are as frequent as large ones."""
    return round(math.exp(draw.uniform(math.log(16), math.log(largest))))
