"""Find the images of a folder by their content, and count what is left out."""

import errno
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from dermedge_runtime.image import HEAD_BYTES, identify
from dermedge_runtime.printable import printable_path
from dermedge_runtime.system_files import is_hidden, is_unfinished

# A file with such a name claims to be an image. If its content is none, or no decoder
# reads it, the file gives an error and is not left out.
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".pjpeg",
    ".pjp",
    ".mpo",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".gif",
    ".heic",
    ".heif",
    ".hif",
    ".avif",
    ".dcm",
    ".dicom",
    ".jp2",
    ".j2k",
    ".j2c",
    ".jpc",
    ".jpf",
    ".jpx",
    ".jxl",
)

Reason = Literal[
    "hidden or system",
    "unfinished download",
    "not an image",
    "broken link",
    "link to a folder that is read already",
    "pipe or device",
    "unreadable",
]
EXAMPLES = 3
"""Largest number of names that are kept for a reason."""


@dataclass(frozen=True)
class Skipped:
    """The files and folders that a search left out, by reason; filled by the search.

    Attributes:
        counts: Reason -> number. A folder counts as one, whatever it holds.
        examples: Reason -> paths of the first few. Folders end with the separator.

    Example:
        >>> skipped = Skipped()
        >>> skipped.add("broken link", "day/2.jpg")
        >>> print(skipped)
        Not looked at: 1 broken link (day/2.jpg).
    """

    counts: dict[Reason, int] = field(default_factory=dict)
    examples: dict[Reason, list[str]] = field(default_factory=dict)

    def add(self, reason: Reason, path: str) -> None:
        """Count a file or a folder."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(path)

    @property
    def total(self) -> int:
        """Number of files and folders that were left out."""
        return sum(self.counts.values())

    @property
    def unreadable(self) -> int:
        """Number of files and folders that may hold images but could not be read."""
        return self.counts.get("unreadable", 0)

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        parts = []
        for reason in get_args(Reason):
            if count := self.counts.get(reason):
                names = ", ".join(map(printable_path, self.examples[reason]))
                more = ", ..." if count > EXAMPLES else ""
                parts.append(f"{count} {reason} ({names}{more})")
        return f"Not looked at: {'; '.join(parts)}." if parts else ""


def find_images(folder: Path, skipped: Skipped) -> list[Path]:
    """Return all images below a folder, sorted.

    The content decides, whatever the name is. A file whose name claims an image is
    returned too, so that a damaged one gives an error where it is decoded.

    Args:
        folder: The folder. Its own name may be hidden.
        skipped: Receives what is left out.

    Example:
        >>> skipped = Skipped()
        >>> [path.as_posix() for path in find_images(Path("lesions"), skipped)][:1]
        ['lesions/images/D000000.jpg']
        >>> print(skipped)
        Not looked at: 1 not an image (lesions/metadata.csv).
    """
    return [path for path in list_files(folder, skipped) if is_image(path, skipped)]


def is_image(path: Path, skipped: Skipped) -> bool:
    """Return True if a file is an image by its content, or claims so by its suffix.

    Args:
        path: A regular file.
        skipped: Receives the file if it is none, or cannot be read.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        skipped.add("unreadable", str(path))
        return False
    if identify(head) is None:
        skipped.add("not an image", str(path))
        return False
    return True


def list_files(folder: Path, skipped: Skipped, *, deep: bool = True) -> list[Path]:
    """Return the regular files below a folder, sorted, without hidden and system files.

    Links are followed, and every folder is read once: at its own place if that is below
    `folder`, else at the first link that leads to it.

    Args:
        folder: The folder. Its own name may be hidden.
        skipped: Receives what is left out.
        deep: Also list the folders below it.
    """
    files: list[Path] = []
    seen: set[object] = set()
    # Links wait until the real folders are read, so that the name of a link does not
    # decide where an image is found.
    folders, links = deque([str(folder)]), deque[str]()
    while folders or links:
        path = folders.popleft() if folders else links.popleft()
        for entry in _scan(path, seen, skipped):
            kind = _kind(entry)
            if kind == "file":
                files.append(Path(entry.path))
            elif kind == "folder":
                if deep:
                    (links if entry.is_symlink() else folders).append(entry.path)
            else:
                is_folder = entry.is_dir(follow_symlinks=False)
                skipped.add(kind, entry.path + os.sep * is_folder)
    return sorted(files)


def _scan(path: str, seen: set[object], skipped: Skipped) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name; none if it was read before."""
    try:
        status = Path(path).stat()
        # Some file systems have no inode numbers and give 0.
        key = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
        if key in seen:
            skipped.add("link to a folder that is read already", path + os.sep)
            return []
        seen.add(key)
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        skipped.add("unreadable", path + os.sep)
        return []


def _kind(entry: "os.DirEntry[str]") -> Reason | Literal["file", "folder"]:
    """Return "file" or "folder" for an entry that is read, else why it is left out."""
    is_folder = entry.is_dir(follow_symlinks=False)
    if is_unfinished(entry.name) and not is_folder:
        return "unfinished download"
    if is_hidden(entry.name):
        return "hidden or system"
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        broken = entry.is_symlink() and not Path(entry.path).exists()
        return "broken link" if broken else "pipe or device"
    except OSError as error:
        # A link that leads to itself, or through a folder that may not be entered.
        return "unreadable" if error.errno == errno.EACCES else "broken link"
