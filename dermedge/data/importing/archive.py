"""Find the files of an unpacked data set by name, at any depth."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dermedge_runtime.errors import DataError
from dermedge_runtime.find_images import IMAGE_SUFFIXES, Skipped, is_image, list_files

_DEPTH = 3


@dataclass(frozen=True)
class Archive:
    """The files of an unpacked data set, without hidden and system files.

    Archives made on a Mac hold hidden files such as `._image.jpg`, which are no images.

    Attributes:
        root: Folder that the set was unpacked into.
        paths: All files below it, sorted.
        skipped: Files and folders that were left out.

    Examples:
        >>> archive = Archive.scan(Path("lesions"))
        >>> archive.relative_path(archive.find_table(["*.csv"]))
        'metadata.csv'
    """

    root: Path
    paths: tuple[Path, ...]
    skipped: Skipped = field(default_factory=Skipped)

    @classmethod
    def scan(cls, root: Path) -> "Archive":
        """List the files of a folder, or the one file.

        Raises:
            DataError: The path is neither a folder nor a file.
        """
        if root.is_file():
            return cls(root.parent, (root,))
        if not root.is_dir():
            raise DataError(f"There is no folder or file {root}. Check the path.")
        skipped = Skipped()
        return cls(root, tuple(list_files(root, skipped)), skipped)

    def find_table(self, patterns: Iterable[str]) -> Path | None:
        """Return the file that the first matching pattern finds nearest to the root.

        Args:
            patterns: Patterns of file names, as in `fnmatch`; case does not matter.
        """
        for pattern in patterns:
            matches = [path for path in self.paths if _matches(path.name, pattern)]
            matches.sort(key=lambda path: (len(path.parts), path))
            if matches:
                return matches[0]
        return None

    def find_images(self, folders: tuple[str, ...], ignore: tuple[str, ...] = ()) -> list[Path]:
        """Return all images below certain folders, by their content or their name.

        Args:
            folders: Patterns of folder names; "*" matches any folder and the root.
            ignore: Patterns of file names that are left out.
        """
        images = []
        other = Skipped()  # Tables and licences are no images, and nobody misses them.
        for path in self.paths:
            if any(_matches(path.name, pattern) for pattern in ignore):
                continue
            parents = (".", *path.relative_to(self.root).parts[:-1])
            named = any(_matches(folder, pattern) for folder in parents for pattern in folders)
            if named and is_image(path, other):
                images.append(path)
        return images

    def relative_path(self, path: Path) -> str:
        """Return the path of a file below the root, with /."""
        return path.relative_to(self.root).as_posix()


class ImageIndex:
    """An index of images by their names.

    A table may name an image by its file name alone or with its last folders. The
    suffix may be missing, and case does not matter.

    Examples:
        >>> index = ImageIndex([Path("set/a/1.jpg"), Path("set/b/1.jpg")])
        >>> index.find("B/1.PNG").as_posix()
        'set/b/1.jpg'
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._by_name: dict[str, list[Path]] = {}
        for path in paths:
            # An image is listed under its name alone and with its last folders, because
            # a table may hold any of these.
            parts = [part.casefold() for part in path.with_name(strip_suffix(path.name)).parts]
            for depth in range(1, min(_DEPTH, len(parts)) + 1):
                self._by_name.setdefault("/".join(parts[-depth:]), []).append(path)

    def find(self, name: str) -> Path | None:
        """Return the image with a name, None if there is none.

        The name is compared with its last folders first, then with fewer of them: a
        table may name folders that the archive does not have.

        Raises:
            DataError: Different images have that name.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        parts = (*parts[:-1], strip_suffix(parts[-1])) if parts else ()
        for start in range(max(0, len(parts) - _DEPTH), len(parts)):
            matches = self._by_name.get("/".join(parts[start:]).casefold())
            if matches:
                return pick_copy(matches)
        return None


def pick_copy(paths: list[Path]) -> Path:
    """Return the first of several files of one name, which must have the same size.

    Some archives hold a folder twice, so copies are accepted.

    Raises:
        DataError: The sizes differ.
    """
    first = paths[0]
    for path in paths[1:]:
        if path.stat().st_size != first.stat().st_size:
            raise DataError(
                f"{first} and {path} are different images of one name. Remove the wrong one."
            )
    return first


def strip_suffix(name: str) -> str:
    """Return a file name without the suffix of an image.

    Examples:
        >>> strip_suffix("ISIC_0024300.jpg"), strip_suffix("lesion 1.2")
        ('ISIC_0024300', 'lesion 1.2')
    """
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def flatten_path(name: str) -> str:
    """Return a path as one word: folders and stem, joined by `_`.

    Examples:
        >>> flatten_path("melanoma/dermis/7_orig.jpg")
        'melanoma_dermis_7_orig'
    """
    path = Path(name)
    return "_".join((*path.parts[:-1], strip_suffix(path.name)))


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.casefold(), pattern.casefold())
