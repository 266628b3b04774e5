"""Open DICOM files with one 8-bit picture, without reading data about the patient."""

import io
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dermedge_runtime.errors import ImageError
from dermedge_runtime.jpeg import check_jpeg
from dermedge_runtime.pillow import load, open_pillow, quieten
from dermedge_runtime.upright import check_size

_UNCOMPRESSED = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
_RUN_LENGTH = "1.2.840.10008.1.2.5"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422")
_PALETTE = "PALETTE COLOR"
_CONVERT = "Convert it to JPEG or PNG."
# Only these elements are read. Names, dates and texts about a patient are skipped.
_ELEMENTS = (
    *("BitsAllocated", "BitsStored", "Columns", "HighBit", "ModalityLUTSequence"),
    *("NumberOfFrames", "PhotometricInterpretation", "PixelData", "PixelRepresentation"),
    *("PlanarConfiguration", "RescaleIntercept", "RescaleSlope", "Rows", "SamplesPerPixel"),
    *("VOILUTFunction", "VOILUTSequence", "WindowCenter", "WindowWidth"),
    *(
        f"{segmented}{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
)


def open_dicom(file: IO[bytes], name: str) -> Image.Image:
    """Decode the picture of a DICOM file to grey or RGB.

    Args:
        file: The file.
        name: Name of the image in messages.

    Raises:
        ImageError: pydicom is not installed, or the kind of picture is not supported.
        ValueError: The file is damaged. The message quotes nothing of the file.
    """
    try:
        import pydicom.misc
        import pydicom.pixels
    except ImportError as error:
        raise ImageError(
            f"{name} is DICOM, which needs pydicom. Run pip install 'dermedge[dicom]', or convert "
            "it to JPEG or PNG."
        ) from error
    quieten(pydicom.misc)
    try:
        header = _read(pydicom, file, stop_before_pixels=True)
        syntax = header.file_meta.TransferSyntaxUID
        if refusal := _refusal(header, syntax):
            raise ImageError(f"{name} is DICOM {refusal}")
        check_size(int(header.Columns), int(header.Rows), name)
        return _picture(pydicom, _read(pydicom, file), str(syntax))
    except ImageError:
        raise
    except Exception:
        # A message of pydicom may quote what it read, and so may its traceback.
        raise ValueError("the data set is incomplete or not valid") from None


def _read(pydicom: Any, file: IO[bytes], **options: Any) -> Any:
    file.seek(0)
    return pydicom.dcmread(file, specific_tags=list(_ELEMENTS), **options)


def _refusal(header: Any, syntax: Any) -> str:
    """Return why a picture cannot be shown in 8 bits without guessing, or ""."""
    if syntax not in (*_UNCOMPRESSED, _RUN_LENGTH, _JPEG_BASELINE):
        known = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
        return f"compressed by {known}, which dermedge does not decode. {_CONVERT}"
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        return "with several frames. Pass a file with a single frame."
    kind = header.PhotometricInterpretation
    if kind not in (*_GREY, *_COLOUR, _PALETTE):
        return f"with colours that dermedge does not convert ({kind[:16]}). {_CONVERT}"
    if header.BitsAllocated != 8 or header.get("PixelRepresentation", 0):
        return f"with {header.BitsAllocated} bits per sample, not 8 bits. {_CONVERT}"
    rescaled = (header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)) != (1, 0)
    if "ModalityLUTSequence" in header or (rescaled and "WindowWidth" not in header):
        return f"with rescaled values and no window to show them in. {_CONVERT}"
    return ""


def _picture(pydicom: Any, data: Any, syntax: str) -> Image.Image:
    kind = data.PhotometricInterpretation
    if syntax == _JPEG_BASELINE:
        picture = _jpeg(pydicom, data)
        if kind not in _GREY and kind != _PALETTE:
            return picture
        pixels = np.asarray(picture.convert("L"))
    else:
        # The decoders of other packages differ, so none is chosen by what is installed.
        plugin = {"decoding_plugin": "pydicom"} if syntax == _RUN_LENGTH else {}
        pixels = pydicom.pixels.pixel_array(data, **plugin)
    if kind in _GREY:
        pixels = _windowed(pydicom, data, pixels)
    elif kind == _PALETTE:
        pixels = pydicom.pixels.apply_color_lut(pixels, data)
        if pixels.dtype != np.uint8:
            pixels = (pixels >> 8).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))


def _jpeg(pydicom: Any, data: Any) -> Image.Image:
    file = io.BytesIO(next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)))
    picture = open_pillow("JPEG", file)
    if picture.size != (data.Columns, data.Rows):
        raise ValueError
    # Without a marker of its own, a JPEG of RGB samples would be converted from YCbCr.
    stored_as_rgb = data.PhotometricInterpretation == "RGB" and picture.mode == "RGB"
    if stored_as_rgb and "adobe_transform" not in picture.info:
        picture.draft("YCbCr", picture.size)
    load(picture)
    if check_jpeg(file, picture):
        raise ValueError
    if picture.mode == "YCbCr":
        return Image.frombytes("RGB", picture.size, picture.tobytes())
    return picture.convert(picture.mode)


def _windowed(pydicom: Any, data: Any, pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return grey values 0 to 255 as a viewer shows them."""
    values = pydicom.pixels.apply_rescale(pixels, data)
    if "WindowWidth" in data or "VOILUTSequence" in data:
        values = pydicom.pixels.apply_voi_lut(values, data)
    elif data.BitsStored < 8:
        values = values * (255 / ((1 << data.BitsStored) - 1))
    grey: npt.NDArray[np.uint8] = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return np.invert(grey) if data.PhotometricInterpretation == "MONOCHROME1" else grey
