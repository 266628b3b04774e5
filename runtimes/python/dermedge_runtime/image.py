"""Open an image from any source and decode it to upright opaque RGB.

Everything that reads an image (`data check`, import, training, evaluation, prediction and
calibration) decodes it here, so that all of them accept and refuse the same files.
"""

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from dermedge_runtime.errors import DermedgeError, ImageError
from dermedge_runtime.jpeg import check_jpeg
from dermedge_runtime.pillow import load, open_pillow, quiet
from dermedge_runtime.printable import printable_path
from dermedge_runtime.upright import (
    MAX_JPEG_PIXELS,
    MAX_PIXELS,
    TRANSPOSE,
    check_size,
    opaque_rgb,
    orientation,
    refuse_content,
    refuse_frames,
)

Pixels: TypeAlias = npt.NDArray[np.uint8]
Source: TypeAlias = bytes | str | os.PathLike[str] | Image.Image | Pixels
T = TypeVar("T")
Scale: TypeAlias = Callable[[int, int], int]
"""Function of width and height that returns 1, 2, 4 or 8."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "DICOM")
"""Names of the formats that `decode` reads."""
_JPEG = ("JPEG", "MPO")
HEAD_BYTES = 160
"""Number of bytes that `identify` needs from the beginning of a file."""

_SIGNATURES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"),
}
# Brands of the ISO base media file format: still images and sequences of AV1 and HEVC.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes:
        picture: Upright opaque RGB. A JPEG may have a half, a quarter or an eighth of
            its size.
        width: Width of the upright image in pixels, at full scale.
        height: Height of the upright image in pixels, at full scale.
        turned: The stored picture is turned or mirrored by its EXIF orientation.
        quality: A sentence for each sign of damage that is not certain.

    Example:
        >>> decoded = decode("lesion.png")
        >>> decoded.width, decoded.height, decoded.turned, decoded.quality
        (256, 192, False, ())
    """

    picture: Image.Image
    width: int
    height: int
    turned: bool = False
    quality: tuple[str, ...] = ()


def decode(
    source: Source,
    *,
    background: tuple[int, int, int] = (0, 0, 0),
    scale: Scale | None = None,
    name: str | None = None,
) -> Decoded:
    """Decode an image to upright opaque RGB.

    Args:
        source: Encoded bytes, a path, a PIL image, or RGB uint8 [H, W, 3].
        background: RGB colour behind transparent pixels.
        scale: Chooses the divisor of the size at which a JPEG is decoded. None decodes
            it in full.
        name: Name of the image in messages; by default its path.

    Raises:
        ImageError: The source is not a single complete image that dermedge reads, has a
            side below 16 pixels, or has too many pixels.

    Example:
        >>> decode("lesion.png").picture.size
        (256, 192)
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, name or "The array")
    if isinstance(source, Image.Image):
        stored = _stored_jpeg(source)
        return _guarded(source, name or "The PIL image", source.format, background, file=stored)
    stream, name = _open_source(source, name)
    with stream as file:
        kind, image = _open_file(file, name)
        return _guarded(image, name, kind, background, scale, file)


def read_stored(path: Path, read: Callable[[Image.Image], T], *, whole: bool = True) -> T:
    """Open an image file, and read its samples as they are stored.

    Masks are read here, because RGB of 8 bits loses some of their values.

    Args:
        path: The file.
        read: Function of the opened image, of any of Pillow's modes. Its pixels are not
            decoded yet.
        whole: `read` decodes the image, so that the file must be complete.

    Returns:
        What `read` returns.

    Raises:
        ImageError: The file is not a single complete image that dermedge opens, has a
            side below 16 pixels, or has too many pixels.

    Example:
        >>> read_stored(Path("lesion.png"), lambda image: image.mode)
        'RGB'
    """
    stream, name = _open_source(path, None)
    with stream as file:
        kind, image = _open_file(file, name)
        check_size(*image.size, name, MAX_JPEG_PIXELS if kind == "JPEG" else MAX_PIXELS)
        refuse_frames(image, name)
        try:
            with quiet():
                result = read(image)
            doubts = check_jpeg(file, image) if whole and kind == "JPEG" else ()
        except DermedgeError:
            raise
        except Exception as error:
            raise _damaged(name, kind, error) from error
        if doubts:
            raise ImageError(f"{name} may be damaged. {' '.join(doubts)}")
        return result


def identify(head: bytes) -> str | None:
    """Return the name of an image format by a file's first bytes, None for other files.

    The name says what the file claims to be. Not every named format can be decoded.

    Args:
        head: First `HEAD_BYTES` bytes of the file, or all of a shorter one.

    Returns:
        "JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "DICOM",
        "JPEG 2000", "JPEG XL" or None.

    Example:
        >>> from pathlib import Path
        >>> identify(Path("lesion.png").read_bytes()[:HEAD_BYTES])
        'PNG'
    """
    for name, signatures in _SIGNATURES.items():
        if head.startswith(signatures):
            return name
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    # Two letters alone are too common, so the size of the second header is checked too.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[128:132] == b"DICM":
        return "DICOM"
    return _identify_brand(head) if head[4:8] == b"ftyp" else None


def _identify_brand(head: bytes) -> str | None:
    """Return "AVIF" or "HEIF" by the brands of an ISO base media file, else None."""
    end = int.from_bytes(head[:4], "big")
    # The major brand is followed by four bytes of version, then by compatible brands.
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, min(end, len(head)), 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def _from_array(array: npt.NDArray[Any], name: str) -> Decoded:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"{name} is {array.dtype} {list(array.shape)}. Pass RGB as uint8 [height, width, 3]."
        )
    height, width = array.shape[:2]
    check_size(width, height, name, MAX_PIXELS)
    return Decoded(Image.fromarray(np.ascontiguousarray(array)), width, height)


def _stored_jpeg(image: Image.Image) -> IO[bytes] | None:
    """Return the file of a JPEG that was opened with Pillow and is not decoded yet."""
    file = getattr(image, "fp", None)
    if image.format not in _JPEG or not getattr(image, "tile", None) or not file or image.tell():
        return None
    try:
        file.seek(0)
        return io.BytesIO(file.read())
    except (OSError, ValueError):  # not seekable, or closed
        return None


def _open_source(
    source: bytes | str | os.PathLike[str], name: str | None
) -> tuple[AbstractContextManager[IO[bytes]], str]:
    """Return the opened source, and its name in messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return nullcontext(io.BytesIO(source)), name or "The image"
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ImageError(
            f"A {kind} is not an image. Pass encoded bytes, a path, a PIL image or a uint8 array."
        )
    path = Path(source)
    name = name or printable_path(path)
    try:
        if path.is_dir():
            raise ImageError(f"{name} is a folder. Name an image file.")
        # To open a pipe would wait for its writer.
        if path.exists() and not path.is_file():
            raise ImageError(
                f"{name} is a pipe or a device. Name an image file; `predict` reads - as "
                "standard input."
            )
        return path.open("rb"), name
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ImageError(
            f"{name} cannot be read ({reason}). Check the path and its permissions."
        ) from error


def _open_file(file: IO[bytes], name: str) -> tuple[str, Image.Image]:
    """Return the format of a file, and the opened image."""
    try:
        head = file.read(HEAD_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"{name} cannot be read ({reason}). Check the file.") from error
    kind = _checked_format(head, name)
    try:
        return kind, _open(kind, file, name)
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(name, kind, error) from error


def _checked_format(head: bytes, name: str) -> str:
    if not head:
        raise ImageError(f"{name} is empty (0 bytes). Fetch or take the photograph again.")
    kind = identify(head)
    if kind in FORMATS:
        return kind
    what = kind or "not an image"
    if kind is None and head[4:8] == b"ftyp":
        brand = head[8:12].decode("ascii", "replace")
        what = f"a media file of the brand {brand!r}, not an image"
    raise ImageError(
        f"{name} is {what} that dermedge reads ({', '.join(FORMATS)}). Convert it to JPEG or PNG."
        if kind is None
        else f"{name} is {kind}, which dermedge does not read. Convert it to JPEG or PNG."
    )


def _open(kind: str, file: IO[bytes], name: str) -> Image.Image:
    file.seek(0)
    if kind == "HEIF":
        from dermedge_runtime.heif import open_heif

        return open_heif(file, name)
    if kind == "DICOM":
        from dermedge_runtime.dicom import open_dicom

        return open_dicom(file, name)
    try:
        return open_pillow(kind, file)
    except NotImplementedError as error:
        raise ImageError(
            f"{name} is {kind}, which needs Pillow 11.3 or later. Upgrade Pillow, or convert it to "
            "JPEG or PNG."
        ) from error


def _guarded(
    image: Image.Image,
    name: str,
    kind: str | None,
    background: tuple[int, int, int],
    scale: Scale | None = None,
    file: IO[bytes] | None = None,
) -> Decoded:
    """Call `_upright`, and turn every error of a decoder into an ImageError.

    Pillow's decoders raise many types for a damaged file, without a common base class.
    """
    try:
        with quiet():
            return _upright(image, name, kind, background, scale, file)
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(name, kind, error) from error


def _damaged(name: str, kind: str | None, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ImageError(
        f"{name} is truncated or damaged ({kind or 'image'}: {reason}). "
        "Fetch or take the photograph again."
    )


def _upright(
    image: Image.Image,
    name: str,
    kind: str | None,
    background: tuple[int, int, int],
    scale: Scale | None,
    file: IO[bytes] | None,
) -> Decoded:
    jpeg = kind in _JPEG
    width, height = image.size
    check_size(width, height, name, MAX_JPEG_PIXELS if jpeg else MAX_PIXELS)
    refuse_content(image, name)
    divisor = scale(width, height) if scale and jpeg and file else 1
    if divisor > 1:
        image.draft(None, (width // divisor, height // divisor))
    turn = orientation(image)
    load(image)
    if kind == "PNG":  # its EXIF may follow the pixels
        turn = orientation(image)
    quality = check_jpeg(file, image) if jpeg and file else ()
    picture = opaque_rgb(image, background)
    # Pillow has already applied the orientation of a TIFF.
    if turn > 1 and kind != "TIFF":
        picture = picture.transpose(TRANSPOSE[turn])
        if turn > 4:
            width, height = height, width
    if divisor == 1:
        width, height = picture.size
    return Decoded(picture, width, height, turn != 1, quality)
