"""Wrong input gives one clear message and the right exit code, and writes nothing."""

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.files import sha256_hex
from support.command import TOY, Ran, dermedge, process, refused, rewrite_manifest, snapshot


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Copy the toy bundle as a folder that the test may damage."""
    return Bundle.open(TOY).save(tmp_path / "toy.dermedge").path


def encoded(kind: str = "JPEG", seed: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_lesion(seed).image).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """Make a PNG of a few hundred bytes that declares 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animation() -> bytes:
    frames = [Image.fromarray(draw_lesion(seed).image) for seed in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def one_pixel() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


BAD_IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated": (lambda: encoded()[:3000], "truncated or damaged"),
    "zero-byte": (lambda: b"", "is empty (0 bytes)"),
    "no image": (lambda: b"image_id,dx\nISIC_1,nv\n", "is not an image that dermedge reads"),
    "animated": (animation, "is animated or has several pages"),
    "1x1": (one_pixel, "1 x 1 pixels, too small"),
    "bomb": (bomb, "60000 x 60000 pixels, over the limit"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_named_with_its_fault(kind: str, tmp_path: Path) -> None:
    content, expected = BAD_IMAGES[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content())
    for args in (("predict", TOY, path), ("bench", TOY, "--image", path, "--runs", 1)):
        message = refused(dermedge(*args), 1)
        assert str(path) in message
        assert expected in message


def test_a_missing_image_is_named() -> None:
    assert "lesion.jpg does not exist" in refused(dermedge("predict", TOY, "lesion.jpg"), 1)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    message = refused(dermedge("predict", TOY, tmp_path), 2)
    assert f"{tmp_path} holds no image" in message


def flip(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(data)


def traverse(bundle: Path) -> None:
    rewrite_manifest(bundle, {"files": {**Bundle.open(bundle).files, "../evil.txt": "0" * 64}})


def only_a_manifest(bundle: Path) -> None:
    for path in bundle.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (bundle / "manifest.json").write_text('{"model": "mine"}')


BAD_BUNDLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip, "'model.onnx' in"),
    "missing file": (lambda bundle: (bundle / "modelcard.md").unlink(), "misses 'modelcard.md'"),
    "unsafe path": (traverse, "'../evil.txt' in"),
    "newer schema": (
        lambda b: rewrite_manifest(b, {"schema": "dermedge.bundle/2"}),
        "Upgrade dermedge",
    ),
    "unlisted file": (lambda bundle: (bundle / "extra.bin").write_bytes(b"x"), "holds 'extra.bin'"),
    "another manifest": (only_a_manifest, "has no 'schema'"),
}


@pytest.mark.parametrize("damage", BAD_BUNDLES)
def test_a_damaged_bundle_is_refused_by_every_verb(
    damage: str, bundle: Path, tmp_path: Path, table: Path
) -> None:
    harm, expected = BAD_BUNDLES[damage]
    harm(bundle)
    before = snapshot(tmp_path)
    image = next((table / "images").iterdir())
    for args in (
        ("inspect", bundle),
        ("predict", bundle, image),
        ("bench", bundle, "--runs", 1),
        ("evaluate", bundle, "--data", table),
    ):
        message = refused(dermedge(*args), 5)
        assert expected in message
        assert str(bundle) in message or "manifest.json" in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("damage", BAD_BUNDLES)
def test_verify_shows_the_damage_of_a_bundle(damage: str, bundle: Path) -> None:
    harm, expected = BAD_BUNDLES[damage]
    harm(bundle)
    ran = dermedge("verify", bundle)
    assert ran.code == 5
    assert expected in ran.out
    assert ran.out.rstrip().endswith("failed")
    report = dermedge("verify", bundle, "--json")
    assert report.code == 5
    assert [check["status"] for check in report.json()["checks"]] == [
        "failed",
        "not_run",
        "not_run",
        "not_run",
    ]


def test_verify_fails_if_the_engine_computes_other_outputs(bundle: Path) -> None:
    name = "golden/nv-192x256.expected.diagnosis.bin"
    changed = bytearray((bundle / name).read_bytes())
    changed[:4] = struct.pack("<f", struct.unpack("<f", changed[:4])[0] + 0.1)
    (bundle / name).write_bytes(changed)
    files = dict(Bundle.open(TOY).files)
    files[name] = sha256_hex(bytes(changed))
    rewrite_manifest(bundle, {"files": files})
    ran = dermedge("verify", bundle)
    assert ran.code == 5
    assert "off by 0.1, tolerance 0.001" in ran.out


@pytest.mark.parametrize("verb", ["inspect", "verify", "bench"])
def test_a_missing_bundle_is_a_usage_error(verb: str) -> None:
    assert "There is no bundle at nowhere.dermedge" in refused(
        dermedge(verb, "nowhere.dermedge"), 2
    )


def test_a_file_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x09")
    assert "neither a bundle's folder nor its zip" in refused(dermedge("inspect", path), 5)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Make a data set of six images, two of each label."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    rows = ["image_id,image,dx,lesion_id,split"]
    for number, dx in enumerate(("nv", "mel", "bcc") * 2):
        image = Image.fromarray(draw_lesion(number, dx=dx, height=60, width=80).image)
        image.save(folder / "images" / f"{number}.png")
        rows.append(f"I{number},images/{number}.png,{dx},L{number},test")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def edit(table: Path, old: str, new: str) -> None:
    text = (table / "metadata.csv").read_text()
    assert old in text
    (table / "metadata.csv").write_text(text.replace(old, new, 1))


BAD_TABLES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing column": (
        lambda table: edit(table, "image_id,image,", "image_id,file,"),
        ("'image'", "metadata.csv"),
    ),
    "unknown label": (
        lambda table: edit(table, ",mel,", ",melanom,"),
        ("'melanom'", "Did you mean 'mel'"),
    ),
    "image listed twice": (
        lambda table: edit(table, "images/1.png", "images/0.png"),
        ("images/0.png",),
    ),
    "id listed twice": (lambda table: edit(table, "I1,", "I0,"), ("'I0'",)),
    "unknown split": (lambda table: edit(table, ",test", ",tset"), ("'tset'",)),
    "path out of the folder": (
        lambda table: edit(table, "images/1.png", "../1.png"),
        ("'../1.png'",),
    ),
    "not text": (lambda table: (table / "metadata.csv").write_bytes(encoded()), ("metadata.csv",)),
    "empty": (lambda table: (table / "metadata.csv").write_bytes(b""), ("metadata.csv",)),
    "no table": (lambda table: (table / "metadata.csv").unlink(), ("metadata.csv",)),
}


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_a_bad_table_is_refused_and_nothing_is_written(fault: str, table: Path) -> None:
    harm, expected = BAD_TABLES[fault]
    harm(table)
    before = snapshot(table)
    for args in (
        ("data", "check", table),
        ("data", "split", table, "-o", table / "new.csv"),
        ("evaluate", TOY, "--data", table),
    ):
        message = refused(dermedge(*args), 1)
        for words in expected:
            assert words in message
    assert snapshot(table) == before


def test_a_bad_image_in_a_table_is_an_error_of_the_data(table: Path) -> None:
    (table / "images" / "3.png").write_bytes(b"")
    message = refused(dermedge("evaluate", TOY, "--data", table), 1)
    assert "3.png is empty" in message
    assert "data check" in message
    ran = dermedge("data", "check", table)
    assert ran.code == 1
    assert "error: 1 image cannot be read" in ran.out
    assert "images/3.png" in ran.out


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("prdict", TOY, "x.jpg"), "did you mean 'predict'?"),
        (("data", "chekc", "x"), "check"),
        (("predict", TOY, "x.jpg", "--thread", "2"), "--threads"),
        (("predict", TOY), "Missing argument 'IMAGES...'"),
        (("inspect",), "Missing argument 'BUNDLE'"),
        (("export", "student", "--target", "cpo", "-o", "out"), "Did you mean 'cpu'?"),
        (
            ("export", "student", "--target", "jetson-nano", "-o", "out"),
            "Did you mean 'jetson-orin-nano'?",
        ),
        (("run", "--data", "x", "-o", "out", "--target", "cqu"), "Did you mean 'cpu'?"),
        (("predict", TOY, "x.jpg", "--engine", "onnxruntme"), "Did you mean 'onnxruntime'?"),
        (("verify", TOY, "--engine", "onxruntime"), "Did you mean 'onnxruntime'?"),
        (("data", "add", "ham1000", "x", "-o", "out"), "Did you mean 'ham10000'?"),
        (("verify", TOY, "--threads", "0"), "0 is not in the range"),
        (("bench", TOY, "--runs", "many"), "'many' is not a valid integer"),
        (
            ("data", "add", "csv", "x", "-o", "out", "--column", "dx"),
            "'dx' does not have the form KEY=VALUE",
        ),
    ],
    ids=lambda value: (
        " ".join(str(part) for part in value[:3] if part != TOY) if isinstance(value, tuple) else ""
    ),
)
def test_a_usage_error_names_the_wrong_value_or_suggests_the_right_one(
    args: tuple[object, ...], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refused(dermedge(*args), 2)
    assert snapshot(tmp_path) == {}


def test_an_invalid_split_is_a_usage_error(table: Path) -> None:
    assert "'tset'" in refused(dermedge("evaluate", TOY, "--data", table, "--split", "tset"), 2)
    assert "0.5" in refused(
        dermedge("data", "split", table, "-o", table / "new.csv", "--fractions", 0.5, 0.5, 0.5), 2
    )
    assert not (table / "new.csv").exists()


def test_existing_output_is_kept_without_overwrite(table: Path, tmp_path: Path) -> None:
    (table / "old.csv").write_text("mine")
    assert "--overwrite" in refused(dermedge("data", "split", table, "-o", table / "old.csv"), 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert str(out) in refused(dermedge("data", "add", "csv", table, "-o", out), 2)
    assert str(out) in refused(dermedge("data", "add", "csv", table, "-o", out, "--overwrite"), 2)
    assert (table / "old.csv").read_text() == (out / "mine.txt").read_text() == "mine"
    assert dermedge("data", "split", table, "-o", table / "old.csv", "--overwrite").code == 0


def test_an_import_that_fails_leaves_no_folder(table: Path, tmp_path: Path) -> None:
    edit(table, ",mel,", ",melanom,")
    out = tmp_path / "out"
    assert "melanom" in refused(dermedge("data", "add", "csv", table, "-o", out), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_an_unwritable_output_is_an_error_without_a_traceback(table: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(
        dermedge("data", "add", "csv", table, "-o", tmp_path / "file" / "out"), 1
    )


def test_a_folder_that_is_no_student_is_refused(tmp_path: Path) -> None:
    message = refused(dermedge("export", tmp_path, "--target", "cpu", "-o", tmp_path / "out"), 1)
    assert str(tmp_path) in message
    assert snapshot(tmp_path) == {}


def test_a_bundle_is_not_exported_again(bundle: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    message = refused(dermedge("export", bundle, "--target", "web", "-o", tmp_path / "out"), 2)
    assert "is a bundle for cpu" in message
    assert "model 'toy'" in message
    assert snapshot(tmp_path) == before


def test_a_bundle_of_another_major_schema_is_not_exported(bundle: Path, tmp_path: Path) -> None:
    rewrite_manifest(bundle, {"schema": "dermedge.bundle/2"})
    message = refused(dermedge("export", bundle, "--target", "web", "-o", tmp_path / "out"), 5)
    assert "'dermedge.bundle/2'" in message
    assert "Upgrade dermedge" in message
    assert not (tmp_path / "out").exists()


def test_a_teacher_without_data_is_a_usage_error(tmp_path: Path) -> None:
    args = ("export", tmp_path, "--target", "cpu", "-o", tmp_path / "out", "--teacher", tmp_path)
    assert "--data" in refused(dermedge(*args), 2)


NOT_INSTALLED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

ABSENT = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent())
from dermedge.cli import main
main()
"""


def without(packages: str, *args: object) -> Ran:
    return process(packages, *args, code=NOT_INSTALLED)


def test_a_missing_extra_is_named_with_the_install_command(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for packages, extra, args in (
        ("pandas", "evaluate", ("evaluate", TOY, "--data", table)),
        ("sklearn", "evaluate", ("evaluate", TOY, "--data", table)),
        ("onnxruntime", "onnxruntime", ("evaluate", TOY, "--data", table)),
        ("onnxruntime", "onnxruntime", ("predict", TOY, table / "images" / "1.png")),
        ("onnxruntime", "onnxruntime", ("verify", TOY)),
        ("pandas", "data", ("data", "check", table)),
        ("imagehash", "data", ("data", "check", table)),
        ("torch", "export", ("export", tmp_path, "--target", "cpu", "-o", out)),
        ("torch", "train", ("finetune", "--data", table, "-o", out)),
        ("pandas", "train", ("demo", "-o", out)),
    ):
        message = refused(without(packages, *args), 4)
        assert packages in message
        assert message.endswith(f"pip install 'dermedge[{extra}]'.")
    assert not out.exists()


def test_a_defect_keeps_its_traceback() -> None:
    code = (
        "from dermedge.cli import cli, main\n"
        "@cli.result_callback()\n"
        "def fail(*_): return 1 / 0\n"
        "main(['targets'])"
    )
    ran = process(code=code)
    assert ran.code == 1
    assert "ZeroDivisionError" in ran.err
