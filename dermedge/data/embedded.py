"""Read Parquet files that hold their images, as published on the Hugging Face hub.

The images are extracted to files once, one row at a time, because training reads every
image many times. Every Parquet file has a folder of its own that appears when it is
complete, so that an interrupted extraction continues where it stopped.
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from dermedge.data.class_folders import describe_splits, find_split, name_images, open_train
from dermedge.data.csv_text import normalize_column, refuse_other_file
from dermedge.data.table_file import TextTable, format_cell
from dermedge_runtime.errors import (
    DataError,
    DermedgeError,
    MissingExtraError,
    UsageError,
    first_line,
)
from dermedge_runtime.files import atomic_folder
from dermedge_runtime.find_images import Skipped, list_files
from dermedge_runtime.image import HEAD_BYTES, identify

LOGGER = logging.getLogger(__name__)
ROWS_AT_ONCE = 16
"""Number of rows in memory; a photograph of a phone has about 5 MB."""
ROWS = "rows.json"
IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "diagnosis", "class")
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG 2000": ".jp2", "JPEG XL": ".jxl"}
_KEY_BYTES = 1 << 16


@dataclass(frozen=True)
class Shard:
    """A Parquet file with images.

    Attributes:
        path: The file.
        name: Unique name among the files of a data set.
        image: Column that holds the images.
        mask: Column that holds the masks, "" if there is none.
        others: Columns with other images, which are left out.
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


def _open(file: Path) -> Any:
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
    opened = _open(file)
    from pyarrow import types

    found = []
    for field in opened.schema_arrow:
        if types.is_struct(field.type):
            inner = {part.name: part.type for part in field.type}
            if "bytes" in inner and _is_binary(inner["bytes"]):
                found.append(field.name)
        elif _is_binary(field.type):
            rows = islice(_read_rows(file, [field.name]), ROWS_AT_ONCE)
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


def _read_rows(file: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file, a few at a time.

    Raises:
        DataError: The file is damaged.
    """
    opened = _open(file)
    try:
        for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(columns)):
            yield from batch.to_pylist()
    except Exception as error:  # pyarrow raises many types on damaged files.
        raise _damaged(file, error) from error


def read_embedded(
    path: Path,
    shards: Sequence[Shard],
    *,
    folder: Path | None = None,
    mapped: Collection[str] = (),
) -> TextTable:
    """Extract the images of Parquet files, and read the other columns as text cells.

    Without a column `dx`, the labels come from `label`; numbers of a ClassLabel become
    its names. Without a column `split`, the names of the files and folders give it.

    Args:
        path: Folder or file that the user named.
        shards: Its Parquet files.
        folder: Folder for the images. Default: `.dermedge` beside the files, or the
            user's cache if that cannot be written.
        mapped: Columns of ours that the caller maps, so that they get no default.

    Raises:
        DataError: A file is damaged.
        DermedgeError: The images cannot be written.
    """
    root = folder or _choose_folder(path, shards)
    kept = "" if folder else f" Their files are in {root}."
    if kept and not all((root / shard.name / ROWS).is_file() for shard in shards):
        LOGGER.info("%s: The images are extracted to %s. This is done once.", path, root)
    rows: list[dict[str, str]] = []
    where: list[str] = []
    for shard in shards:
        part = _extract_once(shard, root)
        rows += part
        where += [f"{shard.path}, row {number}" for number in range(1, len(part) + 1)]
    if not rows:
        raise DataError(f"{path} has no rows. Check that its download is complete.")
    splits = [row.pop(" split") for row in rows]
    ids = [row.pop(" id") for row in rows]
    frame = pd.DataFrame(rows, dtype="str").fillna("")
    files = "1 Parquet file" if len(shards) == 1 else f"{len(shards)} Parquet files"
    notes = [
        f"Read {len(rows)} images of {files}, {describe_splits(splits)}.{kept}",
        *_describe_gaps(shards),
    ]
    present = {normalize_column(column) for column in frame.columns} | set(mapped)
    if "image" not in present:
        frame = frame.rename(columns={shards[0].image: "image"})
    if "image_id" not in present:
        frame["image_id"] = ids
    if "split" not in present:
        frame["split"] = open_train(splits)
    label = next((c for c in frame.columns if normalize_column(c) in LABEL_COLUMNS), None)
    if label is not None and "dx" not in present:
        frame = frame.rename(columns={label: "dx"})
        notes.append(f"Columns: {label!r} as dx.")
    return TextTable(root, path, frame, where, tuple(notes))


def _choose_folder(path: Path, shards: Sequence[Shard]) -> Path:
    """Return the folder for the images of these files; other content has another one."""
    digest = sha256()
    for shard in shards:
        status = shard.path.stat()
        digest.update(f"{shard.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        with shard.path.open("rb") as stream:
            # The end of the file holds its schema and the statistics of its columns.
            stream.seek(max(0, status.st_size - _KEY_BYTES))
            digest.update(stream.read())
    name = f"{path.resolve().stem}-{digest.hexdigest()[:12]}"
    beside = (path if path.is_dir() else path.parent) / ".dermedge"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside / name
    cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return Path(cache).expanduser() / "dermedge" / name


def _extract_once(shard: Shard, root: Path) -> list[dict[str, str]]:
    """Return the rows of a file after its images were extracted.

    The keys " id" and " split" hold what the names of files say.
    """
    folder = root / shard.name
    if not (folder / ROWS).is_file():
        try:
            with atomic_folder(folder) as temporary:
                _extract(shard, temporary)
        except UsageError:
            # Another process extracts the same file, and was faster.
            if not (folder / ROWS).is_file():
                raise
        except OSError as error:
            raise DermedgeError(
                f"The images of {shard.path} cannot be written to {folder} ({error.strerror}). "
                "Free space. Files that were extracted before are kept."
            ) from error
    try:
        rows: list[dict[str, str]] = json.loads((folder / ROWS).read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{folder / ROWS} is damaged. Delete {root}, then try again.") from error
    ids = [row[" id"] for row in rows]
    unique = all(ids) and len(set(ids)) == len(ids)
    for number, row in enumerate(rows, start=1):
        row[" id"] = f"{shard.name}-{row[' id'] if unique else format(number, '06d')}"
        row[" split"] = shard.split
        for column in filter(None, (shard.image, shard.mask)):
            row[column] = f"{shard.name}/{row[column]}" if row[column] else ""
    return rows


def _extract(shard: Shard, folder: Path) -> None:
    """Write the images of a file, and its other cells as JSON."""
    schema = _open(shard.path).schema_arrow
    classes = _read_class_names(schema.metadata or {})
    columns = [name for name in schema.names if name not in shard.others]
    rows = []
    for number, record in enumerate(_read_rows(shard.path, columns), start=1):
        row = {
            name: _name_class(value, classes[name]) if name in classes else format_cell(value)
            for name, value in record.items()
            if name not in (shard.image, shard.mask)
        }
        content, name = _split_image(record[shard.image])
        row[shard.image] = _write_image(folder, f"images/{number:06d}", content)
        if shard.mask:
            mask, _ = _split_image(record[shard.mask])
            row[shard.mask] = _write_image(folder, f"masks/{number:06d}", mask)
        rows.append({**row, " id": Path(name.replace("\\", "/")).stem})
    (folder / ROWS).write_text(json.dumps(rows), "utf-8")


def _split_image(value: object) -> tuple[bytes, str]:
    """Return the bytes of an image, b"" if there are none, and its name."""
    if isinstance(value, dict):
        return value.get("bytes") or b"", str(value.get("path") or "")
    return (value, "") if isinstance(value, bytes) else (b"", "")


def _write_image(folder: Path, name: str, content: bytes) -> str:
    if not content:
        return ""
    kind = identify(content[:HEAD_BYTES])
    name += _SUFFIXES.get(kind, f".{kind.lower()}") if kind else ""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return name


def _read_class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
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


def _name_class(value: object, names: Sequence[str]) -> str:
    """Return the name of a class by its number; -1 stands for an unknown class."""
    if isinstance(value, int) and -1 <= value < len(names):
        return names[value] if value >= 0 else ""
    return format_cell(value)


def _describe_gaps(shards: Sequence[Shard]) -> Iterator[str]:
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
