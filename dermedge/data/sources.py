"""Read a data set in any of its forms as text cells."""

from pathlib import Path

from dermedge.data.class_folders import read_class_folders
from dermedge.data.table_file import REQUIRED, TextTable, check_suffix, find_table, read_text
from dermedge_runtime.errors import DataError


def read_source(path: Path) -> TextTable:
    """Read a table file, the table of a folder, or a folder per class.

    Args:
        path: Folder or file. In a folder, a table takes precedence over class folders.

    Raises:
        DataError: The path does not exist, or is none of these.
        MissingExtraError: The table is Parquet, and pyarrow is not installed.
    """
    if path.is_dir():
        file = find_table(path)
        return read_class_folders(path) if file is None else read_text(file, REQUIRED)
    if not path.is_file():
        raise DataError(f"There is no folder or file {path}. Check the path.")
    check_suffix(path)
    return read_text(path, REQUIRED)
