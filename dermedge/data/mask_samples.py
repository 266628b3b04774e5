"""Separate the lesion from the background in the samples of a mask file.

Masks come in many encodings: 0 and 1, 0 and 255, 16 bits, a palette, one colour on
black, transparency around a cut-out. This module decides from the samples which pixels
are the lesion, or says why nobody can know.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge_runtime.errors import DataError
from dermedge_runtime.pillow import load

Inside = NDArray[np.bool_]
Samples = NDArray[Any]

BINARY = "Save the lesion as 255 and the background as 0."
LOSSY = frozenset({"JPEG", "MPO"})
# Usual values of background and lesion. All others are reported.
_USUAL = frozenset({(0, 1), (0, 255), (0, 65535)})
# A file without compression losses that has at most so many values holds labels, or a
# lesion with a few shades at its edge. More values are noise of a JPEG, a wide soft
# edge, or a photograph.
_FEW = 8
# Labels are usually counted 0, 1, 2, ...; shades of an edge span the whole range.
_NARROW = 16
# JPEG changes samples by about as much.
_NOISE = 32
# Largest share of pixels that may lie between background and lesion.
_SOFT_SHARE = 0.1
# Largest area of an even shade, as a share of the lesion, that can be noise.
_NOISE_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class Separation:
    """The lesion of a mask file.

    Attributes:
        inside: True inside the lesion, bool [H, W].
        encoding: Words for an unusual encoding, "" for 0 and 1, 0 and 255, and 16 bits.

    Example:
        >>> Separation(np.zeros((2, 2), bool), "background 0, lesion 2").encoding
        'background 0, lesion 2'
    """

    inside: Inside
    encoding: str = ""


def separate(image: Image.Image) -> Separation:
    """Separate the lesion from the background in an opened mask.

    Args:
        image: The mask file, opened by Pillow. It is loaded here.

    Raises:
        DataError: The samples do not say which pixels are the lesion. The message has
            no file name.

    Example:
        >>> drawn = np.zeros((20, 20), np.uint8)
        >>> drawn[5:15, 5:15] = 2
        >>> separation = separate(Image.fromarray(drawn))
        >>> int(separation.inside.sum()), separation.encoding
        (100, 'background 0, lesion 2')
    """
    lossy = image.format in LOSSY
    _refuse_reduced(image)
    load(image)
    if image.has_transparency_data:
        return _read_transparency(image.convert("RGBA"), lossy)
    if image.mode == "P":
        indices, palette = np.asarray(image), _list_colours(image)
        return _read_palette(indices, palette) if palette.any() else _read_values(indices, lossy)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return _read_values(np.asarray(image), lossy)
    return _read_colours(np.asarray(image.convert("RGB")), lossy)


def _refuse_reduced(image: Image.Image) -> None:
    """Refuse files of which Pillow reads only the high byte of each sample."""
    # Pillow describes the stored samples in `tile`; `mode` is what it makes of them.
    # https://github.com/python-pillow/Pillow/issues/1888
    deep = any(";16" in str(part) for part in getattr(image, "tile", ()))
    if deep and not image.mode.startswith("I"):
        raise DataError(f"it has 16 bits per colour channel. {BINARY}")
    if image.mode.startswith("I") and image.info.get("transparency") is not None:
        raise DataError(f"it has 16 bits and a transparent value. {BINARY}")


def _read_values(values: Samples, lossy: bool) -> Separation:
    """Separate grey values, [H, W]."""
    values = _whole_numbers(values)
    levels, counts = _count_levels(values)
    low, high = levels[0], levels[-1]
    if low < 0:
        raise DataError(f"it has values below 0 ({low:g}). {BINARY}")
    whole = bool(np.issubdtype(values.dtype, np.integer))
    if lossy and high > 0 and high - (low if len(levels) > 1 else 0) < _NOISE:
        raise DataError(
            f"it is a JPEG with values from {low} to {high}, which compression can change. "
            "Save it as PNG."
        )
    if len(levels) == 1:
        inside = np.full(values.shape, bool(high > 0))
        return Separation(inside, "" if high in (0, 1, 255, 65535) else f"only the value {high:g}")
    if len(levels) > 2:
        few = len(levels) <= _FEW and not lossy
        if whole and high - low < _NARROW:
            raise _too_many(levels)
        low, high = _find_clusters(levels, counts)
        _refuse_labels(values, float(low), float(high), few, levels)
        # Black and white may be 1 and 254 after a JPEG; the threshold stays at the half.
        if low <= 8 and 247 <= high <= 255:
            low, high = 0, 255
    inside = values > (float(low) + float(high)) / 2
    return Separation(
        inside, "" if (low, high) in _USUAL else f"background {low:g}, lesion {high:g}"
    )


def _count_levels(values: Samples) -> tuple[Samples, NDArray[np.intp]]:
    """Return the different values in ascending order, and how often each occurs."""
    if np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() < 1 << 16:
        counts = np.bincount(values.ravel())  # much faster than sorting the samples
        levels = np.flatnonzero(counts)
        return levels, counts[levels]
    return np.unique(values, return_counts=True)


def _whole_numbers(values: Samples) -> Samples:
    """Return the samples as int64 where all are whole numbers, otherwise as float64."""
    if not np.issubdtype(values.dtype, np.floating):
        return values.astype(np.int64)
    if not np.isfinite(values).all():
        raise DataError(f"it has samples that are not finite numbers. {BINARY}")
    whole = bool(((np.rint(values) == values) & (np.abs(values) < 1 << 53)).all())
    return values.astype(np.int64 if whole else np.float64)


def _find_clusters(levels: Samples, counts: NDArray[np.intp]) -> tuple[Any, Any]:
    """Return the most frequent value of the lower and of the upper half of the range."""
    upper = levels > (float(levels[0]) + float(levels[-1])) / 2
    lower_mode, upper_mode = (levels[part][counts[part].argmax()] for part in (~upper, upper))
    return lower_mode, upper_mode


def _refuse_labels(values: Samples, low: float, high: float, few: bool, levels: Samples) -> None:
    """Refuse values that are no lesion with a soft edge: labels, or a photograph.

    The shades of an edge lie in lines along it. A further label covers an area, in
    which a pixel and its eight neighbours have the same value.

    Args:
        values: Samples [H, W] of more than two values.
        low: Value of the background.
        high: Value of the lesion.
        few: The file has few values, and its compression changes none.
        levels: The different values.
    """
    margin = (high - low) / 8
    between = (values > low + margin) & (values < high - margin)
    if between.mean() > _SOFT_SHARE and not few:
        raise DataError(
            "it has no two clear values, like a photograph or a map of probabilities. " + BINARY
        )
    near = (high - low) / (64 if few else 8)
    other = (values != low) & (np.abs(values - high) > near)
    area = int((other[1:-1, 1:-1] & _even(values)).sum())
    lesion = int((np.abs(values - high) <= near).sum())
    if area > (0 if few else _NOISE_SHARE * lesion):
        raise _too_many(levels)


def _even(values: Samples) -> Inside:
    """Return the pixels that equal their eight neighbours, [H-2, W-2]."""
    height, width = values.shape
    even = np.ones((height - 2, width - 2), bool)
    for row in range(3):
        for column in range(3):
            part = values[row : height - 2 + row, column : width - 2 + column]
            even &= part == values[1:-1, 1:-1]
    return even


def _too_many(levels: Samples) -> DataError:
    some = ", ".join(f"{level:g}" for level in levels[:_FEW])
    more = " ..." if len(levels) > _FEW else ""
    return DataError(
        f"it has {len(levels)} labels or shades ({some}{more}), and which ones are the lesion is "
        f"not known. {BINARY}"
    )


def _read_colours(colours: Samples, lossy: bool) -> Separation:
    """Separate RGB samples [H, W, 3]: shades of grey, or one colour on black."""
    wide = colours.astype(np.int16)
    if (wide.max(axis=2) - wide.min(axis=2)).max() <= (_NOISE // 4 if lossy else 0):
        return _read_values(colours.max(axis=2), lossy)
    names, counts = np.unique(_pack(colours), return_counts=True)
    bright = np.max([names >> 16, names >> 8 & 255, names & 255], axis=0) >= _NOISE
    if not bright.any() or (bright.all() and len(names) > 1):
        raise _not_on_black(len(names))
    colour = _unpack(int(names[bright][counts[bright].argmax()]))
    # Pixels of a soft edge are darker shades of the lesion's colour.
    scale = colour / np.sum(np.square(colour, dtype=np.float64))
    share = np.clip(wide @ scale, 0, 1)
    residual = np.abs(wide - share[..., None] * colour).max(axis=2)
    if (residual > _NOISE).mean() > (_SOFT_SHARE / 2 if lossy else 0):
        raise _not_on_black(len(names))
    inside = _read_values(np.rint(share * 255).astype(np.uint8), lossy).inside
    return Separation(inside, f"lesion in the colour {colour}")


def _not_on_black(count: int) -> DataError:
    return DataError(
        f"it has {count} colours and is not one colour on black, so which part is the lesion is "
        f"not known. {BINARY}"
    )


def _pack(colours: Samples) -> NDArray[np.int32]:
    """Return RGB samples [..., 3] as one number for each pixel."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _unpack(colour: int) -> tuple[int, int, int]:
    return colour >> 16, colour >> 8 & 255, colour & 255


def _read_transparency(image: Image.Image, lossy: bool) -> Separation:
    """Separate a cut-out: transparent pixels are outside. An even alpha is ignored."""
    samples = np.asarray(image)
    colours, alpha = samples[..., :3], samples[..., 3]
    if alpha.min() == alpha.max():
        return _read_colours(colours, lossy)
    if _shows_two_areas(colours[alpha == alpha.max()]):
        raise DataError(
            "its transparency and its colours show two different areas, so which one is the "
            f"lesion is not known. {BINARY}"
        )
    return Separation(_read_values(alpha, lossy).inside, "transparent around the lesion")


def _shows_two_areas(visible: Samples) -> bool:
    """Return whether the opaque pixels, [N, 3], are a mask by themselves.

    A cut-out shows one colour or a photograph, and no black beside something bright.
    """
    if 1 < len(np.unique(_pack(visible))) <= _FEW:
        return True
    level = visible.max(axis=1)
    dark, bright = (level < _NOISE).mean(), (level >= 256 - _NOISE).mean()
    return bool(min(dark, bright) > 0.01 and dark + bright > 1 - _SOFT_SHARE)


def _list_colours(image: Image.Image) -> NDArray[np.uint8]:
    """Return the palette of an image, [256, 3]; missing entries are black."""
    palette = np.zeros((256, 3), np.uint8)
    stored = np.asarray(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    palette[: len(stored)] = stored
    return palette


def _read_palette(indices: Samples, palette: NDArray[np.uint8]) -> Separation:
    """Separate the indices [H, W] of a palette [256, 3].

    Black is the background. Without black, index 0 is the background.
    """
    used = np.unique(indices)
    black = palette[used].max(axis=1) == 0
    distinct = len(np.unique(palette[used], axis=0)) == len(used)
    if distinct and (palette[used].max(axis=1) == palette[used].min(axis=1)).all():
        return _read_values(palette[indices][..., 0], lossy=False)
    background = used[black] if distinct and black.any() else used[used == 0]
    if len(used) > 2 or len(background) == 0:
        shown = ", ".join(f"{index} {tuple(palette[index].tolist())}" for index in used[:_FEW])
        raise DataError(
            f"it has the palette entries {shown}{' ...' if len(used) > _FEW else ''}, and which "
            f"ones are the lesion is not known. {BINARY}"
        )
    inside = indices != background[0]
    lesion = [int(index) for index in used if index != background[0]]
    usual = lesion in ([], [1], [255])
    return Separation(inside, "" if usual else f"lesion is palette entry {lesion[0]}")
