"""Convert an image from any source to a network's uint8 [S, S, 3] input.

The contract is the same on every platform:

- EXIF orientation is applied, ICC profiles are ignored, and alpha is composed on the
  background. Grey, palette and CMYK become RGB; of 16-bit samples the high byte counts.
- `fit` makes the image a square.
- A triangle kernel with antialiasing resizes it, in 22-bit fixed point. Pillow's
  BILINEAR does exactly that on square input.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dermedge_runtime.image import Decoded, Pixels, Source, decode
from dermedge_runtime.spec import Preprocess


@dataclass(frozen=True)
class Prepared:
    """A network's input, and what was noticed about the image.

    Attributes:
        pixels: RGB, uint8 [S, S, 3].
        quality: As in `Decoded`.

    Example:
        >>> prepare("lesion.png", Preprocess(size=224)).quality
        ()
    """

    pixels: Pixels
    quality: tuple[str, ...]


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
    return prepare(source, spec, exact=exact).pixels


def prepare(source: Source, spec: Preprocess, *, exact: bool = False) -> Prepared:
    """Convert an image as `preprocess` does, and return what was noticed about it.

    Args:
        source: As in `preprocess`.
        spec: As in `preprocess`.
        exact: As in `preprocess`.

    Raises:
        ImageError: As in `preprocess`.

    Example:
        >>> prepare("lesion.png", Preprocess(size=224)).pixels.shape
        (224, 224, 3)
    """
    decoded = _decode(source, spec, exact)
    return Prepared(np.array(_square(decoded.picture, spec)), decoded.quality)


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
    return np.array(_decode(source, spec, exact).picture)


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


def _decode(source: Source, spec: Preprocess, exact: bool) -> Decoded:
    def scale(width: int, height: int) -> int:
        return 1 if exact else reduced_scale(width, height, spec)

    return decode(source, background=spec.background, scale=scale)


def _square(image: Image.Image, spec: Preprocess) -> Image.Image:
    width, height = image.size
    target, kernel = (spec.size, spec.size), Image.Resampling.BILINEAR
    if spec.fit == "stretch":
        # Pillow chooses the order of the two passes by the shape of the rectangle. The
        # result is rounded between the passes, so the order changes it. One pass per
        # call fixes the order: rows first.
        return image.resize((spec.size, height), kernel).resize(target, kernel)
    # Both fits paste the image on a square canvas, which cuts what is outside. `crop` of
    # Pillow depends on the process-wide Image.MAX_IMAGE_PIXELS.
    pad = spec.fit == "pad"
    side = max(width, height) if pad else min(width, height)
    if width != height:
        canvas = Image.new("RGB", (side, side), spec.background if pad else None)
        canvas.paste(image, (_offset(side, width), _offset(side, height)))
        image = canvas
    return image.resize(target, kernel)


def _offset(side: int, length: int) -> int:
    """Return the start of an image on a square; a margin of half a pixel rounds down."""
    return (side - length) // 2 if side >= length else -((length - side) // 2)
