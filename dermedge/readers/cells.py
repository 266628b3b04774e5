"""Read the cells of a reader study's table, with a message for each wrong one."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from dermedge.data.messages import quote
from dermedge.data.taxonomy import TAXONOMY, describe_unknown, is_known, resolve
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.errors import DataError

CONDITIONS = ("unaided", "aided")
"""Conditions of a study, in the order of every array."""

MALIGNANT, BENIGN = "malignant", "benign"
_TWO = {MALIGNANT: MALIGNANT, "1": MALIGNANT, BENIGN: BENIGN, "0": BENIGN}


def read_condition(cell: str, at: str) -> int:
    """Return the index of a condition.

    Raises:
        DataError: It is neither `unaided` nor `aided`.

    Examples:
        >>> read_condition("Aided", "study.csv, row 2")
        1
    """
    name = cell.casefold()
    if name not in CONDITIONS:
        raise DataError(f"{at}: condition is {quote(cell)}. Write unaided or aided.")
    return CONDITIONS.index(name)


def read_numbers(
    name: str, cells: Sequence[str], where: Sequence[str], *, low: float, whole: bool = False
) -> Floats:
    """Return a column of numbers, NaN where a cell is empty.

    Args:
        name: Name of the column, for messages.
        cells: The cells.
        where: Place of every cell, for messages.
        low: Smallest number that is allowed.
        whole: Allow whole numbers only.

    Raises:
        DataError: A cell is no such number.

    Examples:
        >>> read_numbers("seconds", ["7.5", ""], ["row 2", "row 3"], low=0).tolist()
        [7.5, nan]
    """
    values = np.full(len(cells), np.nan)
    for index, (cell, at) in enumerate(zip(cells, where, strict=True)):
        if not cell:
            continue
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise DataError(
                f"{at}: {name} is {quote(cell)}. Write {kind} from {low:g} on, or leave it empty."
            )
        values[index] = value
    return values


def read_times(cells: Sequence[str], where: Sequence[str]) -> NDArray[np.datetime64]:
    """Return a column of points in time, NaT where a cell is empty.

    A time zone is converted to UTC; without one, all times count as of one zone.

    Raises:
        DataError: A cell is no date and time of ISO 8601.

    Examples:
        >>> str(read_times(["2026-05-04T09:30:00Z"], ["row 2"])[0])
        '2026-05-04T09:30:00'
    """
    values = np.full(len(cells), np.datetime64("NaT", "s"))
    for index, (cell, at) in enumerate(zip(cells, where, strict=True)):
        if not cell:
            continue
        try:
            # Python 3.10 does not read the Z of UTC.
            time = datetime.fromisoformat(cell.replace("Z", "+00:00"))
        except ValueError as error:
            raise DataError(
                f"{at}: answered is {quote(cell)}. Write a date and time such as "
                "2026-05-04T09:30:00Z, or leave it empty."
            ) from error
        if time.tzinfo is not None:
            time = time.astimezone(timezone.utc).replace(tzinfo=None)
        values[index] = np.datetime64(time, "s")
    return values


def label_reader(cells: Iterable[str]) -> Callable[[str, str], str]:
    """Return a function that gives the one spelling of an answer.

    A study asks either for malignant or benign, or for diagnoses of the taxonomy.

    Args:
        cells: All answers, true labels and predictions of the study.

    Returns:
        A function of a cell and its place. It raises a DataError for an answer of the
        other kind, or of no kind.

    Examples:
        >>> read = label_reader(["1", "benign"])
        >>> read("1", "row 2")
        'malignant'
        >>> label_reader(["Melanoma", "nv"])("Melanoma", "row 2")
        'mel'
    """
    different = {cell for cell in cells if cell}
    two = [cell for cell in different if cell.casefold() in _TWO]
    # Without a known diagnosis, a wrong word is a misspelling of malignant or benign.
    if two and not any(is_known(cell) for cell in different - set(two)):
        return _read_two
    if two:
        other = min(different - set(two))
        raise DataError(
            f"The answers mix {quote(min(two))} and diagnoses such as {quote(other)}. Use "
            "malignant and benign everywhere, or diagnoses everywhere."
        )
    unknown = sorted(cell for cell in different if not is_known(cell))

    def read(cell: str, at: str) -> str:
        if cell in unknown:
            raise DataError(
                f"{at}: {describe_unknown(unknown)} Write malignant or benign, or ids of "
                "dermedge.data.TAXONOMY."
            )
        return resolve(cell).id

    return read


def _read_two(cell: str, at: str) -> str:
    label = _TWO.get(cell.casefold())
    if label is None:
        raise DataError(f"{at}: the answer is {quote(cell)}. Write malignant or benign.")
    return label


def malignancy(label: str) -> float:
    """Return 1 for a malignant label, 0 for a benign one, and NaN if it may be either.

    Examples:
        >>> malignancy("mel"), malignancy("benign")
        (1.0, 0.0)
    """
    if label in (MALIGNANT, BENIGN):
        return float(label == MALIGNANT)
    malignant = TAXONOMY[label].malignant
    return math.nan if malignant is None else float(malignant)


def one_per(
    kind: str, keys: Sequence[str], column: str, cells: Sequence[str], where: Sequence[str]
) -> Mapping[str, str]:
    """Return the one value that a column has for each reader or case.

    Args:
        kind: `reader` or `case`, for messages.
        keys: The reader or case of every row.
        column: Name of the column, for messages.
        cells: Its cells; empty ones are ignored.
        where: Place of every row, for messages.

    Raises:
        DataError: Two rows of one key disagree.

    Examples:
        >>> one_per("case", ["a", "a"], "truth", ["nv", ""], ["row 2", "row 3"])
        {'a': 'nv'}
    """
    values: dict[str, str] = {}
    for key, cell, at in zip(keys, cells, where, strict=True):
        if cell and values.setdefault(key, cell) != cell:
            raise DataError(
                f"{at}: {column} of {kind} {quote(key)} is {quote(cell)}, but {quote(values[key])} "
                f"in an earlier row. Write one value for each {kind}."
            )
    return values
