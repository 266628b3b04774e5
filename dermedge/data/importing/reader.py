"""Rows of a published set, read as its `Layout` says."""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from dermedge.data.importing.archive import SUFFIXES, Archive, Named, flat, one_of, stem
from dermedge.data.layouts import Join, Layout, Part
from dermedge.data.table import COLUMNS, read_text
from dermedge.data.taxonomy import resolve
from dermedge_runtime.errors import DataError

SHOWN = 10
IMAGE = "image"


@dataclass(frozen=True)
class Row:
    """One image of the set: the cells of our table, the name they had for it, its file and its mask's."""

    cells: dict[str, str]
    name: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class ReadResult:
    """Collected part by part: rows, names of rows without an image, notes, unknown labels, and all pictures."""

    rows: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    pictures: dict[Path, None] = field(default_factory=dict)

    @property
    def strays(self) -> list[str]:
        """Names of the pictures that no row has; a second copy of one that a row has is none."""
        used = {path for row in self.rows for path in (row.image, row.mask) if path is not None}
        known = {(path.stem, path.stat().st_size) for path in used}
        others = (path for path in self.pictures if path not in used)
        return [path.name for path in others if (path.stem, path.stat().st_size) not in known]


@dataclass(frozen=True)
class _Record:
    """One image as they tell of it; `image` is known where its path is all they tell."""

    raw: dict[str, str]
    at: str
    image: Path | None = None


def read_parts(layout: Layout, archive: Archive) -> ReadResult:
    """Every row of a set that has an image, and what is missing.

    Raises:
        DataError: where no part is there, a table cannot be read, or a label is not known.
    """
    found = ReadResult()
    missing: list[str] = []
    there = False
    for part in layout.parts:
        if part.instead:
            if not there and _read_part(layout, part, archive, found):
                there, missing = True, []
        elif _read_part(layout, part, archive, found):
            there = True
        else:
            missing.append(f"{part.name} is not there: its images are left out.")
    if not there:
        raise DataError(
            f"{archive.root} holds no {layout.parts[0].name}: give the folder that {layout.title} was unpacked into "
            f"(see {layout.homepage or 'the documentation'})."
        )
    found.notes.extend(missing)
    if found.unknown:
        most = ", ".join(f"{label!r} {count}" for label, count in found.unknown.most_common(SHOWN))
        found.notes.append(
            f"{found.unknown.total()} images have one of {len(found.unknown)} labels that the taxonomy does not know "
            f"and stand without a diagnosis, the label in dx_raw; map them with --label THEIRS=ID: {most}."
        )
    return found


def _read_part(layout: Layout, part: Part, archive: Archive, found: ReadResult) -> bool:
    images = archive.images(part.images, layout.ignore)
    table = archive.table(part.table) if part.table else None
    if table is None and (part.table or not images):
        return False
    columns = dict(layout.columns)
    records: Iterable[_Record]
    if table is None:
        records = _from_paths(part, archive, images)
        if not records:
            return False
    elif part.line:
        records = _from_lines(part, table, found.notes)
    else:
        frame, places = _read_any(table)
        if not part.images:
            columns = {name: name for name in COLUMNS if name in frame} | columns
            layout = replace(
                layout, keep=tuple(name for name in frame.columns if name not in columns.values())
            )
        _check_columns(layout, part, columns, frame, table)
        frame = _with_splits(frame, part, archive, found.notes)
        records = _from_table(layout, columns, part, archive, (frame, places, table), found.notes)
    _match(layout, columns, records, _Files(archive, part, images, table), found)
    return True


@dataclass(frozen=True)
class _Files:
    """Where a part's rows look for their images and masks."""

    archive: Archive
    part: Part
    images: list[Path]
    table: Path | None


def _match(
    layout: Layout,
    columns: Mapping[str, str],
    records: Iterable[_Record],
    files: _Files,
    found: ReadResult,
) -> None:
    """Give every record its image and mask, and collect it."""
    part = files.part
    key = IMAGE if layout.views or part.path else columns.get("image", "image")
    images, masks = Named(files.images), Named(files.archive.images(part.masks))
    used: set[Path] = set()
    found.pictures.update(dict.fromkeys(files.images))
    maskless = twice = 0
    for record in records:
        name = record.raw[key]
        image, mask = record.image, None
        if part.images:
            image = image or images.find(name)
            mask = _mask(layout, part, masks, image) if image else None
        elif files.table is not None:
            image = _at(files.table.parent, name)
        if image is None:
            found.missing.append(name)
            continue
        if layout.views and image in used:
            twice += 1
            continue
        cells = _cells(layout, columns, record, found.unknown)
        cells["split"] = cells.get("split") or part.split
        if not part.images and files.table is not None:
            mask = _at(files.table.parent, cells.get("mask", ""))
        whole = layout.views or part.path or not part.images
        cells["image_id"] = cells.get("image_id") or (
            flat(name) if whole else stem(Path(name).name)
        )
        used.add(image)
        found.rows.append(Row(cells, name, image, mask))
        maskless += mask is None and bool(part.masks or part.masks_beside or cells.get("mask"))
    if maskless:
        found.notes.append(f"{maskless} images of {part.name} have no mask file.")
    if twice:
        found.notes.append(
            f"{twice} images of {part.name} are listed again; their first row counts."
        )


def _mask(layout: Layout, part: Part, masks: Named, image: Path) -> Path | None:
    name = image.stem.removesuffix(layout.image_suffix) + layout.mask_suffix
    if part.masks_beside:
        return next((path for s in SUFFIXES if (path := image.with_name(name + s)).is_file()), None)
    return masks.find(name)


def _from_paths(part: Part, archive: Archive, images: list[Path]) -> list[_Record]:
    there: dict[str, list[tuple[Path, re.Match[str]]]] = {}
    for path in images:
        match = re.search(part.path, archive.within(path), re.IGNORECASE)
        if match:
            there.setdefault(match[0].casefold(), []).append((path, match))
    records = []
    for found in there.values():
        image, match = one_of([path for path, _ in found]), found[0][1]
        records.append(
            _Record({IMAGE: match[0], **match.groupdict("")}, archive.within(image), image)
        )
    return records


def _from_lines(part: Part, table: Path, notes: list[str]) -> Iterator[_Record]:
    try:
        lines = table.read_text("utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{table} cannot be read ({error}): give the file as it is published, in UTF-8."
        ) from error
    other = [line.strip() for line in lines if line.strip() and not re.search(part.line, line)]
    if len(other) == sum(bool(line.strip()) for line in lines):
        raise DataError(f"{table} has no row like {part.line!r}: give the file as it is published.")
    if other:
        notes.append(
            f"{len(other)} lines of {table.name} are no rows and were passed over, the first: {other[0]!r}."
        )
    for number, line in enumerate(lines, start=1):
        match = re.search(part.line, line)
        if match:
            yield _Record(
                {k: (v or "").strip() for k, v in match.groupdict().items()},
                f"{table}, row {number}",
            )


def _from_table(
    layout: Layout,
    columns: Mapping[str, str],
    part: Part,
    archive: Archive,
    table: tuple[pd.DataFrame, list[int], Path],
    notes: list[str],
) -> Iterator[_Record]:
    frame, places, path = table
    for join in part.joins:
        frame = _joined(frame, join.on or columns.get("image", "image"), join, archive, notes)
    for record, place in zip(frame.to_dict("records"), places, strict=True):
        raw = {str(name): str(cell) for name, cell in record.items()}
        at = f"{path}, row {place}"
        if not layout.views:
            yield _Record(raw, at)
        for column, view in layout.views.items():
            if raw.get(column):
                yield _Record({**raw, IMAGE: raw[column], "view": view}, at)


def _check_columns(
    layout: Layout, part: Part, columns: Mapping[str, str], frame: pd.DataFrame, table: Path
) -> None:
    keys = list(layout.views) or [columns.get("image", "image")]
    # Where a join has a key of its own, the labels are in that table.
    joined = any(join.on for join in part.joins)
    labels = layout.one_hot or [columns[name] for name in ("dx",) if name in columns and not joined]
    for column in [*keys, *labels]:
        if column not in frame:
            raise DataError(
                f"{table} has no column {column!r} (it has: {', '.join(frame.columns)}): give the file as it is "
                "published, or say which of its columns is meant."
            )


def _with_splits(
    frame: pd.DataFrame, part: Part, archive: Archive, notes: list[str]
) -> pd.DataFrame:
    """The table with the column `split` that its index files tell."""
    if not part.splits:
        return frame
    splits = [""] * len(frame)
    for split, name in part.splits.items():
        path = archive.table((name,))
        if path is None:
            notes.append(f"{name} is not there: its rows have no official split.")
            continue
        rows, _ = _read_any(path)
        for cell in rows[rows.columns[0]]:
            if not cell.isdecimal() or int(cell) >= len(frame):
                raise DataError(
                    f"{path} lists row {cell!r}, which {part.name} does not have: unpack both anew."
                )
            splits[int(cell)] = split
    return frame.assign(split=splits)


def _joined(
    frame: pd.DataFrame, key: str, join: Join, archive: Archive, notes: list[str]
) -> pd.DataFrame:
    path = archive.table((join.table,))
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


def _cells(
    layout: Layout, columns: Mapping[str, str], record: _Record, unknown: Counter[str]
) -> dict[str, str]:
    raw = record.raw
    cells = {ours: raw.get(theirs, "") for ours, theirs in columns.items() if ours != "image"}
    label = _label(layout, cells.get("dx", ""), record)
    for column, meant in layout.values.items():
        cell = label if column == "dx" else cells.get(column, "")
        cells[column] = {theirs.casefold(): ours for theirs, ours in meant.items()}.get(
            cell.casefold(), cell
        )
    for column in ("sex", "site"):
        cells[column] = cells.get(column, "").lower()
    cells["source"] = cells.get("source") or ("" if layout.name == "csv" else layout.name)
    cells["licence"] = cells.get("licence") or layout.licence
    wanted = cells["dx"] if "dx" in layout.values else label
    try:
        cells["dx"] = (
            resolve(layout.labels.get(wanted, wanted), cells["source"]).id if wanted else ""
        )
    except DataError as error:
        if not layout.open_labels:
            raise DataError(f"{record.at}: {error}") from error
        cells["dx"] = ""
        unknown[wanted] += 1
    kept = [*layout.keep, *(["view"] if layout.views else [])]
    return {"dx_raw": label} | {name: raw[name] for name in kept if name in raw} | cells


def _label(layout: Layout, cell: str, record: _Record) -> str:
    if layout.one_hot:
        return _one_hot(layout, record.raw, record.at)
    if layout.weighted and cell:
        return _heaviest(cell, record.at)
    return cell or layout.otherwise


def _heaviest(cell: str, at: str) -> str:
    try:
        weights = {str(label): float(weight) for label, weight in ast.literal_eval(cell).items()}
    except (ValueError, SyntaxError, AttributeError, TypeError) as error:
        raise DataError(
            f"{at}: {cell!r} is not a table of weights by label: give the file as published."
        ) from error
    return max(weights, key=weights.__getitem__) if weights else ""


def _one_hot(layout: Layout, raw: Mapping[str, str], at: str) -> str:
    try:
        hot = [name for name in layout.one_hot if float(raw[name] or 0) > 0.5]
    except ValueError as error:
        raise DataError(
            f"{at}: {error}: the columns {', '.join(layout.one_hot)} hold 0 or 1."
        ) from error
    if len(hot) > 1 or not (hot or layout.otherwise):
        raise DataError(
            f"{at} has {len(hot)} of the labels {', '.join(layout.one_hot)}: mark exactly one."
        )
    return hot[0] if hot else layout.otherwise


def _at(folder: Path, name: str) -> Path | None:
    if not name:
        return None
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(
            f"{name!r} is not a path inside {folder}: write it relative to the table, without '..'."
        )
    return path if path.is_file() else None
