"""Find Parquet files that hold images, and read their rows a few at a time."""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dermedge.data.class_folders import find_split, name_images
from dermedge.data.csv_text import normalize_column, refuse_other_file
from dermedge_runtime.errors import DataError, MissingExtraError, first_line
from dermedge_runtime.find_images import Skipped, list_files
from dermedge_runtime.image import HEAD_BYTES, identify

ROWS_AT_ONCE = 16
"""Number of rows in memory; a photograph of a phone has about 5 MB."""
IMAGE_COLUMNS = ("image", "img")


@dataclass(frozen=True)
class Shard:
    """A Parquet file with images.

    Attributes:
        path: The file.
        name: Unique name among the files of a data set.
        image: Column that holds the images.
        mask: Column that holds the masks, "" if there is none.
        others: Columns with other images, which are left out.

    Example:
        >>> Shard(Path("hub/validation-00000-of-00001.parquet"), "v", "image", "", ()).split
        'val'
    """

    path: Path
    name: str
    image: str
    mask: str
    others: tuple[str, ...]

    @property
    def split(self) -> str:
        """Split by the names of the file and its folder, "" if they name none."""
        first = re.split(r"[-_.]", self.path.stem)[0]
        return find_split(first) or find_split(self.path.parent.name) or ""


def find_shards(path: Path) -> list[Shard]:
    """Return the Parquet files with images: the file itself, or those below a folder.

    Args:
        path: Existing folder or file.

    Raises:
        DataError: A Parquet file is damaged.
        MissingExtraError: There are Parquet files, and pyarrow is not installed.
    """
    files = list_files(path, Skipped()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix.lower() == ".parquet"]
    root = path if path.is_dir() else path.parent
    names = name_images([file.relative_to(root).as_posix() for file in files])
    columns = [_find_image_columns(file) for file in files]
    return [
        _assign_columns(file, name, found)
        for file, name, found in zip(files, names, columns, strict=True)
        if found
    ]


def list_other_files(path: Path, shards: Sequence[Shard]) -> list[str]:
    """Return the files of a folder that are no shard, hidden and system files aside.

    Args:
        path: Folder or file that the shards were found in.
        shards: Its Parquet files with images.
    """
    if not path.is_dir():
        return []
    known = {shard.path for shard in shards}
    others = (file for file in list_files(path, Skipped()) if file not in known)
    return [file.relative_to(path).as_posix() for file in others]


def open_parquet(file: Path) -> Any:
    """Return an opened Parquet file.

    Raises:
        DataError: The file is damaged, or is another kind of file.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", "Reading Parquet") from error
    try:
        # A buffer makes the reader stream a row group instead of loading it whole.
        return parquet.ParquetFile(
            file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        )
    except Exception as error:  # pyarrow raises many types on damaged files.
        with contextlib.suppress(OSError), file.open("rb") as stream:
            refuse_other_file(file, stream.read(64), "Parquet")
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{file} is not a readable Parquet file ({first_line(error)}). Write it again, or use CSV."
    )


def _find_image_columns(file: Path) -> list[str]:
    """Return the columns that hold images: structs with `bytes`, or bytes of an image."""
    opened = open_parquet(file)
    from pyarrow import types

    found = []
    for field in opened.schema_arrow:
        if types.is_struct(field.type):
            inner = {part.name: part.type for part in field.type}
            if "bytes" in inner and _is_binary(inner["bytes"]):
                found.append(field.name)
        elif _is_binary(field.type):
            rows = islice(read_rows(file, [field.name]), ROWS_AT_ONCE)
            first = next((value for row in rows if (value := row[field.name])), b"")
            if identify(first[:HEAD_BYTES]):
                found.append(field.name)
    return found


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _assign_columns(file: Path, name: str, found: Sequence[str]) -> Shard:
    mask = next((column for column in found if normalize_column(column) == "mask"), "")
    pictures = [column for column in found if column != mask]
    named = [column for column in pictures if normalize_column(column) in IMAGE_COLUMNS]
    if not pictures:
        raise DataError(
            f"{file} holds masks but no images. Add the column 'image', or extract the masks."
        )
    image = (named or pictures)[0]
    return Shard(file, name, image, mask, tuple(c for c in pictures if c != image))


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, a few at a time.

    Raises:
        DataError: The file is damaged.
    """
    opened = open_parquet(file)
    try:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
            yield from batch.to_pylist()
    except Exception as error:  # pyarrow raises many types on damaged files.
        raise _damaged(file, error) from error


def read_class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names of classes by column, as the library `datasets` stores them."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            str(column): [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def describe_gaps(shards: Sequence[Shard]) -> Iterator[str]:
    """Yield a sentence for every series of numbered files that is not complete."""
    series: dict[tuple[str, int], int] = {}
    for shard in shards:
        match = re.fullmatch(r"(.*)-\d+-of-(\d+)", shard.path.stem)
        if match:
            key = (match[1], int(match[2]))
            series[key] = series.get(key, 0) + 1
    for (name, total), count in series.items():
        if count < total:
            yield f"Only {count} of the {total} files {name}-*-of-{total:05d} were given."
