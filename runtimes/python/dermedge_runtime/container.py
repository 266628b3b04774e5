"""Read the two forms of a bundle, a folder and a stored zip, and check both."""

import hashlib
import io
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.system_files import is_system_file

if TYPE_CHECKING:
    from zipfile import ZipFile

MANIFEST = "manifest.json"
ZIP_MAGIC = b"PK\x03\x04"
# Control characters, what Windows reserves, and halves of surrogate pairs.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\<>:"|?*\ud800-\udfff]')
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold

DAMAGED = "Get the bundle again from where it was exported."
WAIT = "Wait until the bundle is completely copied or synchronised, then try again."
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HEAD = len(LFS_POINTER)


class Container:
    """A bundle's files by name, valid inside the `with` block of `open_container`.

    `sizes` maps every file's name to its size in bytes. `system_files` names the files
    and folders beside them that an operating system left; they are never opened.

    Example:
        >>> with open_container(Path("toy.dermedge")) as container:
        ...     "manifest.json" in container.sizes
        True
    """

    def __init__(
        self,
        path: Path,
        sizes: Mapping[str, int],
        system_files: Sequence[str] = (),
        archive: "ZipFile | None" = None,
    ) -> None:
        self.path = path
        self.sizes = sizes
        self.system_files = system_files
        self._archive = archive

    def stream(self, name: str) -> IO[bytes]:
        """Open a file for reading; raise BundleError if it does not exist."""
        if name not in self.sizes:
            raise BundleError(f"{self.path} has no file {name!r}. {DAMAGED}")
        return (
            self._archive.open(name) if self._archive is not None else (self.path / name).open("rb")
        )

    def read(self, name: str) -> bytes:
        """Return the content of a file; raise BundleError if it does not exist."""
        with self.stream(name) as stream:
            return stream.read()

    def digest(self, name: str) -> tuple[str, bytes]:
        """Return the hexadecimal SHA-256 of a file, and its first 16 bytes."""
        digest = hashlib.sha256()
        with self.stream(name) as stream:
            head = piece = stream.read(1 << 20)
            while piece:
                digest.update(piece)
                piece = stream.read(1 << 20)
        return digest.hexdigest(), head[:16]


@contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """Open a folder or a zip, and list its files.

    Raises:
        UsageError: The path does not exist.
        BundleError: The path is neither form, holds a link, an unsafe name or a
            compressed entry, or cannot be read.
    """
    if not path.exists():
        raise UsageError(f"There is no bundle at {path}. Check the path.")
    try:
        if path.is_dir():
            yield Container(path, *_list_folder(path))
            return
        with path.open("rb") as stream:
            head = stream.read(HEAD)
            if not head:
                raise BundleError(f"{path} is empty (0 bytes). {WAIT}")
            if head == LFS_POINTER:
                raise lfs_pointer(str(path))
            if not head.startswith(ZIP_MAGIC):
                raise BundleError(
                    f"{path} is neither a bundle's folder nor its zip. "
                    "Name a .dermedge folder or file."
                )
            from zipfile import BadZipFile, ZipFile

            try:
                with ZipFile(stream) as archive:
                    yield Container(path, _list_zip(path, archive), archive=archive)
            except (BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                raise BundleError(f"{path} is a damaged zip ({error}). {DAMAGED}") from error
    except OSError as error:
        raise BundleError(
            f"Cannot read {error.filename or path} ({error.strerror or error}). {DAMAGED}"
        ) from error


def _list_folder(root: Path) -> tuple[dict[str, int], list[str]]:
    """Return the size of every file below a folder, and the names of system files.

    Links and devices are refused.
    """
    sizes: dict[str, int] = {}
    system_files: list[str] = []
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(root).as_posix()
                mode = entry.stat(follow_symlinks=False).st_mode
                if is_system_file(entry.name):
                    system_files.append(name)
                elif stat.S_ISDIR(mode):
                    pending.append(Path(entry.path))
                # Links and devices are refused: a link could name any file.
                elif stat.S_ISREG(mode):
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise _not_regular(name, root)
    return sizes, sorted(system_files)


def _list_zip(path: Path, archive: "ZipFile") -> dict[str, int]:
    """Return the size of every file in a zip; refuse what `zip_bytes` never writes."""
    from zipfile import ZIP_STORED

    sizes: dict[str, int] = {}
    for info in archive.infolist():
        # `filename` ends at a NUL byte and may be normalised; `orig_filename` is as
        # stored.
        name, mode = info.orig_filename, info.external_attr >> 16
        if name in sizes:
            raise BundleError(f"{path} holds {name!r} twice, which is unsafe. {DAMAGED}")
        if stat.S_IFMT(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise _not_regular(name, path)
        is_foreign = name.endswith("/") or any(map(is_system_file, name.split("/")))
        if is_foreign or info.compress_type != ZIP_STORED:
            raise _rezipped(path, name)
        sizes[name] = info.file_size
    if MANIFEST not in sizes and (below := [n for n in sizes if n.endswith(f"/{MANIFEST}")]):
        raise _rezipped(path, below[0])
    return sizes


def _rezipped(path: Path, name: str) -> BundleError:
    """Return the error for a zip that another program made of a bundle's folder.

    Args:
        path: Path of the zip.
        name: Name of an entry that dermedge does not write.
    """
    return BundleError(
        f"{path} has the entry {name!r}, so another program zipped or compressed it. "
        "Unzip it and use the folder, or zip that folder with `Bundle.save`."
    )


def lfs_pointer(where: str) -> BundleError:
    """Return the error for a file that Git LFS has not fetched."""
    return BundleError(f"{where} is a Git LFS pointer, not the file. Run 'git lfs pull'.")


def _not_regular(name: str, where: Path) -> BundleError:
    return BundleError(f"{name!r} in {where} is a link or not a regular file. {DAMAGED}")


def check_names(names: Iterable[str], where: str) -> None:
    """Check that names are relative paths that every file system keeps apart.

    Args:
        names: Paths within a bundle, with `/`.
        where: Name of the bundle, for messages.

    Raises:
        BundleError: A name is absolute, leaves the folder, or has a character that some
            system forbids. Also if two names are one file on some systems.

    Example:
        >>> check_names(["golden/cases.json"], "toy.dermedge")
        >>> check_names(["../cases.json"], "toy.dermedge")
        Traceback (most recent call last):
        dermedge_runtime.errors.BundleError: '../cases.json' in toy.dermedge is an un...
    """
    seen: dict[str, str] = {}
    names = list(names)
    for name in names:
        if not _is_safe(name):
            raise BundleError(
                f"{name!r} in {where} is an unsafe path (not relative, plain and NFC). {DAMAGED}"
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise BundleError(
                f"{other!r} and {name!r} in {where} are one file on some systems. {DAMAGED}"
            )
    for name in names:
        for end in (i for i, letter in enumerate(name) if letter == "/"):
            if name[:end].casefold() in seen:
                raise BundleError(
                    f"{name[:end]!r} in {where} is both a file and a folder. {DAMAGED}"
                )


def _is_safe(name: str) -> bool:
    # Windows drops a final dot or space and most systems end a name at 255 bytes. macOS
    # stores names as NFD, so only NFC gives one spelling everywhere.
    if FORBIDDEN.search(name) or unicodedata.normalize("NFC", name) != name:
        return False
    return all(
        part not in ("", ".", "..") and part[-1] not in ". " and len(part.encode()) <= 255
        for part in name.split("/")
    )


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return files as a zip: stored, sorted by name, with one fixed time.

    Equal files give equal bytes.

    Example:
        >>> zip_bytes({"b": b"2", "a": b"1"}) == zip_bytes({"a": b"1", "b": b"2"})
        True
    """
    from zipfile import ZIP_STORED, ZipFile, ZipInfo

    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_STORED) as archive:
        for name in sorted(files):
            info = ZipInfo(name, EPOCH)
            # Unix, regular file, mode 644. The default depends on the writing system.
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, files[name])
    return buffer.getvalue()
