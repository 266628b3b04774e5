"""Decode and split the text of a CSV file in the dialects that spreadsheets write."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pandas as pd

from dermedge.data.messages import quote
from dermedge_runtime.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
_DELIMITER_NAMES = {";": "semicolons", "\t": "tabs", "|": "'|'"}
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SAVE_AS = "Open it in a spreadsheet program and save it as 'CSV UTF-8'."
_OTHER_FILES = (
    (b"PK\x03\x04", "a workbook or a ZIP file", _SAVE_AS),
    (b"\xd0\xcf\x11\xe0", "a workbook of an old Excel", _SAVE_AS),
    (b"PAR1", "Parquet", "Give it the suffix .parquet."),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it."),
    (b"version https://git-lfs", "a pointer of Git LFS", "Run `git lfs pull`."),
    (b"<!DOCTYPE", "a web page", "Download the file again."),
    (b"<html", "a web page", "Download the file again."),
)
_LETTERS = re.compile(r"[\s_-]+")


def normalize_column(name: str) -> str:
    """Return a column's name in lower case, with `_` instead of blanks and `-`.

    Examples:
        >>> normalize_column("Image ID")
        'image_id'
    """
    return _LETTERS.sub("_", name.strip().casefold())


def refuse_other_file(file: Path, head: bytes, wanted: str) -> None:
    """Refuse a file that is something else by its first bytes.

    Args:
        file: The file, for messages.
        head: Its first bytes.
        wanted: Name of the format that it should have.

    Raises:
        DataError: It is another kind of file.
    """
    for magic, kind, advice in _OTHER_FILES:
        if head.startswith(magic) and kind != wanted:
            raise DataError(f"{file} is {kind}, not {wanted}. {advice}")


def decode_text(file: Path, content: bytes) -> str:
    """Decode UTF-8 or UTF-16, with or without a byte order mark.

    Args:
        file: The file, for messages.
        content: Its bytes.

    Raises:
        DataError: The bytes are another encoding, or no text.
    """
    refuse_other_file(file, content[:64], "CSV")
    encoding = _find_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{file} is not UTF-8 text (byte {error.start}, row {line}). Save it as CSV in UTF-8 "
            "(in Excel: 'CSV UTF-8')."
        ) from error


def _find_encoding(content: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return encoding
    # Text in UTF-16 without a mark has a zero byte in nearly every Latin letter. UTF-8
    # text has no zero bytes at all.
    head = content[:256]
    half = max(1, len(head) // 2)
    if head[1::2].count(0) > 0.7 * half:
        return "utf-16-le"
    if head[0::2].count(0) > 0.7 * half:
        return "utf-16-be"
    return "utf-8"


def parse_csv(
    file: Path, content: str, required: Collection[str] = ()
) -> tuple[pd.DataFrame, list[int], list[str]]:
    """Split the text of a CSV file into stripped cells.

    Commas separate the fields, or the delimiter that gives the required columns.

    Args:
        file: The file, for messages.
        content: Its text.
        required: Columns that the table needs; any case counts.

    Returns:
        The cells, the line of every row, and notes on what was understood. The header is
        line 1.

    Raises:
        DataError: The text is no CSV, or is empty.
    """
    delimiter, skipped = _find_delimiter(content, required)
    notes = (
        [f"{file.name}: fields are separated by {_DELIMITER_NAMES[delimiter]}."]
        if delimiter in _DELIMITER_NAMES
        else []
    )
    records = _read_records(file, content, delimiter)
    for _ in range(skipped):
        next(records)
    header, _ = next(records, (None, 0))
    if header is None:
        raise DataError(
            f"{file} is empty. Write a header with image_id and image, then one row per image."
        )
    cells, places = [], []
    for fields, line in records:
        if len(fields) != len(header):
            fields = _fit(file, fields, line, len(header))
        cells.append(fields)
        places.append(line)
    frame = pd.DataFrame(cells, columns=range(len(header)), dtype="str")
    # Spreadsheets write empty columns after the last one that was ever used.
    used = [n for n, name in enumerate(header) if name or (frame[n] != "").any()]
    _check_header(file, [header[n] for n in used])
    return frame[used].set_axis([header[n] for n in used], axis=1), places, notes


def _find_delimiter(content: str, required: Collection[str]) -> tuple[str, int]:
    """Return the delimiter, and the number of lines before the header."""
    match = re.search(r"[^\r\n]*[^\s][^\r\n]*", content)
    first = match[0] if match else ""
    # Excel writes and reads a first line that names the delimiter.
    named = re.fullmatch(r'"?sep=([^"])"?[,;\t|]*', first, re.IGNORECASE)
    if named and named[1] in DELIMITERS:
        return named[1], 1
    headers = {
        delimiter: [normalize_column(field) for field in next(_split(first, delimiter), [])]
        for delimiter in DELIMITERS
    }
    for delimiter, header in headers.items():
        if required and set(required) <= set(header):
            return delimiter, 0
    if len(headers[","]) > 1:
        return ",", 0
    return max(DELIMITERS, key=lambda delimiter: len(headers[delimiter])), 0


def _split(line: str, delimiter: str) -> Iterator[list[str]]:
    try:
        yield from csv.reader([line], delimiter=delimiter)
    except csv.Error:
        return


def _read_records(file: Path, content: str, delimiter: str) -> Iterator[tuple[list[str], int]]:
    """Yield the stripped fields of every row that is not empty, and its line."""
    # The csv module keeps every cell as text and gives the line of each row for
    # messages. pandas would read the ids 007 and 7 as one number.
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            if any(stripped):
                yield stripped, reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{file}, row {reader.line_num} is not CSV ({error}). Repair the row, or export the "
            "table again."
        ) from error


def _fit(file: Path, fields: list[str], line: int, count: int) -> list[str]:
    """Return the fields of a row without empty ones after the last column."""
    if len(fields) > count and not any(fields[count:]):
        return fields[:count]
    raise DataError(
        f"{file}, row {line} has {len(fields)} fields, but the header has {count}. Quote fields "
        "that hold the delimiter, and fill all columns."
    )


def _check_header(file: Path, header: Sequence[str]) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated == [""]:
        raise DataError(f"{file} has two columns without a name. Name or remove them.")
    if repeated:
        raise DataError(f"{file} has the column {quote(repeated[0])} twice. Keep one of them.")
