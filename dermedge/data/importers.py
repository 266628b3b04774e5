"""Brings a data set as it is published, or a CSV of your own, into the one form that everything here reads."""

import csv
import fnmatch
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from dermedge.data.layouts import LAYOUTS, Join, Layout, Part
from dermedge.data.table import COLUMNS, read_table, read_text
from dermedge.data.taxonomy import resolve
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_folder
from dermedge_runtime.progress import Progress
from dermedge_runtime.registry import lookup

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
EXAMPLES = 5


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


def add(
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
        named: Layout = lookup("data set", layout, LAYOUTS, "dermedge.datasets")
        layout = named
    layout = _with_options(layout, columns or {}, labels or {})
    root = Path(source)
    target = Path(out)
    if target.resolve() in (root.resolve(), *root.resolve().parents):
        raise UsageError(f"{target} holds the source {root}, which is never overwritten: choose another output folder.")
    files = _Files.below(root)
    found = _Found([], [], [], [])
    for number, part in enumerate(layout.parts):
        table = files.table(part.table)
        if table is None:
            if number == 0:
                raise DataError(
                    f"{root} holds no {part.table[0]}: give the folder that {layout.title} was unpacked into "
                    f"(see {layout.homepage or 'the documentation'})."
                )
            found.notes.append(f"{part.table[0]} is not there: its images are left out.")
            continue
        _read_part(layout, part, table, files, found)
    return _write(layout, found, target, link=link, overwrite=overwrite, progress=progress)


@dataclass(frozen=True)
class _Row:
    cells: dict[str, str]
    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class _Found:
    """Collected part by part: rows, names of rows without an image, of images without a row, and notes."""

    rows: list[_Row]
    missing: list[str]
    strays: list[str]
    notes: list[str]


@dataclass(frozen=True)
class _Files:
    """Every file below the source, found by name at any depth."""

    root: Path
    paths: tuple[Path, ...]

    @classmethod
    def below(cls, root: Path) -> "_Files":
        if root.is_file():
            return cls(root.parent, (root,))
        if not root.is_dir():
            raise DataError(f"There is no folder or file {root}: check the path.")
        paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
        return cls(root, tuple(sorted(paths)))

    def table(self, patterns: tuple[str, ...]) -> Path | None:
        for pattern in patterns:
            found = [path for path in self.paths if _matches(path.name, pattern)]
            found.sort(key=lambda path: (len(path.parts), path))
            if found:
                return found[0]
        return None

    def images(self, folders: tuple[str, ...], ignore: tuple[str, ...] = ()) -> dict[str, Path]:
        """Stem -> file, of all images below folders of these names."""
        found: dict[str, Path] = {}
        for path in self.paths:
            inside = path.relative_to(self.root).parts[:-1]
            if path.suffix.lower() not in SUFFIXES or any(_matches(path.name, pattern) for pattern in ignore):
                continue
            if not any(_matches(folder, pattern) for folder in inside for pattern in folders):
                continue
            other = found.setdefault(path.stem, path)
            # Some archives hold the same folder twice.
            if other != path and other.stat().st_size != path.stat().st_size:
                raise DataError(f"{other} and {path} are different images of one name: remove the wrong one.")
        return found


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.casefold(), pattern.casefold())


def _with_options(layout: Layout, columns: Mapping[str, str], labels: Mapping[str, str]) -> Layout:
    for column in columns:
        if column not in COLUMNS:
            raise UsageError(f"There is no column {column!r} to map to: the table has {', '.join(COLUMNS)}.")
    return replace(layout, columns={**layout.columns, **columns}, labels={**layout.labels, **labels})


def _read_part(layout: Layout, part: Part, table: Path, files: _Files, found: _Found) -> None:
    frame, places = _read_any(table)
    columns = dict(layout.columns)
    if not part.images:
        columns = {name: name for name in COLUMNS if name in frame} | columns
        layout = replace(layout, keep=tuple(name for name in frame.columns if name not in columns.values()))
    key = columns.get("image", "image")
    wanted = [key, *(layout.one_hot or [columns[name] for name in ("dx",) if name in columns])]
    for column in wanted:
        if column not in frame:
            raise DataError(
                f"{table} has no column {column!r} (it has: {', '.join(frame.columns)}): give the file as it is "
                "published, or say which of its columns is meant."
            )
    for join in part.joins:
        frame = _joined(frame, key, join, files, found.notes)
    images = files.images(part.images, layout.ignore)
    masks = files.images(part.masks)
    maskless = 0
    for record, place in zip(frame.to_dict("records"), places, strict=True):
        raw = {str(name): str(cell) for name, cell in record.items()}
        cells = _cells(layout, columns, raw, f"{table}, row {place}")
        cells["split"] = cells.get("split") or part.split
        name = raw[key]
        stem = _stem(name)
        if part.images:
            image, mask = images.get(stem), masks.get(stem + layout.mask_suffix)
        else:
            image, mask = _at(table.parent, name), _at(table.parent, cells.get("mask", ""))
        cells["image_id"] = cells.get("image_id") or (stem if part.images else _flat(name))
        if image is None:
            found.missing.append(name)
        else:
            found.rows.append(_Row(cells, name, image, mask))
            maskless += mask is None and bool(masks or cells.get("mask"))
    if maskless:
        found.notes.append(f"{maskless} images of {table.name} have no mask file.")
    used = {row.image for row in found.rows}
    found.strays.extend(path.name for path in images.values() if path not in used)


def _joined(frame: pd.DataFrame, key: str, join: Join, files: _Files, notes: list[str]) -> pd.DataFrame:
    path = files.table((join.table,))
    if path is None:
        notes.append(f"{join.table} is not there: what it tells stays empty.")
        return frame
    other, _ = _read_any(path)
    if join.key not in other:
        raise DataError(f"{path} has no column {join.key!r}: give the file as it is published.")
    twice = other[join.key][other[join.key].duplicated()]
    if not twice.empty:
        raise DataError(f"{path} lists {twice.iloc[0]!r} twice: remove one of the rows.")
    other = other.set_index(join.key)
    new = other[[column for column in other.columns if column not in frame.columns]]
    return frame.join(new, on=key).fillna("")


def _read_any(path: Path) -> tuple[pd.DataFrame, list[int]]:
    """A CSV under any name; a tab in the header makes it a tab-separated one, as Dataverse hands tables out."""
    if path.suffix.lower() in (".csv", ".parquet"):
        return read_text(path)
    return read_text(path, delimiter="\t" if b"\t" in path.read_bytes()[:1000] else ",")


def _cells(layout: Layout, columns: Mapping[str, str], raw: Mapping[str, str], at: str) -> dict[str, str]:
    cells = {ours: raw.get(theirs, "") for ours, theirs in columns.items() if ours != "image"}
    for column in ("sex", "site"):
        cells[column] = cells.get(column, "").lower()
    cells["source"] = cells.get("source") or ("" if layout.name == "csv" else layout.name)
    cells["licence"] = cells.get("licence") or layout.licence
    label = _one_hot(layout, raw, at) if layout.one_hot else cells.get("dx", "")
    try:
        cells["dx"] = resolve(layout.labels.get(label, label), cells["source"]).id if label else ""
    except DataError as error:
        raise DataError(f"{at}: {error}") from error
    return {"dx_raw": label} | {name: raw.get(name, "") for name in layout.keep} | cells


def _one_hot(layout: Layout, raw: Mapping[str, str], at: str) -> str:
    try:
        hot = [name for name in layout.one_hot if float(raw[name] or 0) > 0.5]
    except ValueError as error:
        raise DataError(f"{at}: {error}: the columns {', '.join(layout.one_hot)} hold 0 or 1.") from error
    if len(hot) > 1 or not (hot or layout.otherwise):
        raise DataError(f"{at} has {len(hot)} of the labels {', '.join(layout.one_hot)}: mark exactly one.")
    return hot[0] if hot else layout.otherwise


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _flat(name: str) -> str:
    path = Path(name)
    return "_".join(path.with_suffix("").parts if path.suffix.lower() in SUFFIXES else path.parts)


def _at(folder: Path, name: str) -> Path | None:
    if not name:
        return None
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{name!r} is not a path inside {folder}: write it relative to the table, without '..'.")
    return path if path.is_file() else None


def _write(
    layout: Layout, found: _Found, out: Path, *, link: bool, overwrite: bool, progress: Progress | None
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
        rows = [replace(row, cells={**row.cells, "split": row.cells["split"] or "train"}) for row in rows]
    with atomic_folder(out, overwrite=overwrite, marker="metadata.csv") as folder:
        lines = list(_place(rows, folder, _link if link else shutil.copyfile, progress))
        extra = dict.fromkeys(name for line in lines for name in line if name not in COLUMNS)
        (folder / "metadata.csv").write_text(_csv([*COLUMNS, *extra], lines), encoding="utf-8")
        table = read_table(folder)
        report = AddReport(
            layout=layout.name,
            out=str(out),
            images=len(table),
            labels=dict(Counter(table.frame["dx"]).most_common()),
            splits=dict(sorted(Counter(table.frame["split"]).items())),
            rows_without_image=len(found.missing),
            images_without_row=len(found.strays),
            examples={
                "rows_without_image": tuple(found.missing[:EXAMPLES]),
                "images_without_row": tuple(found.strays[:EXAMPLES]),
            },
            notes=tuple(found.notes),
            licence=layout.licence,
            citation=layout.citation,
        )
        (folder / "SOURCE.md").write_text(_source(layout, report), encoding="utf-8")
    return report


def _place(
    rows: list[_Row], folder: Path, put: Callable[[Path, Path], object], progress: Progress | None
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
