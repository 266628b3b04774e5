"""Encode drawn lesions in every format that dermedge reads."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion

# Both were made from `LESION` with pillow-heif, as pi-heif cannot encode.
HEIC = Path(__file__).parents[1] / "data" / "lesion.heic"
TURNED_HEIC = HEIC.with_name("turned.heic")
LESION = Image.fromarray(draw_lesion(5, height=96, width=128).image)
PRIVATE = "Doe^Jane"


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    # A copy, because Pillow leaves options of one format in the image.
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(
    pixels: np.ndarray | list[bytes],
    kind: str = "RGB",
    *,
    syntax: str = "1.2.840.10008.1.2.1",
    **elements: Any,
) -> bytes:
    """Return a DICOM file of uint8 [H, W] or [H, W, 3], or of encapsulated frames.

    Args:
        pixels: Samples, or encoded frames of the size of `LESION`.
        kind: Photometric interpretation.
        syntax: UID of the transfer syntax.
        elements: Further elements by keyword.
    """
    from pydicom import Dataset
    from pydicom.config import disable_value_validation
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.PatientName = PRIVATE
    with disable_value_validation():
        data.PatientBirthDate = "not a date"
    frames = isinstance(pixels, list)
    shape = (LESION.height, LESION.width) if frames else pixels.shape
    data.Rows, data.Columns = shape[:2]
    data.SamplesPerPixel = 3 if kind.startswith(("RGB", "YBR")) else 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = kind
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = encapsulate(pixels) if frames else pixels.tobytes()
    data["PixelData"].VR = "OB"
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
