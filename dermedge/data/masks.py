"""Read lesion masks, cropped and resized like the preprocessed images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge_runtime.errors import DataError, ImageError
from dermedge_runtime.preprocess import decode_image, preprocess
from dermedge_runtime.spec import Preprocess

_BLACK = (0, 0, 0)


def decode_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask [H, W] at its stored size; True inside the lesion.

    Pixels brighter than half of white are inside. In a file without a value above 1,
    all pixels that are not black are inside.

    Raises:
        DataError: The file is missing or unreadable.
    """
    try:
        grey = decode_image(path, Preprocess(16, background=_BLACK), exact=True).max(axis=2)
    except ImageError as error:
        raise DataError(
            f"The mask {path} cannot be used: {error} Repair the file, or empty its cell."
        ) from error
    # Some sets store masks as 0 and 1 instead of 0 and 255.
    return np.asarray(grey > (127 if grey.max() > 1 else 0))


def read_mask(path: Path, spec: Preprocess) -> NDArray[np.bool_]:
    """Read a mask bool [S, S], cropped and resized like its preprocessed image.

    A pixel is inside if the lesion covers at least half of it.

    Args:
        path: The mask file.
        spec: Preprocessing of the image, which is applied to the mask too.

    Raises:
        DataError: The file is missing or unreadable.
    """
    # The mask passes through the preprocessing of the image, so both have the same
    # geometry. Padding is black, which is outside the lesion.
    white = Image.fromarray(decode_mask(path).astype(np.uint8) * 255)
    pixels = preprocess(white, replace(spec, background=_BLACK), exact=True)
    return np.asarray(pixels[..., 0] >= 128)


def output_grid(spec: Preprocess) -> Preprocess:
    """Return the preprocessing that brings a mask onto the grid of a `segment` output.

    Examples:
        >>> from dermedge import Preprocess
        >>> output_grid(Preprocess(224)).size
        56
    """
    return replace(spec, size=spec.size // 4)
