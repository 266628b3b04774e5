"""Identify and open images of every format."""

import io

import pytest
from PIL import Image

from dermedge_runtime.image import HEAD_BYTES, identify

PICTURE = Image.linear_gradient("L").resize((64, 48)).convert("RGB")


def encode(kind: str) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000"])
def test_a_format_is_identified_by_its_first_bytes(kind: str) -> None:
    assert identify(encode(kind)[:HEAD_BYTES]) == kind.replace("JPEG2000", "JPEG 2000")


def heif(*brands: bytes) -> bytes:
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return (8 + len(body)).to_bytes(4, "big") + b"ftyp" + body + bytes(64)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (heif(b"heic", b"mif1", b"heic"), "HEIF"),
        (heif(b"mif1", b"mif1", b"avif"), "AVIF"),
        (heif(b"mif1", b"mif1", b"heic"), "HEIF"),
        (heif(b"mp42", b"isom"), None),
        (bytes(128) + b"DICM" + bytes(28), "DICOM"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"BM is also how a text may begin", None),
        (b"<html>not found</html>", None),
        (b"\0\5\x16\7\0\2\0\0Mac OS X        ", None),
        (b"", None),
    ],
)
def test_other_heads(head: bytes, name: str | None) -> None:
    assert identify(head[:HEAD_BYTES]) == name
