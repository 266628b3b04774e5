"""Open image files with Pillow, whatever the process-wide settings of Pillow are.

An app that uses dermedge may set `ImageFile.LOAD_TRUNCATED_IMAGES`, lower
`Image.MAX_IMAGE_PIXELS`, register or remove plug-ins, or turn warnings into errors. None
of that may change a prediction, and other threads must not see a change of these
settings. So files are opened with subclasses of Pillow's own classes. Their methods are
Pillow's, with other values for the globals that they read.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import FunctionType, ModuleType, SimpleNamespace
from typing import IO, Any

from PIL import Image, ImageFile

from dermedge_runtime import png

_CLASSES = {
    "JPEG": "JpegImagePlugin.JpegImageFile",
    "PNG": "PngImagePlugin.PngImageFile",
    "WEBP": "WebPImagePlugin.WebPImageFile",
    "TIFF": "TiffImagePlugin.TiffImageFile",
    "BMP": "BmpImagePlugin.BmpImageFile",
    "GIF": "GifImagePlugin.GifImageFile",
    "AVIF": "AvifImagePlugin.AvifImageFile",
}


def open_pillow(kind: str, file: IO[bytes]) -> ImageFile.ImageFile:
    """Open a file of one of Pillow's formats; the pixels are not decoded yet.

    A JPEG with several pictures (MPO) opens as its first picture.

    Args:
        kind: Name of the format, as `identify` returns it.
        file: The file, at any position.

    Raises:
        NotImplementedError: This Pillow cannot read the format.
        Exception: The file is damaged; Pillow raises many types.
    """
    if kind == "PNG":
        png.check_chunks(file)
    file.seek(0)
    with quiet():
        image: ImageFile.ImageFile = _reader(kind)(file, "")
    if kind == "PNG":
        _scale_key(image)
    return image


def _scale_key(image: ImageFile.ImageFile) -> None:
    """Scale the transparent grey of 2 or 4 bits as Pillow scales the samples.

    Pillow keeps it as it is stored, so that no pixel, or a wrong one, is transparent.
    """
    key = image.info.get("transparency")
    if isinstance(key, int) and image.tile:
        factor = {"L;2": 85, "L;4": 17}.get(str(image.tile[0][3]), 1)
        image.info["transparency"] = key * factor


def load(image: Image.Image) -> None:
    """Decode the pixels of an opened image in place; an incomplete file is an error.

    Args:
        image: From `open_pillow`, or any PIL image. A plug-in of another package may
            have opened it.
    """
    with quiet():
        # Plug-ins with a `load` of their own decode the whole file at once.
        if isinstance(image, ImageFile.ImageFile) and type(image).load is ImageFile.ImageFile.load:
            if image.format in ("JPEG", "MPO") and image.fp:
                # As in `_members`, for an image that somebody else has opened.
                image.load_read = image.fp.read  # type: ignore[attr-defined]
            _strict_load(image)
        else:
            image.load()


class _Warnings(threading.local):
    """A stand-in for the module `warnings` that is silent in a thread while it decodes.

    Filters of warnings belong to the whole process, and `warnings.catch_warnings` is not
    safe in threads: https://docs.python.org/3/library/warnings.html (python/cpython#91505).
    """

    silent = False

    def warn(self, message: Any, category: Any = None, stacklevel: int = 1) -> None:
        if not self.silent:
            warnings.warn(message, category, stacklevel=stacklevel + 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(warnings, name)


_WARNINGS: Any = _Warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the modules of `quieten` in this thread."""
    before, _WARNINGS.silent = _WARNINGS.silent, True
    try:
        yield
    finally:
        _WARNINGS.silent = before


def quieten(module: ModuleType) -> None:
    """Let a module warn only outside `quiet`; it warns as before everywhere else."""
    module.warnings = _WARNINGS  # type: ignore[attr-defined]


def _rebind(function: Callable[..., Any], **values: Any) -> FunctionType:
    """Return a copy of a function that reads other values of the named globals."""
    assert isinstance(function, FunctionType)
    return FunctionType(
        function.__code__,
        {**function.__globals__, **values},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


_strict_load = _rebind(ImageFile.ImageFile.load, LOAD_TRUNCATED_IMAGES=False)
# dermedge checks the size itself, by a limit that no setting changes.
_UNLIMITED = SimpleNamespace(
    **{**vars(Image), "_decompression_bomb_check": lambda size, **options: None}
)


@cache
def _reader(kind: str) -> Callable[[IO[bytes], str], ImageFile.ImageFile]:
    """Return a subclass of Pillow's class for a format."""
    plugin, name = _CLASSES[kind].split(".")
    try:
        module = import_module(f"PIL.{plugin}")
    except ImportError as error:  # AVIF came with Pillow 11.3
        raise NotImplementedError from error
    # TiffImagePlugin also reads EXIF, for every format.
    for warning in (module, import_module("PIL.TiffImagePlugin")):
        quieten(warning)
    base = getattr(module, name)
    return type(name, (base,), {"__module__": __name__, **_members(kind, module, base)})


def _members(kind: str, module: ModuleType, base: Any) -> dict[str, Any]:
    """Return the methods that replace those of Pillow's class."""
    if kind == "AVIF":
        if not getattr(module, "SUPPORTED", False):
            raise NotImplementedError
        return {"_open": _rebind(base._open, DECODE_CODEC_CHOICE="auto", DEFAULT_MAX_THREADS=1)}
    if kind == "WEBP":
        return {"_open": _rebind(base._open, Image=_UNLIMITED)}
    if kind == "TIFF":
        return {
            "load": lambda self: (
                self._load_libtiff() if self.tile and self.use_load_libtiff else _strict_load(self)
            ),
            "load_prepare": _rebind(base.load_prepare, Image=_UNLIMITED),
        }
    members: dict[str, Any] = {"load": _strict_load}
    if kind == "JPEG":
        # Pillow's own method appends an end marker if truncated files are allowed.
        members["load_read"] = lambda self, count: self.fp.read(count)
        members["_read_dpi_from_exif"] = lambda self: None
    if kind == "GIF":
        members["_seek"] = _rebind(base._seek, Image=_UNLIMITED)
    if kind == "PNG":
        members["load_end"] = lambda self: _end_png(self, base)
    return members


def _end_png(image: Any, base: Any) -> None:
    base.load_end(image)
    width, height = image.size
    # Rows that were never written are black. An interlaced file ends with odd rows.
    if image.im.crop((0, max(height - 2, 0), width, height)).getbbox() is None:
        png.check_length(image.fp)
