"""Import data sets as they are published, or tables of one's own."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from conftest import folder_bytes
from dermedge.data.importing.add import add_data
from dermedge.data.importing.archive import flatten_path
from dermedge.data.layouts import LAYOUTS, Layout, Part
from dermedge.data.table import read_table
from dermedge_runtime.errors import DataError, UsageError
from support.published_folders import FOLDERS
from support.tables import save, write_csv


def one_hot(labels: list[str], name: str, hot: str, key: str = "image") -> dict[str, object]:
    return {key: name, **{label: 1.0 if label == hot else 0.0 for label in labels}}


def ham10000(root: Path) -> Path:
    rows = []
    for n, (dx, part, kind) in enumerate(
        [("nv", 1, "follow_up"), ("nv", 2, "histo"), ("akiec", 1, "histo"), ("mel", 2, "histo")]
    ):
        name = f"ISIC_002430{n}"
        rows.append(
            {
                "lesion_id": f"HAM_{n // 2}",
                "image_id": name,
                "dx": dx,
                "dx_type": kind,
                "age": "45.0",
                "sex": "unknown" if n == 0 else "male",
                "localization": "lower extremity",
            }
        )
        save(root / f"HAM10000_images_part_{part}" / f"{name}.jpg", n)
        save(root / "HAM10000_segmentations_lesion_tschandl" / f"{name}_segmentation.png", n)
    write_csv(root / "HAM10000_metadata.csv", rows)
    return root


def isic2017(root: Path) -> Path:
    for part, first in (("Training", 0), ("Validation", 3), ("Test_v2", 6)):
        labels, people = [], []
        for n, label in enumerate(["melanoma", "seborrheic_keratosis", "nevus"], start=first):
            name = f"ISIC_000000{n}"
            labels.append(one_hot(["melanoma", "seborrheic_keratosis"], name, label, "image_id"))
            people.append(
                {"image_id": name, "age_approximate": "unknown" if n == 0 else 55, "sex": "female"}
            )
            save(root / f"ISIC-2017_{part}_Data" / f"{name}.jpg", n)
            save(root / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png", n)
            save(root / f"ISIC-2017_{part}_Part1_GroundTruth" / f"{name}_segmentation.png", n)
        write_csv(root / f"ISIC-2017_{part}_Part3_GroundTruth.csv", labels)
        write_csv(root / f"ISIC-2017_{part}_Data" / f"ISIC-2017_{part}_Data_metadata.csv", people)
    return root


def isic2018(root: Path) -> Path:
    classes = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    names = [f"ISIC_00243{n:02}" for n in range(7)]
    folder = root / "ISIC2018_Task3_Training_GroundTruth"
    write_csv(
        folder / "ISIC2018_Task3_Training_GroundTruth.csv",
        [one_hot(classes, name, label) for name, label in zip(names, classes, strict=True)],
    )
    write_csv(
        root / "ISIC2018_Task3_Training_LesionGroupings.csv",
        [
            {
                "image": name,
                "lesion_id": f"HAM_{n // 2}",
                "diagnosis_confirm_type": "histopathology",
            }
            for n, name in enumerate(names)
        ],
    )
    for n, name in enumerate(names):
        save(root / "ISIC2018_Task3_Training_Input" / f"{name}.jpg", n)
    return root


def isic2019(root: Path) -> Path:
    classes = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    for part, labels in (("Training", ["AK", "SCC", "NV"]), ("Test", ["UNK", "MEL"])):
        names = [f"ISIC_{part}_{n}_downsampled" for n in range(len(labels))]
        write_csv(
            root / f"ISIC_2019_{part}_GroundTruth.csv",
            [one_hot(classes, name, label) for name, label in zip(names, labels, strict=True)],
        )
        rows = [
            {"image": name, "age_approx": 70.0, "anatom_site_general": "head/neck", "sex": "male"}
            for name in names
        ]
        if part == "Training":
            rows = [{**row, "lesion_id": "BCN_1" if n else ""} for n, row in enumerate(rows)]
        write_csv(root / f"ISIC_2019_{part}_Metadata.csv", rows)
        for n, name in enumerate(names):
            save(
                root / f"ISIC_2019_{part}_Input" / f"ISIC_2019_{part}_Input" / f"{name}.jpg",
                10 * len(part) + n,
            )
    return root


def pad_ufes_20(root: Path) -> Path:
    rows = []
    for n, label in enumerate(["ACK", "BCC", "MEL", "NEV", "SCC", "SEK"]):
        name = f"PAT_{n // 2}_{n}_9{n}.png"
        filled = label in ("BCC", "MEL", "SCC")
        rows.append(
            {
                "patient_id": f"PAT_{n // 2}",
                "lesion_id": n,
                "age": 60 + n,
                "gender": "FEMALE" if filled else "",
                "fitspatrick": 2.0 if filled else "",
                "region": "FOREARM",
                "diameter_1": 6.0 if filled else "",
                "diameter_2": "",
                "diagnostic": label,
                "img_id": name,
                "biopsed": filled,
            }
        )
        save(root / "images" / f"imgs_part_{n % 3 + 1}" / name, n)
    write_csv(root / "metadata.csv", rows)
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    **FOLDERS,
    "ham10000": ham10000,
    "isic2017": isic2017,
    "isic2018": isic2018,
    "isic2019": isic2019,
    "pad_ufes_20": pad_ufes_20,
}


NO_PHOTOGRAPHS = ("ation", "pixels", "_lesion", "_contour", "_label1")


def photographs(files: Mapping[str, bytes | None]) -> list[bytes]:
    """Return the contents of the images of a made-up folder that are not masks."""
    return sorted(
        content
        for name, content in files.items()
        if content is not None
        and Path(name).suffix.lower() in (".jpg", ".png", ".bmp")
        and not Path(name).stem.lower().endswith(NO_PHOTOGRAPHS)
    )


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"csv"}))
def test_every_set_becomes_a_table_with_its_images(layout: str, tmp_path: Path) -> None:
    source = MAKERS[layout](tmp_path / "raw" / "nested")
    before = folder_bytes(source)
    report = add_data(layout, source.parent, tmp_path / "out")
    table = read_table(tmp_path / "out")
    for image_id, image in zip(table.frame["image_id"], table.frame["image"], strict=True):
        content = table.path(image).read_bytes()
        words = [flatten_path(name) for name, original in before.items() if original == content]
        # An id is the name of its file, with folders where file names repeat.
        assert any(f"_{word}".casefold().endswith(f"_{image_id}".casefold()) for word in words)
    assert sorted(table.path(image).read_bytes() for image in table.frame["image"]) == photographs(
        before
    )
    assert set(table.frame["source"]) == {layout}
    assert set(table.frame["licence"]) == {report.licence} != {""}
    assert report.images == len(table) == len(photographs(before))
    assert (report.rows_without_image, report.images_without_row) == (0, 0)
    assert report.citation in (tmp_path / "out" / "SOURCE.md").read_text(encoding="utf-8")
    assert folder_bytes(source) == before


def test_ham10000_keeps_the_cells_of_its_table(tmp_path: Path) -> None:
    add_data("ham10000", ham10000(tmp_path / "raw"), tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert frame["dx"].tolist() == ["nv", "nv", "akiec", "mel"]
    assert frame["malignant"].fillna(-1).tolist() == [0, 0, -1, 1]
    assert frame["lesion_id"].tolist() == ["HAM_0", "HAM_0", "HAM_1", "HAM_1"]
    assert frame["sex"].tolist() == ["", "male", "male", "male"]
    assert frame["dx_type"].tolist() == ["follow_up", "histo", "histo", "histo"]
    assert frame["mask"].tolist() == [f"masks/ISIC_002430{n}.png" for n in range(4)]
    assert set(frame["split"]) == {""}


def test_ham10000_is_read_as_dataverse_and_kaggle_publish_it(tmp_path: Path) -> None:
    source = ham10000(tmp_path / "raw")
    text = (source / "HAM10000_metadata.csv").read_text(encoding="utf-8")
    (source / "HAM10000_metadata.csv").unlink()
    (source / "HAM10000_metadata.tab").write_text(text.replace(",", "\t"), encoding="utf-8")
    assert add_data("ham10000", source, tmp_path / "tab").images == 4
    (source / "HAM10000_metadata.tab").unlink()
    (source / "HAM10000_metadata").write_text(text, encoding="utf-8")
    # Kaggle's archive holds the second folder twice.
    save(source / "again" / "ham10000_images_part_2" / "ISIC_0024301.jpg", 1)
    assert add_data("ham10000", source, tmp_path / "bare").images == 4
    save(source / "again" / "ham10000_images_part_2" / "ISIC_0024301.jpg", 99)
    with pytest.raises(DataError, match="different images of one name"):
        add_data("ham10000", source, tmp_path / "other")


def test_isic2017_keeps_its_official_split(tmp_path: Path) -> None:
    source = isic2017(tmp_path / "raw")
    add_data("isic2017", source, tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert frame["split"].tolist() == ["train"] * 3 + ["val"] * 3 + ["test"] * 3
    assert frame["dx"].tolist() == ["mel", "sk", "nv"] * 3
    assert frame["age"].isna().tolist() == [True] + [False] * 8


def test_missing_files_are_reported(tmp_path: Path) -> None:
    source = isic2017(tmp_path / "raw")
    (source / "ISIC-2017_Test_v2_Part3_GroundTruth.csv").unlink()
    (source / "ISIC-2017_Training_Data" / "ISIC-2017_Training_Data_metadata.csv").unlink()
    (source / "ISIC-2017_Training_Data" / "ISIC_0000001.jpg").unlink()
    save(source / "ISIC-2017_Training_Data" / "ISIC_0009999.jpg", 5)
    report = add_data("isic2017", source, tmp_path / "out")
    assert report.images == 5
    assert (report.rows_without_image, report.images_without_row) == (1, 1)
    assert report.examples["rows_without_image"] == ("ISIC_0000001",)
    assert report.examples["images_without_row"] == ("ISIC_0009999.jpg",)
    assert any("Test_v2" in note for note in report.notes)
    assert any("Training_Data_metadata" in note for note in report.notes)
    # Without an official test set, the training rows stay open for `split_data`.
    assert read_table(tmp_path / "out").frame["split"].tolist() == ["", "", "val", "val", "val"]


def test_isic2018_reads_one_hot_labels_and_lesions(tmp_path: Path) -> None:
    add_data("isic2018", isic2018(tmp_path / "raw"), tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert frame["dx"].tolist() == ["mel", "nv", "bcc", "akiec", "bkl", "df", "vasc"]
    assert frame["lesion_id"].tolist() == [f"HAM_{n // 2}" for n in range(7)]


def test_isic2019_keeps_keratosis_and_carcinoma_apart(tmp_path: Path) -> None:
    add_data("isic2019", isic2019(tmp_path / "raw"), tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert frame["dx"].tolist() == ["ak", "scc", "nv", "other", "mel"]
    assert frame["malignant"].fillna(-1).tolist() == [0, 1, 0, -1, 1]
    assert frame["split"].tolist() == ["", "", "", "test", "test"]
    assert frame["lesion_id"].tolist() == ["", "BCN_1", "BCN_1", "", ""]


def test_pad_ufes_20_counts_actinic_keratosis_as_benign(tmp_path: Path) -> None:
    add_data("pad_ufes_20", pad_ufes_20(tmp_path / "raw"), tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert frame["dx"].tolist() == ["ak", "bcc", "mel", "nv", "scc", "sk"]
    assert frame["malignant"].tolist() == [0, 1, 1, 0, 1, 0]
    assert frame["fitzpatrick"].fillna(-1).tolist() == [-1, 2, 2, -1, 2, -1]
    assert frame["site"].tolist() == ["forearm"] * 6
    assert frame["patient_id"].nunique() == 3


def test_a_csv_is_read_by_the_given_columns_and_labels(tmp_path: Path) -> None:
    rows = [
        {"file": f"class a/{n}.JPG", "label": label, "who": f"p{n}", "scanner": "x"}
        for n, label in enumerate(["Moles", "MM", ""])
    ]
    for n, row in enumerate(rows):
        save(tmp_path / "raw" / row["file"], n, format="JPEG")
    table = write_csv(tmp_path / "raw" / "list.csv", rows)
    report = add_data(
        "csv",
        table,
        tmp_path / "out",
        columns={"image": "file", "dx": "label", "patient_id": "who"},
        labels={"Moles": "nv", "MM": "mel"},
    )
    frame = read_table(tmp_path / "out").frame
    assert frame["image_id"].tolist() == ["class a_0", "class a_1", "class a_2"]
    assert frame["image"].tolist() == [f"images/class_a_{n}.jpg" for n in range(3)]
    assert frame["dx"].tolist() == ["nv", "mel", ""]
    assert frame["dx_raw"].tolist() == ["Moles", "MM", ""]
    assert frame["patient_id"].tolist() == ["p0", "p1", "p2"]
    assert frame["scanner"].tolist() == ["x"] * 3
    assert report.labels == {"nv": 1, "mel": 1, "": 1}


def test_a_table_of_our_own_form_needs_no_options(tmp_path: Path) -> None:
    add_data("pad_ufes_20", pad_ufes_20(tmp_path / "raw"), tmp_path / "one")
    add_data("csv", tmp_path / "one", tmp_path / "two")
    one, two = read_table(tmp_path / "one").frame, read_table(tmp_path / "two").frame
    assert one.equals(two[one.columns])


def test_links_share_the_file_and_copies_do_not(tmp_path: Path) -> None:
    source = pad_ufes_20(tmp_path / "raw")
    add_data("pad_ufes_20", source, tmp_path / "linked", link=True)
    add_data("pad_ufes_20", source, tmp_path / "copied")
    original = next(source.rglob("PAT_0_0_90.png"))
    assert (tmp_path / "linked/images/PAT_0_0_90.png").samefile(original)
    assert not (tmp_path / "copied/images/PAT_0_0_90.png").samefile(original)


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    source = pad_ufes_20(tmp_path / "raw")
    text = (source / "metadata.csv").read_text(encoding="utf-8")
    (source / "metadata.csv").write_text(text.replace("BCC", "BCX"), encoding="utf-8")
    with pytest.raises(DataError, match=r"metadata\.csv, row 3: Label 'BCX'"):
        add_data("pad_ufes_20", source, tmp_path / "out")
    (source / "metadata.csv").write_text(text.replace(",61,", ",610,"), encoding="utf-8")
    with pytest.raises(DataError, match="age is '610'"):
        add_data("pad_ufes_20", source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_an_existing_folder_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    source = pad_ufes_20(tmp_path / "raw")
    add_data("pad_ufes_20", source, tmp_path / "out")
    before = folder_bytes(tmp_path / "out")
    with pytest.raises(UsageError, match="exists"):
        add_data("pad_ufes_20", source, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == before
    add_data("pad_ufes_20", source, tmp_path / "out", overwrite=True)
    assert folder_bytes(tmp_path / "out") == before
    album = save(tmp_path / "album" / "holiday.jpg", 1).parent
    with pytest.raises(UsageError, match="not overwritten"):
        add_data("pad_ufes_20", source, album, overwrite=True)
    for target in (source, source.parent):
        with pytest.raises(UsageError, match="never overwritten"):
            add_data("pad_ufes_20", source, target, overwrite=True)


def test_an_invalid_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'ham10000'"):
        add_data("ham1000", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no HAM10000_metadata\.csv"):
        add_data("ham10000", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="There is no folder"):
        add_data("ham10000", tmp_path / "nowhere", tmp_path / "out")
    write_csv(tmp_path / "raw" / "HAM10000_metadata.csv", [{"image_id": "ISIC_1", "dx": "nv"}])
    with pytest.raises(DataError, match=r"1 rows .*'ISIC_1'.*no image"):
        add_data("ham10000", tmp_path / "raw", tmp_path / "out")
    write_csv(tmp_path / "raw" / "HAM10000_metadata.csv", [{"id": "ISIC_1", "dx": "nv"}])
    with pytest.raises(DataError, match="no column 'image_id'"):
        add_data("ham10000", tmp_path / "raw", tmp_path / "out")
    with pytest.raises(UsageError, match="no column 'diagnosis'"):
        add_data("csv", tmp_path / "raw", tmp_path / "out", columns={"diagnosis": "dx"})


def test_two_labels_for_one_image_are_refused(tmp_path: Path) -> None:
    source = isic2018(tmp_path / "raw")
    table = next(source.rglob("*GroundTruth.csv"))
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace("ISIC_0024301,0.0", "ISIC_0024301,1.0"), encoding="utf-8")
    with pytest.raises(DataError, match="row 3 has 2 of the labels"):
        add_data("isic2018", source, tmp_path / "out")


def test_a_table_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    save(tmp_path / "secret.png", 1)
    write_csv(tmp_path / "raw" / "list.csv", [{"image": "../secret.png"}])
    with pytest.raises(DataError, match="not a path inside"):
        add_data("csv", tmp_path / "raw", tmp_path / "out")


def test_a_layout_can_be_passed_as_a_value(tmp_path: Path) -> None:
    save(tmp_path / "raw" / "photos" / "x1.png", 1)
    write_csv(tmp_path / "raw" / "labels.csv", [{"id": "x1", "diagnosis": "brown spot"}])
    layout = Layout(
        name="mine",
        title="Mine",
        licence="CC0-1.0",
        citation="me",
        homepage="",
        parts=(Part(table=("labels.csv",), images=("photos",)),),
        columns={"image": "id", "dx": "diagnosis"},
        labels={"brown spot": "solar_lentigo"},
    )
    calls: list[tuple[int, int, str]] = []
    add_data(layout, tmp_path / "raw", tmp_path / "out", progress=lambda *call: calls.append(call))
    assert read_table(tmp_path / "out").frame["dx"].tolist() == ["solar_lentigo"]
    assert calls == [(1, 1, "x1")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_images_of_any_name_are_imported_under_names_that_every_system_accepts(
    tmp_path: Path,
) -> None:
    """A name that is not Unicode, holds a line break or is too long for a copy."""
    names = (os.fsdecode(b"caf\xe9\n.jpg"), f"{'x' * 250}.jpg", "IMG 1")
    for seed, name in enumerate(names):
        save(tmp_path / "set/nevus" / name, seed, format="JPEG")
    (tmp_path / "set/.DS_Store").write_bytes(b"x")
    part = Part(images=("*",), path=r"(?P<dx>nevus)/(?s:[^/]+)$")
    layout = Layout("own", "Own", "", "", "", parts=(part,), columns={"dx": "dx"})
    report = add_data(layout, tmp_path / "set", tmp_path / "out")
    table = read_table(tmp_path / "out")
    assert report.images == 3
    assert all(table.path(image).is_file() and image.isascii() for image in table.frame["image"])
    assert r"nevus_caf\udce9" in table.frame["image_id"].tolist()[1]
    skipped = f"Not looked at: 1 hidden or system ({tmp_path / 'set/.DS_Store'})."
    assert skipped in report.notes
    assert skipped in (tmp_path / "out/SOURCE.md").read_text("utf-8")
