"""A study's table is understood or refused with one message, and the rule of completeness holds."""

from pathlib import Path

import pandas as pd
import pytest

from dermedge.readers.simulate import draw_rows
from dermedge.readers.study import read_study
from dermedge_runtime.errors import DataError


@pytest.fixture
def frame() -> pd.DataFrame:
    return draw_rows(readers=3, cases=10, seed=1).frame


def read(frame: pd.DataFrame, folder: Path, **options):
    frame.to_csv(folder / "study.csv", index=False)
    return read_study([folder / "study.csv"], **options)


def test_a_complete_study_is_read_whole(frame: pd.DataFrame, tmp_path: Path) -> None:
    study = read(frame, tmp_path)
    assert study.answers.shape == (2, 3, 10)
    assert study.groups == ("specialist", "resident", "specialist")
    row = frame[(frame.reader == "r02") & (frame.case == "c004") & (frame.condition == "aided")]
    (row,) = row.to_dict("records")
    place = (1, study.readers.index("r02"), study.cases.index("c004"))
    assert study.answers[place] == row["answer"]
    assert study.seconds[place] == float(row["seconds"])
    assert str(study.answered[place]) == row["answered"]
    assert study.columns["fitzpatrick"][3] == "IV"
    assert (study.notes, study.left_out_cases, dict(study.left_out_readers)) == ((), (), {})


def test_rows_in_any_order_and_two_tables_give_the_same_study(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    whole = read(frame, tmp_path)
    by_case = ["truth", "model", "model_score", "fitzpatrick"]
    cases = frame[["case", *by_case]].drop_duplicates()
    cases.to_csv(tmp_path / "cases.csv", index=False)
    folder = tmp_path / "answers"
    folder.mkdir()
    mixed = frame.drop(columns=by_case).sample(frac=1, random_state=0)
    for reader, rows in mixed.groupby("reader"):
        rows.to_csv(folder / f"{reader}.csv", index=False, sep=";")
    parts = read_study([folder], tmp_path / "cases.csv")
    assert (parts.answers == whole.answers).all()
    assert (parts.order == whole.order).all()
    assert (parts.truth == whole.truth).all()
    assert (parts.model_score == whole.model_score).all()


def test_a_reader_with_few_answers_is_left_out_and_then_incomplete_cases(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    few = (frame.reader == "r01") & (frame.order.astype(int) > 15)
    one = (frame.reader == "r03") & (frame.case == "c002") & (frame.condition == "aided")
    study = read(frame[~few & ~one], tmp_path)
    assert dict(study.left_out_readers) == {"r01": 0.75}
    assert study.left_out_cases == ("c002",)
    assert (study.readers, len(study.cases)) == (("r02", "r03"), 9)
    assert len(study.readings) == 60 - 5 - 1
    kept = read(frame[~few & ~one], tmp_path, completeness=0.7)
    assert kept.readers == ("r01", "r02", "r03")


def test_an_empty_answer_counts_as_missing(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.loc[(frame.case == "c005") & (frame.reader == "r01"), "answer"] = ""
    assert read(frame, tmp_path, completeness=0.9).left_out_cases == ("c005",)


def test_diagnoses_are_resolved_by_the_taxonomy(frame: pd.DataFrame, tmp_path: Path) -> None:
    words = {"malignant": "Melanoma", "benign": "nv"}
    for name in ("answer", "truth", "model"):
        frame[name] = frame[name].map(words)
    study = read(frame, tmp_path)
    assert not study.binary
    assert set(study.truth) == {"mel", "nv"}
    assert set(study.malignant) == {0.0, 1.0}


def with_cell(frame: pd.DataFrame, row: int, column: str, value: str) -> pd.DataFrame:
    frame.loc[row, column] = value
    return frame


BAD = {
    "condition": (
        lambda f: with_cell(f, 0, "condition", "with AI"),
        "row 2: condition is 'with AI'",
    ),
    "reader": (lambda f: with_cell(f, 1, "reader", ""), "row 3: reader is empty"),
    "answer": (lambda f: with_cell(f, 2, "answer", "melonoma"), "row 4: the answer is 'melonoma'"),
    "mixed": (
        lambda f: with_cell(f, 2, "answer", "mel"),
        "mix 'benign' and diagnoses such as 'mel'",
    ),
    "confidence": (lambda f: with_cell(f, 0, "confidence", "-3"), "row 2: confidence is '-3'"),
    "seconds": (lambda f: with_cell(f, 0, "seconds", "fast"), "row 2: seconds is 'fast'"),
    "order": (lambda f: with_cell(f, 0, "order", "1.5"), "Write a whole number from 1 on"),
    "time": (lambda f: with_cell(f, 0, "answered", "yesterday"), "answered is 'yesterday'"),
    "truth": (
        lambda f: with_cell(f, 0, "truth", "malignant"),
        "truth of case 'c001' is 'benign', but 'malignant'",
    ),
    "no truth": (lambda f: f.drop(columns="truth"), "10 cases ('c001', "),
    "some models": (
        lambda f: f.assign(model=f.model.where(f.case != "c003", "")),
        "Case 'c003' has no prediction",
    ),
    "two groups": (
        lambda f: with_cell(f, 0, "reader_group", "other"),
        "reader_group of reader 'r01' is 'specialist', but 'other'",
    ),
    "twice": (
        lambda f: pd.concat([f, f.iloc[[4]]]),
        "row 62: reader 'r01' answered case 'c005' unaided before, in ",
    ),
    "no column": (lambda f: f.drop(columns="answer"), "has no column 'answer'"),
    "spellings": (lambda f: f.assign(Reader="x"), "has the column 'reader' in two spellings"),
    "one case": (lambda f: f[f.case == "c001"], "1 of 1 cases were answered by all 3 readers"),
    "no rows": (lambda f: f[:0], "has a header but no rows"),
    "incomplete": (lambda f: f[f.condition == "aided"], "No reader answered 95% of the readings"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_table_gets_one_message_that_names_the_value(
    name: str, frame: pd.DataFrame, tmp_path: Path
) -> None:
    change, words = BAD[name]
    with pytest.raises(DataError) as caught:
        read(change(frame), tmp_path)
    message = str(caught.value)
    assert words in message
    assert message.endswith(".")
    assert "\n" not in message


def test_a_column_in_both_tables_is_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame[["case", "truth"]].drop_duplicates().to_csv(tmp_path / "cases.csv", index=False)
    with pytest.raises(DataError, match="both have the column 'truth'"):
        read(frame, tmp_path, cases=tmp_path / "cases.csv")


def test_unused_columns_and_patients_with_several_cases_are_noted(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    patients = {f"c{n:03d}": f"p{n // 2}" for n in range(1, 11)}
    study = read(frame.assign(screen="4k", patient_id=frame.case.map(patients)), tmp_path)
    unused, dependent = study.notes
    assert unused == "These columns were not used: screen."
    assert "intervals may be too narrow" in dependent
