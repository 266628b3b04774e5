"""Open a data set of the user's own for import: a table, class folders or Parquet."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from dermedge.data.class_folders import read_class_folders
from dermedge.data.embedded import read_embedded
from dermedge.data.importing.archive import Archive
from dermedge.data.layouts import Layout
from dermedge.data.shards import find_shards
from dermedge.data.table_file import TextTable, check_suffix, find_table, read_text
from dermedge_runtime.errors import DataError


@contextlib.contextmanager
def open_own_table(source: Path, layout: Layout, out: Path) -> Iterator[TextTable]:
    """Read a table, class folders or Parquet files with images.

    Images of Parquet files are extracted to a temporary folder on the disk of `out`.
    """
    if not source.exists():
        raise DataError(f"There is no folder or file {source}. Check the path.")
    folder = source.is_dir()
    table = find_table(source) if folder else source
    if table is None:
        table = Archive.scan(source).find_table(layout.parts[0].table)
    if table is not None and table.suffix.lower() != ".parquet":
        check_suffix(table)
        yield read_text(table, [layout.columns.get("image", "image")])
    elif shards := find_shards(table or source):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.tmp-", dir=out.parent) as temporary:
            yield read_embedded(source, shards, folder=Path(temporary), mapped=layout.columns)
    elif table is None:
        yield read_class_folders(source, layout.labels)
    else:
        yield read_text(table)
