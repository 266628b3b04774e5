"""Find, read and write the file of a table as text cells, CSV or Parquet."""

import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dermedge.data.csv_text import decode_text, parse_csv
from dermedge.data.messages import quote
from dermedge_runtime.errors import DataError, MissingExtraError, first_line
from dermedge_runtime.files import atomic_write

REQUIRED = ("image_id", "image")
"""Columns that every table has."""

FILES = ("metadata.csv", "metadata.tsv", "metadata.parquet")
"""Names of the table in the folder of a data set."""

TEXT_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
_CONVERT = "pandas.read_{}(FILE).to_csv('metadata.csv', index=False)"
_OTHER_SUFFIXES = {
    ".xlsx": "In Excel, choose 'Save as' and 'CSV UTF-8'.",
    ".xls": "In Excel, choose 'Save as' and 'CSV UTF-8'.",
    ".ods": "In LibreOffice, choose 'Save as' and 'Text CSV' in UTF-8.",
    ".numbers": "In Numbers, choose 'Export to' and 'CSV' in UTF-8.",
    ".json": f"Convert it with {_CONVERT.format('json')}.",
    ".jsonl": f"Convert it with {_CONVERT.format('json').replace('FILE', 'FILE, lines=True')}.",
    ".feather": f"Convert it with {_CONVERT.format('feather')}.",
}


@dataclass(frozen=True)
class TextTable:
    """The text cells of a data set, before they are checked.

    Attributes:
        root: Folder that image paths are relative to.
        file: The table's file, or the folder if there is no such file.
        frame: Stripped cells by the names of the columns in the file, "" where empty.
        where: Place of every row, for messages.
        notes: One sentence for everything that was not read literally.

    Example:
        >>> table = read_text(Path("lesions/metadata.csv"))
        >>> table.frame["dx"][0], table.where[0], table.notes
        ('nv', 'lesions/metadata.csv, row 2', ())
    """

    root: Path
    file: Path
    frame: pd.DataFrame
    where: Sequence[str]
    notes: tuple[str, ...] = ()


def list_tables(folder: Path) -> list[Path]:
    """Return the files of a folder that have the name of a table, in any case."""
    names = {path.name.casefold(): path for path in sorted(folder.iterdir(), reverse=True)}
    return [names[name] for name in FILES if name in names and names[name].is_file()]


def find_table(folder: Path) -> Path | None:
    """Return the table file of a folder, None if it has none.

    Args:
        folder: An existing folder.

    Raises:
        DataError: The folder has two tables.
    """
    files = list_tables(folder)
    if len(files) > 1:
        raise DataError(
            f"{folder} holds both {' and '.join(file.name for file in files[:2])}. Give the path "
            "of one of them."
        )
    return files[0] if files else None


def check_suffix(file: Path) -> None:
    """Check that a file has the suffix of a table.

    Raises:
        DataError: The suffix is another one; the message says how to convert the file.
    """
    suffix = file.suffix.lower()
    if suffix in (*TEXT_SUFFIXES, ".parquet"):
        return
    advice = _OTHER_SUFFIXES.get(suffix, "Convert it to one of them.")
    raise DataError(f"{file} is neither a folder nor a .csv or .parquet file. {advice}")


def read_text(file: Path, required: Collection[str] = ()) -> TextTable:
    """Read a table file as stripped text cells.

    Args:
        file: A Parquet file by its suffix, otherwise CSV in UTF-8 or UTF-16.
        required: Columns by which the delimiter of a CSV is chosen.

    Raises:
        DataError: The file is not readable as CSV or Parquet.
        MissingExtraError: The file is Parquet, and pyarrow is not installed.
    """
    if file.suffix.lower() == ".parquet":
        frame, lines = _read_parquet(file)
        notes: list[str] = []
    else:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(
                f"{file} cannot be read ({error.strerror}). Check that it is a file you may read."
            ) from error
        frame, lines, notes = parse_csv(file, decode_text(file, content), required)
    where = [f"{file}, row {line}" for line in lines]
    return TextTable(file.parent, file, frame, where, tuple(notes))


def write_text(file: Path, frame: pd.DataFrame) -> None:
    """Write text cells as a table, CSV or Parquet by the suffix of the file."""
    buffer = io.BytesIO()
    if file.suffix.lower() == ".csv":
        frame.to_csv(buffer, index=False, lineterminator="\n", encoding="utf-8")
    else:
        frame.to_parquet(buffer, index=False)
    atomic_write(file, buffer.getvalue())


def _read_parquet(file: Path) -> tuple[pd.DataFrame, list[int]]:
    try:
        frame = pd.read_parquet(file)
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", "Reading Parquet") from error
    except Exception as error:  # pyarrow raises many types on damaged files.
        raise DataError(
            f"{file} is not a readable Parquet file ({first_line(error)}). Write it again, or "
            "use CSV."
        ) from error
    text = pd.DataFrame(
        {str(name): pd.Series(map(format_cell, frame[name]), dtype="str") for name in frame.columns}
    )
    return text, list(range(1, len(frame) + 1))


def format_cell(value: object) -> str:
    """Return a value of Parquet as the text that a CSV would hold.

    Bytes become their size, because they may be a whole image.

    Examples:
        >>> format_cell(53.0), format_cell(None), format_cell(b"1234")
        ('53', '', '<4 bytes>')
    """
    if (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float) and math.isnan(value))
    ):
        return ""
    # pandas reads integers with missing values as floats: 53.0 is the id 53.
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {format_cell(cell)}" for key, cell in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_cell, value)) + "]"
    return quote(value) if isinstance(value, bytes) else str(value).strip()
