"""Read the table of a data set, in the form that all data sets share.

A data set is a folder with `metadata.csv` (or `metadata.parquet`), or such a file.
Image paths are relative to its folder. Only `image_id` and `image` are required.
Columns other than `COLUMNS` are kept as text and never used as inputs: some of them,
such as HAM10000's `dx_type`, give the label away.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import pandas as pd

from dermedge.data.placeholders import is_unknown
from dermedge.data.table_file import find_table, read_text
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
WORKERS = 8

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
        """Return the path of an image or mask, from its cell in the table."""
        return self.root / image

    def replace(self, frame: pd.DataFrame) -> "Table":
        """Return the table with other rows or values, indexed 0..n-1."""
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
    cells = {name: _list_cells(text, name) for name in COLUMNS}
    _check_paths(cells, where)
    _check_splits(cells["split"], where)
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


def _list_cells(text: pd.DataFrame, name: str) -> list[str]:
    """Return the cells of a column, with "" for words such as "unknown" and "n/a"."""
    cells = text[name].tolist() if name in text else [""] * len(text)
    # A file may be named none.png, and a caption may read "unknown": both are kept.
    if name in _VERBATIM:
        return cells
    return ["" if is_unknown(cell) else cell for cell in cells]


def _check_splits(cells: Sequence[str], where: Sequence[str]) -> None:
    for cell, at in zip(cells, where, strict=True):
        if cell not in ("", *SPLITS):
            raise DataError(
                f"{at}: split is {cell!r}. Write train, val or test, or leave it empty."
            )


def _check_paths(columns: Mapping[str, Sequence[str]], where: Sequence[str]) -> None:
    for name in REQUIRED:
        seen: dict[str, str] = {}
        for cell, at in zip(columns[name], where, strict=True):
            if not cell:
                raise DataError(f"{at}: {name} is empty. Fill it or remove the row.")
            # a.png, ./a.png and .//a.png are one file, so they must not be two rows.
            key = PurePosixPath(cell).as_posix()
            if key in seen:
                first = seen[key].rpartition(", ")[2]
                raise DataError(
                    f"{at}: {name} {cell!r} is already listed in {first}. Remove one of the rows: "
                    "every image has one."
                )
            seen[key] = at
    # A table may come from an untrusted source, so a path must not lead to files
    # outside its folder.
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
    # A table has few different labels, so each is resolved once.
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
        value = math.nan  # It fails the comparison below, as infinity does.
    whole, low, high, allowed = {
        "fitzpatrick": (True, 1, 6, "a skin type from 1 to 6"),
        "severity": (True, 0, 100, "a level: 0, 1, 2, ..."),
        "age": (False, 0, 120, "years, from 0 to 120"),
    }[name]
    if not low <= value <= high or (whole and value != int(value)):
        raise DataError(f"{at}: {name} is {cell!r}. Write {allowed}, or nothing.")
    return value


def _fill_malignant(own: float, dx: str) -> float:
    """Return the row's own value if it has one, otherwise that of its diagnosis."""
    if not math.isnan(own) or not dx:
        return own
    malignant = TAXONOMY[dx].malignant
    return math.nan if malignant is None else float(malignant)


def groups(frame: pd.DataFrame, content: "pd.Series[str] | None" = None) -> "pd.Series[str]":
    """Return the group of every row: rows that share a lesion or a patient.

    Rows are also in one group if other rows connect them. Lesion and patient ids count
    within one `source`. A row with neither id is a group of its own, and so is one
    whose ids are placeholders such as "-1" (see `placeholders`).

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
                # One id may be spelled with composed and with combining accents.
                key = (name, source, normalize("NFC", value))
                edges.append((row, nodes.setdefault(key, count + len(nodes))))
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
    """Return the sha256 (hex) of the table's cells, independent of the order of rows.

    Only the cells of `COLUMNS` count, and not the image files. `digests` covers those.
    """
    rows = sorted(_encode_rows(table.frame))
    return sha256("\n".join(rows).encode()).hexdigest()


def _encode_rows(frame: pd.DataFrame) -> Iterator[str]:
    for row in frame[list(COLUMNS)].itertuples(index=False, name=None):
        cells = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
        yield json.dumps(cells, ensure_ascii=False, separators=(",", ":"))
