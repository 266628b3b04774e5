"""Read tables, and refuse cells that a column does not allow."""

import math
from pathlib import Path

import pandas as pd
import pytest

from dermedge.data.columns import COLUMNS
from dermedge.data.table import digests, groups, read_table, table_digest
from dermedge_runtime.errors import DataError
from support.tables import save, shared, write_csv

TWO = [{"image_id": "a", "image": "images/a.png"}, {"image_id": "b", "image": "images/b.png"}]


def with_cells(**cells: object) -> list[dict[str, object]]:
    """Return two rows, the second with these cells."""
    return [{**dict.fromkeys(cells, ""), **TWO[0]}, {**TWO[1], **cells}]


def test_two_columns_are_enough(tmp_path: Path) -> None:
    write_csv(tmp_path / "metadata.csv", TWO)
    table = read_table(tmp_path)
    assert list(table.frame.columns) == list(COLUMNS)
    assert table.frame["dx"].tolist() == ["", ""]
    assert table.frame["age"].isna().all()
    assert table.path(table.frame["image"][0]) == tmp_path / "images/a.png"


def test_other_spellings_of_values_are_understood(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "metadata.csv",
        with_cells(
            dx="Melanoma",
            age="55.0",
            sex="F",
            fitzpatrick="IV",
            severity=2,
            site="unknown",
            dx_type="histo",
        ),
    )
    row = read_table(tmp_path).frame.iloc[1]
    assert (row.dx, row.malignant, row.age, row.sex, row.fitzpatrick) == ("mel", 1, 55, "female", 4)
    assert (row.severity, row.site, row.dx_type) == (2, "", "histo")


def test_the_malignancy_of_a_row_takes_precedence_over_its_label(tmp_path: Path) -> None:
    rows = [
        {"image_id": str(n), "image": f"{n}.png", "dx": dx, "malignant": own}
        for n, (dx, own) in enumerate(
            [("akiec", 1), ("akiec", 0), ("akiec", ""), ("nv", "true"), ("nv", ""), ("", "")]
        )
    ]
    write_csv(tmp_path / "metadata.csv", rows)
    found = read_table(tmp_path).frame["malignant"].tolist()
    assert found[:2] == [1, 0]
    assert found[3:5] == [1, 0]
    assert math.isnan(found[2])
    assert math.isnan(found[5])


def test_a_label_is_read_by_its_source(tmp_path: Path) -> None:
    write_csv(tmp_path / "metadata.csv", with_cells(dx="SCC", source="isic2019"))
    assert read_table(tmp_path).frame["dx"][1] == "scc"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"dx": "melonoma"}, r"row 3, column dx.*'melonoma'.*Did you mean 'mel'"),
        ({"malignant": "maybe"}, r"row 3: malignant is 'maybe'.*Write 1, 0"),
        ({"age": "150"}, r"row 3: age is '150'"),
        ({"age": "fifty"}, r"row 3: age is 'fifty'"),
        ({"fitzpatrick": "7"}, r"row 3: fitzpatrick is '7'.*1 to 6"),
        ({"fitzpatrick": "2.5"}, r"row 3: fitzpatrick is '2.5'"),
        ({"severity": "-2"}, r"row 3: severity is '-2'"),
        ({"split": "holdout"}, r"row 3: split is 'holdout'.*train, val or test"),
        ({"image_id": "a"}, r"row 3: image_id 'a' is already listed in row 2"),
        ({"image": "images/a.png"}, r"row 3: image 'images/a.png' is already listed in row 2"),
        ({"image": "./images//a.png"}, r"row 3: image './images//a.png' is already listed"),
        ({"image": ""}, r"row 3: image is empty"),
        ({"image": "../secret.png"}, r"row 3: image '../secret.png' is not a path inside"),
        ({"image": "/etc/passwd"}, r"row 3: image '/etc/passwd' is not a path inside"),
        ({"mask": "a/../../b.png"}, r"row 3: mask 'a/../../b.png' is not a path inside"),
    ],
)
def test_a_bad_cell_is_named_with_its_row(
    tmp_path: Path, cells: dict[str, object], message: str
) -> None:
    write_csv(tmp_path / "metadata.csv", with_cells(**cells))
    with pytest.raises(DataError, match=message) as error:
        read_table(tmp_path)
    assert str(tmp_path / "metadata.csv") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"image_id,image\n", "header but no rows"),
        (b"image_id,file\na,b\n", "no column 'image'.*image_id, file"),
        (b",,image_id,image\n0,1,a,b\n", "two columns without a name"),
        (b"image_id,image,image\na,b,c\n", "the column 'image' twice"),
        (b"image_id,image\na,b,c\n", "row 2 has 3 fields, but the header has 2"),
        (b"image_id,image\na,b\nc\n", "row 3 has 1 fields"),
        (b'image_id,image\na,"b\n', "not CSV"),
        ("image_id,image\nä,b\n".encode("latin-1"), "not UTF-8"),
        ("image_id,image\nä,b\n".encode("cp1252"), r"byte 15, row 2.*'CSV UTF-8'"),
        (b"PK\x03\x04", "a workbook or a ZIP file.*'CSV UTF-8'"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "a workbook of an old Excel"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><title>", "a web page, not CSV"),
        (b"PAR1", r"is Parquet, not CSV.*suffix \.parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path)


def test_paths_without_a_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no metadata\.csv"):
        read_table(tmp_path)
    with pytest.raises(DataError, match="There is no folder or file"):
        read_table(tmp_path / "nowhere")
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"neither a folder nor a \.csv or \.parquet"):
        read_table(tmp_path / "table.xlsx")
    (tmp_path / "table.parquet").write_bytes(b"PAR0")
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_table(tmp_path / "table.parquet")


def test_row_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    text = '\ufeffimage_id,image,caption,dx\r\na,a.png,"two\r\nlines",nv\r\n\r\nb,b.png,,oops\r\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(DataError, match=r"row 5, column dx.*'oops'"):
        read_table(tmp_path)


def test_parquet_and_csv_give_the_same_table(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "image_id": ["a", "b"],
            "image": ["a.png", "b.png"],
            "lesion_id": [53.0, None],
            "age": [41.0, None],
            "malignant": [True, None],
            "dx": ["mel", None],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text(
        "image_id,image,lesion_id,age,malignant,dx\na,a.png,53,41,1,mel\nb,b.png,,,,\n",
        encoding="utf-8",
    )
    parquet, csv = read_table(tmp_path / "t.parquet"), read_table(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(parquet.frame, csv.frame)
    assert table_digest(parquet) == table_digest(csv)


def grouped(rows: list[tuple[str, str, str]]) -> list[str]:
    frame = pd.DataFrame(rows, columns=["lesion_id", "patient_id", "source"], dtype="str")
    return groups(frame.assign(image_id=[f"i{n}" for n in range(len(rows))])).tolist()


def test_rows_are_grouped_by_lesion_and_patient_also_through_other_rows() -> None:
    rows = [
        ("L1", "", ""),
        ("L2", "P1", ""),
        ("L1", "P1", ""),
        ("", "P2", ""),
        ("", "", ""),
        ("", "", ""),
    ]
    assert grouped(rows) == ["i0", "i0", "i0", "i3", "i4", "i5"]


def test_equal_ids_of_two_sources_are_two_groups() -> None:
    assert grouped([("1", "1", "pad"), ("1", "", "ham"), ("1", "", "pad")]) == ["i0", "i1", "i0"]


def test_digests_change_only_with_the_content(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", 1)
    save(tmp_path / "images/b.png", 2)
    write_csv(tmp_path / "metadata.csv", TWO)
    table = read_table(tmp_path)
    before, digest = digests(table), table_digest(table)
    assert list(before.index) == ["a", "b"]

    write_csv(tmp_path / "metadata.csv", TWO[::-1])
    assert table_digest(read_table(tmp_path)) == digest
    write_csv(tmp_path / "metadata.csv", with_cells(dx="nv"))
    assert table_digest(read_table(tmp_path)) != digest

    save(tmp_path / "images/b.png", 3)
    after = digests(table)
    assert after["a"] == before["a"]
    assert after["b"] != before["b"]
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(DataError, match=r"images/a\.png.*cannot be read"):
        digests(table)


def test_real_tables() -> None:
    table = read_table(shared("pad_ufes_20"))
    akiec = table.frame[table.frame["dx"] == "akiec"]
    assert len(akiec) > 50
    assert (akiec["malignant"] == 0).all()
    assert groups(table.frame).nunique() <= table.frame["patient_id"].nunique()
    ham = read_table(shared("ham10000"))
    assert (ham.frame.loc[ham.frame["dx"] == "akiec", "malignant"] == 1).all()
    assert groups(ham.frame).nunique() == ham.frame["lesion_id"].nunique()


def test_the_modality_follows_from_a_source_that_has_only_one(tmp_path: Path) -> None:
    rows = [("ham10000", ""), ("pad_ufes_20", ""), ("pad_ufes_20", "dermoscopic"), ("mine", "")]
    write_csv(
        tmp_path / "metadata.csv",
        [
            {"image_id": str(n), "image": f"{n}.png", "source": source, "modality": own}
            for n, (source, own) in enumerate(rows)
        ],
    )
    found = read_table(tmp_path).frame["modality"].tolist()
    assert found == ["dermoscopic", "clinical", "dermoscopic", ""]


def test_a_table_without_modality_keeps_the_digest_it_had(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("image_id,image,dx\na,a.png,nv\nb,b.png,mel\n")
    digest = table_digest(read_table(tmp_path))
    assert digest == "64ad33cf234ad316bde8cada4e165148b67667e7f19d3df2c101ce03869aac25"
    (tmp_path / "metadata.csv").write_text(
        "image_id,image,dx,modality\na,a.png,nv,clinical\nb,b.png,mel,\n"
    )
    assert table_digest(read_table(tmp_path)) != digest
