"""Read lesion masks in the frame of their images, cropped and resized like these."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dermedge.data.mask_samples import Inside, Separation, separate
from dermedge_runtime.errors import DataError, ImageError
from dermedge_runtime.image import read_stored
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.printable import printable_path
from dermedge_runtime.spec import Preprocess
from dermedge_runtime.upright import TRANSPOSE, orientation

_BLACK = (0, 0, 0)
# The area that an inverted mask leaves out is a lesion, not a few stray pixels.
_SMALLEST_LESION = 1e-4
_BORDER_SHARE = 0.98
Size = tuple[int, int]
Placed = Literal["", "turned", "unknown"]


@dataclass(frozen=True, eq=False)
class Mask:
    """The lesion of one mask file, in the upright frame of its image.

    Attributes:
        inside: True inside the lesion, bool [H, W].
        encoding: Words for an unusual encoding of the samples, else "".
        placed: "turned" if the mask has the size of the stored image only, so that the
            image's EXIF orientation was applied to it. "unknown" if the image is turned
            and the mask fits both the stored and the upright image. Else "".

    Example:
        >>> Mask(np.zeros((2, 2), bool), "", "").inside.any()
        np.False_
    """

    inside: Inside
    encoding: str
    placed: Placed

    @property
    def border_share(self) -> float:
        """Share of the border inside the lesion, 0 to 1."""
        rows, columns = self.inside[[0, -1]], self.inside[:, [0, -1]]
        return float(np.concatenate([rows.ravel(), columns.ravel()]).mean())

    @property
    def inverted(self) -> bool:
        """True if the border is lesion and an area inside is not.

        No lesion looks like this: lesion and background are swapped.
        """
        outside = 1 - float(self.inside.mean())
        return self.border_share >= _BORDER_SHARE and outside >= _SMALLEST_LESION


def open_mask(path: Path, image: Path | None = None) -> Mask:
    """Read a mask file; see docs/data.md for the encodings.

    Args:
        path: The mask file.
        image: The image that the mask belongs to. Its size is compared with the mask's,
            and its EXIF orientation decides where the mask belongs. None leaves the
            mask as it is.

    Raises:
        DataError: The file is missing or unreadable, its samples do not say which
            pixels are the lesion, or it has another shape than its image.

    Example:
        >>> _ = Image.fromarray(np.eye(32, dtype=np.uint8)).save("eye.png")
        >>> int(open_mask(Path("eye.png")).inside.sum())
        32
    """
    try:
        separation, turn = _separate_file(path)
        inside = separation.inside
        placed: Placed = ""
        if image is not None:
            inside, placed = _place(inside, image, oriented=turn > 1)
    except (ImageError, DataError) as error:
        advice = " Repair the file, or empty its cell." if isinstance(error, ImageError) else ""
        raise DataError(f"{refusal(path)}{error}{advice}") from error
    return Mask(inside, separation.encoding, placed)


def refusal(path: Path) -> str:
    """Return the start of the message about a mask that cannot be used.

    Args:
        path: The mask file.
    """
    return f"The mask {printable_path(path)} cannot be used: "


def decode_mask(path: Path, image: Path | None = None) -> Inside:
    """Read a mask bool [H, W] at its stored size; True inside the lesion.

    Args:
        path: The mask file.
        image: Its image; see `open_mask`.

    Raises:
        DataError: As for `open_mask`, or the mask seems to be inverted.
    """
    mask = open_mask(path, image)
    if mask.inverted:
        raise DataError(
            f"The mask {printable_path(path)} seems to have lesion and background swapped: the "
            "whole border is marked and an area inside is not. Swap them, or empty its cell."
        )
    return mask.inside


def read_mask(path: Path, spec: Preprocess, image: Path | None = None) -> Inside:
    """Read a mask bool [S, S], cropped and resized like its preprocessed image.

    A pixel is inside if the lesion covers at least half of it.

    Args:
        path: The mask file.
        spec: Preprocessing of the image, which is applied to the mask too.
        image: Its image; see `open_mask`.

    Raises:
        DataError: As for `decode_mask`.
    """
    # The mask passes through the preprocessing of the image, so both have the same
    # geometry. Padding is black, which is outside the lesion.
    white = Image.fromarray(decode_mask(path, image).astype(np.uint8) * 255)
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


def _separate_file(path: Path) -> tuple[Separation, int]:
    """Return the lesion in the file's upright frame, and its stored EXIF orientation.

    Raises:
        ImageError: The file cannot be decoded.
        DataError: The lesion cannot be told from the background.
    """

    def read(image: Image.Image) -> tuple[Separation, int]:
        turn = orientation(image)
        separation = separate(image)
        if image.format == "TIFF":  # Pillow turns it while it decodes
            return separation, turn
        return replace(separation, inside=_turn(separation.inside, turn)), turn

    return read_stored(path, read)


def _read_frame(image: Path) -> tuple[Size, int]:
    """Return the upright size of an image file, and its EXIF orientation.

    Raises:
        ImageError: The file cannot be opened.
    """

    def read(opened: Image.Image) -> tuple[Size, int]:
        turn = orientation(opened)
        # Pillow gives the size of a TIFF after it was turned.
        turned = turn > 4 and opened.format != "TIFF"
        return opened.size[::-1] if turned else opened.size, turn

    return read_stored(image, read, whole=False)


def _turn(inside: Inside, orientation: int) -> Inside:
    """Apply an EXIF orientation to a mask."""
    if orientation not in TRANSPOSE:
        return inside
    return np.asarray(Image.fromarray(inside).transpose(TRANSPOSE[orientation]))


def _place(inside: Inside, image: Path, *, oriented: bool) -> tuple[Inside, Placed]:
    """Bring a mask into the upright frame of its image.

    Args:
        inside: The mask, bool [H, W].
        image: The image file.
        oriented: The mask file has an EXIF orientation of its own, which was applied.

    Raises:
        DataError: The mask has another shape than the image.
    """
    size, turn = _read_frame(image)
    stored = size[::-1] if turn > 4 else size
    mask = (inside.shape[1], inside.shape[0])
    if turn > 1 and not oriented and _fits(mask, stored):
        if not _fits(mask, size):
            return _turn(inside, turn), "turned"
        return inside, "unknown"
    if not _fits(mask, size):
        raise DataError(
            f"it is {mask[0]}x{mask[1]}, but its image is {size[0]}x{size[1]}. "
            "Replace the file, or empty its cell."
        )
    return inside, ""


def _fits(mask: Size, image: Size) -> bool:
    """Return whether two sizes differ by a scale only, up to rounding to whole pixels."""
    difference = mask[0] * image[1] - mask[1] * image[0]
    return abs(difference) <= max(sum(mask), sum(image))
