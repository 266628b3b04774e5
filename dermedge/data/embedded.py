"""Read Parquet files that hold their images, as published on the Hugging Face hub.

The images are extracted to files once, one row at a time, because training reads every
image many times. Every Parquet file has a folder of its own that appears when it is
complete, so that an interrupted extraction continues where it stopped.
"""

import json
import logging
import os
from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path

import pandas as pd

from dermedge.data.class_folders import describe_splits, open_train
from dermedge.data.csv_text import normalize_column
from dermedge.data.shards import (
    Shard,
    describe_gaps,
    list_other_files,
    open_parquet,
    read_class_names,
    read_rows,
)
from dermedge.data.table_file import TextTable, format_cell
from dermedge_runtime.errors import (
    DataError,
    DermedgeError,
    UsageError,
)
from dermedge_runtime.files import atomic_folder
from dermedge_runtime.find_images import EXAMPLES
from dermedge_runtime.image import HEAD_BYTES, identify
from dermedge_runtime.printable import printable_path

LOGGER = logging.getLogger(__name__)
ROWS = "rows.json"
LABEL_COLUMNS = ("label", "labels", "diagnosis", "class")
_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG 2000": ".jp2", "JPEG XL": ".jxl"}
_KEY_BYTES = 1 << 16


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
        *describe_gaps(shards),
    ]
    if others := list_other_files(path, shards):
        more = ", ..." if len(others) > EXAMPLES else ""
        notes.append(
            f"Not looked at: {len(others)} other than Parquet files with images "
            f"({', '.join(map(printable_path, others[:EXAMPLES]))}{more})."
        )
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
        except DermedgeError as error:
            # Narrower errors name the file and the row themselves. This one names the
            # folder that cannot be written.
            if type(error) is not DermedgeError:
                raise
            raise DermedgeError(
                f"The images of {shard.path} cannot be extracted. {error} "
                "Files that were extracted before are kept."
            ) from error
        except OSError as error:
            raise DermedgeError(
                f"The images of {shard.path} cannot be extracted ({error.strerror}). "
                "Check the file and its disk."
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
    schema = open_parquet(shard.path).schema_arrow
    classes = read_class_names(schema.metadata or {})
    columns = [name for name in schema.names if name not in shard.others]
    rows = []
    for number, record in enumerate(read_rows(shard.path, columns), start=1):
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


def _name_class(value: object, names: Sequence[str]) -> str:
    """Return the name of a class by its number; -1 stands for an unknown class."""
    if isinstance(value, int) and -1 <= value < len(names):
        return names[value] if value >= 0 else ""
    return format_cell(value)
