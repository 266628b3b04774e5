"""Test decoding, fitting and resizing of images against independent arithmetic."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.errors import ImageError
from dermedge_runtime.preprocess import decode_image, preprocess, reduced_scale
from dermedge_runtime.spec import Preprocess
from support import reference_resize

ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SPEC = Preprocess(size=32)


def noise(height: int, width: int, channels: int = 3, top: int = 256, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed)
        .integers(0, top, (height, width, channels))
        .astype(np.uint8 if top == 256 else np.uint16)
    )


def lesion(height: int, width: int) -> np.ndarray:
    return draw_lesion(5, height=height, width=width).image


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def png(
    samples: np.ndarray, colour: int, *, size: tuple[int, int] | None = None, key: bytes = b""
) -> bytes:
    """Return a 16-bit PNG, which Pillow cannot write; `size` falsifies its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", *(size or (width, height)), 16, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tRNS", key) if key else b"",
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


# ---- the resize


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (20, 20, 32),
        (61, 43, 16),
        (300, 17, 32),
        (17, 300, 32),
        (900, 40, 64),
        (40, 900, 64),
        (224, 224, 224),
        (225, 222, 224),
        (33, 97, 33),
        (448, 447, 224),
        (1200, 700, 17),
    ],
)
def test_every_fit_is_bit_exact_with_the_integer_reference(fit, height, width, size):
    pixels = noise(height, width)
    spec = Preprocess(size=size, fit=fit, background=(10, 200, 30))
    expected = reference_resize.resize(reference_resize.square(pixels, fit, spec.background), size)
    tensor = preprocess(pixels, spec)
    assert tensor.dtype == np.uint8
    assert tensor.shape == (size, size, 3)
    np.testing.assert_array_equal(tensor, expected)


def test_the_reference_itself_gives_hand_computed_values():
    row = np.array([[[0], [100], [200], [40]]], np.uint8)
    # Halving: triangle of reach 2 on centres 1 and 3; weights 0.75 0.75 0.25 (/1.75)
    # and 0.25 0.75 0.75 (/1.75).
    np.testing.assert_array_equal(reference_resize.resize_columns(row, 2)[0, :, 0], [71, 117])
    # Doubling: centres at 0.25 and 0.75 between neighbours, edges repeated.
    np.testing.assert_array_equal(
        reference_resize.resize_columns(row[:, :2], 4)[0, :, 0], [0, 25, 75, 100]
    )


@pytest.mark.parametrize("folder", ["ham10000", "isic2017", "pad_ufes_20"])
def test_real_photographs_are_cut_and_resized_as_contracted(folder):
    images = sorted((SHARED / folder / "images").glob("*"))[:40:10]
    if not images:
        pytest.skip(f"no images in {SHARED / folder}")
    for path in images:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        expected = reference_resize.resize(reference_resize.square(pixels, "crop", (0, 0, 0)), 96)
        np.testing.assert_array_equal(
            preprocess(path, Preprocess(96), exact=True), expected, err_msg=path.name
        )


# ---- sources


def test_bytes_paths_images_and_arrays_give_the_same_tensor(tmp_path):
    pixels = lesion(60, 90)
    path = tmp_path / "lesion.png"
    path.write_bytes(encode(pixels, "PNG"))
    expected = preprocess(pixels, SPEC)
    for source in (
        path,
        str(path),
        path.read_bytes(),
        Image.fromarray(pixels),
        np.asfortranarray(pixels),
    ):
        np.testing.assert_array_equal(preprocess(source, SPEC), expected)


def test_a_pil_image_is_left_as_it_was():
    data = encode(lesion(600, 800), "JPEG", exif=exif(6))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(preprocess(image, SPEC), preprocess(data, SPEC, exact=True))
        assert image.size == (800, 600)
        assert image.getexif()[0x0112] == 6


def test_the_tensor_belongs_to_the_caller():
    pixels = noise(32, 32)
    preprocess(pixels, SPEC)[:] = 0
    assert pixels.any()


# ---- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_exif_orientation_is_applied(kind, options, orientation):
    pixels = lesion(48, 80)
    plain = decode_image(encode(pixels, kind, **options), SPEC)
    turned = decode_image(encode(pixels, kind, exif=exif(orientation), **options), SPEC)
    np.testing.assert_array_equal(turned, ORIENTED[orientation](plain))


@pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF data"
)  # Pillow's, while it looks for the resolution
@pytest.mark.parametrize(
    "broken", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f", exif(9).tobytes()]
)
def test_broken_exif_leaves_the_photograph_as_it_is(broken):
    pixels = lesion(48, 80)
    np.testing.assert_array_equal(
        decode_image(encode(pixels, "JPEG", exif=broken), SPEC),
        decode_image(encode(pixels, "JPEG"), SPEC),
    )


# ---- reduced-scale decoding


@pytest.mark.parametrize(
    ("width", "height", "fit", "scale"),
    [
        (4032, 3024, "crop", 4),
        (3024, 4032, "crop", 4),
        (4032, 3024, "pad", 4),
        (4032, 3024, "stretch", 4),
        (7168, 3584, "crop", 8),
        (3583, 3583, "crop", 1),  # does not divide
        (4031, 3024, "crop", 1),
        (4036, 3024, "crop", 2),  # divides by 4, but the crop begins at 506
        (4036, 3024, "pad", 2),
        (4036, 3024, "stretch", 4),
        (898, 896, "crop", 1),  # the crop begins at 1
        (898, 896, "stretch", 2),
        (896, 896, "crop", 2),  # 448 is twice 224
        (894, 894, "crop", 1),
        (9000, 894, "pad", 1),
    ],
)
def test_the_scale_is_the_largest_that_keeps_the_crop_and_twice_the_size(width, height, fit, scale):
    assert reduced_scale(width, height, Preprocess(224, fit=fit)) == scale


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_shows_the_same_picture(fit, orientation):
    spec = Preprocess(64, fit=fit)
    # Hard edges off centre, so that a shifted or a wrongly turned crop would show.
    pixels = np.full((640, 896, 3), 60, np.uint8)
    pixels[64:448, 320:704, 0] = 220
    pixels[192:320, 128:256, 1] = 200
    data = encode(pixels, "JPEG", quality=95, subsampling=0, exif=exif(orientation))
    tall = orientation > 4
    assert decode_image(data, spec).shape == ((224, 160, 3) if tall else (160, 224, 3))
    assert decode_image(data, spec, exact=True).shape == ((896, 640, 3) if tall else (640, 896, 3))
    difference = np.abs(
        preprocess(data, spec).astype(int) - preprocess(data, spec, exact=True)
    ).max()
    assert 0 < difference <= 12


def test_only_jpegs_are_reduced():
    assert decode_image(encode(lesion(640, 896), "PNG"), SPEC).shape == (640, 896, 3)


# ---- colours, alpha, depth


def blended(pixels: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    share = alpha.astype(np.float64)[..., None] / 255
    return np.floor(pixels * share + np.array(background) * (1 - share) + 0.5).astype(np.uint8)


def test_alpha_is_composed_on_the_background():
    rgba = noise(40, 50, 4)
    rgba[:4, :, 3], rgba[4:8, :, 3] = 0, 255
    spec = Preprocess(32, background=(200, 10, 90))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        decoded = decode_image(encode(rgba, kind, **options), spec)
        np.testing.assert_array_equal(
            decoded, blended(rgba[..., :3], rgba[..., 3], spec.background)
        )


def test_grey_with_alpha_and_transparent_colours():
    spec = Preprocess(32, background=(200, 10, 90))
    la = noise(40, 50, 2)
    grey = np.repeat(la[..., :1], 3, axis=2)
    expected = blended(grey, la[..., 1], spec.background)
    np.testing.assert_array_equal(decode_image(encode(la, "PNG"), spec), expected)

    keyed = grey.copy()
    keyed[grey[..., 0] == 7] = spec.background
    np.testing.assert_array_equal(
        decode_image(encode(la[..., 0], "PNG", transparency=7), spec), keyed
    )


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_transparency(kind):
    indices = noise(40, 50, 1)[..., 0] % 4
    colours = [(250, 0, 0), (0, 240, 0), (0, 0, 230), (9, 9, 9)]
    image = Image.fromarray(indices)
    image.putpalette([value for colour in colours for value in colour])
    expected = np.array(colours, np.uint8)[indices]
    np.testing.assert_array_equal(decode_image(encode(image, kind), SPEC), expected)
    expected[indices == 2] = (1, 2, 3)
    spec = Preprocess(32, background=(1, 2, 3))
    np.testing.assert_array_equal(decode_image(encode(image, kind, transparency=2), spec), expected)
    if kind == "PNG":
        some = np.array([255, 255, 0, 100])[indices]
        data = encode(image, kind, transparency=bytes([255, 255, 0, 100]))
        colour = np.array(colours, np.uint8)[indices]
        np.testing.assert_array_equal(
            decode_image(data, spec), blended(colour, some, spec.background)
        )


def test_grey_and_bilevel_become_rgb():
    grey = noise(40, 50, 1)[..., 0]
    np.testing.assert_array_equal(
        decode_image(encode(grey, "PNG"), SPEC), np.repeat(grey[..., None], 3, axis=2)
    )
    black = decode_image(encode(Image.fromarray(grey).convert("1"), "PNG"), SPEC)
    assert set(np.unique(black)) == {0, 255}


def test_cmyk_jpeg_keeps_its_colours():
    for rgb in ((230, 180, 160), (60, 40, 30), (255, 255, 255)):
        image = Image.new("RGB", (64, 48), rgb).convert("CMYK")
        decoded = decode_image(encode(image, "JPEG", quality=100), SPEC)
        assert np.abs(decoded.astype(int) - np.array(rgb)).max() <= 3


def test_an_icc_profile_changes_nothing():
    pixels = lesion(48, 64)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(
        decode_image(encode(pixels, "PNG", icc_profile=profile), SPEC), pixels
    )


@pytest.mark.parametrize(
    ("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "la", "rgba"]
)
def test_16_bit_png_samples_keep_their_high_byte(colour, channels):
    samples = noise(40, 50, channels, top=65536)
    high = (samples >> 8).astype(np.uint8)
    expected = high[..., :3] if channels >= 3 else np.repeat(high[..., :1], 3, axis=2)
    if channels in (2, 4):
        expected = blended(expected, high[..., -1], SPEC.background)
    np.testing.assert_array_equal(decode_image(png(samples, colour), SPEC), expected)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_16_bit_tiff_samples_keep_their_high_byte(compression):
    samples = noise(40, 50, 1, top=65536)
    data = encode(Image.fromarray(samples[..., 0]), "TIFF", compression=compression)
    expected = np.repeat((samples >> 8).astype(np.uint8), 3, axis=2)
    np.testing.assert_array_equal(decode_image(data, SPEC), expected)
    big_endian = Image.frombytes("I;16B", (50, 40), samples.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_image(big_endian, SPEC), expected)


# ---- bad input


def animated(kind: str) -> bytes:
    frames = [Image.fromarray(noise(40, 40, seed=seed)) for seed in (1, 2)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


JPEG = encode(lesion(60, 80), "JPEG")
BAD = {
    "zero bytes": (b"", "is empty"),
    "text": (b"<html>not found</html>", "not an image that dermedge reads"),
    "pdf": (b"%PDF-1.7\n%%EOF", "not an image that dermedge reads"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(64), "Convert it to JPEG or PNG"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated or damaged"),
    "jpeg header alone": (JPEG[:20], "truncated or damaged"),
    "truncated png": (encode(noise(60, 80), "PNG")[:9000], "truncated or damaged"),
    "truncated webp": (encode(noise(60, 80), "WEBP")[:500], "truncated or damaged"),
    "gif film": (animated("GIF"), "animated"),
    "png film": (animated("PNG"), "animated"),
    "webp film": (animated("WEBP"), "animated"),
    "tiff pages": (animated("TIFF"), "several pages"),
    "one pixel": (encode(noise(1, 1), "PNG"), "too small to be a photograph"),
    "a line": (encode(noise(15, 400), "PNG"), "too small to be a photograph"),
    "bomb": (png(noise(4, 4, 3, 65536), 2, size=(60_000, 60_000)), "60000 x 60000"),
    "half a bomb": (png(noise(4, 4, 3, 65536), 2, size=(11_000, 11_000)), "11000 x 11000"),
    "float tiff": (encode(Image.new("F", (40, 40), 0.5), "TIFF"), "mode F"),
    "32-bit tiff": (encode(Image.new("I", (40, 40), 70_000), "TIFF"), "mode I"),
    "16-bit grey key": (png(noise(40, 40, 1, 65536), 0, key=b"\1\2"), "transparent colour"),
    "16-bit colour key": (
        png(noise(40, 40, 3, 65536), 2, key=b"\1\2\3\4\5\6"),
        "transparent colour",
    ),
    "float array": (
        np.zeros((40, 40, 3), np.float32),
        r"float32 \[40, 40, 3\]\. Pass RGB as uint8",
    ),
    "grey array": (np.zeros((40, 40), np.uint8), r"uint8 \[40, 40\]"),
    "four channels": (np.zeros((40, 40, 4), np.uint8), r"uint8 \[40, 40, 4\]"),
    "batch": (np.zeros((1, 40, 40, 3), np.uint8), r"uint8 \[1, 40, 40, 3\]"),
    "tiny array": (np.zeros((3, 40, 3), np.uint8), "40 x 3 pixels, too small"),
    "float pil": (Image.new("F", (40, 40)), "mode F"),
    "none": (None, "A NoneType is not an image"),
}


@pytest.mark.parametrize(("source", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_clear_error(source, message, tmp_path):
    with pytest.raises(ImageError, match=message):
        preprocess(source, SPEC)
    if isinstance(source, bytes):
        path = tmp_path / "bad.jpg"
        path.write_bytes(source)
        with pytest.raises(ImageError, match=message) as caught:
            decode_image(path, SPEC, exact=True)
        assert "bad.jpg" in str(caught.value)


def test_paths_that_are_not_files_are_errors(tmp_path):
    with pytest.raises(ImageError, match=r"missing\.jpg does not exist"):
        preprocess(tmp_path / "missing.jpg", SPEC)
    with pytest.raises(ImageError, match="is a folder"):
        preprocess(str(tmp_path), SPEC)
    with pytest.raises(ImageError, match="cannot be read"):
        preprocess("nul\0.jpg", SPEC)


def test_pictures_with_frames_that_are_still_photographs():
    first, second = Image.fromarray(lesion(40, 60)), Image.fromarray(noise(40, 60))
    phone = encode(first, "MPO", save_all=True, append_images=[second], quality=95)
    np.testing.assert_array_equal(
        decode_image(phone, SPEC), decode_image(encode(first, "JPEG", quality=95), SPEC)
    )
    assert decode_image(encode(first, "GIF"), SPEC).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_damaged_files_raise_only_image_errors(kind):
    data = encode(
        lesion(40, 48),
        kind,
        **({"exif": exif(6)} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}),
    )
    rng = np.random.default_rng(1)
    for trial in range(150):
        broken = bytearray(data)
        for position in rng.integers(0, len(data) if trial % 2 else min(200, len(data)), 3):
            broken[position] = rng.integers(256)
        for source in (bytes(broken), bytes(data[: rng.integers(1, len(data))])):
            try:
                assert decode_image(source, SPEC).ndim == 3
            except ImageError as error:
                assert "\n" not in str(error)
