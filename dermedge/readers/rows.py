"""Read the rows of a reader study's tables as text cells, and find their readings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermedge.data.cells import understand_column
from dermedge.data.csv_text import normalize_column
from dermedge.data.messages import list_columns, quote
from dermedge.data.placeholders import is_unknown
from dermedge.data.table_file import check_suffix, read_text
from dermedge.readers.cells import CONDITIONS, one_per, read_condition
from dermedge_runtime.errors import DataError

REQUIRED = ("reader", "case", "condition", "answer")
READING_COLUMNS = (*REQUIRED, "order", "confidence", "seconds", "answered", "reader_group")
SUBGROUP_COLUMNS = ("dx", "fitzpatrick", "sex", "site", "modality")
CASE_COLUMNS = ("truth", "model", "model_score", "patient_id", *SUBGROUP_COLUMNS)

Reading = tuple[int, str, str]
"""Condition, reader and case."""


@dataclass(frozen=True)
class Rows:
    """Rows of a study's table: text cells, and the place of every row.

    Examples:
        >>> Rows(pd.DataFrame({"reader": ["a"]}), ["study.csv, row 2"]).cells("truth")
        ['']
    """

    frame: pd.DataFrame
    where: Sequence[str]

    def cells(self, name: str) -> list[str]:
        """Return the cells of a column, "" where they are missing or unknown."""
        if name not in self.frame:
            return [""] * len(self.where)
        cells: list[str] = self.frame[name].tolist()
        return ["" if is_unknown(cell) else cell for cell in cells]


def list_files(path: Path) -> list[Path]:
    """Return the file itself, or the CSV files of a folder.

    Raises:
        DataError: The folder has none, or the file is no table.

    Examples:
        >>> list_files(Path("study.csv"))
        [...Path('study.csv')]
    """
    if not path.is_dir():
        check_suffix(path)
        return [path]
    files = sorted(path.glob("*.csv"))
    if not files:
        raise DataError(f"{path} holds no .csv file. Give the file or folder of the answers.")
    return files


def read_rows(files: Sequence[Path], required: Sequence[str]) -> Rows:
    r"""Read the text cells of tables, with our names of the columns.

    Raises:
        DataError: A table is not readable, is empty, or lacks a required column.

    Examples:
        >>> _ = Path("cases.csv").write_text("Case,Truth\na,nv\n")
        >>> read_rows([Path("cases.csv")], ["case"]).cells("truth")
        ['nv']
    """
    frames: list[pd.DataFrame] = []
    where: list[str] = []
    for file in files:
        text = read_text(file, required)
        frame = text.frame.rename(columns=normalize_column)
        repeated = frame.columns[frame.columns.duplicated()]
        if len(repeated):
            raise DataError(
                f"{file} has the column {repeated[0]!r} in two spellings. Keep one of them."
            )
        for name in required:
            if name not in frame:
                raise DataError(
                    f"{file} has no column {name!r} (it has: {list_columns(text.frame.columns)}). "
                    "Rename or add it."
                )
        frames.append(frame)
        where += text.where
    if not where:
        raise DataError(f"{files[0]} has a header but no rows. Add one row per reading.")
    return Rows(pd.concat(frames, ignore_index=True).fillna(""), where)


def read_cases(rows: Rows, by_case: Rows | None) -> dict[str, Mapping[str, str]]:
    """Return the cells of every column about cases, by case.

    Args:
        rows: One row per reading.
        by_case: One row per case, for the columns that `rows` lacks.

    Raises:
        DataError: Two rows disagree, a case is listed twice, or both have a column.

    Examples:
        >>> rows = Rows(pd.DataFrame({"case": ["a"], "truth": ["nv"]}), ["study.csv, row 2"])
        >>> read_cases(rows, None)["truth"]
        {'a': 'nv'}
    """
    cells: dict[str, Mapping[str, str]] = {}
    if by_case is not None:
        repeated = by_case.frame["case"][by_case.frame["case"].duplicated()]
        if len(repeated):
            raise DataError(
                f"{by_case.where[repeated.index[0]]}: case {quote(repeated.iloc[0])} is listed "
                "twice. Write one row for each case."
            )
    for name in CASE_COLUMNS:
        both = by_case is not None and name in by_case.frame and name in rows.frame
        if both:
            raise DataError(
                f"The readings and the table of cases both have the column {name!r}. Remove it "
                "from one of them."
            )
        source = by_case if by_case is not None and name in by_case.frame else rows
        values = source.cells(name)
        if name == "fitzpatrick":
            values, _ = understand_column(name, values, source.where)
        cells[name] = one_per("case", source.cells("case"), name, values, source.where)
    return cells


def index_readings(rows: Rows) -> dict[Reading, int]:
    """Return the row of each reading, by condition, reader and case.

    Raises:
        DataError: A reading is listed twice, or lacks its reader, case or condition.

    Examples:
        >>> cells = {"reader": ["r1"], "case": ["a"], "condition": ["aided"]}
        >>> index_readings(Rows(pd.DataFrame(cells), ["study.csv, row 2"]))
        {(1, 'r1', 'a'): 0}
    """
    index: dict[Reading, int] = {}
    readings = zip(rows.cells("condition"), rows.cells("reader"), rows.cells("case"), strict=True)
    for row, (condition, reader, case) in enumerate(readings):
        at = rows.where[row]
        for name, cell in (("reader", reader), ("case", case)):
            if not cell:
                raise DataError(f"{at}: {name} is empty. Fill it or remove the row.")
        key = (read_condition(condition, at), reader, case)
        if key in index:
            raise DataError(
                f"{at}: reader {quote(reader)} answered case {quote(case)} {CONDITIONS[key[0]]} "
                f"before, in {rows.where[index[key]]}. Keep one of the answers."
            )
        index[key] = row
    return index


class Dense:
    """Places of the readings in arrays [2, R, C].

    Examples:
        >>> dense = Dense({(0, "r1", "a"): 0, (1, "r1", "a"): 1}, ["a"])
        >>> dense.fill(np.array(["nv", "mel"]), "").tolist()
        [[['nv']], [['mel']]]
    """

    def __init__(self, index: Mapping[Reading, int], cases: Sequence[str]) -> None:
        """Take the row of each reading, and the cases in order."""
        self.index = index
        self.readers = sorted({reader for _, reader, _ in index})
        reader_at = {name: place for place, name in enumerate(self.readers)}
        case_at = {name: place for place, name in enumerate(cases)}
        self._shape = (2, len(self.readers), len(cases))
        places = [(condition, reader_at[r], case_at[c]) for condition, r, c in index]
        self._places = tuple(np.array(places).T)
        self._rows = np.array(list(index.values()))

    def fill(self, values: NDArray[Any], missing: object) -> NDArray[Any]:
        """Return the values of the rows, and `missing` for readings without a row."""
        dense = np.full(self._shape, missing, values.dtype)
        dense[self._places] = values[self._rows]
        return dense
