"""Convert an image from any source to a network's uint8 [S, S, 3] input.

The contract is the same on every platform:

- EXIF orientation is applied, ICC profiles are ignored, and alpha is composed on the
  background. Grey, palette and CMYK become RGB; of 16-bit samples the high byte counts.
- `fit` makes the image a square.
- A triangle kernel with antialiasing resizes it, in 22-bit fixed point. Pillow's
  BILINEAR does exactly that on square input.
"""

import io
import os
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from dermedge_runtime.errors import ImageError
from dermedge_runtime.image import orientation
from dermedge_runtime.spec import Preprocess

Pixels: TypeAlias = npt.NDArray[np.uint8]
Source: TypeAlias = bytes | str | os.PathLike[str] | Image.Image | Pixels

MIN_SIDE = 16
# Pillow's own default. The number is fixed here, so that no global setting of Pillow
# decides which images a device accepts.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

# Photographic formats that every platform decodes to the same samples, the most
# frequent first.
FORMATS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "TIFF": "TiffImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
}

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocess(source: Source, spec: Preprocess, *, exact: bool = False) -> Pixels:
    """Convert an image to the network's input.

    Args:
        source: Encoded bytes, a path, a PIL image, or RGB uint8 [H, W, 3].
        spec: The model's preprocessing.
        exact: Never decode a JPEG at a reduced scale. A reduced scale is many times
            faster for photographs, cuts the same square, and differs by a few grey
            levels. Use `exact` where values must be bit-exact.

    Returns:
        RGB, uint8 [S, S, 3].

    Raises:
        ImageError: The source is not a single readable image with a short side of at
            least 16 pixels.

    Example:
        >>> preprocess("lesion.png", Preprocess(size=224)).shape
        (224, 224, 3)
    """
    return np.array(_square(_decode(source, spec, exact), spec))


def decode_image(source: Source, spec: Preprocess, *, exact: bool = False) -> Pixels:
    """Decode an image to upright opaque RGB without cutting or resizing it.

    Args:
        source: As in `preprocess`.
        spec: The model's preprocessing.
        exact: As in `preprocess`. Without it a large JPEG may have a half, a quarter or
            an eighth of its size.

    Returns:
        RGB, uint8 [H, W, 3].

    Raises:
        ImageError: As in `preprocess`.

    Example:
        >>> decode_image("lesion.png", Preprocess(size=64)).shape
        (192, 256, 3)
    """
    return np.array(_decode(source, spec, exact))


def reduced_scale(width: int, height: int, spec: Preprocess) -> int:
    """Return the largest divisor (8, 4, 2 or 1) of the size at which a JPEG is decoded.

    The decoded short side stays at least twice S. Width, height and the offset of the
    crop or of the padding are multiples of the divisor, so that the crop covers the
    same pixels.

    Args:
        width: Width of the JPEG in pixels.
        height: Height of the JPEG in pixels.
        spec: The model's preprocessing.

    Example:
        >>> reduced_scale(4032, 3024, Preprocess(size=224))
        4
    """
    offset = 0 if spec.fit == "stretch" else abs(width - height) // 2
    for scale in (8, 4, 2):
        divides = width % scale == height % scale == offset % scale == 0
        if divides and min(width, height) // scale >= 2 * spec.size:
            return scale
    return 1


def _decode(source: Source, spec: Preprocess, exact: bool) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _guarded(source, "the PIL image", spec, scalable=False)
    stream, name = _open_source(source)
    with stream as file:
        try:
            image = _open_image(file, name)
        except OSError as error:
            raise ImageError(f"{name} cannot be read ({error}). Check the file.") from error
        return _guarded(image, name, spec, scalable=not exact)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"The array is {array.dtype} {list(array.shape)}. Pass RGB as uint8 [height, width, 3]."
        )
    _check_size(array.shape[1], array.shape[0], "the array")
    return Image.fromarray(np.ascontiguousarray(array))


def _open_source(
    source: bytes | str | os.PathLike[str],
) -> tuple[AbstractContextManager[IO[bytes]], str]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return nullcontext(io.BytesIO(source)), "the image"
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise ImageError(
            f"A {kind} is not an image. Pass encoded bytes, a path, a PIL image or a uint8 array."
        )
    path = Path(source)
    if path.is_dir():
        raise ImageError(f"{path} is a folder. Name an image file.")
    try:
        return path.open("rb"), str(path)
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist. Check the path.") from error
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{path} cannot be read ({error}). Check the path and its permissions."
        ) from error


def _open_image(file: IO[bytes], name: str) -> Image.Image:
    """Open an image as Image.open does, but only in FORMATS.

    Image.open also checks the size, and warns through a global setting.
    """
    prefix = file.read(16)  # as much as Pillow's plug-ins look at
    if not prefix:
        raise ImageError(f"{name} is empty (0 bytes). Fetch or take the photograph again.")
    for kind, plugin in FORMATS.items():
        import_module(f"PIL.{plugin}")
        factory, accepts = Image.OPEN[kind]
        # For a file that it knows but cannot read, a plug-in returns text, not True.
        if accepts is not None and accepts(prefix) is True:
            file.seek(0)
            try:
                return factory(file, "")
            except Exception as error:
                raise _damaged(name, kind, error) from error
    raise ImageError(
        f"{name} is not an image that dermedge reads ({', '.join(FORMATS)}). "
        "Convert it to JPEG or PNG."
    )


def _damaged(name: str, kind: str | None, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ImageError(
        f"{name} is truncated or damaged ({kind or 'image'}: {reason}). "
        "Fetch or take the photograph again."
    )


def _guarded(image: Image.Image, name: str, spec: Preprocess, *, scalable: bool) -> Image.Image:
    """Call `_upright`, and turn every error of a decoder into an ImageError.

    Pillow's decoders raise many types for a damaged file, without a common base class.
    """
    try:
        return _upright(image, name, spec, scalable)
    except ImageError:
        raise
    except Exception as error:
        raise _damaged(name, image.format, error) from error


def _upright(image: Image.Image, name: str, spec: Preprocess, scalable: bool) -> Image.Image:
    _check_size(*image.size, name)
    # A phone's MPO is one photograph followed by previews or depth. Any other file with
    # several frames is an animation or has several pages.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(f"{name} is animated or has several pages. Pass a single frame.")
    if scalable and image.format in ("JPEG", "MPO"):
        scale = reduced_scale(*image.size, spec)
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
    _refuse_depth(image, name)
    image.load()
    # Pillow has already applied the orientation of a TIFF.
    turn = 1 if image.format == "TIFF" else orientation(image)
    image = _opaque_rgb(image, spec.background)
    return image.transpose(_TRANSPOSE[turn]) if turn in _TRANSPOSE else image


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} pixels, over the limit of {MAX_PIXELS}. "
            "Pass a smaller one."
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels, too small to be a photograph. "
            f"Each side needs {MIN_SIDE} or more."
        )


def _refuse_depth(image: Image.Image, name: str) -> None:
    """Refuse samples of an unknown scale, and colour keys that Pillow drops."""
    mode, key = image.mode, image.info.get("transparency")
    bits = getattr(image, "tag_v2", {}).get(258, ())
    if (
        mode == "F"
        or (mode == "I" and image.format != "PNG")
        or (mode.startswith("I;") and bits == (12,))
    ):
        raise ImageError(
            f"{name} has samples of an unknown range (mode {mode}). "
            "Convert it to 8 bits per sample."
        )
    deep = mode.startswith("I") or (isinstance(key, tuple) and max(key) > 255)
    if key is not None and deep:
        raise ImageError(
            f"{name} has 16 bits per sample and a transparent colour. "
            "Convert it to 8 bits per sample."
        )


def _opaque_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips to 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, background)
        canvas.paste(layer, mask=layer)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _square(image: Image.Image, spec: Preprocess) -> Image.Image:
    width, height = image.size
    target, kernel = (spec.size, spec.size), Image.Resampling.BILINEAR
    if spec.fit == "stretch":
        # Pillow chooses the order of the two passes by the shape of the rectangle. The
        # result is rounded between the passes, so the order changes it. One pass per
        # call fixes the order: rows first.
        return image.resize((spec.size, height), kernel).resize(target, kernel)
    if spec.fit == "pad":
        side = max(width, height)
        canvas = Image.new("RGB", (side, side), spec.background)
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        return canvas.resize(target, kernel)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize(target, kernel)
