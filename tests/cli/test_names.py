"""Any file name and any code page: names are shown on one line, and no output crashes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermedge.cli.console import table, to_json_text
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.printable import printable, printable_path
from support.command import TOY, Ran, dermedge, process, refused

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
EXAMPLES = settings(max_examples=int(os.environ.get("DERMEDGE_EXAMPLES", "60")))

NAMES = [
    b"caf\xe9.jpg",
    b"a\nb.jpg",
    b"a\\nb.jpg",
    b"tab\t.jpg",
    b"cr\r.jpg",
    b"\x1b[31mred.jpg",
    b":100:.jpg",
    b"[red]x.jpg",
    "🩺.jpg".encode(),
    "a\N{RIGHT-TO-LEFT OVERRIDE}gpj.b.jpg".encode(),
    b"-x.jpg",
    b" lead.jpg",
    b"%s{0}.jpg",
    b"x" * 251 + b".jpg",
]
BAD = b"bad\n\xff.jpg"
CODE_PAGES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "no locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """Return a folder with one image under every name, and a bad one."""
    folder = tmp_path / "day"
    folder.mkdir()
    Image.fromarray(draw_lesion(0).image).save(tmp_path / "first.jpg")
    for name in NAMES:
        os.link(tmp_path / "first.jpg", folder / os.fsdecode(name))
    (folder / os.fsdecode(BAD)).write_bytes(b"<html>")
    (folder / os.fsdecode(b"notes\n\xff")).write_bytes(b"text")
    return folder


def test_every_image_is_predicted_and_shown_on_one_line(day: Path) -> None:
    ran = dermedge("predict", TOY, day)
    assert ran.code == 1
    rows = [line for line in ran.out.splitlines() if str(day) in line]
    assert len(rows) == len(set(rows)) == len(NAMES)
    assert all(line.isprintable() for line in ran.out.splitlines())
    for shown in (r"/caf\udce9.jpg ", r"/a\nb.jpg ", r"/a\\nb.jpg ", "/:100:.jpg ", "/[red]x.jpg "):
        assert sum(shown in row for row in rows) == 1
    error, skipped = ran.err.splitlines()
    assert error.startswith(rf"Error: {day}/bad\n\udcff.jpg is not an image")
    assert skipped == rf"Not looked at: 1 not an image ({day}/notes\n\udcff)."


def names_in(out: str) -> set[bytes]:
    lines = [json.loads(line) for line in out.splitlines()]
    return {os.fsencode(Path(line["image"]).name) for line in lines if "image" in line}


def test_json_gives_the_bytes_of_every_name(day: Path) -> None:
    assert names_in(dermedge("predict", TOY, day, "--json").out) == {*NAMES, BAD}


@pytest.mark.parametrize("page", CODE_PAGES)
def test_output_to_any_code_page_is_whole(day: Path, page: str) -> None:
    shown = process("predict", TOY, day, **CODE_PAGES[page])
    assert (shown.code, shown.err.count("\n")) == (1, 2)
    assert sum(str(day) in line for line in shown.out.splitlines()) == len(NAMES)


def test_json_gives_the_bytes_of_every_name_without_a_locale(day: Path) -> None:
    ran = process("predict", TOY, day, "--json", **CODE_PAGES["no locale"])
    assert names_in(ran.out) == {*NAMES, BAD}


def shell(command: str, *arguments: object) -> Ran:
    """Run a command of a shell, in which `dermedge` is "$@"."""
    start = [sys.executable, "-m", "dermedge", *map(str, arguments)]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *start], capture_output=True, text=True, check=False
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_streams_that_are_closed_or_full_give_no_traceback(day: Path) -> None:
    ran = shell('"$@" 2>&-', "predict", TOY, day, "--json")
    assert (ran.code, len(ran.out.splitlines())) == (1, len(NAMES) + 2)
    ran = shell('"$@" >&-', "predict", TOY, day, "--json")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 2)
    ran = shell('"$@" | head -1', "predict", TOY, day, "--json")
    assert (len(ran.out.splitlines()), "Traceback" in ran.err) == (1, False)
    ran = shell('"$@" > /dev/full', "targets")
    assert (ran.code, ran.err) == (
        1,
        "Error: The output cannot be written: No space left on device. Free space.\n",
    )


@pytest.mark.parametrize(
    "args",
    [
        ("verify", "no\n\udcff"),
        ("inspect", "no\n\udcff"),
        ("data", "check", "no\n\udcff"),
        ("predict", "no\n\udcff", "x"),
        ("bench", TOY, "--image", "no\n\udcff"),
        ("evaluate", TOY, "--data", "no\n\udcff"),
    ],
    ids=lambda args: args[0],
)
def test_an_error_that_names_a_path_is_one_line(args: tuple[object, ...]) -> None:
    ran = dermedge(*args)
    message = refused(ran, ran.code)
    assert message.isprintable()
    assert r"no\n\udcff" in message


def test_a_table_shows_names_literally(capsys: pytest.CaptureFixture[str]) -> None:
    names = (":100:", "[red]x[/red]", "[/x]", "a\nb", "passed")
    table(("name :100: [b]", "count"), [(name, 1) for name in names], title="[i]:100:")
    out = capsys.readouterr().out
    for text in ("[i]:100:", "name :100: [b]", ":100: ", "[red]x[/red]", "[/x]", r"a\nb"):
        assert text in out


TEXTS = st.text(st.characters())
PATHS = st.binary(min_size=1, max_size=30).map(os.fsdecode)


@given(TEXTS)
@EXAMPLES
def test_any_text_is_shown_on_one_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown


@given(PATHS, PATHS)
@EXAMPLES
def test_different_paths_are_shown_differently(one: str, other: str) -> None:
    assert (printable_path(one) == printable_path(other)) == (one == other)


@given(PATHS)
@EXAMPLES
def test_any_path_survives_json(path: str) -> None:
    text = to_json_text({"image": path})
    assert text.isascii()
    assert os.fsencode(json.loads(text)["image"]) == os.fsencode(path)
