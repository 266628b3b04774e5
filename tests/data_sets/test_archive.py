"""Find files of unpacked sets by name, for any name in a table."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermedge.data.importing.add import add_data
from dermedge.data.importing.archive import Archive, ImageIndex, flatten_path, strip_suffix
from dermedge_runtime.errors import DataError
from support.tables import save, write_csv

SETTINGS = settings(max_examples=30, deadline=None)
PARTS = st.sampled_from(["a", "B", "photo.jpg", "x.y", "ISIC_1.png", "..", ".", "", "c:"])
NAMES = st.lists(PARTS, max_size=4).map("/".join)


def touch(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_hidden_files_are_not_listed_but_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a/1.jpg")
    touch(tmp_path / "a/._1.jpg")
    touch(tmp_path / "__MACOSX/1.jpg")
    archive = Archive.scan(tmp_path)
    assert [path.name for path in archive.paths] == ["1.jpg"]
    assert archive.skipped.counts == {"hidden or system": 2}


def test_an_image_needs_no_suffix_and_a_linked_folder_is_searched(tmp_path: Path) -> None:
    """A part's images are found as `predict` finds them."""
    save(tmp_path / "elsewhere/ISIC_1.2", 1, format="JPEG")
    touch(tmp_path / "set/images/readme", b"text")
    (tmp_path / "set/images/more").symlink_to(tmp_path / "elsewhere")
    archive = Archive.scan(tmp_path / "set")
    images = archive.find_images(("images",))
    assert [archive.relative_path(path) for path in images] == ["images/more/ISIC_1.2"]
    assert ImageIndex(images).find("isic_1.2.jpg") == images[0]


def test_a_table_nearest_to_the_root_is_found_by_the_first_pattern(tmp_path: Path) -> None:
    for name in ("deep/er/meta.csv", "deep/META.CSV", "other.csv"):
        touch(tmp_path / name)
    archive = Archive.scan(tmp_path)
    assert archive.find_table(("meta.csv", "*.csv")) == tmp_path / "deep/META.CSV"
    assert archive.find_table(("none.csv", "*.csv")) == tmp_path / "other.csv"
    assert archive.find_table(("none.csv",)) is None


def test_images_are_found_below_folders_of_a_name_at_any_depth(tmp_path: Path) -> None:
    for name in ("set/Images_1/1.JPG", "set/images_2/sub/2.png", "set/masks/3.png", "4.png"):
        touch(tmp_path / name)
    touch(tmp_path / "set/images_1/1_superpixels.png")
    archive = Archive.scan(tmp_path)
    found = archive.find_images(("images_*",), ignore=("*_superpixels.png",))
    assert [archive.relative_path(path) for path in found] == [
        "set/Images_1/1.JPG",
        "set/images_2/sub/2.png",
    ]
    assert len(archive.find_images(("*",))) == 5


def test_an_image_is_found_by_as_many_folders_as_its_name_has(tmp_path: Path) -> None:
    first = touch(tmp_path / "NEL/1.jpg", b"1")
    second = touch(tmp_path / "FAL/1.jpg", b"22")
    index = ImageIndex([first, second])
    assert index.find("nel/1") == first
    assert index.find("images/FAL/1.PNG") == second
    assert index.find("2.jpg") is None
    with pytest.raises(DataError, match="different images of one name"):
        index.find("1.jpg")


@given(NAMES)
@SETTINGS
def test_any_name_finds_a_listed_image_or_nothing(name: str) -> None:
    """A name from a table cannot select a file that is not listed."""
    listed = [Path("/set/a/photo.jpg"), Path("/set/b/ISIC_1.png")]
    assert ImageIndex(listed).find(name) in (None, *listed)


@given(NAMES)
@SETTINGS
def test_flattened_names_have_no_folders_and_stripped_names_no_image_suffix(name: str) -> None:
    assert not strip_suffix(name).lower().endswith((".jpg", ".png"))
    if not name.startswith("/"):
        assert "/" not in flatten_path(name)


@given(NAMES)
@SETTINGS
def test_a_user_table_cannot_copy_a_file_outside_its_folder(name: str) -> None:
    """For any path in a table, the import fails or copies an image below the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save(folder / "photo.jpg", 1, format="JPEG")
        inside = save(folder / "set" / "a" / "photo.jpg", 2, format="JPEG")
        write_csv(folder / "set" / "list.csv", [{"image": name}])
        try:
            add_data("csv", folder / "set" / "list.csv", folder / "out")
        except DataError:
            assert not (folder / "out").exists()
        else:
            images = [path.read_bytes() for path in (folder / "out" / "images").iterdir()]
            assert images == [inside.read_bytes()]
