"""Words and numbers that mean "unknown" never join rows."""

from pathlib import Path

import pytest

from dermedge.data.placeholders import UNKNOWN, is_unknown
from dermedge.data.table import groups, read_table
from support.tables import write_csv

WORDS = (
    *("-1", "-9", "-99", "-1.0", "\N{MINUS SIGN}1", "none", "Unknown", "UNK", "not available"),
    *("Not_Available", "not applicable", "not  recorded", "n.a.", "N/A", "n/k", "?", "??", "-"),
    *("--", "\N{EN DASH}", ".", "missing", "anonymous", "ANON", "null", "NaN", "<NA>", "#N/A"),
    *("undefined", "tbd", "\u00a0unknown\u00a0", "unk\u200bnown"),
    "\N{FULLWIDTH LATIN SMALL LETTER N}one",
)


def read_groups(path: Path, ids: list[str], column: str = "patient_id") -> list[str]:
    rows = [{"image_id": f"i{n}", "image": f"i{n}.png", column: cell} for n, cell in enumerate(ids)]
    write_csv(path / "metadata.csv", rows)
    return groups(read_table(path).frame).tolist()


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("column", ["patient_id", "lesion_id"])
def test_a_placeholder_is_no_id(word: str, column: str, tmp_path: Path) -> None:
    assert read_groups(tmp_path, [word, word, "P1", "P1"], column) == ["i0", "i1", "i2", "i2"]
    assert read_table(tmp_path).frame[column].tolist()[:2] == ["", ""]


def test_every_listed_word_is_unknown_in_any_case() -> None:
    assert all(is_unknown(f" {word.upper()} ") for word in UNKNOWN)


@pytest.mark.parametrize("cell", ["0", "1", "99", "999", "NK", "NA1", "p-1", "-12", "♀", "+", "é"])
def test_a_value_of_its_own_is_kept(cell: str, tmp_path: Path) -> None:
    assert read_groups(tmp_path, [cell, cell]) == ["i0", "i0"]


def test_an_id_is_the_same_in_composed_and_combining_accents(tmp_path: Path) -> None:
    assert read_groups(tmp_path, ["Mu\u0308ller", "M\u00fcller"]) == ["i0", "i0"]


def test_other_columns_know_the_same_words(tmp_path: Path) -> None:
    names = ("dx", "malignant", "age", "sex", "site", "fitzpatrick", "severity", "split")
    rows = [{"image_id": "none", "image": "none.png", "caption": "?", **dict.fromkeys(names, "-1")}]
    write_csv(tmp_path / "metadata.csv", rows)
    row = read_table(tmp_path).frame.iloc[0]
    assert [row[name] for name in ("dx", "sex", "site", "split")] == [""] * 4
    assert row[["malignant", "age", "fitzpatrick", "severity"]].isna().all()
    assert (row.image_id, row.caption) == ("none", "?")
