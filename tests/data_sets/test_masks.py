"""Read masks of any encoding as their lesion, or refuse them by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from dermedge.data.check import check_data
from dermedge.data.finding import Finding
from dermedge.data.masks import decode_mask, open_mask, read_mask
from dermedge.train.views import Frames, Masks
from dermedge_runtime.errors import DataError
from dermedge_runtime.preprocess import decode_image
from dermedge_runtime.spec import Preprocess
from support.tables import picture, shared, write_csv

HEIGHT, WIDTH = 90, 120
Y, X = np.mgrid[:HEIGHT, :WIDTH]
INSIDE = (X - 55) ** 2 / 900 + (Y - 40) ** 2 / 484 < 1
ONE = INSIDE.astype(np.uint8)
NOISE = np.random.default_rng(0).integers(20, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def indexed(indices: np.ndarray, palette: dict[int, tuple[int, int, int]]) -> Image.Image:
    image = Image.frombytes("P", (WIDTH, HEIGHT), indices.astype(np.uint8).tobytes())
    colours = np.zeros((256, 3), np.uint8)
    for index, colour in palette.items():
        colours[index] = colour
    image.putpalette(colours.tobytes())
    return image


def coloured(lesion: tuple[int, int, int], rest: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    return Image.fromarray(np.where(INSIDE[..., None], lesion, rest).astype(np.uint8))


def with_alpha(colours: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colours, alpha]).astype(np.uint8))


def blurred(radius: float) -> Image.Image:
    return Image.fromarray(ONE * 255).filter(ImageFilter.GaussianBlur(radius))


def labelled(low: int, high: int) -> np.ndarray:
    labels = ONE * high
    labels[70:80, 100:110] = low
    return labels


UNDERSTOOD: dict[str, Image.Image | np.ndarray] = {
    "0-1.png": ONE,
    "0-2.png": ONE * 2,
    "0-128.png": ONE * 128,
    "0-255.png": ONE * 255,
    "100-200.bmp": 100 + ONE * 100,
    "16-bit-1.png": ONE.astype(np.uint16),
    "16-bit-255.png": ONE.astype(np.uint16) * 255,
    "16-bit-65535.tif": ONE.astype(np.uint16) * 65535,
    "32-bit.tif": ONE.astype(np.int32) * 70_000,
    "float.tif": ONE.astype(np.float32) / 2,
    "bool.png": INSIDE,
    "bool.tif": INSIDE,
    "bool.bmp": INSIDE,
    "bool.gif": INSIDE,
    "palette.png": indexed(ONE, {1: (255, 255, 255)}),
    "voc-1.png": indexed(ONE, {1: (128, 0, 0)}),
    "voc-15.png": indexed(ONE * 15, {15: (192, 128, 128)}),
    "no-black.gif": indexed(ONE, {0: (10, 20, 200), 1: (200, 30, 20)}),
    "black-palette.png": indexed(ONE, {}),
    "white-is-index-0.png": indexed(1 - ONE, {0: (255, 255, 255)}),
    "grey-as-rgb.png": coloured((1, 1, 1)),
    "red.png": coloured((255, 0, 0)),
    "dark-brown.png": coloured((90, 60, 40)),
    "cut-out.png": with_alpha(NOISE, ONE * 255),
    "cut-out.webp": with_alpha(NOISE, ONE * 255),
    "even-alpha.png": with_alpha(np.dstack([ONE] * 3) * 255, np.full_like(ONE, 128)),
    "grey-alpha.png": Image.merge("LA", [Image.fromarray(ONE * 255), Image.new("L", (120, 90), 7)]),
    "lossy.jpg": ONE * 255,
    "lossy-128.jpg": ONE * 128,
    "cmyk.tif": Image.fromarray(ONE * 255).convert("CMYK"),
}
REFUSED: dict[str, tuple[Image.Image | np.ndarray, str]] = {
    "white.png": (255 - ONE * 255, "lesion and background swapped"),
    "white.jpg": (255 - ONE * 255, "lesion and background swapped"),
    "white-bits.png": (~INSIDE, "lesion and background swapped"),
    "two-classes.png": (labelled(1, 2), r"3 labels or shades \(0, 1, 2\)"),
    "half-class.png": (labelled(128, 255), r"3 labels or shades \(0, 128, 255\)"),
    "void.png": (labelled(255, 1), r"3 labels or shades \(0, 1, 255\)"),
    "16-bit-classes.tif": (labelled(1, 2).astype(np.uint16), "3 labels or shades"),
    "float-classes.tif": (labelled(1, 2).astype(np.float32), "3 labels or shades"),
    "voc-void.png": (
        indexed(labelled(255, 1), {1: (128, 0, 0), 255: (224, 224, 192)}),
        r"palette entries 0 \(0, 0, 0\), 1 \(128, 0, 0\), 255",
    ),
    "red-on-white.png": (coloured((255, 0, 0), (255, 255, 255)), "2 colours"),
    "two-colours.png": (np.dstack([ONE * 255, (X < 9) * 255, ONE * 0]), "3 colours"),
    "photograph.png": (NOISE, r"\d+ colours"),
    "photograph.jpg": (np.asarray(picture(1, (120, 90))), r"\d+ colours"),
    "grey-photograph.png": (np.asarray(picture(1, (120, 90)).convert("L")), "labels or shades"),
    "probabilities.png": (blurred(12), "no two clear values"),
    "black-cut-out.png": (NOISE * ONE[..., None], r"\d+ colours"),
    "alpha-and-colour.png": (
        with_alpha(np.dstack([ONE] * 3) * 255, (Y > 5) * 255),
        "transparency and its colours",
    ),
    "negative.tif": (-ONE.astype(np.int32), "values below 0"),
    "nan.tif": (np.where(INSIDE, np.nan, 0).astype(np.float32), "not finite"),
    "0-1.jpg": (ONE, "JPEG with values from 0 to"),
}


def store(path: Path, drawn: Image.Image | np.ndarray, **options: object) -> Path:
    if isinstance(drawn, np.ndarray) and drawn.dtype == np.int64:
        drawn = drawn.astype(np.uint8)
    image = drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_the_lesion_of_a_mask_is_read(name: str, tmp_path: Path) -> None:
    options = {"lossless": True} if name.endswith(".webp") else {}
    path = store(tmp_path / name, UNDERSTOOD[name], **options)
    np.testing.assert_array_equal(decode_mask(path), INSIDE)


@pytest.mark.parametrize("name", REFUSED)
def test_a_mask_that_nobody_can_read_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = store(tmp_path / name, REFUSED[name][0])
    with pytest.raises(DataError, match=rf"The mask .*{name} .*{REFUSED[name][1]}"):
        decode_mask(path)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_of_16_bits_are_refused_before_they_lose_their_low_byte(
    suffix: str, tmp_path: Path
) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / f"deep.{suffix}"
    cv2.imwrite(str(path), np.dstack([ONE] * 3).astype(np.uint16))
    with pytest.raises(DataError, match="16 bits per colour channel"):
        decode_mask(path)


@pytest.mark.parametrize(
    "drawn", [blurred(1), Image.fromarray(ONE * 255).resize((60, 45), 2).resize((120, 90), 3)]
)
@pytest.mark.parametrize("quality", [0, 10, 40, 75, 95])
def test_soft_and_lossy_edges_are_understood(
    drawn: Image.Image, quality: int, tmp_path: Path
) -> None:
    path = tmp_path / ("m.jpg" if quality else "m.png")
    found = decode_mask(store(path, drawn, **({"quality": quality} if quality else {})))
    assert (found != INSIDE).mean() < 0.01
    # Before, all values above 127 were inside. Masks of 0 and 255 are read as they were.
    np.testing.assert_array_equal(found, np.asarray(Image.open(path)) > 127)


def test_real_masks_are_read_as_black_and_white(tmp_path: Path) -> None:
    folder = shared("ham10000") / "masks"
    for path in sorted(folder.iterdir())[:200]:
        np.testing.assert_array_equal(decode_mask(path), np.asarray(Image.open(path)).astype(bool))


@st.composite
def two_valued(draw: st.DrawFn) -> tuple[str, Image.Image]:
    """Draw the lesion with any two values in any of Pillow's modes."""
    kind = draw(st.sampled_from(["L", "I;16", "I", "F", "1", "P", "RGB", "RGBA", "LA", "CMYK"]))
    byte = st.integers(0, 255)
    colour = st.tuples(byte, byte, byte)
    if kind == "1":
        return "png", Image.fromarray(INSIDE)
    if kind in ("L", "I;16", "I", "F"):
        whole = st.integers(0, {"L": 255, "I;16": 65535}.get(kind, 2**31 - 1))
        numbers = st.floats(0, 2.0**120, width=32, allow_subnormal=False) if kind == "F" else whole
        low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
        dtype = {"L": np.uint8, "I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]
        return ("png" if kind == "L" else "tif"), Image.fromarray(
            np.where(INSIDE, high, low).astype(dtype)
        )
    if kind == "P":
        low, high = draw(st.lists(byte, min_size=2, max_size=2, unique=True))
        palette = {low: draw(colour), high: draw(colour)}
        return draw(st.sampled_from(["png", "gif"])), indexed(np.where(INSIDE, high, low), palette)
    rest = draw(st.one_of(st.just((0, 0, 0)), colour))
    image = coloured(draw(colour), rest)
    if kind == "RGB":
        return draw(st.sampled_from(["png", "bmp", "tif"])), image
    if kind == "CMYK":
        return "tif", image.convert("CMYK")
    image.putalpha(Image.fromarray(np.where(INSIDE, 255, draw(byte)).astype(np.uint8)))
    return "png", image if kind == "RGBA" else image.convert("LA")


@given(two_valued())
@settings(max_examples=400, deadline=None)
def test_two_values_are_read_as_the_lesion_or_refused(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, Image.Image]
) -> None:
    suffix, image = drawn
    path = tmp_path_factory.getbasetemp() / f"two.{suffix}"
    image.save(path)
    try:
        found = decode_mask(path)
    except DataError as error:
        assert "The mask" in str(error)
        return
    # A mask whose samples are all alike has no lesion to lose.
    if found.any() and not found.all():
        np.testing.assert_array_equal(found, INSIDE)


def turned_pair(folder: Path, orientation: int, mask: str) -> tuple[Path, Path]:
    """Write a photograph of a dark lesion with an EXIF orientation, and its mask.

    Args:
        folder: Folder of both files.
        orientation: EXIF orientation of the photograph.
        mask: "stored" for a mask of the stored samples, "upright" for one of the
            upright image, "own" for a mask that has the orientation, too.
    """
    pixels = np.where(INSIDE[..., None], (60, 30, 20), (220, 180, 160)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = store(folder / "photo.jpg", pixels, exif=exif, quality=95)
    stored = ONE * 255
    if mask == "own":
        return image, store(folder / "mask.jpg", stored, exif=exif, quality=95)
    upright = decode_image(image, Preprocess(16), exact=True)[..., 1] < 100
    drawn = stored if mask == "stored" else upright.astype(np.uint8) * 255
    return image, store(folder / "mask.png", drawn)


@pytest.mark.parametrize("mask", ["stored", "upright", "own"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_lies_on_the_lesion_of_a_turned_photograph(
    orientation: int, mask: str, tmp_path: Path
) -> None:
    image, path = turned_pair(tmp_path, orientation, mask)
    lesion = decode_image(image, Preprocess(16), exact=True)[..., 1] < 100
    found = open_mask(path, image)
    ambiguous = orientation in (2, 3, 4) and mask != "own"
    turned = orientation > 4 and mask == "stored"
    assert found.placed == ("turned" if turned else "unknown" if ambiguous else "")
    assert found.inside.shape == lesion.shape
    if not (ambiguous and mask == "stored"):  # not to be told from an upright one
        assert (found.inside != lesion).mean() < 0.01
    # Training reads the mask in the frame and on the grid of the network.
    frames = Frames([image], Preprocess(32))
    framed = Masks([path], frames).framed(0)
    assert framed is not None
    assert framed.shape == frames[0].shape[:2]
    grid = Masks([path], frames).centred(0)
    np.testing.assert_array_equal(grid, read_mask(path, Preprocess(8), image))


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_with_an_orientation_is_turned_once(
    orientation: int, compression: str | None, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": compression} if compression else {}
    mask = store(tmp_path / "mask.tif", ONE, exif=exif, **options)
    image = turned_pair(tmp_path, orientation, "own")[0]
    lesion = decode_image(image, Preprocess(16), exact=True)[..., 1] < 100
    found = open_mask(mask, image)
    assert found.placed == ""
    assert (found.inside != lesion).mean() < 0.01


@pytest.mark.parametrize("size", [(120, 90), (60, 45), (240, 180), (121, 90)])
def test_a_mask_may_have_another_resolution(size: tuple[int, int], tmp_path: Path) -> None:
    image = store(tmp_path / "i.png", NOISE)
    assert decode_mask(store(tmp_path / "m.png", Image.new("1", size)), image).shape == size[::-1]
    with pytest.raises(DataError, match="it is 90x120, but its image is 120x90"):
        decode_mask(store(tmp_path / "m.png", Image.new("1", (90, 120))), image)


def check(folder: Path, masks: dict[str, Image.Image | np.ndarray]) -> dict[str, Finding]:
    rows = []
    for number, (name, drawn) in enumerate(masks.items()):
        store(folder / name, drawn)
        picture(number, (WIDTH, HEIGHT)).save(folder / f"{number}.png")
        rows.append({"image_id": str(number), "image": f"{number}.png", "mask": name, "dx": "nv"})
    write_csv(folder / "metadata.csv", rows)
    return {finding.code: finding for finding in check_data(folder).findings}


def test_data_check_counts_empty_full_odd_and_inverted_masks(tmp_path: Path) -> None:
    full = np.full_like(ONE, 255)
    full[:3] = 0
    found = check(
        tmp_path,
        {
            "sound.png": ONE * 255,
            "ones.png": ONE,
            "deep.png": ONE.astype(np.uint16) * 65535,
            "empty.png": ONE * 0,
            "empty-too.png": INSIDE & False,
            "full.png": full,
            "two.png": ONE * 2,
            "red.png": coloured((255, 0, 0)),
            "white.png": 255 - ONE * 255,
            "classes.png": labelled(1, 2),
        },
    )
    masks = {code: found[code] for code in found if code.endswith("mask")}
    assert {code: (one.level, one.count) for code, one in masks.items()} == {
        "bad_mask": ("error", 1),
        "inverted_mask": ("error", 1),
        "empty_mask": ("warning", 2),
        "full_mask": ("warning", 1),
        "odd_mask": ("warning", 2),
    }
    assert found["empty_mask"].examples == ("empty.png", "empty-too.png")
    assert found["full_mask"].examples == ("full.png: 96.7%",)
    assert found["odd_mask"].examples == (
        "two.png: background 0, lesion 2",
        "red.png: lesion in the colour (255, 0, 0)",
    )
    assert found["inverted_mask"].examples == ("white.png",)


@pytest.mark.parametrize("name", [*UNDERSTOOD, *REFUSED])
def test_training_refuses_a_mask_exactly_if_data_check_does(name: str, tmp_path: Path) -> None:
    drawn = UNDERSTOOD[name] if name in UNDERSTOOD else REFUSED[name][0]
    found = check(tmp_path, {name: drawn})
    errors = [one for one in found.values() if one.level == "error" and "mask" in one.code]
    masks = Masks([tmp_path / name], Frames([tmp_path / "0.png"], Preprocess(32)))
    read: list[Callable[[int], object]] = [masks.framed, masks.centred]
    for reader in read:
        if name in REFUSED:
            with pytest.raises(DataError, match=name):
                reader(0)
        else:
            reader(0)
    assert bool(errors) == (name in REFUSED)


def test_a_mask_of_any_name_is_named_on_one_line(tmp_path: Path) -> None:
    name = "two\nlines. txt.png"
    with pytest.raises(DataError, match=r"The mask [^\n]*two\\nlines\. txt\.png cannot be used"):
        decode_mask(store(tmp_path / name, labelled(1, 2)))
    found = check(tmp_path, {name: labelled(1, 2)})["bad_mask"].examples
    assert len(found) == 1
    assert "two\\nlines. txt.png: it has 3 labels or shades (0, 1, 2)" in found[0]
    assert "\n" not in found[0]


def test_data_check_warns_of_masks_of_turned_images(tmp_path: Path) -> None:
    rows = []
    for orientation, mask in ((1, "stored"), (6, "stored"), (6, "upright"), (3, "upright")):
        name = f"{orientation}-{mask}"
        turned_pair(tmp_path / name, orientation, mask)
        rows.append(
            {"image_id": name, "image": f"{name}/photo.jpg", "mask": f"{name}/mask.png", "dx": "nv"}
        )
    write_csv(tmp_path / "metadata.csv", rows)
    found = {finding.code: finding for finding in check_data(tmp_path).findings}
    assert found["turned_mask"].examples == ("6-stored/mask.png",)
    assert found["unplaced_mask"].examples == ("3-upright/mask.png",)
    assert {found[code].level for code in ("turned_mask", "unplaced_mask")} == {"warning"}


def test_data_check_warns_where_most_masks_mark_the_border(tmp_path: Path) -> None:
    touching = 255 - ONE * 255
    touching[30:50, :60] = 0  # the lesion reaches the left border
    found = check(tmp_path, {"a.png": touching, "b.png": touching, "c.png": ONE * 255})
    assert (found["wide_mask"].level, found["wide_mask"].count) == ("warning", 2)
    assert "wide_mask" not in check(
        tmp_path / "few", {"a.png": touching, "b.png": ONE, "c.png": ONE * 255}
    )
