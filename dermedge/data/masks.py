"""Masks of a table: which pixels of an image belong to the lesion, in the frame that a network sees."""

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
    """A mask [H, W] as it is stored; True inside the lesion.

    Inside is what is brighter than half of white, or not black in a file that holds nothing brighter than 1.

    Raises:
        DataError: it is missing or unreadable.
    """
    try:
        grey = decode_image(path, Preprocess(16, background=_BLACK), exact=True).max(axis=2)
    except ImageError as error:
        raise DataError(
            f"The mask {path} cannot be used: {error} Repair it, or empty its cell."
        ) from error
    return np.asarray(grey > (127 if grey.max() > 1 else 0))


def read_mask(path: Path, spec: Preprocess) -> NDArray[np.bool_]:
    """A mask [S, S] in the frame of the preprocessed image: a pixel is inside where at least half of what it covers is.

    Raises:
        DataError: it is missing or unreadable.
    """
    white = Image.fromarray(decode_mask(path).astype(np.uint8) * 255)
    return np.asarray(
        preprocess(white, replace(spec, background=_BLACK), exact=True)[..., 0] >= 128
    )


def output_grid(spec: Preprocess) -> Preprocess:
    """The preprocessing that brings a mask onto the grid of a `segment` output, a quarter of the input's side."""
    return replace(spec, size=spec.size // 4)
