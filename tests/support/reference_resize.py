"""Resize images by the rules of the bundle contract, in integer arithmetic.

The tests compare Pillow with it.

Triangle kernel with antialiasing: the kernel is stretched by the scale when it shrinks;
weights are normalised and rounded to 22 bits of fraction, and each pass rounds half up
and clips.
"""

import math

import numpy as np

BITS = 22


def weights(source: int, target: int) -> list[tuple[int, list[int]]]:
    """Return the first source sample and its 22-bit weights per target sample."""
    scale = source / target
    reach = max(scale, 1.0)
    table = []
    for index in range(target):
        centre = (index + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        last = min(int(centre + reach + 0.5), source)
        raw = [max(0.0, 1.0 - abs((x - centre + 0.5) * (1.0 / reach))) for x in range(first, last)]
        total = sum(raw)
        table.append((first, [math.floor(0.5 + weight / total * (1 << BITS)) for weight in raw]))
    return table


def resize_columns(pixels: np.ndarray, width: int) -> np.ndarray:
    out = np.empty((pixels.shape[0], width, pixels.shape[2]), np.uint8)
    for index, (first, row) in enumerate(weights(pixels.shape[1], width)):
        window = pixels[:, first : first + len(row)].astype(np.int64)
        total = (window * np.array(row, np.int64)[None, :, None]).sum(axis=1) + (1 << (BITS - 1))
        out[:, index] = np.clip(total >> BITS, 0, 255)
    return out


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] to [size, size, 3], columns first, then rows."""
    across = resize_columns(pixels, size) if pixels.shape[1] != size else pixels
    if across.shape[0] == size:
        return across
    return resize_columns(across.transpose(1, 0, 2), size).transpose(1, 0, 2)


def square(pixels: np.ndarray, fit: str, background: tuple[int, int, int]) -> np.ndarray:
    height, width = pixels.shape[:2]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return pixels[top : top + side, left : left + side]
    if fit == "pad":
        side = max(height, width)
        canvas = np.empty((side, side, 3), np.uint8)
        canvas[:] = background
        top, left = (side - height) // 2, (side - width) // 2
        canvas[top : top + height, left : left + width] = pixels
        return canvas
    return pixels
