"""Find the images of a folder by content; nothing is left out without being counted."""

import io
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.errors import ImageError
from dermedge_runtime.find_images import IMAGE_SUFFIXES, Skipped, find_images
from dermedge_runtime.image import decode, identify
from dermedge_runtime.system_files import is_hidden

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX links and names")


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw_lesion(1, height=32, width=48).image).save(buffer, kind)
    return buffer.getvalue()


JPEG = encoded("JPEG")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
MP4 = b"\0\0\0\x18ftypisom\0\0\2\0isommp42" + bytes(200)
DICOM = bytes(128) + b"DICM"


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def found(folder: Path) -> tuple[list[str], Skipped]:
    skipped = Skipped()
    return [path.relative_to(folder).as_posix() for path in find_images(folder, skipped)], skipped


def test_the_content_decides_and_a_name_that_claims_an_image_is_not_left_out(
    tmp_path: Path,
) -> None:
    files = {
        "IMG_0005": JPEG,
        "a.jfif": JPEG,
        "b.txt": encoded("PNG"),
        "c.HEIC": HEIC,
        "d": HEIC,
        "e.dcm": DICOM,
        "f": DICOM,
        "page.jpg": b"<!DOCTYPE html><title>404</title>",
        "empty.png": b"",
        "sub/g.webp": encoded("WEBP"),
        "sub/h.bmp": encoded("BMP"),
    }
    others = {
        "film.mp4": MP4,
        "letter.pdf": b"%PDF-1.7\n",
        "set.zip": b"PK\x03\x04",
        "measures.csv": b"BMI,age\n22,40\n",
        "none": b"",
    }
    names, skipped = found(fill(tmp_path, files | others))
    assert names == sorted(files)
    assert skipped.counts == {"not an image": len(others)}


def test_every_image_suffix_is_an_image_whatever_it_holds(tmp_path: Path) -> None:
    names, skipped = found(
        fill(tmp_path, {f"a{suffix.upper()}": b"x" for suffix in IMAGE_SUFFIXES})
    )
    assert len(names) == len(IMAGE_SUFFIXES)
    assert not skipped


SYSTEM = [
    "._1.jpg",
    ".DS_Store",
    "Thumbs.db",
    "thumbs.DB",
    "desktop.ini",
    "__MACOSX/1.jpg",
    ".thumbnails/1.jpg",
    ".nfs0001",
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "$RECYCLE.BIN/$R1.jpg",
    "System Volume Information/1.jpg",
    ".Trashes/1.jpg",
    ".Spotlight-V100/1.jpg",
    "lost+found/1.jpg",
    "~$letter.docx",
    ".hidden.jpg",
    "Icon\r",
    "sub/._2.jpg",
]
UNFINISHED = ["1.jpg.crdownload", "1.jpg.part", ".1.jpg.icloud", "1.jpg.tmp"]


def test_hidden_and_system_files_and_unfinished_downloads_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, dict.fromkeys([*SYSTEM, *UNFINISHED, "1.jpg"], JPEG))
    names, skipped = found(tmp_path)
    assert names == ["1.jpg"]
    assert skipped.counts == {
        "hidden or system": len(SYSTEM),
        "unfinished download": len(UNFINISHED),
    }
    assert str(skipped).startswith(f"Not looked at: {len(SYSTEM)} hidden or system (")
    assert str(tmp_path / "$RECYCLE.BIN") + os.sep in skipped.examples["hidden or system"]


def test_a_folder_is_named_by_the_user_even_if_it_is_hidden(tmp_path: Path) -> None:
    assert found(fill(tmp_path / ".photos", {"1.jpg": JPEG}))[0] == ["1.jpg"]


def test_linked_folders_are_read_once_and_links_to_files_are_followed(tmp_path: Path) -> None:
    day = fill(tmp_path / "day", {"m/1.jpg": JPEG})
    elsewhere = fill(tmp_path / "elsewhere", {"2.jpg": JPEG, "deep/3.jpg": JPEG})
    (elsewhere / "back").symlink_to(day)
    (day / "a").symlink_to(day / "m")  # Read at its own place, although "a" comes first.
    (day / "loop").symlink_to(day)
    (day / "patient").symlink_to(elsewhere)
    (day / "patient again").symlink_to(elsewhere)
    (day / "photo").symlink_to(elsewhere / "2.jpg")
    (day / "gone.jpg").symlink_to(tmp_path / "gone")
    (day / "self").symlink_to(day / "self")
    names, skipped = found(day)
    assert names == ["m/1.jpg", "patient/2.jpg", "patient/deep/3.jpg", "photo"]
    assert skipped.counts == {"broken link": 2, "link to a folder that is read already": 4}


def test_pipes_and_sockets_are_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # The path of a socket has at most 108 bytes.
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        names, skipped = found(tmp_path)
    assert names == []
    assert skipped.examples == {"pipe or device": [str(tmp_path / "pipe.jpg"), str(tmp_path / "s")]}


def test_a_pipe_that_is_named_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe.jpg is a pipe or a device. Name an image file"):
        decode(tmp_path / "pipe.jpg")


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"1.jpg": JPEG, "closed/2.jpg": JPEG})
    scan = os.scandir

    def scandir(path: str) -> object:
        # The superuser may read every folder, so the refusal is simulated.
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    names, skipped = found(tmp_path)
    assert (names, skipped.unreadable) == (["1.jpg"], 1)
    assert f"1 unreadable ({tmp_path / 'closed'}/)" in str(skipped)


def test_the_head_of_a_file_is_read_once_and_only_if_its_name_claims_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"1.jpg": JPEG, "2": JPEG, "3.txt": b"text"})
    opened, real = [], Path.open

    def open_(self: Path, *args: object) -> object:
        opened.append(self.name)
        return real(self, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", open_)
    assert found(tmp_path)[0] == ["1.jpg", "2"]
    assert sorted(opened) == ["2", "3.txt"]


LETTERS = st.sampled_from([*"aB._~$ \n\x1bé\N{RIGHT-TO-LEFT OVERRIDE}", "\udcff"])
NAMES = st.one_of(
    st.sampled_from([*(name.partition("/")[0] for name in SYSTEM), *UNFINISHED]),
    st.text(LETTERS, min_size=1, max_size=6).filter(lambda name: name not in (".", "..")),
    st.sampled_from(["1.jpg", "2.PNG", "3", "4.txt", "5.jpg"]),
)
CONTENTS = st.sampled_from([JPEG, HEIC, MP4, b"", b"text"])
TREES = st.recursive(
    st.dictionaries(NAMES, CONTENTS, max_size=5),
    lambda trees: st.dictionaries(NAMES, st.one_of(CONTENTS, trees, st.none()), max_size=5),
    max_leaves=12,
)


def build(folder: Path, tree: dict[str, object], root: Path) -> int:
    """Write a tree, in which None is a link to the root; count the entries to account for."""
    folder.mkdir()
    entries = 0
    for name, content in tree.items():
        below = 1
        if isinstance(content, dict):
            below = build(folder / name, content, root)
        elif isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            (folder / name).symlink_to(root)
        entries += 1 if is_hidden(name) else below
    return entries


@given(TREES)
@settings(max_examples=int(os.environ.get("DERMEDGE_EXAMPLES", "40")))
def test_every_entry_of_any_folder_is_listed_or_counted(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "root")
        entries = build(root, tree, root)
        skipped = Skipped()
        images = find_images(root, skipped)
        assert len(images) + sum(skipped.counts.values()) == entries
        assert images == sorted(set(images))
        assert str(skipped).isprintable()
        for path in images:
            assert path.suffix.lower() in IMAGE_SUFFIXES or identify(path.read_bytes())
