"""Read tables as spreadsheets, clinics and other programs write them."""

import re
import shutil
import unicodedata
from pathlib import Path

import pytest

from dermedge.cli.notes import print_notes
from dermedge.data.columns import COLUMNS
from dermedge.data.split import split_data
from dermedge.data.table import read_table
from dermedge_runtime.errors import DataError
from support.command import dermedge, refused
from support.tables import save

HEADER = ["image_id", "image", "age", "caption"]
ROWS = [HEADER, ["a", "a.png", "53", "größer"], ["b", "b.png", "54", "two\nlines"]]


def in_dialect(delimiter: str, end: str = "\n", start: str = "") -> str:
    lines = [delimiter.join(f'"{c}"' if "\n" in c else c for c in row) for row in ROWS]
    return start + end.join(lines) + end


DIALECTS = {
    "commas": in_dialect(",").encode(),
    "semicolons": in_dialect(";").encode(),
    "tabs": in_dialect("\t").encode(),
    "bars": in_dialect("|").encode(),
    "crlf": in_dialect(",", "\r\n").encode(),
    "cr": in_dialect(",", "\r").encode(),
    "mark": in_dialect(";").encode("utf-8-sig"),
    "utf-16": in_dialect("\t", "\r\n").encode("utf-16"),
    "utf-16 little": in_dialect(",").encode("utf-16-le"),
    "utf-16 big": in_dialect(",").encode("utf-16-be"),
    "utf-16 big mark": ("\ufeff" + in_dialect(";")).encode("utf-16-be"),
    "sep": in_dialect(";", "\r\n", "sep=;\r\n").encode(),
    "sep quoted": in_dialect(";", "\r\n", '"sep=;"\r\n').encode("utf-8-sig"),
    "empty lines": (in_dialect(",") + ",,,\n\n,,,\n").encode(),
    "empty columns": in_dialect(",")
    .replace("caption", "caption,,")
    .replace("größer", "größer,,")
    .replace('lines"', 'lines",,,,')
    .encode(),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_of_csv_give_one_table(tmp_path: Path, dialect: str) -> None:
    (tmp_path / "metadata.csv").write_bytes(DIALECTS[dialect])
    frame = read_table(tmp_path).frame
    assert frame["image"].tolist() == ["a.png", "b.png"]
    assert frame["age"].tolist() == [53, 54]
    assert frame["caption"].tolist() == ["größer", "two\nlines"]
    assert list(frame.columns) == list(COLUMNS)


def test_names_of_columns_and_decimal_commas_are_understood(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    content = "Image ID;IMAGE;Age;Site;My Column\na;a.png;53,5;back;x\n"
    (tmp_path / "list.txt").write_text(content, encoding="utf-8")
    table = read_table(tmp_path / "list.txt")
    row = table.frame.iloc[0]
    assert (row.image_id, row.age, row.site, row["My Column"]) == ("a", 53.5, "back", "x")
    assert "'Image ID' as image_id" in " ".join(table.notes)
    split_data(tmp_path / "list.txt", tmp_path / "list.csv")
    assert read_table(tmp_path / "list.csv").frame["age"][0] == 53.5


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("t.xlsx", "CSV UTF-8"),
        ("t.jsonl", "lines=True"),
        ("t.numbers", "Export to"),
        ("t.docx", "Convert it"),
    ],
)
def test_other_files_are_refused_with_a_way_to_convert_them(
    tmp_path: Path, name: str, advice: str
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=rf"{name} is neither.*{advice}"):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("column", "cell", "value"),
    [
        ("age", "90+", 90),
        ("age", ">90", 90),
        ("age", "85 +", 85),
        ("age", "≥ 85 years", 85),
        ("age", "90 or older", 90),
        ("age", "85 plus", 85),
        ("age", "~50", 50),
        ("age", "50-59", 54.5),
        ("age", "50\u201360 years", 55),
        ("age", "50s", 54.5),
        ("age", "53 years", 53),
        ("age", "53y", 53),
        ("age", "53 y/o", 53),
        ("age", "53,5", 53.5),
        ("age", "6 months", 0.5),
        ("sex", "M", "male"),
        ("sex", "Male", "male"),
        ("sex", "weiblich", "female"),
        ("fitzpatrick", "type 3", 3),
        ("fitzpatrick", "FST III", 3),
        ("fitzpatrick", "Skin type: iv", 4),
        ("fitzpatrick", "3-4", None),
        ("fitzpatrick", "I-II", None),
        ("malignant", "yes", 1),
        ("malignant", "Benign", 0),
        ("malignant", "FALSE", 0),
        ("modality", "Dermoscopy", "dermoscopic"),
        ("modality", "clinical: close-up", "clinical"),
        ("split", "Valid", "val"),
        ("split", "TRAINING", "train"),
        ("dx", "Basal-Cell Carcinoma", "bcc"),
        ("dx", "melanomas", "mel"),
        ("dx", "Seborrheic keratoses", "sk"),
    ],
)
def test_a_cell_is_understood_with_one_note(
    tmp_path: Path, column: str, cell: str, value: object
) -> None:
    (tmp_path / "metadata.csv").write_text(
        f'image_id,image,{column}\na,a.png,"{cell}"\nb,b.png,\n', encoding="utf-8"
    )
    table = read_table(tmp_path)
    found = table.frame[column][0]
    assert found == value or (value is None and found != found)
    (note,) = table.notes
    assert note.startswith(f"{column}: '{cell}' was read as ")


@pytest.mark.parametrize(
    ("column", "cell", "advice"),
    [
        ("sex", "1", "Write male or female: 0, 1 and 2 mean"),
        ("age", "<18", "Write years, from 0 to 120"),
        ("age", "18-89", "Write years"),
        ("age", "150+", "Write years"),
        ("fitzpatrick", "type 7", "Write a skin type from 1 to 6"),
        ("malignant", "suspicious", "Write 1, 0 or nothing"),
        ("modality", "confocal", "Write dermoscopic or clinical, or nothing"),
    ],
)
def test_an_ambiguous_cell_is_refused(tmp_path: Path, column: str, cell: str, advice: str) -> None:
    (tmp_path / "metadata.csv").write_text(f"image_id,image,{column}\na,a.png,{cell}\n")
    with pytest.raises(DataError, match=rf"row 2: {column} is '{re.escape(cell)}'\. {advice}"):
        read_table(tmp_path)


def test_all_unknown_labels_are_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "image_id,image,dx\na,a.png,melonoma\nb,b.png,NotMelanoma\nc,c.png,nv\n"
    )
    with pytest.raises(
        DataError, match=r"2 labels.*'melonoma' \(mel.*\), 'NotMelanoma'\..*--label"
    ):
        read_table(tmp_path)


def test_thousands_of_unknown_labels_give_a_short_message_at_once(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n}.png,free text {n}\n" for n in range(5000))
    (tmp_path / "metadata.csv").write_text("image_id,image,dx\n" + rows)
    with pytest.raises(DataError, match="5000 labels are not in the taxonomy") as error:
        read_table(tmp_path)
    assert len(str(error.value)) < 2000


def test_a_message_never_holds_a_long_value(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(f"image_id,image,dx\na,a.png,{'x' * 5000}\n")
    with pytest.raises(DataError, match=r"\(5,000 characters\)") as error:
        read_table(tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        (r"images\a.png", "images/a.png"),
        ("images/a", "images/a.png"),
        ("Images/A.PNG", "images/a.png"),
        (unicodedata.normalize("NFD", "images/größe.png"), "images/größe.png"),
        ("images/größe.png", unicodedata.normalize("NFD", "images/größe.png")),
        (r"Images\A", "images/a.png"),
        ("images/missing", "images/missing"),
    ],
)
def test_a_file_is_found_under_another_spelling(tmp_path: Path, cell: str, file: str) -> None:
    if "missing" not in file:
        save(tmp_path / file, 1)
    (tmp_path / "images/a.txt").parent.mkdir(exist_ok=True)
    (tmp_path / "images/a.txt").write_text("notes")
    (tmp_path / "metadata.csv").write_text(f"image_id,image\nx,{cell}\n", encoding="utf-8")
    table = read_table(tmp_path)
    assert table.frame["image"].tolist() == [file]
    assert len(table.notes) == (cell != file)
    added = dermedge("data", "add", "csv", tmp_path, "-o", tmp_path / "added")
    assert added.code == (1 if "missing" in file else 0)


def test_a_name_without_suffix_that_fits_two_images_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "a.jpg", 2)
    (tmp_path / "metadata.csv").write_text("image_id,image\nx,a\n")
    with pytest.raises(DataError, match=r"row 2: image 'a' can be 'a\.jpg' or 'a\.png'\. Write"):
        read_table(tmp_path)


@pytest.mark.parametrize("cell", [r"..\a.png", r"C:\a.png", "C:a.png", r"\\server\share\a.png"])
def test_paths_of_windows_do_not_lead_outside(tmp_path: Path, cell: str) -> None:
    (tmp_path / "metadata.csv").write_text(f"image_id,image\nx,{cell}\n")
    with pytest.raises(DataError, match="not a path inside the table's folder"):
        read_table(tmp_path)


def test_the_command_line_prints_each_note_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "a.png", 1)
    (tmp_path / "metadata.csv").write_text("image_id;image;age\nx;a.png;90+\n")
    with print_notes():
        read_table(tmp_path)
        read_table(tmp_path)
    read_table(tmp_path)
    assert capsys.readouterr().err.count("age: '90+' was read as '90'.") == 1
    ran = dermedge("data", "split", tmp_path, "-o", tmp_path / "split.csv")
    assert ran.err.count("separated by semicolons") == 1
    report = dermedge("data", "check", tmp_path, "--json").json()
    messages = [f["message"] for f in report["findings"] if f["code"] == "understood"]
    assert "age: '90+' was read as '90'." in messages


def test_an_import_names_the_users_file_and_writes_what_was_understood(tmp_path: Path) -> None:
    save(tmp_path / "set/a.png", 1)
    table = tmp_path / "set/metadata.csv"
    table.write_text("image_id,image,age,sex\nx,a.png,fifty,F\n")
    message = refused(dermedge("data", "add", "csv", tmp_path / "set", "-o", tmp_path / "out"), 1)
    assert message.startswith(f"{table}, row 2: age is 'fifty'.")
    assert not (tmp_path / "out").exists()
    table.write_text("image_id,image,age,sex\nx,a.png,90+,F\n")
    assert dermedge("data", "add", "csv", tmp_path / "set", "-o", tmp_path / "out").code == 0
    shutil.rmtree(tmp_path / "set")
    added = read_table(tmp_path / "out")
    assert (added.frame["age"][0], added.frame["sex"][0], added.notes) == (90, "female", ())


def several(folder: Path, cells: list[str]) -> Path:
    rows = [f'{n},{n}.png,"{cell}"' for n, cell in enumerate(cells)]
    (folder / "metadata.csv").write_text("\n".join(["image_id,image,dx", *rows]), "utf-8")
    return folder


def test_a_row_may_have_several_diagnoses(tmp_path: Path) -> None:
    cells = ["Eczema; psoriasis", "mel;BCC;Melanoma", "mel;nv", ";nv;", ";"]
    frame = read_table(several(tmp_path, cells)).frame
    assert frame["dx"].tolist() == ["eczema;psoriasis", "mel;bcc", "mel;nv", "nv", ""]
    assert frame["malignant"].fillna(-1).tolist() == [0, 1, -1, 0, -1]


def test_a_semicolon_separates_diagnoses_in_a_table_with_semicolons(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('image_id;image;dx\na;a.png;"mel;nv"\nb;b.png;nv\n')
    assert read_table(tmp_path).frame["dx"].tolist() == ["mel;nv", "nv"]


def test_an_unknown_diagnosis_among_several_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 3, column dx: Label 'spot 7' is not in the taxonomy"):
        read_table(several(tmp_path, ["nv", "mel;spot 7"]))
