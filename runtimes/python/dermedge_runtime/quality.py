"""Measure the quality of a photograph in integers: of its pixels, and of the lesion's size.

The measures are defined in `runtimes/README.md`. They are the same in every language,
because they are computed without rounding: before the engine from its uint8 [S, S, 3]
input, and after it from the mask of a model that segments the lesion.
"""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import numpy.typing as npt

from dermedge_runtime.errors import BundleError
from dermedge_runtime.spec import AGAIN, Json, optional

Pixels = npt.NDArray[np.uint8]

LINES = 32  # Rows, and as many columns, that are measured.
WHITE = 250  # Green values from here on are white: a reflection, or too much light.
DETAIL = 96  # The finest detail that counts is 1/96 of the frame.

TOO_DARK = "The image is too dark. Add light."
TOO_BRIGHT = "The image is too bright. Reduce the light."
GLARE = "Light reflects in the image. Tilt the phone or the lamp."
BLURRED = "The image is out of focus. Hold still, or move back a little."
TOO_SMALL = "The lesion is missing or too small in the image. Move closer."
CUT_OFF = "The lesion is too large or cut off. Move back."


@dataclass(frozen=True)
class QualityLimits:
    """Limits that a good photograph keeps; None is not judged.

    Attributes:
        sharpness: Smallest sharpness, 0 to 1000.
        dark: Smallest brightness, 0 to 255.
        bright: Largest brightness, 0 to 255.
        glare: Largest glare, 0 to 1000.
        small: Smallest share of the frame that the lesion covers, 0 to 1000.
        cut: Largest share of the frame's border that the lesion covers, 0 to 1000.

    Example:
        >>> QualityLimits.from_json({"sharpness": 540, "dark": 40}).bright is None
        True
    """

    sharpness: int | None = None
    dark: int | None = None
    bright: int | None = None
    glare: int | None = None
    small: int | None = None
    cut: int | None = None

    @classmethod
    def from_json(cls, data: Json) -> "QualityLimits":
        """Read limits from JSON types.

        Raises:
            BundleError: A limit is not an integer, or is out of range.
        """
        limits = {entry.name: optional(data, entry.name, int, "quality") for entry in fields(cls)}
        for name, value in limits.items():
            largest = 255 if name in ("dark", "bright") else 1000
            if value is not None and not 0 <= value <= largest:
                raise BundleError(f"quality.{name} is {value}, not within 0..{largest}. {AGAIN}")
        return cls(**limits)


@dataclass(frozen=True)
class Quality:
    """Measures of the pixels of one image.

    Attributes:
        sharpness: Difference of neighbours in parts per 1000 of the difference at twice
            their distance, in the more blurred direction. A blurred image has about
            500, a sharp one 600 or more.
        brightness: Mean of the green values, 0 to 255.
        glare: Green values that are white, in parts per 1000.

    Example:
        >>> measure_quality(np.full((64, 64, 3), 255, np.uint8))
        Quality(sharpness=0, brightness=255, glare=1000)
    """

    sharpness: int
    brightness: int
    glare: int


def measure_quality(pixels: Pixels) -> Quality:
    """Measure sharpness, brightness and glare of a preprocessed image.

    Only the green values of 32 rows and 32 columns are read. Green has most of the
    luminance, and skin and lesions differ most in it. The ratio of differences does not
    depend on contrast, so a pale lesion counts as sharp as a dark one.

    Args:
        pixels: RGB, uint8 [S, S, 3].

    Example:
        >>> from dermedge_runtime.preprocess import preprocess
        >>> from dermedge_runtime.spec import Preprocess
        >>> measure_quality(preprocess("lesion.png", Preprocess(size=160))).glare
        0
    """
    size = len(pixels)
    at, green = _line_positions(size), pixels[..., 1]
    # Rows and columns. The last axis is the line, so that a shift along all lines is one
    # block of memory, on which numpy is fastest.
    lines = np.empty((2, size, LINES), np.uint8)
    lines[0], lines[1] = green[at].T, green[:, at]
    step = max(1, size // DETAIL)
    first, next_, far = lines[:, : -2 * step], lines[:, step:-step], lines[:, 2 * step :]
    sharpness = min(
        1000 * near // total if total else 0
        for near, total in zip(_differences(first, next_), _differences(first, far), strict=True)
    )
    count = lines.size
    return Quality(
        sharpness=sharpness,
        brightness=int(lines.sum(dtype=np.uint32)) // count,
        glare=1000 * int(np.count_nonzero(lines >= WHITE)) // count,
    )


def describe_quality(quality: Quality, limits: QualityLimits) -> tuple[str, ...]:
    """Return a sentence, and what to do, for each limit that an image does not keep.

    Args:
        quality: Measures of the image.
        limits: Limits of the bundle.

    Example:
        >>> describe_quality(Quality(700, 12, 0), QualityLimits(sharpness=540, dark=40))
        ('The image is too dark. Add light.',)
    """
    too_bright = limits.bright is not None and quality.brightness > limits.bright
    found = {
        TOO_DARK: limits.dark is not None and quality.brightness < limits.dark,
        TOO_BRIGHT: too_bright,
        # Too much light makes the whole image white; that is no reflection.
        GLARE: limits.glare is not None and quality.glare > limits.glare and not too_bright,
        BLURRED: limits.sharpness is not None and quality.sharpness < limits.sharpness,
    }
    return tuple(sentence for sentence, applies in found.items() if applies)


@dataclass(frozen=True)
class LesionSize:
    """Measures of the mask of one image.

    Attributes:
        share: Part of the frame that the lesion covers, in parts per 1000.
        border: Part of the frame's border that the lesion covers, in parts per 1000.

    Example:
        >>> measure_lesion(np.ones((64, 64), bool))
        LesionSize(share=1000, border=1000)
    """

    share: int
    border: int


def measure_lesion(mask: npt.NDArray[np.bool_]) -> LesionSize:
    """Measure how much of the frame, and of its border, the lesion covers.

    The border is the outermost pixel on each side. A lesion that continues outside the
    frame covers a part of it.

    Args:
        mask: True inside the lesion, bool [S, S].

    Example:
        >>> mask = np.zeros((8, 8), bool)
        >>> mask[:4] = True
        >>> measure_lesion(mask)
        LesionSize(share=500, border=500)
    """
    sides = (mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1])
    border = sum(int(np.count_nonzero(side)) for side in sides)
    return LesionSize(
        share=1000 * int(np.count_nonzero(mask)) // mask.size,
        border=1000 * border // sum(side.size for side in sides),
    )


def describe_lesion(lesion: LesionSize, limits: QualityLimits) -> tuple[str, ...]:
    """Return a sentence, and what to do, if the lesion is too small or cut off.

    Args:
        lesion: Measures of the mask.
        limits: Limits of the bundle.

    Example:
        >>> describe_lesion(LesionSize(share=900, border=950), QualityLimits(cut=800))
        ('The lesion is too large or cut off. Move back.',)
    """
    if limits.small is not None and lesion.share < limits.small:
        return (TOO_SMALL,)  # The two sentences advise opposite things, so one is enough.
    return (CUT_OFF,) if limits.cut is not None and lesion.border > limits.cut else ()


def _differences(one: Pixels, other: Pixels) -> list[int]:
    """Return the sum of absolute differences of rows and of columns."""
    # In uint8, without a wider copy: the larger value minus the smaller one.
    differences: Pixels = np.maximum(one, other) - np.minimum(one, other)
    sums: list[int] = differences.reshape(2, -1).sum(axis=1, dtype=np.uint32).tolist()
    return sums


@cache
def _line_positions(size: int) -> npt.NDArray[np.intp]:
    """Return the positions of the rows, or columns, that are measured."""
    return (2 * np.arange(LINES) + 1) * size // (2 * LINES)
