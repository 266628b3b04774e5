"""Define the columns of a table, find them in a header, and check their cells."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from dermedge.data.cells import describe_readings, understand_column
from dermedge.data.csv_text import normalize_column
from dermedge.data.layouts import LAYOUTS, Layout
from dermedge.data.messages import quote
from dermedge.data.placeholders import is_unknown
from dermedge.data.taxonomy import (
    SEPARATOR,
    describe_unknown,
    describe_unknown_label,
    is_known,
    resolve,
    split_diagnoses,
)
from dermedge_runtime.errors import DataError
from dermedge_runtime.registry import load_entry

NUMBERS = ("malignant", "severity", "age", "fitzpatrick")
"""Columns that hold numbers; all others hold text."""

# fmt: off
COLUMNS = (
    "image_id", "image", "mask", "lesion_id", "patient_id", "dx", "malignant", "severity",
    "caption", "age", "sex", "site", "fitzpatrick", "modality", "source", "licence", "split",
)
# fmt: on
"""Columns of every table, in order."""

_VERBATIM = frozenset({"image_id", "image", "mask", "caption"})
_SPELLED = (*NUMBERS, "sex", "modality", "split")
"""Columns whose cells `understand_column` reads."""


def match_columns(header: Iterable[str], file: Path) -> dict[str, str]:
    """Return our columns by the names that they have in a file; case does not matter.

    Args:
        header: Names of the columns in the file.
        file: The file, for messages.

    Raises:
        DataError: Two columns are one of ours.

    Examples:
        >>> match_columns(["Image ID", "file"], Path("own.csv"))
        {'image_id': 'Image ID'}
    """
    header = list(header)
    columns: dict[str, str] = {}
    for ours in COLUMNS:
        theirs = [name for name in header if normalize_column(name) == ours]
        exact = [name for name in theirs if name == ours]
        if len(exact or theirs) > 1:
            raise DataError(
                f"{file} has the columns {quote(theirs[0])} and {quote(theirs[1])}, which are both "
                f"{ours}. Rename or remove one of them."
            )
        if theirs:
            columns[ours] = (exact or theirs)[0]
    return columns


def understand_cells(
    frame: pd.DataFrame, where: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Check the cells of `COLUMNS`, except paths, and return them in one spelling.

    Args:
        frame: Text cells; columns may be missing.
        where: Place of every row, for messages.

    Returns:
        The cells of every column, as text, "" where unknown; and a note on every column
        that was not read literally.

    Raises:
        DataError: A value is not one that its column allows.
    """
    cells = {name: list_cells(frame, name) for name in COLUMNS}
    check_unique("image_id", cells["image_id"], where)
    labels = cells["dx"]
    cells["dx"] = _resolve_labels(labels, cells["source"], where)
    notes = [describe_readings("dx", labels, dict(zip(labels, cells["dx"], strict=True)))]
    for name in _SPELLED:
        cells[name], note = understand_column(name, cells[name], where)
        notes.append(note)
    cells["modality"] = _fill_modality(cells["modality"], cells["source"])
    return cells, [note for note in notes if note]


def _fill_modality(cells: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Return each row's own modality, otherwise that of the published set it is from."""
    known = {source: _modality_of(source) for source in set(sources)}
    return [cell or known[source] for cell, source in zip(cells, sources, strict=True)]


def _modality_of(source: str) -> str:
    if source not in LAYOUTS:
        return ""
    layout: Layout = load_entry(LAYOUTS[source])
    return layout.modality


def list_cells(text: pd.DataFrame, name: str) -> list[str]:
    """Return the cells of a column, with "" for words such as "unknown" and "n/a"."""
    cells = text[name].tolist() if name in text else [""] * len(text)
    # A file may be named none.png, and a caption may read "unknown": both are kept.
    if name in _VERBATIM:
        return cells
    unknown = {cell for cell in set(cells) if is_unknown(cell)}
    return ["" if cell in unknown else cell for cell in cells]


def check_unique(name: str, cells: Sequence[str], where: Sequence[str]) -> None:
    """Check that every row has a value of its own in a column.

    Raises:
        DataError: A cell is empty, or two are equal.
    """
    seen: dict[str, str] = {}
    for cell, at in zip(cells, where, strict=True):
        if not cell:
            raise DataError(f"{at}: {name} is empty. Fill it or remove the row.")
        # a.png, ./a.png and .//a.png are one file, so they must not be two rows.
        key = PurePosixPath(cell).as_posix()
        if key in seen:
            first = seen[key].rpartition(", ")[2]
            raise DataError(
                f"{at}: {name} {quote(cell)} is already listed in {first}. Remove one of the rows: "
                "every image has one."
            )
        seen[key] = at


def _resolve_labels(
    labels: Sequence[str], sources: Sequence[str], where: Sequence[str]
) -> list[str]:
    # A table has few different labels, so each is resolved once.
    known: dict[tuple[str, str], str] = {}
    unknown: dict[str, str] = {}  # label -> place of its first row
    for label, source, at in zip(labels, sources, where, strict=True):
        if (label, source) in known:
            continue
        parts = split_diagnoses(label)
        lacking = [part for part in parts if not is_known(part, source)]
        for part in lacking:
            unknown.setdefault(part, at)
        if not lacking:
            ids = dict.fromkeys(resolve(part, source).id for part in parts)
            known[label, source] = SEPARATOR.join(ids)
    if unknown:
        label, at = next(iter(unknown.items()))
        raise DataError(
            f"{at}, column dx: {describe_unknown_label(label)}"
            if len(unknown) == 1
            else f"{at}, column dx: {describe_unknown(unknown)} Write ids of "
            "dermedge.data.TAXONOMY, or map the labels with `dermedge data add csv TABLE "
            "--label THEIRS=ID -o OUT`."
        )
    return [known[key] for key in zip(labels, sources, strict=True)]
