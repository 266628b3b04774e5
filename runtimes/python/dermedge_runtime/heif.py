"""Open HEIC and HEIF photographs."""

from importlib import import_module
from typing import IO, Any

from PIL import Image

from dermedge_runtime.errors import ImageError
from dermedge_runtime.upright import check_size

# Both packages have the same interface. The wheels of pillow-heif hold an encoder under
# the GPL, so the extra installs pi-heif, which only decodes:
# https://github.com/bigcat88/pillow_heif.
_PACKAGES = ("pi_heif", "pillow_heif")


def open_heif(file: IO[bytes], name: str) -> Image.Image:
    """Decode the main picture of a HEIF file.

    libheif has already turned the picture upright. Its EXIF orientation is ignored.

    Args:
        file: The file, at its beginning.
        name: Name of the image in messages.

    Raises:
        ImageError: No package that reads HEIF is installed, or the file is damaged.
    """
    package = _package(name)
    try:
        pictures = package.open_heif(file.read())
        main = pictures[pictures.primary_index]
        width, height = main.size
        check_size(width, height, name)
        picture: Image.Image = main.to_pillow()
    except ImageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ImageError(
            f"{name} is HEIF that cannot be decoded ({reason}). Convert it to JPEG or PNG."
        ) from error
    picture.info = {}
    return picture


def _package(name: str) -> Any:
    for package in _PACKAGES:
        try:
            return import_module(package)
        except ImportError:
            continue
    raise ImageError(
        f"{name} is HEIF, which needs pi-heif. Run pip install 'dermedge[heif]', or convert it to "
        "JPEG or PNG."
    )
