"""Check, training, evaluation and prediction give the same answer for every file.

`docs/data.md` has the answers as a table. To write it, run this file as a program.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dermedge.data.check import check_data
from dermedge.data.images import inspect_images
from dermedge.data.table import read_table
from dermedge.train.views import Frames
from dermedge_runtime.errors import DataError, ImageError
from dermedge_runtime.model import Model, load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Preprocess
from support.image_files import HEIC, LESION, dicom, encode
from support.tables import write_csv

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests" / "data" / "toy.dermedge"
PIXELS = np.asarray(LESION)
GREY = LESION.convert("L")
SECOND = LESION.transpose(Image.Transpose.ROTATE_180)
JPEG = encode(LESION, "JPEG", quality=95)
END = b"\xff\xd9"
VIDEO = struct.pack(">I", 24) + b"ftypisom" + bytes(4) + b"isomavc1" + bytes(100)
READ = "read"


def pages() -> dict[str, Any]:
    """Return options that save a second picture in the same file."""
    return {"save_all": True, "append_images": [SECOND.copy()]}


FILES = {
    "JPEG": JPEG,
    "JPEG, progressive": encode(LESION, "JPEG", progressive=True),
    "JPEG, CMYK": encode(LESION.convert("CMYK"), "JPEG"),
    "JPEG with further pictures (MPO)": encode(LESION, "MPO", **pages()),
    "PNG": encode(LESION, "PNG"),
    "WEBP": encode(LESION, "WEBP"),
    "TIFF": encode(LESION, "TIFF", compression="tiff_lzw"),
    "BMP": encode(LESION, "BMP"),
    "GIF": encode(LESION, "GIF"),
    "AVIF (Pillow 11.3 or later)": encode(LESION, "AVIF"),
    "HEIC, HEIF (extra `heif`)": HEIC.read_bytes(),
    "DICOM, uncompressed (extra `dicom`)": dicom(PIXELS),
    "DICOM, JPEG Baseline": dicom([JPEG], "YBR_FULL_422", syntax="1.2.840.10008.1.2.4.50"),
    "DICOM, JPEG Lossless": dicom([b"xx"], syntax="1.2.840.10008.1.2.4.57"),
    "DICOM, JPEG-LS": dicom([b"xx"], syntax="1.2.840.10008.1.2.4.80"),
    "DICOM, JPEG 2000": dicom([b"xx"], syntax="1.2.840.10008.1.2.4.91"),
    "DICOM, several frames": dicom(np.vstack([PIXELS] * 2), NumberOfFrames=2, Rows=96),
    "DICOM, 16 bits": dicom(PIXELS[..., 0], "MONOCHROME2", BitsAllocated=16, BitsStored=12),
    "JPEG 2000": encode(LESION, "JPEG2000"),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50),
    "video": VIDEO,
    "web page": b"<!DOCTYPE html><html>404</html>",
    "empty file": b"",
    "GIF, animated": encode(LESION, "GIF", **pages()),
    "WEBP, animated": encode(LESION, "WEBP", **pages()),
    "PNG, animated": encode(LESION, "PNG", **pages()),
    "TIFF, several pages": encode(LESION, "TIFF", **pages()),
    "TIFF of floats": encode(GREY.convert("F"), "TIFF"),
    "camera's raw file (DNG, NEF, ARW)": encode(LESION, "TIFF", tiffinfo={254: 1, 330: 8}),
    "side below 16 pixels": encode(LESION.resize((200, 12)), "PNG"),
    "JPEG that broke off": JPEG[: len(JPEG) // 2],
    "JPEG that broke off and was closed": JPEG[: len(JPEG) // 2] + END,
    "PNG that broke off": encode(LESION, "PNG")[:9000],
}


def described(message: str, name: str) -> str:
    """Return a message with NAME for the file's name, or "read"."""
    return message.replace(name, "NAME").removesuffix(" Run `dermedge data check` on this table.")


def in_training(path: Path) -> Iterator[str]:
    frames = Frames([path], Preprocess(64))
    for read in (frames.__getitem__, frames.centred):
        try:
            read(0)
            yield READ
        except DataError as error:
            yield described(str(error), str(path))


def in_prediction(path: Path, model: Model) -> Iterator[str]:
    for exact in (False, True):
        try:
            model.predict(path, exact=exact)
            preprocess(path, Preprocess(64), exact=exact)
            yield READ
        except ImageError as error:
            yield described(str(error), str(path))


def make_set(folder: Path) -> None:
    # No file has a suffix, so that only the content decides.
    rows = [
        {"image_id": f"i{n}", "image": f"images/file{n}", "dx": "nv"} for n in range(len(FILES))
    ]
    write_csv(folder / "metadata.csv", rows)
    (folder / "images").mkdir()
    for row, data in zip(rows, FILES.values(), strict=True):
        (folder / str(row["image"])).write_bytes(data)


def answers(folder: Path, model: Model) -> dict[str, set[str]]:
    """Return the answers of all commands by kind of file."""
    found = {}
    table = read_table(folder)
    names = table.frame["image"]
    for kind, name, inspection in zip(FILES, names, inspect_images(table), strict=True):
        checked = described(inspection.problem, name) or READ
        path = folder / name
        found[kind] = {checked, *in_training(path), *in_prediction(path, model)}
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    folder = tmp_path_factory.mktemp("formats")
    make_set(folder)
    with load(TOY) as model:
        return answers(folder, model)


def row(kind: str, answer: str) -> str:
    return f"| {kind} | yes | |" if answer == READ else f"| {kind} | no | {answer} |"


@pytest.mark.parametrize("kind", FILES)
def test_every_command_gives_the_documented_answer(kind: str, given: dict[str, set[str]]) -> None:
    (answer,) = given[kind]
    assert row(kind, answer) in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_check_counts_what_training_refuses(tmp_path: Path, given: dict[str, set[str]]) -> None:
    make_set(tmp_path)
    findings = {finding.code: finding for finding in check_data(tmp_path).findings}
    refused = sum(answer != {READ} for answer in given.values())
    assert findings["unreadable_image"].count == refused
    assert all(text.count("images/file") == 1 for text in findings["unreadable_image"].examples)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder, load(TOY) as toy:
        make_set(Path(folder))
        for kind, found in answers(Path(folder), toy).items():
            print(row(kind, " / ".join(sorted(found))))
