"""Read the table of a reader study, check it, and apply the completeness rule."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermedge.data.messages import list_columns, quote
from dermedge.data.subgroups import SKIN_TYPES
from dermedge.readers.cells import label_reader, malignancy, one_per, read_numbers, read_times
from dermedge.readers.rows import (
    CASE_COLUMNS,
    READING_COLUMNS,
    REQUIRED,
    SUBGROUP_COLUMNS,
    Dense,
    Rows,
    index_readings,
    list_files,
    read_cases,
    read_rows,
)
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.errors import DataError

NAMES_SHOWN = 5
NEVER = np.datetime64("NaT", "s")

Texts = NDArray[np.str_]


@dataclass(frozen=True)
class Study:
    """The complete readings of a study: every reader, every case, both conditions.

    Arrays [2, R, C] hold the conditions unaided and aided, R readers and C cases.

    Attributes:
        readers: Names of the readers.
        groups: Group of each reader, such as its experience; "" if unknown.
        cases: Names of the cases.
        truth: True label of each case, [C].
        malignant: 1 for malignant, 0 for benign, NaN if the label may be either, [C].
        answers: Answered labels, [2, R, C].
        confidence: Confidence in the answer, [2, R, C]; NaN if unknown, as below.
        seconds: Time until the answer, [2, R, C].
        order: Position of the reading among all readings of its reader, [2, R, C].
        answered: Point in time of the answer, [2, R, C].
        model: Label that the model predicts, [C]; None if the table has none.
        model_score: The model's malignancy score, [C].
        columns: Subgroup of each case, by column.
        readings: All answered readings, also of left-out readers and cases, with the
            columns `reader`, `case`, `aided` and `correct`.
        left_out_readers: Share of answered readings of each left-out reader.
        left_out_cases: Cases that a remaining reader did not answer.
        notes: Sentences on what was not used.

    Examples:
        >>> from dermedge.readers.simulate import write_study
        >>> study = read_study([write_study(Path("study.csv"), readers=3, cases=20)])
        >>> study.answers.shape, study.binary
        ((2, 3, 20), True)
    """

    readers: tuple[str, ...]
    groups: tuple[str, ...]
    cases: tuple[str, ...]
    truth: Texts
    malignant: Floats
    answers: Texts
    confidence: Floats
    seconds: Floats
    order: Floats
    answered: NDArray[np.datetime64]
    model: Texts | None
    model_score: Floats
    columns: Mapping[str, Texts]
    readings: pd.DataFrame
    left_out_readers: Mapping[str, float] = field(default_factory=dict)
    left_out_cases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def binary(self) -> bool:
        """True if the answers are malignant and benign, False for diagnoses."""
        return bool(np.isin(self.truth, ("malignant", "benign")).all())

    @property
    def correct(self) -> NDArray[np.bool_]:
        """True [2, R, C] where the answer is the true label."""
        equal: NDArray[np.bool_] = self.answers == self.truth
        return equal


def read_study(
    tables: Iterable[str | Path], cases: str | Path | None = None, *, completeness: float = 0.95
) -> Study:
    """Read and check the readings of a study.

    A reader who answered less than `completeness` of the readings is left out. Then
    every case is left out that a remaining reader did not answer in both conditions.

    Args:
        tables: CSV or Parquet files, or folders of CSV files, with one row per reading.
        cases: Table with one row per case, for the columns that the readings lack.
        completeness: Smallest share of answered readings, from 0 to 1.

    Raises:
        DataError: A table is not readable, lacks a column, repeats a reading, or holds
            a value that its column does not allow. Or no two cases are complete.

    Examples:
        >>> from dermedge.readers.simulate import write_study
        >>> path = write_study(Path("study.csv"), readers=3, cases=20)
        >>> read_study([path]).left_out_cases
        ()
    """
    rows = read_rows([file for path in tables for file in list_files(Path(path))], REQUIRED)
    by_case = None if cases is None else read_rows([Path(cases)], ("case",))
    return build_study(rows, by_case, completeness=completeness)


def build_study(rows: Rows, by_case: Rows | None = None, *, completeness: float = 0.95) -> Study:
    """Check the text cells of a study, and return its complete readings.

    Args:
        rows: One row per reading.
        by_case: One row per case.
        completeness: As in `read_study`.

    Raises:
        DataError: As in `read_study`.

    Examples:
        >>> from dermedge.readers.simulate import draw_rows
        >>> build_study(draw_rows(readers=3, cases=20)).answers.shape
        (2, 3, 20)
    """
    by_name = read_cases(rows, by_case)
    names = _check_truth(rows, by_name["truth"])
    cells = rows.cells("answer")
    read = label_reader([*cells, *by_name["truth"].values(), *by_name["model"].values()])
    truth, model = (
        {case: read(cell, f"case {quote(case)}, column {column}") for case, cell in values.items()}
        for column, values in (("truth", by_name["truth"]), ("model", by_name["model"]))
    )
    given = np.array(
        [read(cell, at) if cell else "" for cell, at in zip(cells, rows.where, strict=True)]
    )
    dense = Dense(index_readings(rows), names)
    answers = dense.fill(given, "")
    readers, left_out = _complete_readers(dense.readers, answers != "", completeness)
    kept = _complete_cases(answers[:, readers] != "")
    chosen = np.ix_([0, 1], readers, kept)
    cases = [names[case] for case in kept]
    true = np.array([truth[case] for case in cases])
    named = rows.cells("reader_group")
    groups = one_per("reader", rows.cells("reader"), "reader_group", named, rows.where)

    def numbers(name: str, low: float, whole: bool = False) -> Floats:
        values = read_numbers(name, rows.cells(name), rows.where, low=low, whole=whole)
        filled: Floats = dense.fill(values, np.nan)[chosen]
        return filled

    return Study(
        readers=tuple(dense.readers[reader] for reader in readers),
        groups=tuple(groups.get(dense.readers[reader], "") for reader in readers),
        cases=tuple(cases),
        truth=true,
        malignant=np.array([malignancy(label) for label in true]),
        answers=answers[chosen],
        confidence=numbers("confidence", 0.0),
        seconds=numbers("seconds", 0.0),
        order=numbers("order", 1.0, whole=True),
        answered=dense.fill(read_times(rows.cells("answered"), rows.where), NEVER)[chosen],
        model=_read_model(model, cases),
        model_score=_read_scores(by_name["model_score"], cases),
        columns=_read_columns(by_name, cases),
        readings=_list_readings(dense, given, truth),
        left_out_readers=left_out,
        left_out_cases=tuple(case for case in names if case not in set(cases)),
        notes=_notes(rows, by_case, by_name["patient_id"]),
    )


def _check_truth(rows: Rows, truth: Mapping[str, str]) -> list[str]:
    names = sorted({case for case in rows.cells("case") if case})
    missing = [case for case in names if case not in truth]
    if missing:
        raise DataError(
            f"{_list_some('case', missing)} no truth. Fill the column truth, or give the table of "
            "cases with --cases."
        )
    return names


def _list_some(kind: str, names: Sequence[str]) -> str:
    """Return `case 'a' has`, or `3 cases ('a', 'b', 'c') have`."""
    if len(names) == 1:
        return f"{kind.capitalize()} {quote(names[0])} has"
    shown = ", ".join(quote(name) for name in names[:NAMES_SHOWN])
    return f"{len(names)} {kind}s ({shown}{', ...' if len(names) > NAMES_SHOWN else ''}) have"


def _complete_readers(
    readers: Sequence[str], answered: NDArray[np.bool_], completeness: float
) -> tuple[list[int], dict[str, float]]:
    share = answered.mean((0, 2))
    left_out = {
        name: float(given)
        for name, given in zip(readers, share, strict=True)
        if given < completeness
    }
    if len(left_out) == len(readers):
        name, most = max(left_out.items(), key=lambda item: item[1])
        raise DataError(
            f"No reader answered {completeness:.0%} of the readings; the most complete is "
            f"{quote(name)} with {most:.0%}. Add the missing answers, or lower --completeness."
        )
    return [r for r, name in enumerate(readers) if name not in left_out], left_out


def _complete_cases(answered: NDArray[np.bool_]) -> list[int]:
    """Return the cases that all readers answered in both conditions."""
    complete = np.flatnonzero(answered.all((0, 1)))
    if len(complete) < 2:
        raise DataError(
            f"{len(complete)} of {answered.shape[2]} cases were answered by all "
            f"{answered.shape[1]} readers in both conditions, but at least 2 are needed. Add the "
            "missing answers, or more cases."
        )
    return [int(case) for case in complete]


def _read_model(model: Mapping[str, str], cases: Sequence[str]) -> Texts | None:
    missing = [case for case in cases if case not in model]
    if len(missing) == len(cases):
        return None
    if missing:
        raise DataError(
            f"{_list_some('case', missing)} no prediction in the column model, but others have. "
            "Fill it for every case, or remove the column."
        )
    return np.array([model[case] for case in cases])


def _read_scores(cells: Mapping[str, str], cases: Sequence[str]) -> Floats:
    where = [f"case {quote(case)}" for case in cases]
    return read_numbers("model_score", [cells.get(case, "") for case in cases], where, low=0.0)


def _read_columns(
    case_cells: Mapping[str, Mapping[str, str]], cases: Sequence[str]
) -> dict[str, Texts]:
    columns = {}
    for name in SUBGROUP_COLUMNS:
        values = [case_cells[name].get(case, "") for case in cases]
        if name == "fitzpatrick":
            values = [SKIN_TYPES[int(float(value)) - 1] if value else "" for value in values]
        if any(values):
            columns[name] = np.array(values)
    return columns


def _list_readings(dense: Dense, given: Texts, truth: Mapping[str, str]) -> pd.DataFrame:
    answered = [
        (*key, bool(given[row] == truth[key[2]])) for key, row in dense.index.items() if given[row]
    ]
    return pd.DataFrame(answered, columns=["aided", "reader", "case", "correct"])


def _notes(rows: Rows, by_case: Rows | None, patients: Mapping[str, str]) -> tuple[str, ...]:
    known = {*READING_COLUMNS, *CASE_COLUMNS}
    columns = [*rows.frame.columns, *(by_case.frame.columns if by_case is not None else ())]
    unused = [name for name in dict.fromkeys(columns) if name and name not in known]
    notes = [f"These columns were not used: {list_columns(unused)}."] if unused else []
    if len(set(patients.values())) < len(patients):
        notes.append(
            "Some patients have several cases. The analysis treats cases as independent, so its "
            "intervals may be too narrow."
        )
    return tuple(notes)
