"""The files of an unpacked data set, found by name wherever the archive put them."""

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dermedge_runtime.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_DEPTH = 3


@dataclass(frozen=True)
class Archive:
    """Every file below the source but for hidden ones, such as those that a Mac adds to archives."""

    root: Path
    paths: tuple[Path, ...]

    @classmethod
    def below(cls, root: Path) -> "Archive":
        """All files of a folder, or the one file.

        Raises:
            DataError: where there is neither.
        """
        if root.is_file():
            return cls(root.parent, (root,))
        if not root.is_dir():
            raise DataError(f"There is no folder or file {root}: check the path.")
        paths = (
            Path(folder, name)
            for folder, _, names in os.walk(root)
            for name in names
            if name[0] != "."
        )
        return cls(root, tuple(sorted(paths)))

    def table(self, patterns: Iterable[str]) -> Path | None:
        """The file nearest to the root that the first fitting pattern matches."""
        for pattern in patterns:
            found = [path for path in self.paths if _matches(path.name, pattern)]
            found.sort(key=lambda path: (len(path.parts), path))
            if found:
                return found[0]
        return None

    def images(self, folders: tuple[str, ...], ignore: tuple[str, ...] = ()) -> list[Path]:
        """All images below folders of these names; "*" is any, the root too."""
        found = []
        for path in self.paths:
            if path.suffix.lower() not in SUFFIXES or any(
                _matches(path.name, pattern) for pattern in ignore
            ):
                continue
            inside = (".", *path.relative_to(self.root).parts[:-1])
            if any(_matches(folder, pattern) for folder in inside for pattern in folders):
                found.append(path)
        return found

    def within(self, path: Path) -> str:
        """A file's path below the root, with /."""
        return path.relative_to(self.root).as_posix()


class Named:
    """Images by name: by file name alone, or by the last folders before it where a name has them."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._found: dict[str, list[Path]] = {}
        for path in paths:
            parts = [part.casefold() for part in path.with_suffix("").parts]
            for depth in range(1, min(_DEPTH, len(parts)) + 1):
                self._found.setdefault("/".join(parts[-depth:]), []).append(path)

    def __bool__(self) -> bool:
        return bool(self._found)

    def find(self, name: str) -> Path | None:
        """The image of a name with or without suffix; its folders count as far as they are found.

        Raises:
            DataError: where different images have that name.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        parts = (*parts[:-1], stem(parts[-1])) if parts else ()
        for start in range(max(0, len(parts) - _DEPTH), len(parts)):
            found = self._found.get("/".join(parts[start:]).casefold())
            if found:
                return one_of(found)
        return None


def one_of(paths: list[Path]) -> Path:
    """The first of several files of one name. Some archives hold a folder twice, which is no harm.

    Raises:
        DataError: where they are not the same.
    """
    first = paths[0]
    for path in paths[1:]:
        if path.stat().st_size != first.stat().st_size:
            raise DataError(
                f"{first} and {path} are different images of one name: remove the wrong one."
            )
    return first


def stem(name: str) -> str:
    """A file name without its suffix, where that is one of an image."""
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def flat(name: str) -> str:
    """A path as one word: folders and stem, joined by _."""
    path = Path(name)
    return "_".join(path.with_suffix("").parts if path.suffix.lower() in SUFFIXES else path.parts)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.casefold(), pattern.casefold())
