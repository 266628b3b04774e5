"""Turn an image that Pillow has opened into upright opaque RGB."""

from typing import Literal

import numpy as np
from PIL import Image

from dermedge_runtime.errors import ImageError

MIN_SIDE = 16
# Pillow's own default. The number is fixed here, so that no global setting of Pillow
# decides which images a device accepts.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
# Phones take JPEG photographs of 108 megapixels.
MAX_JPEG_PIXELS = 1 << 27

_EXIF = b"Exif\0\0"
_LONG = 4
_ORIENTATION_TAG = 0x0112
_SUBFILE_TAG, _BITS_TAG, _SUB_IMAGES_TAG = 254, 258, 330
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def check_size(width: int, height: int, name: str, limit: int = MAX_PIXELS) -> None:
    """Refuse an image that is too large for the memory, or too small to be a photograph.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        name: Name of the image in messages.
        limit: Largest number of pixels.

    Raises:
        ImageError: The image is refused.
    """
    if width * height > limit:
        raise ImageError(
            f"{name} has {width} x {height} pixels, over the limit of {limit}. Pass a smaller one."
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name} has {width} x {height} pixels, too small to be a photograph. "
            f"Each side needs {MIN_SIDE} or more."
        )


def refuse_frames(image: Image.Image, name: str) -> None:
    """Refuse an animation, and a file of several pages.

    Args:
        image: The opened image, not yet decoded.
        name: Name of the image in messages.

    Raises:
        ImageError: The image is refused.
    """
    # A phone's MPO is one photograph followed by previews or depth. Any other file with
    # several frames is an animation or has several pages.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(f"{name} is animated or has several pages. Pass a single frame.")


def refuse_content(image: Image.Image, name: str) -> None:
    """Refuse several frames, previews of raw files, and samples of an unknown range.

    Args:
        image: The opened image, not yet decoded.
        name: Name of the image in messages.

    Raises:
        ImageError: The image is refused.
    """
    refuse_frames(image, name)
    tags = getattr(image, "tag_v2", {})
    if tags.get(_SUBFILE_TAG, 0) == 1 and _SUB_IMAGES_TAG in tags:
        raise ImageError(f"{name} is a camera's raw file. Convert it to JPEG or PNG.")
    mode, key = image.mode, image.info.get("transparency")
    if (
        mode == "F"
        or (mode == "I" and image.format != "PNG")
        or (mode.startswith("I;") and tags.get(_BITS_TAG, ()) == (12,))
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


def orientation(image: Image.Image) -> int:
    """Return the stored EXIF orientation, 1 to 8; 1 if there is none or it is broken.

    Args:
        image: The opened image, not yet decoded. Pillow turns a TIFF while it decodes.
    """
    tags, exif = getattr(image, "tag_v2", {}), image.info.get("exif")
    value = tags.get(_ORIENTATION_TAG) if image.format == "TIFF" else _read_orientation(exif)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _read_orientation(exif: object) -> int:
    """Return the orientation of an EXIF block; 0 if there is none.

    Pillow stops reading at the first broken tag, which would leave the image turned.
    """
    data = exif if isinstance(exif, bytes) else b""
    while data.startswith(_EXIF):
        data = data.removeprefix(_EXIF)
    order: Literal["big", "little"] = "big" if data.startswith(b"MM") else "little"

    def number(start: int, length: int) -> int:
        return int.from_bytes(data[start : start + length], order)

    entries = number(4, 4) + 2
    for entry in range(entries, min(entries + 12 * number(entries - 2, 2), len(data)), 12):
        if number(entry, 2) == _ORIENTATION_TAG:
            return number(entry + 8, 4 if number(entry + 2, 2) == _LONG else 2)
    return 0


def opaque_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert a decoded image of any mode to RGB on a background.

    Args:
        image: The decoded image. Of 16-bit samples the high byte counts.
        background: RGB colour behind transparent pixels.
    """
    if image.mode.startswith("I"):
        # Pillow's own conversion of 16-bit grey clips to 255 instead of scaling.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, background)
        canvas.paste(layer, mask=layer)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")
