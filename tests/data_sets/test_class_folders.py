"""Read folders that have one sub-folder per diagnosis instead of a table."""

from pathlib import Path

import pytest

from dermedge.data.check import check_data
from dermedge.data.table import read_table
from dermedge_runtime.errors import DataError
from support.command import dermedge, refused, snapshot
from support.tables import save, write_csv


def draw(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        save(folder / name, seed)
    return folder


def cells(folder: Path, *columns: str) -> list[list[object]]:
    values: list[list[object]] = read_table(folder).frame[list(columns)].to_numpy().tolist()
    return values


def test_class_folders_below_split_folders(tmp_path: Path) -> None:
    draw(
        tmp_path,
        "TRAIN/Basal cell carcinoma/1.png",
        "TRAIN/NEVUS/sub/1.png",
        "Valid/melanomas/2.jpg",
        "testing/nv/3.png",
    )
    (tmp_path / "TRAIN/NEVUS/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (tmp_path / "TRAIN/NEVUS/notes.txt").write_text("no image")
    assert cells(tmp_path, "image_id", "dx", "split", "malignant") == [
        ["TRAIN_Basal cell carcinoma_1", "bcc", "train", 1],
        ["TRAIN_NEVUS_sub_1", "nv", "train", 0],
        ["Valid_melanomas_2", "mel", "val", 1],
        ["testing_nv_3", "nv", "test", 0],
    ]
    notes = " ".join(read_table(tmp_path).notes)
    assert (
        "Read 4 images in 3 class folders (bcc, mel, nv), splits train 2, val 1, test 1." in notes
    )


def test_images_are_found_by_content_and_equal_names_stay_apart(tmp_path: Path) -> None:
    draw(tmp_path, "nv/1.png", "nv/1.jpg", "mel/2.png")
    (tmp_path / "mel/2.png").rename(tmp_path / "mel/2")
    (tmp_path / "mel/notes.pdf").write_text("no image")
    assert cells(tmp_path, "image_id", "image") == [
        ["mel_2", "mel/2"],
        ["nv/1.jpg", "nv/1.jpg"],
        ["nv/1.png", "nv/1.png"],
    ]
    assert "Not looked at: 1 not an image" in " ".join(read_table(tmp_path).notes)


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("nv/1.png", "mel/1.png"), ["", ""]),
        (("train/nv/1.png", "train/mel/1.png"), ["", ""]),
        (("train/nv/1.png", "test/mel/1.png"), ["test", ""]),
        (("nv/train/1.png", "nv/val/1.png", "nv/test/1.png"), ["test", "train", "val"]),
    ],
)
def test_train_images_stay_open_until_all_splits_exist(
    tmp_path: Path, names: tuple[str, ...], split: list[str]
) -> None:
    assert [row[0] for row in cells(draw(tmp_path, *names), "split")] == split


def test_folders_of_malignancy_and_diagnosis_combine(tmp_path: Path) -> None:
    draw(tmp_path, "set/benign/1.png", "set/Malignant/2.png", "set/malignant/akiec/3.png")
    assert cells(tmp_path, "dx", "malignant") == [["", 1], ["", 0], ["akiec", 1]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("benign/melanoma/1.png",), "'benign/melanoma' name different diagnoses"),
        (("bcc/melanoma/1.png",), "'bcc/melanoma' name different diagnoses"),
        (("train/nv/test/1.png",), "'train/nv/test' name different splits"),
        (("1.png", "2.png"), r"has no metadata\.csv, but 2 images"),
        (("train/1.png",), r"has no metadata\.csv, but 1 image\."),
        ((), r"has no metadata\.csv and no images"),
    ],
)
def test_folders_that_contradict_or_name_nothing_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_table(draw(tmp_path, *names))


def test_unknown_class_folders_are_listed_with_a_command_that_works(tmp_path: Path) -> None:
    folder = draw(tmp_path / "set", "all/train/melonoma/1.png", "all/train/spots/2.png")
    draw(folder, "all/train/nv/3.png")
    message = refused(dermedge("data", "check", folder), 1)
    assert "'melonoma' (mel" in message and "'spots'" in message
    assert f"dermedge data add csv {folder} --label 'melonoma=ID' --label 'spots=ID'" in message
    out = tmp_path / "out"
    options = ("--label", "melonoma=mel", "--label", "spots=lentigo", "-o", out)
    assert refused(dermedge("data", "add", "csv", folder, "-o", out), 1) == message
    assert dermedge("data", "add", "csv", folder, *options).code == 0
    assert sorted(row[0] for row in cells(out, "dx")) == ["lentigo", "mel", "nv"]


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("train_sep/nv/1.png", "train_sep/NotMelanoma/2.png"), "1 label is .*: 'NotMelanoma'\\."),
        (("set/odd/nv/1.png", "set/odd/spots/2.png"), "1 label is .*: 'spots'\\."),
        (("set/a/1.png", "set/b/2.png"), "2 labels are .*: 'a', 'b'\\."),
        (("only/1.png",), "1 label is .*: 'only'"),
    ],
)
def test_folders_that_wrap_classes_are_not_taken_for_classes(
    tmp_path: Path, names: tuple[str, ...], classes: str
) -> None:
    with pytest.raises(DataError, match=classes):
        read_table(draw(tmp_path, *names))


def test_a_table_takes_precedence_and_a_table_elsewhere_is_named(tmp_path: Path) -> None:
    draw(tmp_path, "set/nv/1.png")
    write_csv(tmp_path / "set/metadata.csv", [{"image_id": "x", "image": "nv/1.png", "dx": "mel"}])
    assert cells(tmp_path / "set", "dx") == [["mel"]]
    with pytest.raises(DataError, match=r"but .*set/metadata\.csv exists\. Give that path"):
        read_table(tmp_path)
    (tmp_path / "set/metadata.csv").rename(tmp_path / "set/labels.csv")
    (tmp_path / "set/nv/1.png").rename(tmp_path / "set/1.png")
    with pytest.raises(DataError, match=r"If 'labels\.csv' is its table, give the path"):
        read_table(tmp_path / "set")
    (tmp_path / "set/metadata.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"metadata\.xlsx is neither.*CSV UTF-8"):
        read_table(tmp_path / "set")


def test_a_table_in_a_system_folder_is_not_offered(tmp_path: Path) -> None:
    draw(tmp_path, "nv/1.png", "mel/2.png")
    for name in ("__MACOSX", ".trash"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("none")
    assert len(read_table(tmp_path)) == 2


def test_a_name_that_is_not_unicode_is_left_out_with_a_note(tmp_path: Path) -> None:
    draw(tmp_path, "nv/1.png", "nv/2.png")
    try:
        (tmp_path / "nv/2.png").rename(tmp_path / "nv/\udcff.png")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    table = read_table(tmp_path)
    assert len(table) == 1
    assert "Left out 1 image with names that are not Unicode" in " ".join(table.notes)


def test_split_writes_a_table_for_class_folders(tmp_path: Path) -> None:
    folder = draw(tmp_path, *(f"{name}/{n}.png" for name in ("nv", "mel") for n in range(4)))
    before = snapshot(folder)
    assert dermedge("data", "split", folder, "--fractions", 0.5, 0.25, 0.2).code == 2
    assert snapshot(folder) == before
    ran = dermedge("data", "split", folder)
    assert ran.code == 0, ran.err
    assert f"in {folder / 'metadata.csv'}" in ran.out
    assert {row[0] for row in cells(folder, "split")} == {"train", "val", "test"}
    assert check_data(folder).classes == {"nv": 4, "mel": 4}


def test_the_folder_of_a_class_is_no_column_that_gives_the_label_away(tmp_path: Path) -> None:
    draw(tmp_path, *(f"{name}/{n}.png" for name in ("nv", "Melanoma") for n in range(12)))
    codes = [finding.code for finding in check_data(tmp_path).findings]
    assert "understood" in codes
    assert "column_gives_label_away" not in codes
