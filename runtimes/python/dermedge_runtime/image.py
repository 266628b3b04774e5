"""Identify the format of an image by its first bytes, and read its orientation."""

from PIL import Image

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
_ORIENTATION_TAG = 0x0112
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)


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


def orientation(image: Image.Image) -> int:
    """Return the stored EXIF orientation, 1 to 8; 1 if there is none or it is broken.

    Args:
        image: The opened image. Pillow turns a TIFF by itself when it is loaded.
    """
    tags = getattr(image, "tag_v2", None)
    data = image.info.get("exif")
    try:
        if tags is not None and image.format == "TIFF":
            value = int(tags.get(_ORIENTATION_TAG, 1))
        elif isinstance(data, bytes):
            exif = Image.Exif()
            exif.load(data)
            value = int(exif.get(_ORIENTATION_TAG, 1))
        else:
            return 1
    except Exception:  # a broken EXIF block does not make the photograph unusable
        return 1
    return value if 1 <= value <= 8 else 1
