"""Read a folder of images that has one sub-folder per diagnosis."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from pathlib import Path, PurePosixPath

import pandas as pd

from dermedge.data.cells import SPLIT_NAMES
from dermedge.data.image_names import is_unicode
from dermedge.data.messages import quote
from dermedge.data.table_file import TEXT_SUFFIXES, TextTable, check_suffix, list_tables
from dermedge.data.taxonomy import TAXONOMY, describe_unknown, is_known, lineage, resolve
from dermedge_runtime.errors import DataError
from dermedge_runtime.find_images import Skipped, find_images
from dermedge_runtime.system_files import is_hidden

SHOWN = 10
_SPLIT = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?:[\s_-]*(?:set|data|images|split|sep))?")
_MALIGNANCY = {
    **dict.fromkeys(("malignant", "cancer", "cancerous"), "1"),
    **dict.fromkeys(("benign", "noncancer", "noncancerous", "notcancer"), "0"),
}
_NO_TABLE = (
    "{} has no metadata.csv{}. Write one with the columns image_id and image (and dx, lesion_id, "
    "...), or put the images into one folder per diagnosis."
)


@dataclass(frozen=True)
class _Meaning:
    """The meaning of the folders above an image.

    Attributes:
        label: Name of the folder that names a diagnosis, "" if none does.
        dx: The diagnosis.
        malignant: "1" or "0" if a folder says so, otherwise "".
    """

    label: str = ""
    dx: str = ""
    malignant: str = ""


def find_split(name: str) -> str | None:
    """Return our name of a split by the name of a folder or file, None for other names.

    Examples:
        >>> find_split("Valid"), find_split("train_set"), find_split("nevus")
        ('val', 'train', None)
    """
    match = _SPLIT.fullmatch(name.casefold())
    return SPLIT_NAMES[match[1]] if match else None


def names_diagnosis(path: str, dx: str) -> bool:
    """Return True if one of the folders of a path is named after a diagnosis.

    Examples:
        >>> names_diagnosis("train/Melanomas", "mel"), names_diagnosis("images", "mel")
        (True, False)
    """
    return any(is_known(name) and resolve(name).id == dx for name in path.split("/"))


def read_class_folders(folder: Path, labels: Mapping[str, str] | None = None) -> TextTable:
    """Read the images of class folders, which may be inside or outside of split folders.

    The deepest folder that names a diagnosis gives the label. Folders named "benign" and
    "malignant" give `malignant`. If val or test is missing, train images get no split, so
    that they can be divided.

    Args:
        folder: Folder without a table.
        labels: Name of a class folder -> diagnosis; takes precedence over the taxonomy.

    Raises:
        DataError: There are no images, a folder names no diagnosis, or the names of
            nested folders contradict each other.

    Examples:
        >>> import shutil
        >>> for name in ("train/Nevus", "test/Melanomas"):
        ...     Path("photos", name).mkdir(parents=True)
        ...     _ = shutil.copy("lesion.png", Path("photos", name))
        >>> read_class_folders(Path("photos")).frame[["image_id", "dx", "split"]].values.tolist()
        [['test_Melanomas_lesion', 'Melanomas', 'test'], ['train_Nevus_lesion', 'Nevus', '']]
    """
    skipped = Skipped()
    names = [path.relative_to(folder).as_posix() for path in find_images(folder, skipped)]
    # A name with bytes that are not Unicode cannot be a cell of a table.
    images = [name for name in names if is_unicode(name)]
    _check_no_table(folder, images)
    meanings = _read_folders(folder, {_parents(image) for image in images}, labels or {})
    placed = [image for image in images if _parents(image) in meanings]
    splits = [_read_split(folder, _parents(image)) for image in placed]
    found = [meanings[_parents(image)] for image in placed]
    frame = pd.DataFrame(
        {
            "image_id": name_images(placed),
            "image": placed,
            "dx": [meaning.label for meaning in found],
            "malignant": [meaning.malignant for meaning in found],
            "split": open_train(splits),
        },
        dtype="str",
    )
    loose = len(images) - len(placed)
    notes = (
        _describe(found, splits),
        f"Left out {_count(loose)} in no class folder." if loose else "",
        f"Left out {_count(len(names) - len(images))} with names that are not Unicode."
        if len(names) > len(images)
        else "",
        str(skipped),
    )
    where = [f"{folder}, {image}" for image in placed]
    return TextTable(folder, folder, frame, where, tuple(note for note in notes if note))


def name_images(paths: Sequence[str]) -> list[str]:
    """Return a unique id for every relative path: its folders and stem, joined by `_`.

    Examples:
        >>> name_images(["nv/1.jpg", "mel/2.jpg", "mel/2.png"])
        ['nv_1', 'mel/2.jpg', 'mel/2.png']
    """
    flat = ["_".join(PurePosixPath(path).with_suffix("").parts) for path in paths]
    counts = Counter(flat)
    return [name if counts[name] == 1 else path for name, path in zip(flat, paths, strict=True)]


def open_train(splits: Sequence[str]) -> list[str]:
    """Return the splits, with train rows open if there is no val or no test split.

    Rows without a split are divided by lesion and patient; train rows are not.

    Examples:
        >>> open_train(["train", "test"]), open_train(["train", "val", "test"])
        (['', 'test'], ['train', 'val', 'test'])
    """
    if {"val", "test"} <= set(splits):
        return list(splits)
    return ["" if split == "train" else split for split in splits]


def describe_splits(splits: Sequence[str]) -> str:
    """Return the number of images per split as published, for a note.

    Examples:
        >>> describe_splits(["train", "train", "test"])
        'splits train 2 (open, because there is no val), test 1'
    """
    counts = Counter(splits)
    missing = " and no ".join(name for name in ("val", "test") if not counts[name])
    parts = [
        f"{name} {counts[name]}"
        + (f" (open, because there is no {missing})" if name == "train" and missing else "")
        for name in ("train", "val", "test")
        if counts[name]
    ]
    if parts and counts[""]:
        parts.append(f"none {counts['']}")
    return f"splits {', '.join(parts)}" if parts else "no splits"


def _check_no_table(folder: Path, images: Sequence[str]) -> None:
    """Refuse a folder that has no class folders, or whose table is elsewhere.

    Raises:
        DataError: There is no image in a sub-folder, or a sub-folder has a table.
    """
    for path in sorted(path for path in folder.iterdir() if not is_hidden(path.name)):
        if path.stem.casefold() == "metadata" and path.is_file():
            check_suffix(path)
        tables = list_tables(path) if path.is_dir() and os.access(path, os.R_OK) else []
        if tables:
            raise DataError(
                f"{folder} has no metadata.csv, but {tables[0]} exists. Give that path."
            )
    if all(find_split(name) for image in images for name in _parents(image)):
        others = [p.name for p in sorted(folder.iterdir()) if p.suffix.lower() in TEXT_SUFFIXES]
        if others:
            raise DataError(
                f"{folder} has no metadata.csv. If {quote(others[0])} is its table, give the path "
                "of that file."
            )
        count = f", but {_count(len(images))}" if images else " and no images"
        raise DataError(_NO_TABLE.format(folder, count))


def _parents(image: str) -> tuple[str, ...]:
    return PurePosixPath(image).parts[:-1]


def _read_folders(
    folder: Path, chains: Iterable[tuple[str, ...]], labels: Mapping[str, str]
) -> dict[tuple[str, ...], _Meaning]:
    """Return the meaning of every chain of folders that holds a class folder.

    Raises:
        DataError: A class folder is unknown, or nested folders contradict each other.
    """
    inner = {chain: tuple(name for name in chain if not find_split(name)) for chain in chains}
    inner = {chain: names for chain, names in inner.items() if names}
    every = {name for names in inner.values() for name in names}
    known = {name: meaning for name in every if (meaning := _read_name(name, labels))}
    unknown = [names for names in inner.values() if not known.keys() & set(names)]
    if unknown:
        raise DataError(_describe_unknown(folder, inner.values(), unknown, known))
    return {
        chain: _combine(folder, chain, [known[name] for name in names if name in known])
        for chain, names in inner.items()
    }


def _describe_unknown(
    folder: Path,
    chains: Iterable[tuple[str, ...]],
    unknown: Iterable[tuple[str, ...]],
    known: Mapping[str, _Meaning],
) -> str:
    # Folders that also hold a known class, or all classes, wrap them and name none.
    chains = list(chains)
    outer = {
        name
        for names in chains
        for name in takewhile(lambda name: name not in known, names)
        if known.keys() & set(names)
    }
    if len({names[0] for names in chains}) == 1:
        outer.add(chains[0][0])
    classes = sorted({next((n for n in names if n not in outer), names[-1]) for names in unknown})
    mapping = " ".join(f"--label {quote(name + '=ID')}" for name in classes[:SHOWN])
    return (
        f"{folder} has no metadata.csv, so each folder must name a diagnosis. "
        f"{describe_unknown(classes)} Write a metadata.csv, rename the folders, or run "
        f"`dermedge data add csv {folder} {mapping} -o OUT`."
    )


def _read_name(name: str, labels: Mapping[str, str]) -> _Meaning | None:
    """Return the meaning of a folder's name, None if it names no class."""
    plain = re.sub(r"[\s_-]", "", name.casefold())
    if name not in labels and plain in _MALIGNANCY:
        return _Meaning(malignant=_MALIGNANCY[plain])
    label = labels.get(name, name)
    return _Meaning(name, resolve(label).id) if is_known(label) else None


def _combine(folder: Path, chain: Sequence[str], meanings: Sequence[_Meaning]) -> _Meaning:
    """Return the meaning of nested class folders, the deepest diagnosis first.

    Raises:
        DataError: The folders contradict each other.
    """
    named = [meaning for meaning in meanings if meaning.dx]
    said = {meaning.malignant for meaning in meanings if meaning.malignant}
    deepest = named[-1] if named else _Meaning()
    own = TAXONOMY[deepest.dx].malignant if named else None
    if own is not None:
        said.add(str(int(own)))
    nested = all(outer.dx in lineage(inner.dx) for outer, inner in pairwise(named))
    if not nested or len(said) > 1:
        raise DataError(
            f"{folder}: the folders of {quote('/'.join(chain))} name different diagnoses. Move the "
            "images into the folder of one diagnosis."
        )
    malignant = "" if own is not None else next(iter(said), "")
    return replace(deepest, malignant=malignant)


def _read_split(folder: Path, chain: Sequence[str]) -> str:
    splits = {split for name in chain if (split := find_split(name))}
    if len(splits) > 1:
        raise DataError(
            f"{folder}: the folders of {quote('/'.join(chain))} name different splits. Move the "
            "images into the folder of one split."
        )
    return next(iter(splits), "")


def _count(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def _describe(meanings: Sequence[_Meaning], splits: Sequence[str]) -> str:
    names = {"1": "malignant", "0": "benign"}
    classes = sorted({meaning.dx or names[meaning.malignant] for meaning in meanings})
    listed = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    return (
        f"Read {_count(len(meanings))} in {len(classes)} class folders ({listed}), "
        f"{describe_splits(splits)}."
    )
