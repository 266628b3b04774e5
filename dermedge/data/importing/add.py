"""Brings a data set as it is published, or a CSV of your own, into the one form that everything here reads."""

import csv
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dermedge.data.importing.archive import Archive
from dermedge.data.importing.reader import ReadResult, Row, read_parts
from dermedge.data.layouts import LAYOUTS, Layout
from dermedge.data.table import COLUMNS, read_table
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_folder
from dermedge_runtime.progress import Progress
from dermedge_runtime.registry import list_entries, load_entry, lookup

EXAMPLES = 5
GROUP = "dermedge.datasets"


@dataclass(frozen=True)
class AddReport:
    """What was imported, and what was not.

    Attributes:
        layout: name of the layout.
        out: the folder that was written.
        images: rows, each with its image.
        labels: images per diagnosis; "" counts those without one.
        splits: images per official split; "" counts those that `split` is free to deal out.
        rows_without_image: how many rows of the set's tables had no image file, and were left out.
        images_without_row: how many image files had no row, and were left out.
        examples: a few names for each of the two counts above.
        notes: what else is missing, in words.
        licence: of the set.
        citation: of the set.
        expected: how many images were published, None where that is not known.
        verified: someone has run this layout on the real download; else its counts are to be compared with the paper's.
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
    """A set that `add` can import.

    Attributes:
        name: what `add` calls it.
        title: what people call it.
        tells: what its rows hold: diagnosis, malignancy, severity, caption, mask, skin type, split.
        licence: of the set.
        expected: how many images were published, None where that is not known.
        verified: someone has run its layout on the real download.
        evidence: what its layout rests on.
        homepage: where it is published.
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
    """All sets that `add` can import, by name: the built-in ones, and those that installed packages announce."""
    found = {name: load_entry(entry) for name, entry in list_entries(LAYOUTS, GROUP).items()}
    return tuple(
        DataSetInfo(
            name,
            layout.title,
            _tells(layout),
            layout.licence,
            layout.expected,
            layout.verified,
            layout.evidence,
            layout.homepage,
        )
        for name, layout in sorted(found.items())
    )


def _tells(layout: Layout) -> tuple[str, ...]:
    columns = {*layout.columns, *layout.values, *layout.keep}
    parts = layout.parts
    told = {
        "diagnosis": "dx" in columns or bool(layout.one_hot or layout.otherwise),
        "malignancy": "malignant" in columns,
        "severity": "severity" in columns,
        "caption": "caption" in columns,
        "mask": "mask" in columns or any(part.masks or part.masks_beside for part in parts),
        "skin type": bool(columns & {"fitzpatrick", "skin_tone"}),
        "split": "split" in columns or any(part.split for part in parts),
    }
    return tuple(name for name, is_told in told.items() if is_told)


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
    """Import a data set into the folder `out`: `metadata.csv`, `images/`, `masks/` and `SOURCE.md`.

    Args:
        layout: a name of `LAYOUTS`, one that an installed package announces, or a layout itself. "csv" is a table of
            your own, whose image paths are relative to it.
        source: the folder that the set was unpacked into; for "csv" also the file.
        out: the folder to write; it appears when it is complete.
        columns: column of our table -> column of theirs, over the layout's.
        labels: label of theirs -> diagnosis of the taxonomy, over the layout's and the taxonomy's.
        link: make hard links instead of copies.
        overwrite: replace `out` where it exists.
        progress: told after every image.

    Raises:
        UsageError: for an unknown layout or column, or an `out` that exists.
        DataError: for files that are missing or cannot be read, and labels that the taxonomy does not know.
    """
    if isinstance(layout, str):
        named: Layout = lookup("data set", layout, LAYOUTS, GROUP)
        layout = named
    layout = _with_options(layout, columns or {}, labels or {})
    root = Path(source)
    target = Path(out)
    if target.resolve() in (root.resolve(), *root.resolve().parents):
        raise UsageError(
            f"{target} holds the source {root}, which is never overwritten: choose another output folder."
        )
    found = read_parts(layout, Archive.below(root))
    return _write(layout, found, target, link=link, overwrite=overwrite, progress=progress)


def _with_options(layout: Layout, columns: Mapping[str, str], labels: Mapping[str, str]) -> Layout:
    for column in columns:
        if column not in COLUMNS:
            raise UsageError(
                f"There is no column {column!r} to map to: the table has {', '.join(COLUMNS)}."
            )
    return replace(
        layout, columns={**layout.columns, **columns}, labels={**layout.labels, **labels}
    )


def _write(
    layout: Layout,
    found: ReadResult,
    out: Path,
    *,
    link: bool,
    overwrite: bool,
    progress: Progress | None,
) -> AddReport:
    rows = found.rows
    if not rows:
        first = f" (the first is {found.missing[0]!r})" if found.missing else ""
        raise DataError(
            f"{layout.title} has {len(found.missing)} rows{first} and no image for any: unpack the images beside the "
            "table."
        )
    # Without official val and test rows, the rows to train on are left open, for `split` to deal out.
    if {"val", "test"} <= {row.cells["split"] for row in rows}:
        rows = [
            replace(row, cells={**row.cells, "split": row.cells["split"] or "train"})
            for row in rows
        ]
    with atomic_folder(out, overwrite=overwrite, marker="metadata.csv") as folder:
        lines = list(_place(rows, folder, _link if link else shutil.copyfile, progress))
        extra = dict.fromkeys(name for line in lines for name in line if name not in COLUMNS)
        (folder / "metadata.csv").write_text(_csv([*COLUMNS, *extra], lines), encoding="utf-8")
        table = read_table(folder)
        strays = found.strays
        report = AddReport(
            layout=layout.name,
            out=str(out),
            images=len(table),
            labels=dict(Counter(table.frame["dx"]).most_common()),
            splits=dict(sorted(Counter(table.frame["split"]).items())),
            rows_without_image=len(found.missing),
            images_without_row=len(strays),
            examples={
                "rows_without_image": tuple(found.missing[:EXAMPLES]),
                "images_without_row": tuple(strays[:EXAMPLES]),
            },
            notes=(*_comparison(layout, len(table)), *found.notes),
            licence=layout.licence,
            citation=layout.citation,
            expected=layout.expected,
            verified=layout.verified,
        )
        (folder / "SOURCE.md").write_text(_source(layout, report), encoding="utf-8")
    return report


def _comparison(layout: Layout, images: int) -> Iterator[str]:
    published = f": {layout.expected} images expected" if layout.expected else ""
    if not layout.verified:
        yield f"Unverified layout, never run on the real download: compare the counts with the paper's{published}."
    if layout.expected and images != layout.expected:
        yield f"{images} images were found where {layout.expected} were published."


def _place(
    rows: list[Row], folder: Path, put: Callable[[Path, Path], object], progress: Progress | None
) -> Iterator[dict[str, str]]:
    taken: set[str] = set()
    for name in ("images", "masks"):
        if name == "images" or any(row.mask for row in rows):
            (folder / name).mkdir()
    for done, row in enumerate(rows, start=1):
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", row.cells["image_id"]).lstrip(".") or "image"
        while safe.casefold() in taken:
            safe += "_"
        taken.add(safe.casefold())
        line = {**row.cells, "image": f"images/{safe}{row.image.suffix.lower()}", "mask": ""}
        put(row.image, folder / line["image"])
        if row.mask is not None:
            line["mask"] = f"masks/{safe}{row.mask.suffix.lower()}"
            put(row.mask, folder / line["mask"])
        if progress:
            progress(done, len(rows), row.name)
        yield line


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise UsageError(
            f"{source} cannot be hard-linked ({error.strerror}): write to its file system, or copy instead of linking."
        ) from error


def _csv(header: list[str], lines: list[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def _source(layout: Layout, report: AddReport) -> str:
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
