"""Import public sets from made-up folders of the published form."""

from pathlib import Path

import pandas as pd
import pytest

from dermedge.data.importing.add import add_data, list_data_sets
from dermedge.data.layouts import LAYOUTS
from dermedge.data.subgroups import skin_tones
from dermedge.data.table import read_table
from dermedge.data.taxonomy import SOURCE_ALIASES, TAXONOMY, resolve
from dermedge_runtime.errors import DataError
from support import published_labels
from support.command import dermedge
from support.published_folders import FOLDERS
from support.tables import save, shared, write_csv


def frame_of(layout: str, path: Path, **options: object) -> pd.DataFrame:
    add_data(layout, FOLDERS[layout](path / "raw"), path / "out", **options)
    return read_table(path / "out").frame


def unknown(frame: pd.DataFrame, column: str) -> list[object]:
    return frame[column].fillna(-1).tolist()


def test_acne04_has_severity_and_its_first_fold(tmp_path: Path) -> None:
    frame = frame_of("acne04", tmp_path)
    assert frame["severity"].tolist() == [0, 3, 1, 2]
    assert frame["split"].tolist() == ["", "", "", "test"]
    assert set(frame["dx"]) == {"acne"}
    assert frame["lesions"].tolist() == ["1", "16", "6", "11"]


def test_acne04_in_folders_by_severity(tmp_path: Path) -> None:
    for level in range(4):
        save(tmp_path / "raw" / f"acne{level}_1024" / f"levle{level}_7.jpg", level)
    report = add_data("acne04", tmp_path / "raw", tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert frame["severity"].tolist() == [0, 1, 2, 3]
    assert frame["image_id"].tolist() == [f"acne{level}_1024_levle{level}_7" for level in range(4)]
    assert not any("is missing" in note for note in report.notes)


def test_ddi_keeps_its_range_of_skin_tone_and_guesses_no_type(tmp_path: Path) -> None:
    frame = frame_of("ddi", tmp_path)
    assert frame["dx"].tolist() == ["mel_in_situ", "nv", "scc", "wart"]
    assert frame["malignant"].tolist() == [1, 0, 1, 0]
    assert frame["fitzpatrick"].isna().all()
    assert skin_tones(frame).tolist() == ["V-VI", "I-II", "III-IV", "V-VI"]


def test_skin_tones_of_single_types_and_of_ranges_are_one_scale() -> None:
    nan = float("nan")
    frame = pd.DataFrame(
        {"fitzpatrick": [1.0, 2.0, 3.0, 6.0, nan, nan], "skin_tone": ["", "56", "", "", "34", "x"]}
    )
    assert skin_tones(frame).tolist() == ["I-II", "I-II", "III-IV", "V-VI", "III-IV", ""]
    assert skin_tones(frame[["fitzpatrick"]]).tolist() == ["I-II", "I-II", "III-IV", "V-VI", "", ""]


def test_derm7pt_has_two_images_of_a_case_in_one_split(tmp_path: Path) -> None:
    frame = frame_of("derm7pt", tmp_path)
    assert frame["lesion_id"].tolist() == ["1", "1", "2", "2", "3", "3", "4", "4"]
    assert frame["view"].tolist() == ["dermoscopic", "clinical"] * 4
    assert frame["modality"].tolist() == ["dermoscopic", "clinical"] * 4
    assert frame["image_id"].tolist()[:2] == ["FAL_NEL000", "NEL_NEL000"]
    assert frame["dx"].tolist()[::2] == [
        "mel_in_situ",
        "dysplastic_nevus",
        "other",
        "melanoma_metastasis",
    ]
    assert frame["split"].tolist()[::2] == ["train", "val", "test", "train"]
    for n, image in enumerate(frame["image"]):
        folder, suffix = (("FAL", ".jpg"), ("NEL", ".JPG"))[n % 2]
        original = tmp_path / f"raw/release_v0/images/{folder}/NEL{n // 2:03}{suffix}"
        assert (tmp_path / "out" / image).read_bytes() == original.read_bytes()


def test_derm7pt_without_or_with_a_wrong_index_file(tmp_path: Path) -> None:
    source = FOLDERS["derm7pt"](tmp_path / "raw")
    index = next(source.rglob("valid_indexes.csv"))
    index.unlink()
    report = add_data("derm7pt", source, tmp_path / "out")
    assert any("valid_indexes.csv is missing" in note for note in report.notes)
    assert report.splits == {"": 2, "test": 2, "train": 4}
    write_csv(index, [{"indexes": 4}])
    with pytest.raises(DataError, match=r"valid_indexes\.csv lists row '4'"):
        add_data("derm7pt", source, tmp_path / "other")


def test_dermnet_takes_class_and_split_from_the_folders(tmp_path: Path) -> None:
    frame = frame_of("dermnet", tmp_path)
    assert sorted(frame["dx"]) == sorted(["melanocytic", "vascular", "acneiform"] * 2)
    assert sorted(frame["split"]) == [""] * 3 + ["test"] * 3
    assert frame["malignant"].isna().sum() == 4


def test_fitzpatrick17k_has_skin_types_and_the_two_way_label(tmp_path: Path) -> None:
    report = add_data(
        "fitzpatrick17k", FOLDERS["fitzpatrick17k"](tmp_path / "raw"), tmp_path / "out"
    )
    frame = read_table(tmp_path / "out").frame
    assert frame["dx"].tolist() == [
        "psoriasis",
        "",
        "becker_nevus",
        "superficial_spreading_melanoma",
    ]
    assert frame["dx_raw"].tolist()[1] == "keratoacanthoma like"
    assert frame["malignant"].tolist() == [0, 1, 0, 1]
    assert unknown(frame, "fitzpatrick") == [3, -1, 6, 1]
    note = next(note for note in report.notes if "taxonomy does not know" in note)
    assert note.startswith("1 images") and note.endswith("'keratoacanthoma like' 1.")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (
            "three_partition_label",
            ["non_neoplastic", "malignant_neoplasm", "benign_neoplasm", "malignant_neoplasm"],
        ),
        (
            "nine_partition_label",
            ["inflammatory", "malignant_epidermal", "benign_melanocytic", "mel"],
        ),
    ],
)
def test_fitzpatrick17k_with_its_wider_labels(
    column: str, expected: list[str], tmp_path: Path
) -> None:
    frame = frame_of("fitzpatrick17k", tmp_path, columns={"dx": column})
    assert frame["dx"].tolist() == expected
    assert frame["malignant"].tolist() == [0, 1, 0, 1]
    assert frame["label"].tolist()[0] == "psoriasis"


def test_fitzpatrick17k_without_some_images(tmp_path: Path) -> None:
    source = FOLDERS["fitzpatrick17k"](tmp_path / "raw")
    (source / "images" / f"{2:032x}.jpg").unlink()
    save(source / "images" / "stray.jpg", 9)
    report = add_data("fitzpatrick17k", source, tmp_path / "out")
    assert (report.images, report.rows_without_image, report.images_without_row) == (3, 1, 1)
    assert report.examples["rows_without_image"] == (f"{2:032x}",)
    assert "3 images were found, but 16577 were published." in report.notes


@pytest.mark.parametrize(
    ("layout", "splits"),
    [
        ("isic2016_segmentation", {"": 3, "test": 2}),
        ("isic2017_segmentation", {"train": 2, "val": 2, "test": 2}),
        ("isic2018_segmentation", {"train": 2, "val": 2, "test": 2}),
    ],
)
def test_segmentation_sets_have_masks_and_no_diagnosis(
    layout: str, splits: dict[str, int], tmp_path: Path
) -> None:
    source = FOLDERS[layout](tmp_path / "raw")
    mask = next(path for path in sorted(source.rglob("*egmentation.png")) if "00000" in path.name)
    report = add_data(layout, source, tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert report.splits == splits
    assert set(frame["dx"]) == {""} == set(frame["dx_raw"])
    masks = [(tmp_path / "out" / name).read_bytes() for name in frame["mask"]]
    originals = {path.name.lower(): path.read_bytes() for path in source.rglob("*egmentation.png")}
    assert masks == [
        originals[f"{image_id}_segmentation.png".lower()] for image_id in frame["image_id"]
    ]
    mask.unlink()
    report = add_data(layout, source, tmp_path / "again")
    assert any(
        note.startswith("1 images of") and note.endswith("no mask file.") for note in report.notes
    )


def test_med_node_takes_the_label_from_the_folder(tmp_path: Path) -> None:
    frame = frame_of("med_node", tmp_path)
    assert dict(zip(frame["image_id"], frame["dx"], strict=True)) == {
        "melanoma_1": "mel",
        "melanoma_2": "mel",
        "naevus_1": "nv",
        "naevus_3": "nv",
    }


def test_a_folder_that_is_twice_in_an_archive_is_read_once(tmp_path: Path) -> None:
    source = FOLDERS["med_node"](tmp_path / "raw")
    save(source / "again" / "naevus" / "3.jpg", 3)
    (source / "again" / "naevus" / "._3.jpg").write_bytes(b"resource fork")
    report = add_data("med_node", source, tmp_path / "out")
    assert (report.images, report.images_without_row) == (4, 0)
    save(source / "again" / "naevus" / "3.jpg", 77)
    with pytest.raises(DataError, match="different images of one name"):
        add_data("med_node", source, tmp_path / "other")


def test_ph2_has_diagnoses_and_masks(tmp_path: Path) -> None:
    report = add_data("ph2", FOLDERS["ph2"](tmp_path / "raw"), tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert frame["dx"].tolist() == ["nv", "dysplastic_nevus", "mel"]
    assert frame["malignant"].tolist() == [0, 0, 1]
    assert frame["histology"].tolist() == ["", "Compound nevus", "Melanoma"]
    for n, mask in enumerate(frame["mask"]):
        original = next((tmp_path / "raw").rglob(f"IMD{n + 2:03}_lesion.bmp"))
        assert (tmp_path / "out" / mask).read_bytes() == original.read_bytes()
    assert any("lines of PH2_dataset.txt are not rows" in note for note in report.notes)
    text = next((tmp_path / "raw").rglob("PH2_dataset.txt"))
    text.write_text("something else\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"PH2_dataset\.txt has no row like"):
        add_data("ph2", tmp_path / "raw", tmp_path / "other")


def test_scin_takes_the_heaviest_label_and_keeps_a_case_together(tmp_path: Path) -> None:
    source = FOLDERS["scin"](tmp_path / "raw")
    frame = frame_of("scin", tmp_path)
    assert frame["dx"].tolist() == ["eczema"] * 3 + ["sk", "", ""]
    assert frame["lesion_id"].tolist() == ["-000"] * 3 + ["-100", "-200", "-300"]
    assert frame["view"].tolist() == ["image 1", "image 2", "image 3"] + ["image 1"] * 3
    assert unknown(frame, "fitzpatrick") == [1, 1, 1, 6, -1, -1]
    assert frame["sex"].tolist() == ["female"] * 3 + ["male", "", ""]
    assert set(frame["dermatologist_fitzpatrick_skin_type_label_1"]) == {"FST2"}
    cases = source / "dataset" / "scin_cases.csv"
    cases.write_text(
        cases.read_text(encoding="utf-8").replace("-10.png", "-01.png"), encoding="utf-8"
    )
    report = add_data("scin", source, tmp_path / "again")
    assert report.images == 5
    assert any("are listed again" in note for note in report.notes)
    cases.with_name("scin_labels.csv").unlink()
    report = add_data("scin", source, tmp_path / "unlabelled")
    assert report.labels == {"": 5}


def test_scin_can_keep_all_labels_of_the_dermatologists(tmp_path: Path) -> None:
    source = FOLDERS["scin"](tmp_path / "raw")
    column = "dermatologist_skin_condition_on_label_name"
    labels = source / "dataset" / "scin_labels.csv"
    frame = pd.read_csv(labels, dtype=str)
    listed = {
        "-000": "['Psoriasis', 'Eczema']",
        "-100": "['SK/ISK']",
        "-200": "[]",
        "-300": "['Eczema', 'Moon rash']",
    }
    frame[column] = frame["case_id"].map(listed)
    frame.to_csv(labels, index=False)
    report = add_data("scin", source, tmp_path / "out", columns={"dx": column})
    assert read_table(tmp_path / "out").frame["dx"].tolist() == [
        *["psoriasis;eczema"] * 3,
        "sk",
        "",
        "",
    ]
    assert report.labels["psoriasis;eczema"] == 3


def test_sd198_takes_the_label_from_the_folder(tmp_path: Path) -> None:
    frame = frame_of("sd198", tmp_path)
    assert sorted(frame["dx"]) == ["ak", "mel", "terry_nail"]


def test_skincap_has_captions(tmp_path: Path) -> None:
    frame = frame_of("skincap", tmp_path)
    assert frame["caption"].tolist() == ['Red plaques, with "silvery" scale.', "A dark macule.", ""]
    assert frame["dx"].tolist() == ["psoriasis", "mel_in_situ", ""]
    assert frame["malignant"].tolist() == [0, 1, 0]
    assert unknown(frame, "fitzpatrick") == [2, -1, -1]


def test_skincap_reads_caption_en_where_the_polished_caption_is_missing(tmp_path: Path) -> None:
    raw = FOLDERS["skincap"](tmp_path / "raw")
    file = raw / "skincap_v240623.csv"
    rows = pd.read_csv(file, keep_default_na=False)
    assert set(rows) >= {"caption_en", "caption_zh_polish_en"}
    rows.loc[0, "caption_zh_polish_en"] = ""
    rows.to_csv(file, index=False)
    add_data("skincap", raw, tmp_path / "out")
    captions = read_table(tmp_path / "out").frame["caption"].tolist()
    assert captions == ['Red plaques, with "silvery" scale. As translated.', "A dark macule.", ""]
    add_data("skincap", raw, tmp_path / "own", columns={"caption": "caption_zh"})
    assert set(read_table(tmp_path / "own").frame["caption"]) == {"x"}


def test_waterloo_pairs_masks_of_one_name_by_their_folder(tmp_path: Path) -> None:
    frame = frame_of("waterloo", tmp_path)
    assert sorted(zip(frame["dx"], frame["malignant"], strict=True)) == [
        ("", 0),
        ("", 0),
        ("mel", 1),
        ("mel", 1),
    ]
    for image_id, mask in zip(frame["image_id"], frame["mask"], strict=True):
        label, atlas = image_id.split("_")[:2]
        original = next((tmp_path / "raw").rglob(f"{label}/{atlas}/7_contour.png"))
        assert (tmp_path / "out" / mask).read_bytes() == original.read_bytes()


@pytest.mark.parametrize("layout", sorted(FOLDERS))
def test_an_empty_folder_is_refused_by_name(layout: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"holds no .*\. Give the folder that"):
        add_data(layout, tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize(
    ("labels", "count", "source"),
    [
        (published_labels.FITZPATRICK17K, 114, "fitzpatrick17k"),
        (published_labels.DDI, 78, "ddi"),
        (published_labels.SD198, 198, "sd198"),
        (published_labels.DERMNET, 23, "dermnet"),
        (published_labels.DERM7PT, 20, "derm7pt"),
        (published_labels.SCIN, 52, "scin"),
        (published_labels.FITZPATRICK17K + published_labels.DDI, 192, "skincap"),
    ],
)
def test_every_published_label_is_in_the_taxonomy(
    labels: tuple[str, ...], count: int, source: str
) -> None:
    assert len(labels) == count
    for label in labels:
        assert resolve(label, source).id in TAXONOMY


def test_doubtful_labels_are_neither_malignant_nor_benign() -> None:
    assert resolve("melanoma-acral-lentiginous", "ddi").malignant is True
    assert resolve("solid cystic basal cell carcinoma", "fitzpatrick17k").malignant is True
    assert resolve("Cutaneous_T-Cell_Lymphoma", "sd198").malignant is True
    assert resolve("Lymphomatoid_Papulosis", "sd198").malignant is None
    assert resolve("Crowe's_Sign", "sd198").malignant is None
    assert resolve("Melanoma Skin Cancer Nevi and Moles", "dermnet").malignant is None
    assert resolve("Vascular Tumors", "dermnet").malignant is None
    assert resolve("clear-cell-acanthoma", "ddi").malignant is False


@pytest.mark.parametrize("source", sorted(SOURCE_ALIASES))
def test_an_id_is_its_own_label_in_every_source(source: str) -> None:
    for name in TAXONOMY:
        assert resolve(name, source).id == name


def test_an_unverified_layout_is_reported(tmp_path: Path) -> None:
    report = add_data("med_node", FOLDERS["med_node"](tmp_path / "raw"), tmp_path / "out")
    assert (report.verified, report.expected) == (False, 170)
    assert report.notes[0].endswith("Compare the counts with the paper's: 170 images expected.")
    assert report.notes[1] == "4 images were found, but 170 were published."
    text = (tmp_path / "out" / "SOURCE.md").read_text(encoding="utf-8")
    assert "This layout is unverified" in text


def test_data_sets_are_listed_with_their_contents() -> None:
    listed = {one.name: one for one in list_data_sets()}
    assert set(listed) == set(LAYOUTS)
    assert listed["ph2"].tells == ("diagnosis", "mask")
    assert listed["fitzpatrick17k"].tells == ("diagnosis", "malignancy", "skin type")
    assert listed["acne04"].tells == ("diagnosis", "severity", "split")
    assert listed["skincap"].tells == ("diagnosis", "malignancy", "caption", "skin type")
    assert listed["isic2018_segmentation"].tells == ("mask", "split")
    assert [name for name, one in listed.items() if one.verified] == ["csv"]
    assert all(one.evidence for one in listed.values())


def test_data_sets_prints_one_line_per_set() -> None:
    lines = dermedge("data", "sets").out.splitlines()
    line = next(line for line in lines if line.split()[:1] == ["derm7pt"])
    assert line.split()[-1] == "unverified"
    data = dermedge("data", "sets", "--json").json()
    assert [one["name"] for one in data] == sorted(LAYOUTS)
    assert "data sets" in dermedge("data", "add", "--help").out


RAW: dict[str, dict[str, str]] = {
    "ham10000": {
        "image_id": "image_id",
        "lesion_id": "lesion_id",
        "dx": "dx",
        "age": "age",
        "sex": "sex",
    },
    "pad_ufes_20": {
        "img_id": "image_id",
        "lesion_id": "lesion_id",
        "patient_id": "patient_id",
        "diagnostic": "dx_raw",
        "age": "age",
        "gender": "sex",
        "region": "site",
        "fitspatrick": "fitzpatrick",
    },
}


@pytest.mark.parametrize("layout", sorted(RAW))
def test_real_rows_written_back_into_the_published_form(layout: str, tmp_path: Path) -> None:
    """Labels, ids and values of real rows are read as published.

    The folders and file names of the download are assumptions.
    """
    source = shared(layout)
    rows = pd.read_csv(source / "metadata.csv", dtype=str, keep_default_na=False).iloc[::40]
    name, folder = {
        "ham10000": ("HAM10000_metadata.csv", "HAM10000_images_part_1"),
        "pad_ufes_20": ("metadata.csv", "imgs_part_1"),
    }[layout]
    write_csv(
        tmp_path / "raw" / name,
        [
            {theirs: row[ours] for theirs, ours in RAW[layout].items()}
            for row in rows.to_dict("records")
        ],
    )
    (tmp_path / "raw" / folder).mkdir()
    for image in rows["image"]:
        (tmp_path / "raw" / folder / Path(image).name).symlink_to((source / image).resolve())
    report = add_data(layout, tmp_path / "raw", tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert (report.images, report.rows_without_image, report.images_without_row) == (
        len(rows),
        0,
        0,
    )
    assert frame["image_id"].tolist() == rows["image_id"].tolist()
    modality = {"ham10000": "dermoscopic", "pad_ufes_20": "clinical"}[layout]
    assert set(frame["modality"]) == {modality}
    # The copy counts actinic keratosis as akiec and seborrheic keratosis as bkl. The
    # import distinguishes them.
    narrower = {"akiec": {"akiec", "ak"}, "bkl": {"bkl", "sk"}}
    for ours, theirs in zip(frame["dx"], rows["dx"], strict=True):
        assert ours in narrower.get(theirs, {theirs})


def test_real_rows_of_isic2017_written_back_into_the_published_form(tmp_path: Path) -> None:
    source = shared("isic2017")
    rows = pd.read_csv(source / "metadata.csv", dtype=str, keep_default_na=False).iloc[::80]
    for part, split in (("Training", "train"), ("Validation", "val")):
        of_part = rows[rows["split"] == split].to_dict("records")
        labels = ("melanoma", "seborrheic_keratosis")
        write_csv(
            tmp_path / "raw" / f"ISIC-2017_{part}_Part3_GroundTruth.csv",
            [
                {
                    "image_id": row["image_id"],
                    **{label: float(row["dx_raw"] == label) for label in labels},
                }
                for row in of_part
            ],
        )
        folder = tmp_path / "raw" / f"ISIC-2017_{part}_Data"
        people = [
            {"image_id": r["image_id"], "age_approximate": r["age"] or "unknown", "sex": r["sex"]}
            for r in of_part
        ]
        write_csv(folder / f"ISIC-2017_{part}_Data_metadata.csv", people)
        for row in of_part:
            (folder / Path(row["image"]).name).symlink_to((source / row["image"]).resolve())
    add_data("isic2017", tmp_path / "raw", tmp_path / "out")
    frame = read_table(tmp_path / "out").frame
    assert sorted(frame["image_id"]) == sorted(rows["image_id"])
    labels = dict(zip(rows["image_id"], rows["dx"].replace("bkl", "sk"), strict=True))
    assert frame["dx"].tolist() == [labels[image_id] for image_id in frame["image_id"]]
