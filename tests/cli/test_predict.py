"""Test the input, the output and the streams of `dermedge predict`."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import dermedge as library
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.spec import Conformal, Postprocessing
from support.command import TOY, dermedge, process


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with two good photographs, a broken one and a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.jpg", "c [bold].png", "more/d.PNG")):
        Image.fromarray(draw_lesion(seed).image).save(folder / name)
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes()[:2000])
    (folder / "notes.txt").write_text("not an image")
    return folder


def expected(path: Path, **options: bool) -> dict[str, object]:
    with library.load(TOY) as model:
        answer = model.predict(path, **options).to_json()
    return {key: value for key, value in answer.items() if key != "timing"}


def stable_part(line: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in line.items() if key not in ("image", "timing")}


def test_one_bad_file_in_a_folder_is_reported_and_the_others_are_predicted(photos: Path) -> None:
    ran = dermedge("predict", TOY, photos)
    assert ran.code == 1
    assert ran.err.count("Error: ") == 1
    assert "b.jpg is truncated or damaged" in ran.err
    for name in ("a.jpg", "c [bold].png", "more/d.PNG"):
        assert sum(str(photos / name) in line for line in ran.out.splitlines()) == 1
    assert "b.jpg" not in ran.out
    assert "notes.txt" not in ran.out


def test_json_lines_are_what_python_predicts_in_order(photos: Path) -> None:
    ran = dermedge("predict", TOY, photos, "--json")
    assert ran.code == 1
    lines = ran.lines()
    names = ["a.jpg", "b.jpg", "c [bold].png", "more/d.PNG"]
    assert lines.pop() == {
        "skipped": {
            "counts": {"not an image": 1},
            "examples": {"not an image": [str(photos / "notes.txt")]},
        }
    }
    assert [line["image"] for line in lines] == [str(photos / name) for name in names]
    assert set(lines[1]) == {"image", "error"}
    assert f"Error: {lines[1]['error']}" in ran.err
    for line in (lines[0], *lines[2:]):
        assert stable_part(line) == expected(Path(line["image"]))
        assert line["timing"]["preprocess_ms"] > 0


def test_the_table_shows_the_same_numbers(photos: Path) -> None:
    answer = expected(photos / "a.jpg")
    ran = dermedge("predict", TOY, photos / "a.jpg")
    assert ran.code == 0
    row = next(line for line in ran.out.splitlines() if "a.jpg" in line)
    first = answer["labels"][0]
    assert first["name"] in row
    for number in (first["probability"], answer["malignancy"]):
        assert f"{number:.3f}" in row
    assert row.rstrip().endswith(str(answer["decision"]))


def test_a_dash_is_standard_input(photos: Path) -> None:
    data = (photos / "a.jpg").read_bytes()
    (line,) = dermedge("predict", TOY, "-", "--json", stdin=data).lines()
    assert line["image"] == "-"
    assert stable_part(line) == expected(photos / "a.jpg")


def test_a_zipped_bundle_and_its_folder_predict_the_same(photos: Path, tmp_path: Path) -> None:
    folder = library.Bundle.open(TOY).save(tmp_path / "toy.dermedge").path
    zipped, plain = (
        dermedge("predict", b, photos / "a.jpg", "--json").lines()[0] for b in (TOY, folder)
    )
    assert stable_part(zipped) == stable_part(plain)


def test_exact_decodes_a_large_photograph_at_full_scale(tmp_path: Path) -> None:
    photo = tmp_path / "large.jpg"
    Image.fromarray(draw_lesion(3, height=768, width=1024).image).save(photo, quality=85)
    fast, exact = (
        dermedge("predict", TOY, photo, "--json", *flag).lines()[0] for flag in ((), ("--exact",))
    )
    assert stable_part(exact) == expected(photo, exact=True)
    assert stable_part(fast) == expected(photo)
    assert exact["malignancy"] != fast["malignancy"]


def with_broken_exif() -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    Image.fromarray(draw_lesion(0).image).save(buffer, "JPEG", exif=exif.tobytes()[:33])
    return buffer.getvalue()


def test_a_photograph_with_broken_exif_is_predicted_without_a_warning(tmp_path: Path) -> None:
    photo = tmp_path / "phone.jpg"
    photo.write_bytes(with_broken_exif())
    code = (
        f"import sys; from PIL import Image; Image.open({str(photo)!r}).getexif().get_ifd(0x8769)"
    )
    assert "UserWarning" in process(code=code).err, (
        "the photograph must be one that Pillow warns about"
    )
    ran = process("predict", TOY, photo)
    assert ran.code == 0
    assert ran.err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_progress_bar_is_not_written_to_standard_output(photos: Path) -> None:
    import pty

    terminal, side = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "dermedge",
        "predict",
        str(TOY),
        str(photos / "a.jpg"),
        "--json",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=side, env={**os.environ, "TERM": "xterm"}
    ) as running:
        assert running.stdout is not None
        out = running.stdout.read()
    os.close(side)
    os.close(terminal)
    assert running.returncode == 0
    assert stable_part(json.loads(out)) == expected(photos / "a.jpg")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pipe")
def test_a_closed_pipe_prints_no_error(photos: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "dermedge",
        "predict",
        str(TOY),
        str(photos / "a.jpg"),
        "--json",
    ]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_the_photographs_of_a_day_are_answered_as_they_come(photos: Path, tmp_path: Path) -> None:
    """Any suffix, no suffix, a linked folder and a page with the name of an image."""
    day = tmp_path / "day"
    (day / "__MACOSX").mkdir(parents=True)
    names = ("1.jpg", "2.jfif", "3.JPE", "4.pjpeg", "5.mpo", "IMG_0006")
    for name in (*names, "._1.jpg", "__MACOSX/1.jpg"):
        (day / name).write_bytes((photos / "a.jpg").read_bytes())
    (day / "7.dcm").write_bytes(bytes(128) + b"DICM")
    (day / "8.jpg").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (day / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isommp42")
    (day / "patient").symlink_to(photos / "more")
    ran = dermedge("predict", TOY, day)
    assert ran.code == 1
    shown = [line.split()[0] for line in ran.out.splitlines() if str(day) in line]
    assert shown == [str(day / name) for name in (*names, "patient/d.PNG")]
    dicom, page, skipped = ran.err.splitlines()
    assert dicom.startswith(f"Error: {day / '7.dcm'} ")
    assert page.startswith(f"Error: {day / '8.jpg'} is not an image")
    assert skipped == (
        f"Not looked at: 2 hidden or system ({day / '._1.jpg'}, {day / '__MACOSX'}/); "
        f"1 not an image ({day / 'film.mp4'})."
    )


def test_sets_and_referrals_are_printed_in_plain_words(tmp_path: Path, photos: Path) -> None:
    toy = Bundle.open(TOY)
    tasks = {task.name: toy.postprocessing[task.name] for task in toy.spec.tasks}
    count = len(toy.spec.task("diagnosis").labels)
    score = library.predict(toy, [photos / "a.jpg"])
    ((_, prediction),) = score
    low, high = prediction.malignancy - 0.01, prediction.malignancy + 0.01

    def printed(quantile: float, **fitted: float) -> str:
        changed = {
            **tasks,
            "diagnosis": Postprocessing(conformal=Conformal("lac", 0.9, (quantile,) * count)),
            "malignancy": replace(tasks["malignancy"], **fitted),
        }
        path = tmp_path / "sets.dermedge"
        files = {name: toy.read(name) for name in toy.files}
        write_bundle(
            path,
            spec=toy.spec,
            artifact=toy.artifact,
            postprocessing=changed,
            tolerance=toy.tolerance,
            parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
            files=files,
            overwrite=True,
        )
        return " ".join(dermedge("predict", path, photos / "a.jpg").out.split())

    wide = printed(1.0, threshold=low, rule_in=high)
    assert "refer: neither clearly benign nor clearly malignant" in wide
    assert ", ".join(label.id for label in prediction.labels) in wide
    narrow = printed(0.0, threshold=low, rule_in=low)
    assert "no label fits" in narrow
    assert "refer:" not in narrow
