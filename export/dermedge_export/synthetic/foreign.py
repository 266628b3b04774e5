"""Draw images that show no skin, from a seed: noise, patterns, text and screens.

They measure whether a model's `ood` task rejects what it was not trained on. Every image
is drawn with numpy alone, so it is the same on every machine.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.errors import UsageError

Pixels = NDArray[np.uint8]
Random = np.random.Generator

SMALLEST = 16
_GLYPH = (7, 5)


def draw_foreign(seed: int, size: int, kind: str | None = None) -> Pixels:
    """Draw an image without skin.

    Args:
        seed: Seed of the drawing.
        size: Side in pixels.
        kind: One of `KINDS`. None takes the kinds in turn, by the seed.

    Returns:
        RGB, uint8 [size, size, 3].

    Raises:
        UsageError: The kind is unknown, or the size is below 16.

    Example:
        >>> image = draw_foreign(3, 64)
        >>> image.shape, bool((image == draw_foreign(3, 64, KINDS[3])).all())
        ((64, 64, 3), True)
    """
    kind = kind or KINDS[seed % len(KINDS)]
    if kind not in KINDS or size < SMALLEST:
        raise UsageError(
            f"No image of kind {kind!r} and {size} px can be drawn. Choose one of "
            f"{', '.join(KINDS)} and at least {SMALLEST} px."
        )
    return _DRAWN[kind](np.random.default_rng((seed, KINDS.index(kind))), size)


def _colour(rng: Random) -> Pixels:
    return rng.integers(0, 256, 3, dtype=np.uint8)


def _canvas(rng: Random, size: int) -> Pixels:
    return np.broadcast_to(_colour(rng), (size, size, 3)).copy()


def _noise(rng: Random, size: int) -> Pixels:
    """Return noise in colour or grey, with grains of 1 to 8 pixels."""
    grain, channels = int(2 ** rng.integers(4)), int(rng.choice([1, 3]))
    cells = -(-size // grain)
    noise = rng.integers(0, 256, (cells, cells, channels), dtype=np.uint8)
    large = noise.repeat(grain, 0).repeat(grain, 1)[:size, :size]
    return np.ascontiguousarray(np.broadcast_to(large, (size, size, 3)))


def _gradient(rng: Random, size: int) -> Pixels:
    """Return a linear gradient between two colours, in any direction."""
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2) + 0.5
    first, last = _colour(rng).astype(float), _colour(rng).astype(float)
    blend: Pixels = (first + along[..., None] * (last - first)).round().astype(np.uint8)
    return blend


def _stripes(rng: Random, size: int) -> Pixels:
    """Return stripes or a chessboard in two colours."""
    width, offset = int(rng.integers(2, max(3, size // 4))), rng.integers(0, size, 2)
    y, x = np.mgrid[:size, :size]
    cells = (x + offset[0]) // width + rng.integers(2) * ((y + offset[1]) // width)
    board: Pixels = np.stack([_colour(rng), _colour(rng)])[cells % 2]
    return board


def _shapes(rng: Random, size: int) -> Pixels:
    """Return rectangles and discs in plain colours on a plain background."""
    image = _canvas(rng, size)
    y, x = np.mgrid[:size, :size]
    for _ in range(int(rng.integers(4, 12))):
        (row, column), (high, wide) = rng.uniform(0, size, 2), rng.uniform(0.05, 0.3, 2) * size
        above, beside = (y - row) / high, (x - column) / wide
        disc = rng.integers(2)
        inside = above**2 + beside**2 < 1 if disc else np.maximum(abs(above), abs(beside)) < 1
        image[inside] = _colour(rng)
    return image


def _write(rng: Random, page: Pixels, colour: Pixels, scale: int) -> None:
    """Fill a page with lines of random glyphs, in place."""
    high, wide = (scale * side for side in _GLYPH)
    for top in range(scale, page.shape[0] - high, high + 3 * scale):
        for left in range(scale, page.shape[1] - wide, wide + scale):
            if rng.random() < 0.15:  # space between words
                continue
            glyph = (rng.random(_GLYPH) < 0.5).repeat(scale, 0).repeat(scale, 1)
            page[top : top + high, left : left + wide][glyph] = colour


def _text(rng: Random, size: int) -> Pixels:
    """Return a page of text, dark on light or light on dark."""
    dark, light = rng.integers(0, 60, 3, np.uint8), rng.integers(196, 256, 3, np.uint8)
    paper, ink = (light, dark) if rng.integers(2) else (dark, light)
    page = np.broadcast_to(paper, (size, size, 3)).copy()
    _write(rng, page, ink, max(1, int(rng.integers(size // 96 + 1, size // 32 + 2))))
    return page


def _screen(rng: Random, size: int) -> Pixels:
    """Return a screen: a bar, then cards with a picture, text and a button."""
    image = np.full((size, size, 3), rng.integers(225, 256), np.uint8)
    bar, card = size // 8, size // int(rng.integers(2, 5))
    ink, accent = rng.integers(0, 80, 3, np.uint8), _colour(rng)
    image[:bar] = accent
    for top in range(bar + 2, size, card):
        block = image[top : top + card - 2, 2:-2]
        block[:] = 255
        block[2:-2, 2 : card - 2] = _colour(rng)
        _write(rng, block[: card * 2 // 3, card + 2 :], ink, 1)
        block[card * 3 // 4 : -2, -size // 4 : -2] = accent
    return image


_DRAWN: dict[str, Callable[[Random, int], Pixels]] = {
    "blank": _canvas,
    "noise": _noise,
    "gradient": _gradient,
    "stripes": _stripes,
    "shapes": _shapes,
    "text": _text,
    "screen": _screen,
}
KINDS = tuple(_DRAWN)
"""Kinds of drawings. `screen` looks like an app, `blank` has one colour."""
