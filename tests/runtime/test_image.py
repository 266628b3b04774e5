"""Identify and decode images of every format, whole and damaged."""

import io
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from dermedge_runtime.errors import ImageError
from dermedge_runtime.image import HEAD_BYTES, decode, identify
from support.image_files import HEIC, LESION, PRIVATE, TURNED_HEIC, dicom, encode

PIXELS = np.asarray(LESION)
GREY = np.asarray(LESION.convert("L"))
BASELINE = "1.2.840.10008.1.2.4.50"
FILES = {
    **{kind: encode(LESION, kind) for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")},
    "JPEG": encode(LESION, "JPEG", quality=95),
    "progressive JPEG": encode(LESION, "JPEG", progressive=True),
    "MPO": encode(LESION, "MPO", save_all=True, append_images=[LESION.resize((32, 24))]),
    "lossless WEBP": encode(LESION, "WEBP", lossless=True),
    "LZW TIFF": encode(LESION, "TIFF", compression="tiff_lzw"),
    "JPEG TIFF": encode(LESION, "TIFF", compression="jpeg"),
    "HEIF": HEIC.read_bytes(),
    "DICOM": dicom(PIXELS),
    "JPEG DICOM": dicom([encode(LESION, "JPEG")], "YBR_FULL_422", syntax=BASELINE),
}
END = b"\xff\xd9"


def answer(data: bytes) -> bytes | str:
    """Return the decoded pixels, or the text of the error."""
    try:
        return decode(data).picture.tobytes()
    except ImageError as error:
        return str(error)


# ---- formats


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_identified_by_its_first_bytes(name: str) -> None:
    expected = "JPEG" if name == "MPO" else name.split()[-1]
    assert identify(FILES[name][:HEAD_BYTES]) == expected


def media(*brands: bytes) -> bytes:
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return (8 + len(body)).to_bytes(4, "big") + b"ftyp" + body + bytes(64)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (media(b"heic", b"mif1", b"heic"), "HEIF"),
        (media(b"mif1", b"mif1", b"avif"), "AVIF"),
        (media(b"mif1", b"mif1", b"heic"), "HEIF"),
        (media(b"mp42", b"isom"), None),
        (bytes(128) + b"DICM" + bytes(28), "DICOM"),
        (encode(LESION, "JPEG2000"), "JPEG 2000"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"BM is also how a text may begin", None),
        (b"<html>not found</html>", None),
        (b"\0\5\x16\7\0\2\0\0Mac OS X        ", None),
        (b"", None),
    ],
)
def test_other_heads(head: bytes, name: str | None) -> None:
    assert identify(head[:HEAD_BYTES]) == name


@pytest.mark.parametrize("name", FILES)
def test_every_format_shows_the_lesion(name: str) -> None:
    decoded = decode(FILES[name])
    assert (decoded.width, decoded.height, decoded.turned, decoded.quality) == (128, 96, False, ())
    difference = np.abs(np.asarray(decoded.picture).astype(int) - PIXELS)
    assert difference.mean() < 6


def test_the_size_is_that_of_the_upright_image_at_full_scale() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encode(LESION, "JPEG", exif=exif), scale=lambda width, height: 2)
    assert (decoded.width, decoded.height, decoded.turned) == (96, 128, True)
    assert decoded.picture.size == (48, 64)
    tiff = decode(encode(LESION, "TIFF", exif=exif))
    assert (tiff.width, tiff.height, tiff.turned, tiff.picture.size) == (96, 128, True, (96, 128))


def test_a_turned_heic_is_upright() -> None:
    pixels = np.asarray(decode(TURNED_HEIC).picture).astype(int)
    assert np.abs(pixels - np.rot90(PIXELS, -1)).mean() < 3


def test_a_photograph_of_108_megapixels_is_read_at_a_reduced_scale() -> None:
    small = bytearray(encode(LESION, "JPEG"))
    frame = small.index(b"\xff\xc0") + 5
    small[frame : frame + 4] = (12_000).to_bytes(2, "big") + (12_000).to_bytes(2, "big")
    with pytest.raises(ImageError, match="12000 x 12000 pixels, over the limit of 134217728"):
        decode(bytes(small))
    photograph = encode(Image.new("L", (12_000, 9_000), 90), "JPEG")
    decoded = decode(photograph, scale=lambda width, height: 8)
    assert (decoded.width, decoded.height, decoded.picture.size) == (12_000, 9_000, (1500, 1125))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(LESION, "JPEG2000"), r"JPEG 2000, which dermedge does not read\. Convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", r"JPEG XL, which dermedge does not read\. Convert it"),
        (media(b"mp42", b"isom"), r"a media file of the brand 'mp42', not an image that dermedge"),
        (media(b"heic", b"mif1"), r"HEIF that cannot be decoded .* Convert it to JPEG or PNG"),
    ],
)
def test_other_formats_are_refused_by_their_name(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_a_preview_of_a_raw_file_is_refused() -> None:
    data = encode(LESION, "TIFF", tiffinfo={254: 1, 330: 8})
    with pytest.raises(ImageError, match="a camera's raw file"):
        decode(data)


@pytest.mark.parametrize(
    ("name", "packages", "extra"),
    [("HEIF", ("pi_heif", "pillow_heif"), "heif"), ("DICOM", ("pydicom", "pydicom.misc"), "dicom")],
)
def test_a_missing_package_is_named_with_its_extra(
    name: str, packages: tuple[str, ...], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImageError, match=rf"dermedge\[{extra}\]"):
        decode(FILES[name])


# ---- DICOM


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (dicom(PIXELS, syntax="1.2.840.10008.1.2"), PIXELS),
        (dicom(PIXELS, syntax="1.2.840.10008.1.2.1.99"), PIXELS),
        (dicom(GREY, "MONOCHROME2"), GREY[..., None]),
        (dicom(255 - GREY, "MONOCHROME1"), GREY[..., None]),
    ],
    ids=["implicit", "deflated", "MONOCHROME2", "MONOCHROME1"],
)
def test_dicom_samples_are_shown_as_they_are(data: bytes, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(decode(data).picture, np.broadcast_to(expected, (96, 128, 3)))


def test_a_dicom_window_is_applied() -> None:
    data = dicom(GREY, "MONOCHROME2", WindowCenter=128, WindowWidth=101)
    expected = np.clip(np.round(((GREY - 127.5) / 100 + 0.5) * 255), 0, 255)
    shown = np.asarray(decode(data).picture)[..., 0].astype(int)
    assert np.abs(shown - expected).max() <= 1


def test_run_length_and_palette_dicom() -> None:
    import pydicom

    data = pydicom.dcmread(io.BytesIO(dicom(PIXELS)))
    data.compress("1.2.840.10008.1.2.5")
    buffer = io.BytesIO()
    data.save_as(buffer)
    np.testing.assert_array_equal(decode(buffer.getvalue()).picture, PIXELS)
    ramp = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour, top in (("Red", 255), ("Green", 128), ("Blue", 0))
        for part, value in (
            ("Descriptor", [256, 0, 16]),
            ("Data", (np.arange(256) * top // 255 * 257).astype("<u2").tobytes()),
        )
    }
    shown = np.asarray(decode(dicom(GREY, "PALETTE COLOR", **ramp)).picture)
    np.testing.assert_array_equal(shown[..., 0], GREY)
    assert not shown[..., 2].any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dicom([b"xx"], syntax="1.2.840.10008.1.2.4.70"), r"compressed by JPEG Lossless, "),
        (dicom([b"xx"], syntax="1.2.840.10008.1.2.4.90"), r"compressed by JPEG 2000 Image"),
        (dicom(np.vstack([PIXELS] * 2), NumberOfFrames=2, Rows=96), "with several frames"),
        (dicom(GREY, "MONOCHROME2", BitsAllocated=16, BitsStored=12), "with 16 bits per sample"),
        (dicom(GREY, "MONOCHROME2", RescaleSlope=2, RescaleIntercept=1), "with rescaled values"),
        (dicom(PIXELS, "HSV"), r"with colours that dermedge does not convert \(HSV\)"),
        (dicom(PIXELS, Rows=9_000), "the data set is incomplete or not valid"),
        (dicom(PIXELS, Rows=60_000, Columns=60_000), "60000 x 60000 pixels"),
    ],
)
def test_dicom_that_cannot_be_shown_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_nothing_about_a_patient_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    whole = FILES["DICOM"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        shown = [str(answer(whole[: len(whole) * part // 10])) for part in range(1, 11)]
    text = " ".join([*shown, caplog.text, *(str(warning.message) for warning in caught)])
    assert PRIVATE not in text
    assert "not a date" not in text


# ---- damage


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_broke_off_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    # The second picture of an MPO is not read.
    end = FILES[name].index(END) if name == "MPO" else len(FILES[name])
    for tenth in range(1, 10):
        with pytest.raises(ImageError, match=r"damaged|cannot be decoded|is not an image"):
            decode(FILES[name][: end * tenth // 10])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"optimize": True}],
    ids=str,
)
@pytest.mark.parametrize("size", [(128, 96), (129, 97)])
def test_a_jpeg_that_broke_off_and_was_closed_is_refused(
    size: tuple[int, int], options: dict[str, object], mode: str
) -> None:
    data = encode(LESION.resize(size).convert(mode), "JPEG", quality=95, **options)
    assert decode(data).quality == ()
    for tenth in range(4, 10):
        part = data[: len(data) * tenth // 10]
        for closed in (part + END, part + END + b"garbage", part + b"\xff\xfe\0\4ab" + END):
            for scale in (1, 2, 8):
                with pytest.raises(ImageError, match="damaged"):
                    decode(closed, scale=lambda width, height, scale=scale: scale)


def test_a_jpeg_without_its_end_marker_is_refused() -> None:
    # Pillow accepts it at some sizes only, so many are tried.
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    for width in range(16, 300, 4):
        data = encode(Image.fromarray(noise).crop((0, 0, width, 16)), "JPEG", quality=90)
        assert decode(data + b"a second picture").quality == ()
        with pytest.raises(ImageError, match="truncated or damaged"):
            decode(data[:-2])


def test_a_jpeg_that_stops_at_a_stray_restart_marker_is_refused() -> None:
    data = encode(LESION.resize((128, 96)), "JPEG", quality=95)
    with pytest.raises(ImageError, match="rows are missing"):
        decode(data[: len(data) // 2] + b"\xff\xd0" + END)


def test_a_progressive_jpeg_without_its_last_scans_is_refused() -> None:
    data = FILES["progressive JPEG"]
    for scan in range(2, data.count(b"\xff\xda") + 1):
        start = -1
        for _ in range(scan):
            start = data.index(b"\xff\xda", start + 1)
        with pytest.raises(ImageError, match="scans are missing"):
            decode(data[:start] + END)


def test_a_jpeg_that_lost_restart_markers_is_refused() -> None:
    data = encode(LESION, "JPEG", quality=95, restart_marker_blocks=4)
    start, end = data.index(b"\xff\xd2"), data.index(b"\xff\xd4")
    with pytest.raises(ImageError, match="restart markers are missing"):
        decode(data[:start] + data[end:])


def test_a_real_grey_border_is_not_damage() -> None:
    bordered = Image.new("RGB", (160, 160), (128, 128, 128))
    bordered.paste(LESION)
    for options in ({}, {"restart_marker_rows": 1}, {"progressive": True}, {"optimize": True}):
        data = encode(bordered, "JPEG", quality=90, **options)
        assert decode(data).quality == ()


def test_a_lost_block_is_noted_where_all_rows_were_decoded() -> None:
    # Zeros are short codes here, so that the decoder has blocks enough to the end.
    data = encode(LESION.resize((512, 384)).convert("L"), "JPEG", optimize=True, quality=95)
    middle = len(data) // 3
    holed = data[:middle] + bytes(4096) + data[middle + 4096 :]
    found = answer(holed)
    noted = () if isinstance(found, str) else decode(holed).quality
    assert isinstance(found, str) or "block of zeros" in noted[0]
    long = data[:middle] + bytes(60_000) + END
    assert "block of zeros" in decode(long).quality[0]


def test_a_png_with_too_few_rows_is_refused() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + checksum

    def png(rows: int, value: int) -> bytes:
        header = struct.pack(">IIBBBBB", 40, 32, 8, 0, 0, 0, 0)
        data = zlib.compress((b"\0" + bytes([value]) * 40) * rows)
        chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)

    assert decode(png(32, 0)).picture.getextrema() == ((0, 0),) * 3
    with pytest.raises(ImageError, match="rows are missing"):
        decode(png(20, 200))


# ---- process-wide settings


@pytest.fixture(params=["defaults", "careless", "strict"])
def process_settings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test under settings that another package of the process has made."""
    truncated, limit = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    block, plugins = ImageFile.MAXBLOCK, dict(Image.OPEN)
    with warnings.catch_warnings():
        if request.param == "careless":
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = True, None
            ImageFile.MAXBLOCK = 1 << 24
            Image.OPEN["JPEG"] = Image.OPEN["PNG"] = (lambda *_: Image.new("L", (99, 99)), None)
        if request.param == "strict":
            warnings.simplefilter("error")
            Image.MAX_IMAGE_PIXELS, ImageFile.MAXBLOCK = 10, 64
            Image.OPEN.clear()
        before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, warnings.filters[:])
        yield
        after = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS, warnings.filters[:])
        assert before == after
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = truncated, limit
    ImageFile.MAXBLOCK = block
    Image.OPEN.clear()
    Image.OPEN.update(plugins)


def corrupt_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40
    return exif.tobytes()[:-30]


def corrupt_tiff() -> bytes:
    """Return a TIFF whose copyright is outside of the file, of which Pillow warns."""
    data = bytearray(encode(LESION, "TIFF", tiffinfo={33432: "x" * 40}))
    entry = data.index(struct.pack("<HH", 33432, 2))
    data[entry + 8 : entry + 12] = struct.pack("<I", len(data) + 99)
    return bytes(data)


ODD = {
    **FILES,
    **{f"cut {name}": data[: len(data) * 2 // 3] for name, data in FILES.items()},
    "corrupt EXIF": encode(LESION, "JPEG", exif=corrupt_exif()),
    "corrupt TIFF": corrupt_tiff(),
    "PNG with a wrong checksum": FILES["PNG"][:-8] + b"xxxx" + FILES["PNG"][-4:],
}
EXPECTED = {name: answer(data) for name, data in ODD.items()}


@pytest.mark.parametrize("name", ODD)
def test_no_setting_of_the_process_changes_an_answer(name: str, process_settings: None) -> None:
    assert answer(ODD[name]) == EXPECTED[name]


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_an_opened_image_is_checked_like_its_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FILES[kind]
    part = whole[: whole.index(END) // 2]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for data in (part, part + END, whole[: whole.index(END)]):
        (tmp_path / "photo").write_bytes(data)
        for source in (tmp_path / "photo", io.BytesIO(data)):
            with Image.open(source) as image, pytest.raises(ImageError, match="damaged"):
                decode(image)
    with Image.open(io.BytesIO(whole)) as image:
        assert decode(image).picture.tobytes() == EXPECTED[kind]


def test_a_warning_of_pillow_is_no_refusal() -> None:
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            assert answer(ODD["corrupt TIFF"]) == LESION.tobytes()


def test_a_corrupt_exif_block_keeps_its_orientation() -> None:
    assert decode(ODD["corrupt EXIF"]).turned


def test_threads_do_not_see_each_other() -> None:
    wrong: list[str] = []

    def work(names: list[str]) -> None:
        for _ in range(3):
            wrong.extend(name for name in names if answer(ODD[name]) != EXPECTED[name])

    threads = [threading.Thread(target=work, args=(list(ODD)[n:],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pillow_warns_as_before_outside_dermedge() -> None:
    with pytest.warns(UserWarning, match="Truncated File Read"):
        Image.open(io.BytesIO(ODD["corrupt EXIF"])).getexif()


# ---- any bytes


@settings(max_examples=300, deadline=None)
@given(draw=st.data(), name=st.sampled_from(sorted(FILES)))
def test_damaged_bytes_raise_only_image_errors(draw: st.DataObject, name: str) -> None:
    data = bytearray(FILES[name])
    for _ in range(draw.draw(st.integers(1, 4))):
        kind = draw.draw(st.sampled_from(("flip", "cut", "splice", "remove")))
        place = draw.draw(st.integers(0, max(len(data) - 1, 0)))
        if kind == "flip" and data:
            data[place] = draw.draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place:]
        elif kind == "splice":
            data[place:place] = draw.draw(st.binary(max_size=40))
        else:
            del data[place : place + draw.draw(st.integers(1, 400))]
    try:
        decoded = decode(bytes(data))
        assert min(decoded.picture.size) > 0
    except ImageError as error:
        assert "\n" not in str(error)
