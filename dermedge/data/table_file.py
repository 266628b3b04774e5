"""Find and read the file of a table as text cells, CSV or Parquet."""

import csv
import io
import math
from pathlib import Path

import pandas as pd

from dermedge_runtime.errors import DataError, MissingExtraError

FILES = ("metadata.csv", "metadata.parquet")
"""Names of the table in the folder of a data set."""


def find_table(path: Path) -> Path:
    """Return the table file of a folder, or the file itself.

    Args:
        path: Folder or file.

    Raises:
        DataError: The path does not exist, is another kind of file, or is a folder
            without a table or with two.
    """
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
        if len(files) == 2:
            raise DataError(
                f"{path} holds both {' and '.join(FILES)}. Give the path of one of them."
            )
        if not files:
            raise DataError(
                f"{path} has no {FILES[0]}. Write one with the columns image_id and image (and "
                "dx, lesion_id, ...), or import a public set with `dermedge data add`."
            )
        return files[0]
    if not path.is_file():
        raise DataError(f"There is no folder or file {path}. Check the path.")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(
            f"{path} is neither a folder nor a .csv or .parquet file. Convert it to one of them."
        )
    return path


def read_text(file: Path, *, delimiter: str = ",") -> tuple[pd.DataFrame, list[int]]:
    """Read a table file as stripped text cells.

    Args:
        file: A Parquet file by its suffix, otherwise CSV in UTF-8.
        delimiter: Character between the fields of a CSV.

    Returns:
        The cells, "" where empty, and the line of every row in the file. The header of
        a CSV is line 1.

    Raises:
        DataError: The file is not readable as CSV (UTF-8) or Parquet.
        MissingExtraError: The file is Parquet, and pyarrow is not installed.
    """
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file)
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text (byte {error.start}). Save it as CSV in UTF-8."
        ) from error
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}). Check that it is a file you may read."
        ) from error
    return _parse_csv(file, content, delimiter)


def _parse_csv(file: Path, content: str, delimiter: str) -> tuple[pd.DataFrame, list[int]]:
    # The csv module keeps every cell as text and gives the line of each row for
    # messages. pandas would read the ids 007 and 7 as one number.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    cells: list[list[str]] = []
    places: list[int] = []
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = [field.strip() for field in fields]
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{file}, row {reader.line_num} has {len(fields)} fields, but the header has "
                    f"{len(header)}. Quote fields that hold a comma, and fill all columns."
                )
            cells.append([field.strip() for field in fields])
            places.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{file}, row {reader.line_num} is not CSV ({error}). Repair the row, or export the "
            "table again."
        ) from error
    if header is None:
        raise DataError(
            f"{file} is empty. Write a header with image_id and image, then one row per image."
        )
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{file} has the column {repeated[0]!r} twice. Keep one of them.")
    return pd.DataFrame(cells, columns=header, dtype="str"), places


def _read_parquet(file: Path) -> tuple[pd.DataFrame, list[int]]:
    try:
        frame = pd.read_parquet(file)
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", "Reading Parquet") from error
    except Exception as error:  # pyarrow raises many types on damaged files.
        raise DataError(
            f"{file} is not a readable Parquet file ({error}). Write it again, or use CSV."
        ) from error
    text = pd.DataFrame(
        {
            str(name): pd.Series(map(_format_cell, frame[name]), dtype="str")
            for name in frame.columns
        }
    )
    return text, list(range(1, len(frame) + 1))


def _format_cell(value: object) -> str:
    """Return a value of Parquet as the text that a CSV would hold."""
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
    return str(value).strip()
