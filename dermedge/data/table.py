"""Read the one table form that every data set has.

A data set is a folder with `metadata.csv` (or `metadata.parquet`), or such a file.
Image paths are relative to its folder. Only `image_id` and `image` are required.
Columns other than `COLUMNS` are kept as text and never used as inputs: some of them,
such as HAM10000's `dx_type`, give the label away.
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
NUMBERS = ("malignant", "severity", "age", "fitzpatrick")
"""Columns that hold numbers; all others hold text."""

# fmt: off
COLUMNS = (
    "image_id", "image", "mask", "lesion_id", "patient_id", "dx", "malignant", "severity",
    "caption", "age", "sex", "site", "fitzpatrick", "source", "licence", "split",
)
# fmt: on
"""Columns of every table, in order."""

SPLITS = ("train", "val", "test")
FILES = ("metadata.csv", "metadata.parquet")
WORKERS = 8

_UNKNOWN = frozenset({"", "nan", "na", "n/a", "none", "null", "unknown"})
_VERBATIM = frozenset({"image_id", "image", "mask", "caption"})
_SEX = {"m": "male", "f": "female"}
_TRUTH = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}
_ROMAN = {"i": 1.0, "ii": 2.0, "iii": 3.0, "iv": 4.0, "v": 5.0, "vi": 6.0}


@dataclass(frozen=True)
class Table:
    """A checked data set.

    Attributes:
        root: Folder that image and mask paths are relative to.
        frame: One row per image, in file order, index 0..n-1. `COLUMNS` come first,
            then the other columns of the file. Text columns hold "" for an unknown
            value. `malignant`, `severity`, `age` and `fitzpatrick` are float64, NaN for
            an unknown value. `dx` holds ids of the taxonomy. `malignant` is the row's
            own value if it has one, otherwise that of its diagnosis.
        file: The file that was read.

    Examples:
        >>> table = read_table("lesions")
        >>> len(table), table.name
        (80, 'lesions')
        >>> table.path(table.frame["image"][0]).is_file()
        True
    """

    root: Path
    frame: pd.DataFrame
    file: Path

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def name(self) -> str:
        """Name of the folder, for reports."""
        return self.root.resolve().name

    def path(self, image: str) -> Path:
        """Return the path of an image or mask of the table."""
        return self.root / image

    def replace(self, frame: pd.DataFrame) -> "Table":
        """Return the data set with other rows or values, indexed 0..n-1."""
        return Table(self.root, frame.reset_index(drop=True), self.file)

    def select_split(self, split: str) -> "Table":
        """Return the rows of one split.

        Args:
            split: "train", "val" or "test".

        Raises:
            DataError: The split has no rows.
        """
        rows = self.frame[self.frame["split"] == split]
        if rows.empty:
            counts = self.frame["split"].replace("", "(empty)").value_counts()
            sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
            out = self.root / "split.csv"
            raise DataError(
                f"{self.file} has no rows in the split {split!r} (it has: {sizes}). Mark some, or "
                f"reassign all splits with `dermedge data split {self.file} --redo -o {out}`."
            )
        return self.replace(rows)


def read_table(path: str | Path) -> Table:
    r"""Read and check the table of a data set.

    The image files are not opened; `check_data` does that.

    Args:
        path: Folder with `metadata.csv` or `metadata.parquet`, or a .csv or .parquet
            file.

    Raises:
        DataError: The table is missing, unreadable or empty, lacks a required column,
            lists an image twice, or holds a value that its column does not allow. The
            message names file, row and value.
        MissingExtraError: The file is Parquet, and pyarrow is not installed.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("own.csv").write_text("image_id,image,dx\na,a.jpg,Melanoma\n")
        >>> read_table("own.csv").frame[["image", "dx", "malignant"]].to_dict("records")
        [{'image': 'a.jpg', 'dx': 'mel', 'malignant': 1.0}]
    """
    file = find_table(Path(path))
    text, rows = read_text(file)
    for column in REQUIRED:
        if column not in text:
            raise DataError(
                f"{file} has no column {column!r} (it has: {', '.join(map(str, text.columns))}). "
                "Rename or add it; only image_id and image are required."
            )
    if text.empty:
        raise DataError(f"{file} has a header but no rows. Add one row per image.")
    where = [f"{file}, row {row}" for row in rows]
    cells: dict[str, list[str]] = {}
    for name in COLUMNS:
        raw = text[name].tolist() if name in text else [""] * len(text)
        cells[name] = (
            raw
            if name in _VERBATIM
            else ["" if cell.casefold() in _UNKNOWN else cell for cell in raw]
        )
    _check_paths(cells, where)
    for cell, at in zip(cells["split"], where, strict=True):
        if cell not in ("", *SPLITS):
            raise DataError(
                f"{at}: split is {cell!r}. Write train, val or test, or leave it empty."
            )
    cells["dx"] = _resolve_labels(cells["dx"], cells["source"], where)
    cells["sex"] = [_SEX.get(sex.casefold(), sex.casefold()) for sex in cells["sex"]]
    numbers = {
        name: [_parse_number(name, c, at) for c, at in zip(cells[name], where, strict=True)]
        for name in NUMBERS
    }
    numbers["malignant"] = list(map(_fill_malignant, numbers["malignant"], cells["dx"]))
    known = {
        name: pd.Series(numbers[name], dtype="float64")
        if name in NUMBERS
        else pd.Series(cells[name], dtype="str")
        for name in COLUMNS
    }
    extra = [column for column in text.columns if column not in COLUMNS]
    return Table(file.parent, pd.concat([pd.DataFrame(known), text[extra]], axis=1), file)


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
        from dermedge_runtime.errors import MissingExtraError

        raise MissingExtraError("pyarrow", "data", "Reading Parquet") from error
    except Exception as error:
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


def _check_paths(columns: Mapping[str, Sequence[str]], where: Sequence[str]) -> None:
    for name in REQUIRED:
        seen: dict[str, str] = {}
        for cell, at in zip(columns[name], where, strict=True):
            if not cell:
                raise DataError(f"{at}: {name} is empty. Fill it or remove the row.")
            key = PurePosixPath(cell).as_posix()
            if key in seen:
                first = seen[key].rpartition(", ")[2]
                raise DataError(
                    f"{at}: {name} {cell!r} is already listed in {first}. Remove one of the rows: "
                    "every image has one."
                )
            seen[key] = at
    for name in ("image", "mask"):
        for cell, at in zip(columns[name], where, strict=True):
            path = PurePosixPath(cell)
            if path.is_absolute() or ".." in path.parts or "\\" in cell or "\0" in cell:
                raise DataError(
                    f"{at}: {name} {cell!r} is not a path inside the table's folder. Write it "
                    "relative to that folder, with / and without '..'."
                )


def _resolve_labels(
    labels: Sequence[str], sources: Sequence[str], where: Sequence[str]
) -> list[str]:
    known: dict[tuple[str, str], str] = {}
    for label, source, at in zip(labels, sources, where, strict=True):
        if (label, source) not in known:
            try:
                known[label, source] = resolve(label, source).id if label else ""
            except DataError as error:
                raise DataError(f"{at}, column dx: {error}") from error
    return [known[key] for key in zip(labels, sources, strict=True)]


def _parse_number(name: str, cell: str, at: str) -> float:
    if not cell:
        return math.nan
    if name == "malignant":
        if cell.casefold() not in _TRUTH:
            raise DataError(f"{at}: malignant is {cell!r}. Write 1, 0 or nothing.")
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
        raise DataError(f"{at}: {name} is {cell!r}. Write {allowed}, or nothing.")
    return value


def _fill_malignant(own: float, dx: str) -> float:
    if not math.isnan(own) or not dx:
        return own
    of_label = TAXONOMY[dx].malignant
    return math.nan if of_label is None else float(of_label)


def groups(frame: pd.DataFrame, content: "pd.Series[str] | None" = None) -> "pd.Series[str]":
    """Return the group of every row: rows that share a lesion or a patient.

    Rows are also in one group if other rows connect them. Lesion and patient ids count
    within one `source`. A row with neither id is a group of its own.

    Args:
        frame: Rows of a table.
        content: Digest of each row's image, with the frame's index. Rows with the same
            digest are in one group too. None compares ids only.

    Returns:
        A group id per row, with the frame's index: the smallest `image_id` of the
        group, so that the order of rows does not matter.

    Examples:
        >>> groups(read_table("lesions").frame).nunique() < 80
        True
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # Groups are the connected components of a graph: one node per row, one node per
    # lesion or patient id, and an edge from a row to each of its ids.
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


def digests(table: Table) -> "pd.Series[str]":
    """Return the sha256 (hex) of every image, indexed by `image_id` in table order.

    Raises:
        DataError: An image is missing or cannot be read.

    Examples:
        >>> digests(read_table("lesions")).str.len().unique().tolist()
        [64]
    """

    def digest(image: str) -> str:
        path = table.path(image)
        try:
            return sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(
                f"{table.file} lists {image}, which cannot be read ({error.strerror}). Restore the "
                f"file or remove its row. `dermedge data check {table.root}` lists all such rows."
            ) from error

    with ThreadPoolExecutor(WORKERS) as pool:
        values = list(pool.map(digest, table.frame["image"]))
    return pd.Series(
        values, index=pd.Index(table.frame["image_id"], name="image_id"), dtype="str", name="sha256"
    )


def table_digest(table: Table) -> str:
    """Return the sha256 (hex) of the table's cells, in whatever order of rows.

    Only `COLUMNS` count. The bytes of the images do not; use `digests` for these.
    """
    rows = sorted(_encode_rows(table.frame))
    return sha256("\n".join(rows).encode()).hexdigest()


def _encode_rows(frame: pd.DataFrame) -> Iterator[str]:
    for row in frame[list(COLUMNS)].itertuples(index=False, name=None):
        cells = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
        yield json.dumps(cells, ensure_ascii=False, separators=(",", ":"))
