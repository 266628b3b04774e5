"""Read a data set in any of its forms as text cells."""

from pathlib import Path

from dermedge.data.class_folders import read_class_folders
from dermedge.data.embedded import read_embedded
from dermedge.data.shards import find_shards
from dermedge.data.table_file import REQUIRED, TextTable, check_suffix, find_table, read_text
from dermedge_runtime.errors import DataError


def read_source(path: Path) -> TextTable:
    """Read a table file, the table of a folder, Parquet with images, or class folders.

    Args:
        path: Folder or file. In a folder, a table takes precedence over Parquet files
            with images, and these over class folders.

    Raises:
        DataError: The path does not exist, or is none of these.
        MissingExtraError: There is a Parquet file, and pyarrow is not installed.
        DermedgeError: The images of a Parquet file cannot be extracted.
    """
    table = path
    if path.is_dir():
        table = find_table(path) or path
    elif path.is_file():
        check_suffix(path)
    else:
        raise DataError(f"There is no folder or file {path}. Check the path.")
    if table.is_dir() or table.suffix.lower() == ".parquet":
        shards = find_shards(table)
        if shards:
            return read_embedded(table, shards)
    return read_class_folders(table) if table.is_dir() else read_text(table, REQUIRED)
