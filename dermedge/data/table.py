"""Read the table of a data set, in the form that all data sets share.

A data set is a folder with `metadata.csv` (or `metadata.parquet`), or such a file;
`dermedge.data.sources` reads other forms. Image paths are relative to the table's
folder. Only `image_id` and `image` are required. Columns other than `COLUMNS` are kept
as text and never used as inputs: some of them, such as HAM10000's `dx_type`, give the
label away.
"""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pandas as pd

from dermedge.data.columns import COLUMNS, NUMBERS, check_unique, match_columns, understand_cells
from dermedge.data.image_names import locate_files
from dermedge.data.messages import list_columns, quote
from dermedge.data.sources import read_source
from dermedge.data.table_file import REQUIRED, TextTable
from dermedge.data.taxonomy import malignancy
from dermedge_runtime.errors import DataError
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.printable import printable

SPLITS = ("train", "val", "test")
WORKERS = 8

LOGGER = logging.getLogger(__name__)
"""Receives the notes of every table that is read; the command line prints them."""


@dataclass(frozen=True)
class Table:
    """A checked data set.

    Attributes:
        root: Folder that image and mask paths are relative to.
        frame: One row per image, in file order, index 0..n-1. `COLUMNS` come first,
            then the other columns of the file. Text columns hold "" for an unknown
            value. `malignant`, `severity`, `age` and `fitzpatrick` are float64, NaN for
            an unknown value. `dx` holds ids of the taxonomy; `;` separates
            several of one row. `malignant` is the row's own value if it has one,
            otherwise that of its diagnoses. `modality` is `dermoscopic` or `clinical`:
            the row's own, otherwise that of its `source`.
        file: The file that was read, or the folder of the class folders.
        notes: One sentence for everything that was not read literally.

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
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def name(self) -> str:
        """Name of the folder, for reports; that of the file if its images are elsewhere.

        A name that is not Unicode is escaped, because reports are.
        """
        own = self.root in (self.file, self.file.parent)
        return printable(self.root.resolve().name if own else self.file.resolve().stem)

    def path(self, image: str) -> Path:
        """Return the path of an image or mask, from its cell in the table."""
        return self.root / image

    def replace(self, frame: pd.DataFrame) -> "Table":
        """Return the table with other rows or values, indexed 0..n-1."""
        return replace(self, frame=frame.reset_index(drop=True))

    def log_notes(self) -> None:
        """Send the notes to the logger of this module, which the command line prints."""
        for note in self.notes:
            LOGGER.info("%s: %s", self.file, note)

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
        path: Folder with `metadata.csv`, `metadata.tsv` or `metadata.parquet`, or such
            a file; a folder per diagnosis; or Parquet files that hold their images.
            docs/data.md lists what is understood.

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
    table = parse_table(read_source(Path(path)))
    table.log_notes()
    return table


def parse_table(text: TextTable) -> Table:
    """Check the text cells of a data set, and return it as a table.

    Raises:
        DataError: As for `read_table`.
    """
    columns = match_columns(text.frame.columns, text.file)
    for column in REQUIRED:
        if column not in columns:
            raise DataError(
                f"{text.file} has no column {column!r} (it has: {list_columns(text.frame.columns)})"
                ". Rename or add it; only image_id and image are required."
            )
    if text.frame.empty:
        raise DataError(f"{text.file} has a header but no rows. Add one row per image.")
    notes = [*text.notes]
    renamed = {theirs: ours for ours, theirs in columns.items() if ours != theirs}
    if renamed:
        names = ", ".join(f"{quote(theirs)} as {ours}" for theirs, ours in renamed.items())
        notes.append(f"Columns: {names}.")
    frame = text.frame.rename(columns=renamed)
    cells, more = understand_cells(frame, text.where)
    for column in ("image", "mask"):
        cells[column], note = locate_files(column, text.root, cells[column], text.where)
        notes.append(note)
    check_unique("image", cells["image"], text.where)
    known = {name: _convert(name, cells[name]) for name in COLUMNS}
    known["malignant"] = pd.Series(
        map(_fill_malignant, known["malignant"], cells["dx"]), dtype="float64"
    )
    extra = [column for column in frame.columns if column not in COLUMNS]
    return Table(
        text.root,
        pd.concat([pd.DataFrame(known), frame[extra]], axis=1),
        text.file,
        tuple(note for note in (*notes, *more) if note),
    )


def _convert(name: str, cells: Sequence[str]) -> "pd.Series[Any]":
    if name in NUMBERS:
        return pd.Series([float(cell) if cell else math.nan for cell in cells], dtype="float64")
    return pd.Series(cells, dtype="str")


def _fill_malignant(own: float, dx: str) -> float:
    """Return the row's own value if it has one, otherwise that of its diagnosis."""
    if not math.isnan(own) or not dx:
        return own
    malignant = malignancy(dx)
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
                f"file or remove its row. `dermedge data check {table.file}` lists all such rows."
            ) from error

    with ThreadPoolExecutor(min(WORKERS, usable_cpus())) as pool:
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
    # Without a modality, the digest is that of a table from before the column existed, so
    # that finished runs are still recognized.
    columns = [name for name in COLUMNS if name != "modality" or frame[name].any()]
    for row in frame[columns].itertuples(index=False, name=None):
        cells = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in row]
        yield json.dumps(cells, ensure_ascii=False, separators=(",", ":"))
