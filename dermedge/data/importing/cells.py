"""Translate one record of a published set into the cells of our table."""

import ast
from collections import Counter
from collections.abc import Mapping

from dermedge.data.importing.records import Record
from dermedge.data.layouts import Layout
from dermedge.data.taxonomy import SEPARATOR, resolve, split_diagnoses
from dermedge_runtime.errors import DataError


def translate_cells(
    layout: Layout, columns: Mapping[str, str], record: Record, unknown: Counter[str]
) -> dict[str, str]:
    """Return the cells of a row by column of our table.

    Args:
        layout: Layout of the set.
        columns: Column of our table -> column of the set.
        record: The row as published.
        unknown: Counts of the labels that the taxonomy does not know; updated in place.

    Raises:
        DataError: The label is unknown and the layout does not allow that, or the cells
            of the label cannot be read.
    """
    raw = record.raw
    cells = {
        ours: raw.get(theirs, "") or raw.get(layout.fallbacks.get(ours, ""), "")
        for ours, theirs in columns.items()
        if ours != "image"
    }
    label = _read_label(layout, cells.get("dx", ""), record)
    for column, meanings in layout.values.items():
        cell = label if column == "dx" else cells.get(column, "")
        by_case = {theirs.casefold(): ours for theirs, ours in meanings.items()}
        cells[column] = by_case.get(cell.casefold(), cell)
    # Sets write sex and site in any case; subgroups are compared by their text.
    for column in ("sex", "site"):
        cells[column] = cells.get(column, "").lower()
    cells["source"] = cells.get("source") or ("" if layout.name == "csv" else layout.name)
    cells["licence"] = cells.get("licence") or layout.licence
    cells["modality"] = cells.get("modality") or layout.modality
    wanted = cells["dx"] if "dx" in layout.values else label
    cells["dx"] = _resolve_label(layout, wanted, cells["source"], record, unknown)
    kept = [*layout.keep, *(["view"] if layout.views else [])]
    return {"dx_raw": label} | {name: raw[name] for name in kept if name in raw} | cells


def _resolve_label(
    layout: Layout, label: str, source: str, record: Record, unknown: Counter[str]
) -> str:
    """Return the id of a label, or the ids of several that `;` separates.

    If one of several is not known, the cell is empty: the others alone would be another
    label.
    """
    ids = []
    for part in split_diagnoses(label):
        try:
            ids.append(resolve(layout.labels.get(part, part), source).id)
        except DataError as error:
            if not layout.open_labels:
                raise DataError(f"{record.at}: {error}") from error
            unknown[part] += 1
            return ""
    return SEPARATOR.join(dict.fromkeys(ids))


def _read_label(layout: Layout, cell: str, record: Record) -> str:
    if layout.one_hot:
        return _read_one_hot(layout, record.raw, record.at)
    if layout.weighted and cell:
        return _read_weighted(cell, record.at)
    return cell or layout.otherwise


def _read_weighted(cell: str, at: str) -> str:
    """Return the label with the largest weight of a cell such as `{'Eczema': 0.6}`.

    Of a list without weights, such as `['Eczema', 'Psoriasis']`, all labels count.
    """
    try:
        # literal_eval reads a Python dictionary or list without running code.
        labels = ast.literal_eval(cell)
        if isinstance(labels, list):
            return SEPARATOR.join(map(str, labels))
        weights = {str(label): float(weight) for label, weight in labels.items()}
    except (ValueError, SyntaxError, AttributeError, TypeError) as error:
        raise DataError(
            f"{at}: {cell!r} holds no weights by label. Give the file as it is published."
        ) from error
    return max(weights, key=weights.__getitem__) if weights else ""


def _read_one_hot(layout: Layout, raw: Mapping[str, str], at: str) -> str:
    """Return the name of the one column that holds 1."""
    try:
        marked = [name for name in layout.one_hot if float(raw[name] or 0) > 0.5]
    except ValueError as error:
        raise DataError(
            f"{at}: {error}. Write 0 or 1 into the columns {', '.join(layout.one_hot)}."
        ) from error
    if len(marked) > 1 or not (marked or layout.otherwise):
        raise DataError(
            f"{at} has {len(marked)} of the labels {', '.join(layout.one_hot)}. Mark exactly one."
        )
    return marked[0] if marked else layout.otherwise
