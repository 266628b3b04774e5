"""Read the rows of a published set from its tables, its text files or its paths."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dermedge.data.importing.archive import Archive, pick_copy
from dermedge.data.layouts import Join, Layout, Part
from dermedge.data.messages import list_columns
from dermedge.data.table_file import TextTable, read_text
from dermedge_runtime.errors import DataError
from dermedge_runtime.printable import printable

IMAGE = "image"
"""Key of the image's name in records that do not come from one column."""


@dataclass(frozen=True)
class Record:
    r"""One image as the set describes it.

    Attributes:
        raw: Cells by the names of the set's columns.
        at: Place of the row, for messages.
        image: Image file, if the record comes from its path.

    Example:
        >>> _ = Path("grades.txt").write_text("acne1_0.jpg  1")
        >>> part = Part(table=("grades.txt",), line=r"(?P<image>\S+)\s+(?P<grade>\d)")
        >>> record = next(read_lines(part, Path("grades.txt"), notes=[]))
        >>> record.raw, record.at
        ({'image': 'acne1_0.jpg', 'grade': '1'}, 'grades.txt, row 1')
    """

    raw: dict[str, str]
    at: str
    image: Path | None = None


def read_paths(part: Part, archive: Archive, images: list[Path]) -> list[Record]:
    """Return a record for every image whose path matches the part's expression.

    Raises:
        DataError: Different images have the same path below the matched folders.
    """
    matches: dict[str, list[tuple[Path, re.Match[str]]]] = {}
    for path in images:
        # Paths are compared from the match on, so that the folder that an archive was
        # unpacked into does not matter.
        match = re.search(part.path, archive.relative_path(path), re.IGNORECASE)
        if match:
            matches.setdefault(match[0].casefold(), []).append((path, match))
    records = []
    for copies in matches.values():
        image, match = pick_copy([path for path, _ in copies]), copies[0][1]
        at = archive.relative_path(image)
        # A cell is Unicode and one line; the name of a file is any bytes.
        cells = {IMAGE: match[0], **match.groupdict("")}
        cells = {name: printable(cell) for name, cell in cells.items()}
        records.append(Record(cells, printable(at), image))
    return records


def read_lines(part: Part, path: Path, notes: list[str]) -> Iterator[Record]:
    """Yield a record for every line of a text file that matches the part's expression.

    Args:
        part: Part with a `line` expression.
        path: The text file.
        notes: Receives a note about lines that do not match.

    Raises:
        DataError: The file cannot be read, or no line matches.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Give the file as it is published, in UTF-8."
        ) from error
    filled = [line.strip() for line in lines if line.strip()]
    other = [line for line in filled if not re.search(part.line, line)]
    if len(other) == len(filled):
        raise DataError(f"{path} has no row like {part.line!r}. Give the file as it is published.")
    if other:
        notes.append(
            f"{len(other)} lines of {path.name} are not rows and were skipped, the first: "
            f"{other[0]!r}."
        )
    for number, line in enumerate(lines, start=1):
        match = re.search(part.line, line)
        if match:
            cells = {name: (cell or "").strip() for name, cell in match.groupdict().items()}
            yield Record(cells, f"{path}, row {number}")


def read_rows(
    layout: Layout,
    columns: Mapping[str, str],
    part: Part,
    archive: Archive,
    table: TextTable,
    notes: list[str],
) -> Iterator[Record]:
    """Yield a record for every row of a table, or for every view of a row.

    Args:
        layout: Layout of the set.
        columns: Column of our table -> column of the set.
        part: The part of the set that is read.
        archive: All files of the set.
        table: The part's table.
        notes: Receives a note about every missing file.

    Raises:
        DataError: A table that is joined cannot be read, or lists an image twice.
    """
    frame = table.frame
    for join in part.joins:
        frame = _join_table(frame, join.on or columns.get("image", IMAGE), join, archive, notes)
    for record, at in zip(frame.to_dict("records"), table.where, strict=True):
        raw = {str(name): str(cell) for name, cell in record.items()}
        if not layout.views:
            yield Record(raw, at)
        for column, view in layout.views.items():
            if raw.get(column):
                yield Record({**raw, IMAGE: raw[column], "view": view}, at)


def check_columns(layout: Layout, part: Part, columns: Mapping[str, str], table: TextTable) -> None:
    """Check that a table has the columns of images and labels.

    Raises:
        DataError: A column is missing.
    """
    keys = list(layout.views) or [columns.get("image", IMAGE)]
    # The labels are in the joined table if that has a key of its own (SCIN).
    joined = any(join.on for join in part.joins)
    labels = layout.one_hot or [columns[name] for name in ("dx",) if name in columns and not joined]
    for column in [*keys, *labels]:
        if column not in table.frame:
            raise DataError(
                f"{table.file} has no column {column!r} (it has: "
                f"{list_columns(table.frame.columns)}). Give the file as it is published, or name "
                "the column with --column OURS=THEIRS."
            )


def add_splits(table: TextTable, part: Part, archive: Archive, notes: list[str]) -> TextTable:
    """Return the table with the column `split` from the part's index files.

    Raises:
        DataError: An index file lists a row that the table does not have.
    """
    if not part.splits:
        return table
    splits = [""] * len(table.frame)
    for split, name in part.splits.items():
        path = archive.find_table((name,))
        if path is None:
            notes.append(f"{name} is missing: its rows have no official split.")
            continue
        rows = read_text(path).frame
        for cell in rows[rows.columns[0]]:
            if not cell.isdecimal() or int(cell) >= len(splits):
                raise DataError(
                    f"{path} lists row {cell!r}, which {part.name} does not have. Unpack both "
                    "files again."
                )
            splits[int(cell)] = split
    return replace(table, frame=table.frame.assign(split=splits))


def _join_table(
    frame: pd.DataFrame, key: str, join: Join, archive: Archive, notes: list[str]
) -> pd.DataFrame:
    path = archive.find_table((join.table,))
    if path is None:
        notes.append(f"{join.table} is missing: its columns are empty.")
        return frame
    other = read_text(path).frame
    if join.key not in other:
        raise DataError(f"{path} has no column {join.key!r}. Give the file as it is published.")
    repeated = other[join.key][other[join.key].duplicated()]
    if not repeated.empty:
        raise DataError(f"{path} lists {repeated.iloc[0]!r} twice. Remove one of the rows.")
    # Columns that both tables have keep the cells of the part's own table.
    other = other.set_index(join.key)
    new = other[[column for column in other.columns if column not in frame.columns]]
    return frame.join(new, on=key).fillna("")
