"""The two forms in which a bundle's files stand together, a folder and a stored zip, read with the same distrust."""

import hashlib
import io
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dermedge_runtime.errors import BundleError, UsageError

if TYPE_CHECKING:
    from zipfile import ZipFile

MANIFEST = "manifest.json"
ZIP_MAGIC = b"PK\x03\x04"
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\<>:"|?*]')
EPOCH = (1980, 1, 1, 0, 0, 0)
DAMAGED = "get the bundle again from where it was exported."


class Container:
    """A bundle's files by name; made by `open_container`, valid inside its `with` block."""

    def __init__(self, path: Path, sizes: Mapping[str, int], archive: "ZipFile | None") -> None:
        self.path = path
        self.sizes = sizes
        self._archive = archive

    def stream(self, name: str) -> IO[bytes]:
        """The file, opened for reading. Raises BundleError where it is not there."""
        if name not in self.sizes:
            raise BundleError(f"{self.path} has no file {name!r}; {DAMAGED}")
        return (
            self._archive.open(name) if self._archive is not None else (self.path / name).open("rb")
        )

    def read(self, name: str) -> bytes:
        """The whole content of a file."""
        with self.stream(name) as stream:
            return stream.read()

    def digest(self, name: str) -> tuple[str, bytes]:
        """The SHA-256 of a file in hexadecimal, and its first 16 bytes."""
        digest = hashlib.sha256()
        with self.stream(name) as stream:
            head = piece = stream.read(1 << 20)
            while piece:
                digest.update(piece)
                piece = stream.read(1 << 20)
        return digest.hexdigest(), head[:16]


@contextmanager
def open_container(path: Path) -> Iterator[Container]:
    """Opens a folder or zip and lists its files without trusting any of them.

    Raises:
        UsageError: where nothing stands at `path`.
        BundleError: where it is neither form, or holds a link, an unsafe name or a compressed entry, or cannot be read.
    """
    if not path.exists():
        raise UsageError(f"There is no bundle at {path}; check the path.")
    try:
        if path.is_dir():
            yield Container(path, _list_folder(path), None)
            return
        with path.open("rb") as stream:
            if stream.read(4) != ZIP_MAGIC:
                raise BundleError(
                    f"{path} is neither a bundle's folder nor its zip; name a .dermedge folder or file."
                )
            from zipfile import BadZipFile, ZipFile

            try:
                with ZipFile(stream) as archive:
                    yield Container(path, _list_zip(path, archive), archive)
            except (BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
                raise BundleError(f"{path} is a damaged zip ({error}); {DAMAGED}") from error
    except OSError as error:
        raise BundleError(
            f"Cannot read {error.filename or path} ({error.strerror or error}); {DAMAGED}"
        ) from error


def _list_folder(root: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(root).as_posix()
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append(Path(entry.path))
                elif stat.S_ISREG(mode):
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise BundleError(
                        f"{name!r} in {root} is a link or no regular file, which is unsafe; {DAMAGED}"
                    )
    return sizes


def _list_zip(path: Path, archive: "ZipFile") -> dict[str, int]:
    from zipfile import ZIP_STORED

    sizes: dict[str, int] = {}
    for info in archive.infolist():
        name, mode = info.orig_filename, info.external_attr >> 16
        if name in sizes:
            raise BundleError(f"{name!r} stands twice in {path}, which is unsafe; {DAMAGED}")
        if name.endswith("/") or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            raise BundleError(
                f"{name!r} in {path} is a link or no regular file, which is unsafe; {DAMAGED}"
            )
        if info.compress_type != ZIP_STORED:
            raise BundleError(
                f"{name!r} in {path} is compressed; zip the bundle with its own `save`."
            )
        sizes[name] = info.file_size
    return sizes


def check_names(names: Iterable[str], where: str) -> None:
    """Raises BundleError unless the names are relative paths that every file system keeps apart."""
    seen: dict[str, str] = {}
    names = list(names)
    for name in names:
        parts = name.split("/")
        if (
            FORBIDDEN.search(name)
            or any(
                part in ("", ".", "..") or part[-1] in ". " or len(part.encode()) > 255
                for part in parts
            )
            or unicodedata.normalize("NFC", name) != name
        ):
            raise BundleError(
                f"{name!r} in {where} is an unsafe path (not relative, plain and NFC); {DAMAGED}"
            )
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise BundleError(
                f"{other!r} and {name!r} in {where} are one file on some systems; {DAMAGED}"
            )
    for name in names:
        for end in (i for i, letter in enumerate(name) if letter == "/"):
            if name[:end].casefold() in seen:
                raise BundleError(
                    f"{name[:end]!r} in {where} is both a file and a folder; {DAMAGED}"
                )


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    """The files as a zip: stored, sorted by name, with one fixed time, so that the same files give the same bytes."""
    from zipfile import ZIP_STORED, ZipFile, ZipInfo

    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_STORED) as archive:
        for name in sorted(files):
            info = ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, 0o100644 << 16
            archive.writestr(info, files[name])
    return buffer.getvalue()
