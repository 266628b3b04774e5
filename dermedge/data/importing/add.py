"""Import a published data set, or a CSV of your own, for `read_table`."""

import csv
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dermedge.data.columns import COLUMNS, list_cells, understand_cells
from dermedge.data.importing.archive import Archive
from dermedge.data.importing.own_table import open_own_table
from dermedge.data.importing.reader import ImportedRow, ReadResult, read_own_table, read_parts
from dermedge.data.layouts import LAYOUTS, Layout
from dermedge.data.table import Table, read_table
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_folder, check_free
from dermedge_runtime.find_images import IMAGE_SUFFIXES
from dermedge_runtime.progress import Progress
from dermedge_runtime.registry import list_entries, load_entry, lookup

Place = Callable[[Path, Path], object]
"""Function that copies, links or moves a file."""

EXAMPLES = 5
LONGEST = 200
"""Number of characters of an id that the name of its image file has."""
GROUP = "dermedge.datasets"
"""Entry-point group by which installed packages add layouts."""


@dataclass(frozen=True)
class AddReport:
    """The result of `add_data`.

    Attributes:
        layout: Name of the layout.
        out: Folder that was written.
        images: Number of rows; each has its image.
        labels: Images per diagnosis; "" counts those without one.
        splits: Images per official split; "" counts those that `split_data` may assign.
        rows_without_image: Number of rows without an image file, which are left out.
        images_without_row: Number of image files without a row, which are left out.
        examples: A few names for each of the two counts above.
        notes: Remarks about missing files, masks and labels.
        licence: Licence of the set.
        citation: Citation of the set.
        expected: Number of published images, None if it is not known.
        verified: The layout was run on the real download. If not, compare the counts
            with those of the paper.

    Examples:
        >>> report = add_data("csv", "lesions", "copy")
        >>> report.images, report.rows_without_image, report.notes
        (80, 0, ())
    """

    layout: str
    out: str
    images: int
    labels: Mapping[str, int]
    splits: Mapping[str, int]
    rows_without_image: int
    images_without_row: int
    examples: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]
    licence: str
    citation: str
    expected: int | None = None
    verified: bool = False


@dataclass(frozen=True)
class DataSetInfo:
    """A data set that `add_data` can import.

    Attributes:
        name: Name of its layout.
        title: Common name of the set.
        tells: Contents of its rows: diagnosis, malignancy, severity, caption, mask,
            skin type, split.
        licence: Licence of the set.
        expected: Number of published images, None if it is not known.
        verified: The layout was run on the real download.
        evidence: Sources of the layout.
        homepage: Address where the set is published.

    Examples:
        >>> info = next(info for info in list_data_sets() if info.name == "ph2")
        >>> info.tells, info.expected
        (('diagnosis', 'mask'), 200)
    """

    name: str
    title: str
    tells: tuple[str, ...]
    licence: str
    expected: int | None
    verified: bool
    evidence: str
    homepage: str


def list_data_sets() -> tuple[DataSetInfo, ...]:
    """List all data sets that `add_data` can import, by name.

    The list holds the built-in layouts and those of installed packages.

    Examples:
        >>> "ham10000" in [info.name for info in list_data_sets()]
        True
    """
    layouts = {name: load_entry(entry) for name, entry in list_entries(LAYOUTS, GROUP).items()}
    return tuple(
        DataSetInfo(
            name,
            layout.title,
            _list_contents(layout),
            layout.licence,
            layout.expected,
            layout.verified,
            layout.evidence,
            layout.homepage,
        )
        for name, layout in sorted(layouts.items())
    )


def _list_contents(layout: Layout) -> tuple[str, ...]:
    columns = {*layout.columns, *layout.values, *layout.keep}
    parts = layout.parts
    contents = {
        "diagnosis": "dx" in columns or bool(layout.one_hot or layout.otherwise),
        "malignancy": "malignant" in columns,
        "severity": "severity" in columns,
        "caption": "caption" in columns,
        "mask": "mask" in columns or any(part.masks or part.masks_beside for part in parts),
        "skin type": bool(columns & {"fitzpatrick", "skin_tone"}),
        "split": "split" in columns or any(part.split for part in parts),
    }
    return tuple(name for name, present in contents.items() if present)


def add_data(
    layout: str | Layout,
    source: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> AddReport:
    r"""Import a data set into a folder with a table and all its images.

    The folder holds `metadata.csv`, `images/`, `masks/` and `SOURCE.md`.

    Args:
        layout: Name of a built-in layout or of one from an installed package, or a
            layout itself. "csv" is a table of your own, whose image paths are relative
            to it; a folder per diagnosis; or Parquet files that hold their images.
        source: Folder that the set was unpacked into; for "csv" also the file.
        out: Folder to write; it appears when it is complete.
        columns: Column of our table -> column of the set; takes precedence over the
            layout's.
        labels: Label of the set -> diagnosis of the taxonomy; takes precedence over the
            layout's and the taxonomy's.
        link: Make hard links instead of copies.
        overwrite: Replace `out` if it exists.
        progress: Called after every image.

    Raises:
        UsageError: The layout or a column is unknown, `out` holds the source, or `out`
            exists and `overwrite` is False.
        DataError: A file is missing or unreadable, or the taxonomy does not know a
            label.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("list.csv").write_text("file,label\nlesion.png,Nevus of mine\n")
        >>> report = add_data(
        ...     "csv",
        ...     "list.csv",
        ...     "mine",
        ...     columns={"image": "file", "dx": "label"},
        ...     labels={"Nevus of mine": "nv"},
        ... )
        >>> report.images, report.labels
        (1, {'nv': 1})
    """
    if isinstance(layout, str):
        registered: Layout = lookup("data set", layout, LAYOUTS, GROUP)
        layout = registered
    layout = _apply_options(layout, columns or {}, labels or {})
    root = Path(source)
    target = Path(out)
    if target.resolve() in (root.resolve(), *root.resolve().parents):
        raise UsageError(
            f"{target} holds the source {root}, which is never overwritten. Choose another output "
            "folder."
        )
    check_free(target, overwrite=overwrite, marker="metadata.csv")
    place: Place = _link if link else shutil.copyfile
    if layout.name != "csv":
        result = read_parts(layout, Archive.scan(root))
        return _write(layout, result, target, place, overwrite=overwrite, progress=progress)
    with open_own_table(root, layout, target) as table:
        result = read_own_table(layout, table)
        if table.root not in (table.file, table.file.parent):
            place = shutil.move  # The files are extracted ones, so no second copy is made.
        return _write(layout, result, target, place, overwrite=overwrite, progress=progress)


def _apply_options(layout: Layout, columns: Mapping[str, str], labels: Mapping[str, str]) -> Layout:
    for column in columns:
        if column not in COLUMNS:
            raise UsageError(
                f"Our table has no column {column!r}. Map to one of {', '.join(COLUMNS)}."
            )
    return replace(
        layout,
        columns={**layout.columns, **columns},
        fallbacks={
            ours: theirs for ours, theirs in layout.fallbacks.items() if ours not in columns
        },
        labels={**layout.labels, **labels},
    )


def _write(
    layout: Layout,
    result: ReadResult,
    out: Path,
    place: Place,
    *,
    overwrite: bool,
    progress: Progress | None,
) -> AddReport:
    rows = result.rows
    if not rows:
        first = f" (the first is {result.missing[0]!r})" if result.missing else ""
        raise DataError(
            f"{layout.title} has {len(result.missing)} rows{first}, but no image for any of them. "
            "Unpack the images into the folder of the table."
        )
    # With official val and test rows, all other rows are the official training set.
    # Otherwise they stay open, so that `split_data` can make the splits that are
    # missing.
    if {"val", "test"} <= {row.cells["split"] for row in rows}:
        rows = [
            replace(row, cells={**row.cells, "split": row.cells["split"] or "train"})
            for row in rows
        ]
    # Cells are checked before files are copied, so that messages name the user's file.
    rows, understood = _understand(rows)
    result.notes.extend(understood)
    with atomic_folder(out, overwrite=overwrite, marker="metadata.csv") as folder:
        lines = list(_place_files(rows, folder, place, progress))
        extra = dict.fromkeys(name for line in lines for name in line if name not in COLUMNS)
        (folder / "metadata.csv").write_text(
            _format_csv([*COLUMNS, *extra], lines), encoding="utf-8"
        )
        table = read_table(folder)
        report = _report_import(layout, result, table, out)
        (folder / "SOURCE.md").write_text(_describe_source(layout, report), encoding="utf-8")
    return report


def _understand(rows: list[ImportedRow]) -> tuple[list[ImportedRow], list[str]]:
    """Return the rows with the cells that are spelled otherwise rewritten, and notes."""
    frame = pd.DataFrame([row.cells for row in rows], dtype="str").fillna("")
    literal = {name: list_cells(frame, name) for name in COLUMNS}
    cells, notes = understand_cells(frame, [row.at for row in rows])
    return [
        replace(
            row,
            cells={
                **row.cells,
                **{
                    name: cells[name][index]
                    for name in COLUMNS
                    if cells[name][index] != literal[name][index]
                },
            },
        )
        for index, row in enumerate(rows)
    ], notes


def _report_import(layout: Layout, result: ReadResult, table: Table, out: Path) -> AddReport:
    unused = result.images_without_row
    return AddReport(
        layout=layout.name,
        out=str(out),
        images=len(table),
        labels=dict(Counter(table.frame["dx"]).most_common()),
        splits=dict(sorted(Counter(table.frame["split"]).items())),
        rows_without_image=len(result.missing),
        images_without_row=len(unused),
        examples={
            "rows_without_image": tuple(result.missing[:EXAMPLES]),
            "images_without_row": tuple(unused[:EXAMPLES]),
        },
        notes=(*_compare_counts(layout, len(table)), *result.notes),
        licence=layout.licence,
        citation=layout.citation,
        expected=layout.expected,
        verified=layout.verified,
    )


def _compare_counts(layout: Layout, images: int) -> Iterator[str]:
    published = f": {layout.expected} images expected" if layout.expected else ""
    if not layout.verified:
        yield (
            "This layout is unverified: nobody has run it on the real download. "
            f"Compare the counts with the paper's{published}."
        )
    if layout.expected and images != layout.expected:
        yield f"{images} images were found, but {layout.expected} were published."


def _place_files(
    rows: list[ImportedRow],
    folder: Path,
    place: Place,
    progress: Progress | None,
) -> Iterator[dict[str, str]]:
    """Copy the files of every row under a safe and unique name, and yield its cells."""
    taken: set[str] = set()
    for name in ("images", "masks"):
        if name == "images" or any(row.mask for row in rows):
            (folder / name).mkdir()
    for done, row in enumerate(rows, start=1):
        # An id may be too long or hold characters that a file system refuses, and two ids
        # may differ by case alone, which macOS and Windows do not distinguish.
        safe = (
            re.sub(r"[^A-Za-z0-9._-]", "_", row.cells["image_id"])[:LONGEST].lstrip(".") or "image"
        )
        while safe.casefold() in taken:
            safe += "_"
        taken.add(safe.casefold())
        line = {**row.cells, "image": f"images/{safe}{_suffix(row.image)}", "mask": ""}
        place(row.image, folder / line["image"])
        if row.mask is not None:
            line["mask"] = f"masks/{safe}{_suffix(row.mask)}"
            place(row.mask, folder / line["mask"])
        if progress:
            progress(done, len(rows), row.name)
        yield line


def _suffix(image: Path) -> str:
    """Return the suffix in lower case, "" if it is none of an image."""
    suffix = image.suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise UsageError(
            f"{source} cannot be hard-linked ({error.strerror}). Write to the same file system, or "
            "copy instead of linking."
        ) from error


def _format_csv(header: list[str], lines: list[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _describe_source(layout: Layout, report: AddReport) -> str:
    counts = ", ".join(f"{label or '(no label)'} {count}" for label, count in report.labels.items())
    lines = [
        f"# {layout.title}",
        "",
        f"{report.images} images: {counts}.",
        "",
        f"Published: {layout.homepage or 'not stated'}",
        f"Licence: {layout.licence or 'not stated'}",
        f"Citation: {layout.citation or 'not stated'}",
        "",
        f"Rows without an image, left out: {report.rows_without_image}. "
        f"Images without a row, left out: {report.images_without_row}.",
        *report.notes,
    ]
    return "\n".join(lines) + "\n"
