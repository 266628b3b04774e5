"""Read a published set as its `Layout` describes it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dermedge.data.columns import match_columns
from dermedge.data.image_names import locate_files
from dermedge.data.importing.archive import (
    Archive,
    ImageIndex,
    flatten_path,
    strip_suffix,
)
from dermedge.data.importing.cells import translate_cells
from dermedge.data.importing.records import (
    IMAGE,
    Record,
    add_splits,
    check_columns,
    read_lines,
    read_paths,
    read_rows,
)
from dermedge.data.layouts import Layout, Part
from dermedge.data.messages import quote
from dermedge.data.table_file import TextTable, read_text
from dermedge.data.taxonomy import describe_unknown, is_known
from dermedge_runtime.errors import DataError
from dermedge_runtime.find_images import IMAGE_SUFFIXES

SHOWN = 10
"""Number of unknown labels that a note lists."""


@dataclass(frozen=True)
class ImportedRow:
    """One image of a set, with its cells and files.

    Attributes:
        cells: Cells by the names of our columns.
        name: Name of the image in the set.
        at: Place of the row, for messages.
        image: Image file.
        mask: Mask file, None if there is none.

    Example:
        >>> from dermedge.data.layouts.csv import LAYOUT
        >>> row = read_parts(LAYOUT, Archive.scan(Path("lesions"))).rows[0]
        >>> row.cells["dx"], row.image.name
        ('nv', 'D000000.jpg')
    """

    cells: dict[str, str]
    name: str
    at: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class ReadResult:
    """The rows of a set, and everything that could not be used; filled part by part.

    Attributes:
        rows: Rows with an image.
        missing: Names of rows without an image.
        notes: Remarks for the report.
        unknown: Labels that the taxonomy does not know, with their number of images.
        pictures: All images of the parts, in order.

    Example:
        >>> from dermedge.data.layouts.csv import LAYOUT
        >>> result = read_parts(LAYOUT, Archive.scan(Path("lesions")))
        >>> len(result.rows), result.missing, result.images_without_row
        (80, [], [])
    """

    rows: list[ImportedRow] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    pictures: dict[Path, None] = field(default_factory=dict)

    @property
    def images_without_row(self) -> list[str]:
        """Names of images that no row uses, without second copies of used ones."""
        if not self.pictures:
            return []
        used = {path for row in self.rows for path in (row.image, row.mask) if path is not None}
        # Archives may hold a folder twice; name and size identify a copy without
        # reading it.
        known = {(path.stem, path.stat().st_size) for path in used}
        others = (path for path in self.pictures if path not in used)
        return [path.name for path in others if (path.stem, path.stat().st_size) not in known]


@dataclass(frozen=True)
class _PartFiles:
    """The files of one part.

    Attributes:
        archive: All files of the set.
        part: The part.
        images: Images of the part.
        root: Folder that the paths in the part's table are relative to, None if the
            images are found by name.
    """

    archive: Archive
    part: Part
    images: list[Path]
    root: Path | None = None


def read_parts(layout: Layout, archive: Archive) -> ReadResult:
    """Read every row of a set, and list what is missing.

    Args:
        layout: Layout of the set.
        archive: All files of the set.

    Raises:
        DataError: No part of the set is found, a table cannot be read, or a label is
            unknown.
    """
    result = ReadResult()
    missing: list[str] = []
    complete = False
    for part in layout.parts:
        if part.instead:
            # It is read only if all parts before it are missing, and replaces them.
            if not complete and _read_part(layout, part, archive, result):
                complete, missing = True, []
        elif _read_part(layout, part, archive, result):
            complete = True
        else:
            missing.append(f"{part.name} is missing: its images are left out.")
    if not complete:
        raise DataError(
            f"{archive.root} holds no {layout.parts[0].name}. Give the folder that {layout.title} "
            f"was unpacked into (see {layout.homepage or 'the documentation'})."
        )
    result.notes.extend(missing)
    if archive.skipped:
        result.notes.append(str(archive.skipped))
    if result.unknown:
        labels = result.unknown.most_common(SHOWN)
        most = ", ".join(f"{label!r} {count}" for label, count in labels)
        result.notes.append(
            f"{result.unknown.total()} images have one of {len(result.unknown)} labels that the "
            "taxonomy does not know. Their diagnosis is empty and their label is in dx_raw. "
            f"Map the labels with --label THEIRS=ID: {most}."
        )
    return result


def _read_part(layout: Layout, part: Part, archive: Archive, result: ReadResult) -> bool:
    """Read one part into `result`; return False if its files are missing."""
    images = archive.find_images(part.images, layout.ignore)
    path = archive.find_table(part.table) if part.table else None
    if path is None and (part.table or not images):
        return False
    columns = dict(layout.columns)
    records: Iterable[Record]
    if path is None:
        records = read_paths(part, archive, images)
        if not records:
            return False
    elif part.line:
        records = read_lines(part, path, result.notes)
    else:
        table = read_text(path)
        if not part.images:
            _read_own_part(layout, part, archive, table, result)
            return True
        check_columns(layout, part, columns, table)
        table = add_splits(table, part, archive, result.notes)
        records = read_rows(layout, columns, part, archive, table, result.notes)
    _match_files(layout, columns, records, _PartFiles(archive, part, images), result)
    return True


def read_own_table(layout: Layout, table: TextTable) -> ReadResult:
    """Read every row of a user's own table, whose image paths are relative to it.

    Args:
        layout: Layout that maps its columns and labels.
        table: Its text cells.

    Raises:
        DataError: A column is missing, a path leads outside the folder, or a label is
            unknown.
    """
    result = ReadResult(notes=list(table.notes))
    _read_own_part(layout, layout.parts[0], Archive(table.root, ()), table, result)
    return result


def _read_own_part(
    layout: Layout, part: Part, archive: Archive, table: TextTable, result: ReadResult
) -> None:
    # Our column names are understood in any case; other columns are kept.
    columns = {**match_columns(table.frame.columns, table.file), **layout.columns}
    others = (name for name in table.frame.columns if name not in columns.values())
    layout = replace(layout, keep=tuple(others))
    check_columns(layout, part, columns, table)
    _check_labels(layout, columns, table)
    frame = table.frame.copy()
    for ours in ("image", "mask"):
        if (theirs := columns.get(ours)) in frame:
            frame[theirs], note = locate_files(
                ours, table.root, frame[theirs].tolist(), table.where
            )
            result.notes.extend([note] if note else [])
    table = add_splits(replace(table, frame=frame), part, archive, result.notes)
    records = read_rows(layout, columns, part, archive, table, result.notes)
    _match_files(layout, columns, records, _PartFiles(archive, part, [], table.root), result)


def _check_labels(layout: Layout, columns: Mapping[str, str], table: TextTable) -> None:
    """Check the labels of a user's own table, to list all unknown ones at once.

    Raises:
        DataError: The taxonomy does not know several labels.
    """
    if layout.open_labels or columns.get("dx") not in table.frame:
        return
    labels = {
        label: layout.labels.get(label, label) for label in table.frame[columns["dx"]] if label
    }
    unknown = [label for label, ours in labels.items() if not is_known(ours)]
    if len(unknown) > 1:
        mapping = " ".join(f"--label {quote(label + '=ID')}" for label in unknown[:SHOWN])
        raise DataError(f"{table.file}: {describe_unknown(unknown)} Map them with {mapping}.")


def _match_files(
    layout: Layout,
    columns: Mapping[str, str],
    records: Iterable[Record],
    files: _PartFiles,
    result: ReadResult,
) -> None:
    """Find the image and the mask of every record, and add its row to `result`."""
    part = files.part
    key = IMAGE if layout.views or part.path else columns.get("image", IMAGE)
    images = ImageIndex(files.images)
    masks = ImageIndex(files.archive.find_images(part.masks))
    used: set[Path] = set()
    result.pictures.update(dict.fromkeys(files.images))
    without_mask = repeated = 0
    for record in records:
        name = record.raw[key]
        image, mask = record.image, None
        if part.images:
            image = image or images.find(name)
            mask = _find_mask(layout, part, masks, image) if image else None
        elif files.root is not None:
            image = _find_file(files.root, name)
        if image is None:
            result.missing.append(name)
            continue
        # Rows with several views may list one image twice (SCIN).
        if layout.views and image in used:
            repeated += 1
            continue
        cells = translate_cells(layout, columns, record, result.unknown)
        cells["split"] = cells.get("split") or part.split
        if files.root is not None:
            mask = _find_file(files.root, cells.get("mask", ""))
        # File names alone may repeat across folders where the set names images by path.
        by_path = layout.views or part.path or not part.images
        image_id = flatten_path(name) if by_path else strip_suffix(Path(name).name)
        cells["image_id"] = cells.get("image_id") or image_id
        used.add(image)
        result.rows.append(ImportedRow(cells, name, record.at, image, mask))
        expects_mask = bool(part.masks or part.masks_beside or cells.get("mask"))
        without_mask += mask is None and expects_mask
    if without_mask:
        result.notes.append(f"{without_mask} images of {part.name} have no mask file.")
    if repeated:
        result.notes.append(
            f"{repeated} images of {part.name} are listed again; their first row counts."
        )


def _find_mask(layout: Layout, part: Part, masks: ImageIndex, image: Path) -> Path | None:
    name = image.stem.removesuffix(layout.image_suffix) + layout.mask_suffix
    if part.masks_beside:
        candidates = (image.with_name(name + suffix) for suffix in IMAGE_SUFFIXES)
        return next((path for path in candidates if path.is_file()), None)
    return masks.find(name)


def _find_file(folder: Path, name: str) -> Path | None:
    """Return a file that a table names, None if there is no such file."""
    path = folder / name
    return path if name and path.is_file() else None
