"""The one table that every data set is read into.

A data set is a folder with `metadata.csv` (or `metadata.parquet`), or such a file; image paths are relative to its
folder. Only `image_id` and `image` are required. Columns beyond `COLUMNS` are kept as text and never used: some of
them, such as HAM10000's `dx_type`, give the answer away.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath

import pandas as pd

from dermedge.data.taxonomy import TAXONOMY, resolve
from dermedge_runtime.errors import DataError

REQUIRED = ("image_id", "image")
TEXT = (
    *REQUIRED,
    "mask",
    "lesion_id",
    "patient_id",
    "dx",
    "caption",
    "sex",
    "site",
    "source",
    "licence",
    "split",
)
NUMBERS = ("malignant", "severity", "age", "fitzpatrick")
COLUMNS = (
    *(
        "image_id",
        "image",
        "mask",
        "lesion_id",
        "patient_id",
        "dx",
        "malignant",
        "severity",
        "caption",
    ),
    *("age", "sex", "site", "fitzpatrick", "source", "licence", "split"),
)
SPLITS = ("train", "val", "test")
FILES = ("metadata.csv", "metadata.parquet")

_UNKNOWN = frozenset({"", "nan", "na", "n/a", "none", "null", "unknown"})
_VERBATIM = frozenset({"image_id", "image", "mask", "caption"})
_SEX = {"m": "male", "f": "female"}
_TRUTH = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}
_ROMAN = {"i": 1.0, "ii": 2.0, "iii": 3.0, "iv": 4.0, "v": 5.0, "vi": 6.0}


@dataclass(frozen=True)
class Table:
    """A checked data set.

    Attributes:
        root: the folder that image and mask paths are relative to.
        frame: one row per image, in file order, index 0..n-1; `COLUMNS` first, then whatever else the file holds. Text
            columns hold "" for unknown; `malignant`, `severity`, `age` and `fitzpatrick` are float64, NaN for unknown.
            `dx` holds ids of the taxonomy; `malignant` is the row's own value where it has one, else its diagnosis's.
        file: what it was read from.
    """

    root: Path
    frame: pd.DataFrame
    file: Path

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def name(self) -> str:
        """The folder's name, for reports."""
        return self.root.resolve().name

    def path(self, image: str) -> Path:
        """Where an image or mask of the table lies."""
        return self.root / image

    def replace(self, frame: pd.DataFrame) -> "Table":
        """The same data set with other rows or values; the index is made 0..n-1 again."""
        return Table(self.root, frame.reset_index(drop=True), self.file)

    def of(self, split: str) -> "Table":
        """The rows of one split.

        Raises:
            DataError: when there are none.
        """
        rows = self.frame[self.frame["split"] == split]
        if rows.empty:
            counts = self.frame["split"].replace("", "(empty)").value_counts()
            there = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise DataError(
                f"{self.file} has no rows in the split {split!r} (it has: {there}): mark some, or assign all splits "
                f"anew with `dermedge data split {self.file} --redo -o {self.root / 'split.csv'}`."
            )
        return self.replace(rows)


def read_table(path: str | Path) -> Table:
    """Read and check a data set's table; whether the images are there and sound is for `check` to say.

    Args:
        path: a folder with `metadata.csv` or `metadata.parquet`, or a .csv or .parquet file.

    Raises:
        DataError: for a table that is missing, unreadable, empty, lacks a required column, lists an image twice, or
            holds a value that its column cannot have. The message names file, row and value.
    """
    file = find_table(Path(path))
    text, rows = read_text(file)
    for column in REQUIRED:
        if column not in text:
            raise DataError(
                f"{file} has no column {column!r} (it has: {', '.join(map(str, text.columns))}): rename or add it; "
                "only image_id and image are required."
            )
    if text.empty:
        raise DataError(f"{file} has a header but no rows: add one row per image.")
    where = [f"{file}, row {row}" for row in rows]
    cells: dict[str, list[str]] = {}
    for name in COLUMNS:
        raw = text[name].tolist() if name in text else [""] * len(text)
        cells[name] = (
            raw
            if name in _VERBATIM
            else ["" if cell.casefold() in _UNKNOWN else cell for cell in raw]
        )
    _check_images(cells, where)
    for cell, at in zip(cells["split"], where, strict=True):
        if cell not in ("", *SPLITS):
            raise DataError(
                f"{at}: split is {cell!r}: write train, val or test, or leave it empty."
            )
    cells["dx"] = _diagnoses(cells["dx"], cells["source"], where)
    cells["sex"] = [_SEX.get(sex.casefold(), sex.casefold()) for sex in cells["sex"]]
    numbers = {
        name: [_number(name, c, at) for c, at in zip(cells[name], where, strict=True)]
        for name in NUMBERS
    }
    numbers["malignant"] = list(map(_malignant, numbers["malignant"], cells["dx"]))
    known = {
        name: pd.Series(numbers[name], dtype="float64")
        if name in NUMBERS
        else pd.Series(cells[name], dtype="str")
        for name in COLUMNS
    }
    extra = [column for column in text.columns if column not in COLUMNS]
    return Table(file.parent, pd.concat([pd.DataFrame(known), text[extra]], axis=1), file)


def find_table(path: Path) -> Path:
    """The table file that a folder or file name stands for.

    Raises:
        DataError: where there is none.
    """
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if len(found) == 2:
            raise DataError(f"{path} holds both {' and '.join(FILES)}: name the one that is meant.")
        if not found:
            raise DataError(
                f"{path} has no {FILES[0]}: write one with the columns image_id and image (and dx, lesion_id, ...), or "
                "import a public set with `dermedge data add`."
            )
        return found[0]
    if not path.is_file():
        raise DataError(f"There is no folder or file {path}: check the path.")
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(
            f"{path} is neither a folder, nor a .csv nor a .parquet file: convert it to one of them."
        )
    return path


def read_text(file: Path, *, delimiter: str = ",") -> tuple[pd.DataFrame, list[int]]:
    """A table file as text cells, stripped, "" where empty, with the row's place in the file (a CSV's header is row 1).

    Raises:
        DataError: for a file that is not readable as CSV (UTF-8) or Parquet.
    """
    if file.suffix.lower() == ".parquet":
        return _read_parquet(file)
    try:
        content = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text (byte {error.start}): save it as CSV in UTF-8."
        ) from error
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}): check that it is a file you may read."
        ) from error
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
                    f"{file}, row {reader.line_num} has {len(fields)} fields where the header has {len(header)}: quote "
                    "fields that hold a comma, and give every row all columns."
                )
            cells.append([field.strip() for field in fields])
            places.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{file}, row {reader.line_num} is not CSV ({error}): repair the row or save the table anew."
        ) from error
    if header is None:
        raise DataError(
            f"{file} is empty: write a header with image_id and image, then one row per image."
        )
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{file} has the column {doubled[0]!r} twice: keep one of them.")
    return pd.DataFrame(cells, columns=header, dtype="str"), places


def _read_parquet(file: Path) -> tuple[pd.DataFrame, list[int]]:
    try:
        frame = pd.read_parquet(file)
    except ImportError as error:
        from dermedge_runtime.errors import MissingExtraError

        raise MissingExtraError("pyarrow", "data", "Reading Parquet") from error
    except Exception as error:
        raise DataError(
            f"{file} is not a readable Parquet file ({error}): write it anew, or use CSV."
        ) from error
    text = pd.DataFrame(
        {str(name): pd.Series(map(_cell, frame[name]), dtype="str") for name in frame.columns}
    )
    return text, list(range(1, len(frame) + 1))


def _cell(value: object) -> str:
    if (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float) and math.isnan(value))
    ):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _check_images(columns: Mapping[str, Sequence[str]], where: Sequence[str]) -> None:
    for name in REQUIRED:
        seen: dict[str, str] = {}
        for cell, at in zip(columns[name], where, strict=True):
            value = cell
            if not value:
                raise DataError(f"{at}: {name} is empty: fill it or remove the row.")
            key = PurePosixPath(value).as_posix()
            if key in seen:
                first = seen[key].rpartition(", ")[2]
                raise DataError(
                    f"{at}: {name} {value!r} is already listed in {first}: every image has one row; remove one."
                )
            seen[key] = at
    for name in ("image", "mask"):
        for cell, at in zip(columns[name], where, strict=True):
            path = PurePosixPath(cell)
            if path.is_absolute() or ".." in path.parts or "\\" in cell or "\0" in cell:
                raise DataError(
                    f"{at}: {name} {cell!r} is not a path inside the table's folder: write it relative to that folder, "
                    "with / and without '..'."
                )


def _diagnoses(labels: Sequence[str], sources: Sequence[str], where: Sequence[str]) -> list[str]:
    known: dict[tuple[str, str], str] = {}
    for label, source, at in zip(labels, sources, where, strict=True):
        if (label, source) not in known:
            try:
                known[label, source] = resolve(label, source).id if label else ""
            except DataError as error:
                raise DataError(f"{at}, column dx: {error}") from error
    return [known[key] for key in zip(labels, sources, strict=True)]


def _number(name: str, cell: str, at: str) -> float:
    if not cell:
        return math.nan
    if name == "malignant":
        if cell.casefold() not in _TRUTH:
            raise DataError(f"{at}: malignant is {cell!r}: write 1, 0 or nothing.")
        return _TRUTH[cell.casefold()]
    if name == "fitzpatrick" and cell.casefold() in _ROMAN:
        return _ROMAN[cell.casefold()]
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    whole, low, high, allowed = {
        "fitzpatrick": (True, 1, 6, "a skin type from 1 to 6"),
        "severity": (True, 0, 100, "a level: 0, 1, 2, ..."),
        "age": (False, 0, 120, "years, from 0 to 120"),
    }[name]
    if not low <= value <= high or (whole and value != int(value)):
        raise DataError(f"{at}: {name} is {cell!r}: write {allowed}, or nothing.")
    return value


def _malignant(own: float, dx: str) -> float:
    if not math.isnan(own) or not dx:
        return own
    of_label = TAXONOMY[dx].malignant
    return math.nan if of_label is None else float(of_label)


def groups(frame: pd.DataFrame, content: "pd.Series[str] | None" = None) -> "pd.Series[str]":
    """Which rows belong together: whatever shares a lesion or a patient, directly or through other rows.

    Lesion and patient ids count within one `source`. A row with neither is a group of its own.

    Args:
        frame: rows of a table.
        content: per row (same index), what identifies its image, such as its digest; rows with the same one are joined
            too.

    Returns:
        A group id per row, with the frame's index: the smallest `image_id` of the group, whatever the order of rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(frame)
    nodes: dict[tuple[str, str, str], int] = {}
    edges: list[tuple[int, int]] = []
    links = [
        (name, frame[name].tolist(), frame["source"].tolist())
        for name in ("lesion_id", "patient_id")
    ]
    if content is not None:
        links.append(("content", content.loc[frame.index].tolist(), [""] * count))
    for name, values, sources in links:
        for row, (value, source) in enumerate(zip(values, sources, strict=True)):
            if value:
                edges.append((row, nodes.setdefault((name, source, value), count + len(nodes))))
    size = count + len(nodes)
    ends = tuple(zip(*edges, strict=True)) or ((), ())
    _, component = connected_components(
        coo_array(([1] * len(edges), ends), shape=(size, size)), directed=False
    )
    ids = frame["image_id"]
    return ids.groupby(component[:count]).transform("min").rename("group")


def digests(table: Table, *, workers: int = 8) -> "pd.Series[str]":
    """The sha256 (hex) of every image file, indexed by `image_id` in table order.

    Raises:
        DataError: for an image that is missing or cannot be read.
    """

    def digest(image: str) -> str:
        path = table.path(image)
        try:
            return sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(
                f"{table.file} lists {image}, which cannot be read ({error.strerror}): restore the file or remove its "
                f"row; `dermedge data check {table.root}` lists all such rows."
            ) from error

    with ThreadPoolExecutor(workers) as pool:
        values = list(pool.map(digest, table.frame["image"]))
    return pd.Series(
        values, index=pd.Index(table.frame["image_id"], name="image_id"), dtype="str", name="sha256"
    )


def table_digest(table: Table) -> str:
    """The sha256 (hex) of what the table says, whatever the order of its rows; of the images' bytes `digests` tells."""
    rows = sorted(_rows(table.frame))
    return sha256("\n".join(rows).encode()).hexdigest()


def _rows(frame: pd.DataFrame) -> Iterator[str]:
    for row in frame[list(COLUMNS)].itertuples(index=False, name=None):
        cells = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
        yield json.dumps(cells, ensure_ascii=False, separators=(",", ":"))
