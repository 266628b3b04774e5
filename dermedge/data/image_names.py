"""Find the files that a table names under another spelling."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from dermedge.data.cells import describe_readings
from dermedge.data.messages import quote
from dermedge_runtime.errors import DataError
from dermedge_runtime.find_images import Skipped, is_image


def is_inside(cell: str) -> bool:
    r"""Return True for a path that cannot lead outside its folder on any system.

    A table may come from an untrusted source, so it must not name files elsewhere.

    Examples:
        >>> is_inside("images/a.png"), is_inside("..\\a.png"), is_inside("C:a.png")
        (True, False, False)
    """
    if not any(sign in cell for sign in ("\\", "..", ":", "\0")) and cell[:1] != "/":
        return True  # Nearly all cells, so the slower test is skipped.
    path = PurePosixPath(cell.replace("\\", "/"))
    return not (
        path.is_absolute() or ".." in path.parts or "\0" in cell or PureWindowsPath(cell).drive
    )


def locate_files(
    column: str, root: Path, cells: Sequence[str], where: Sequence[str]
) -> tuple[list[str], str]:
    r"""Return the cells of a column of paths as the files are named on the disk.

    A name may have backslashes, another case, another form of Unicode, or no suffix. A
    name without a file stays as it is, with / instead of \.

    Args:
        column: image or mask.
        root: Folder that the paths are relative to.
        cells: Cells of the column, "" where there is no file.
        where: Place of every row, for messages.

    Returns:
        The cells, and a note on those that changed, "" if none did.

    Raises:
        DataError: A cell leads outside the folder, or several files fit it.
    """
    names = _FileNames(root)
    meanings: dict[str, str] = {"": ""}
    for cell, at in zip(cells, where, strict=True):
        if cell in meanings:
            continue
        if not is_inside(cell):
            raise DataError(
                f"{at}: {column} {quote(cell)} is not a path inside the table's folder. Write it "
                "relative to that folder, with / and without '..'."
            )
        matches = names.find(cell)
        if len(matches) > 1:
            raise DataError(
                f"{at}: {column} {quote(cell)} can be {quote(matches[0])} or {quote(matches[1])}. "
                "Write the name of the file as it is on the disk."
            )
        meanings[cell] = matches[0] if matches else cell.replace("\\", "/")
    return [meanings[cell] for cell in cells], describe_readings(column, cells, meanings)


class _FileNames:
    """The names of files below a folder, read once per folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, frozenset[str]] = {}
        self._indexes: dict[tuple[str, int], dict[str, list[str]]] = {}
        self._folders: dict[str, list[str]] = {"": [""]}

    def find(self, cell: str) -> list[str]:
        """Return the paths below the root that a cell can mean."""
        folder, _, name = cell.rpartition("/")
        if name in self._list(folder):
            return [cell]
        path = PurePosixPath(cell.replace("\\", "/"))
        return self._join(path, _SPELLINGS)

    def _join(self, path: PurePosixPath, spellings: Sequence["_Spelling"]) -> list[str]:
        parent = "" if len(path.parts) < 2 else path.parent.as_posix()
        return [
            f"{folder}/{match}" if folder else match
            for folder in self._find_folders(parent)
            for match in self._match(folder, path.name, spellings)
        ]

    def _find_folders(self, path: str) -> list[str]:
        if path not in self._folders:
            self._folders[path] = self._join(PurePosixPath(path), _SPELLINGS[:2])
        return self._folders[path]

    def _match(self, folder: str, name: str, spellings: Sequence["_Spelling"]) -> list[str]:
        if name in self._list(folder):
            return [name]
        for number, (of_file, of_cell) in enumerate(spellings):
            index = self._index(folder, number, of_file)
            matches = index.get(of_cell(name), [])
            if of_file is _fold_stem:
                matches = [
                    match for match in matches if is_image(self._root / folder / match, Skipped())
                ]
            if matches:
                return matches
        return []

    def _index(self, folder: str, number: int, key: Callable[[str], str]) -> dict[str, list[str]]:
        if (folder, number) not in self._indexes:
            index: dict[str, list[str]] = {}
            for name in sorted(self._list(folder)):
                index.setdefault(key(name), []).append(name)
            self._indexes[folder, number] = index
        return self._indexes[folder, number]

    def _list(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            try:
                names = [path.name for path in (self._root / folder).iterdir()]
            except OSError:  # no such folder: `check_data` and `digests` report the file
                names = []
            # A name that is not Unicode cannot be a cell of a table.
            self._names[folder] = frozenset(name for name in names if is_unicode(name))
        return self._names[folder]


def is_unicode(name: str) -> bool:
    """Return False for a file name with bytes that are not Unicode."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _compose(name: str) -> str:
    # macOS stores an accent as a character of its own; most tables do not.
    return unicodedata.normalize("NFC", name)


def _fold(name: str) -> str:
    return _compose(name).casefold()


def _fold_stem(name: str) -> str:
    return _fold(Path(name).stem)


def _is_image(path: Path) -> bool:
    return path.is_file() and is_image(path, Skipped())


_Spelling = tuple[Callable[[str], str], Callable[[str], str]]
_SPELLINGS: Sequence[_Spelling] = ((_compose, _compose), (_fold, _fold), (_fold_stem, _fold))
"""Keys of a file's name and of a cell; equal keys are one file. The first match counts."""
