"""Compute digests, and write files and folders whole or not at all."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from dermedge_runtime.errors import DermedgeError, UsageError

# A full disk, a quota, and a limit of the size of a file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Answers of file systems that cannot flush a file or a folder, such as CIFS before Linux
# 4.17 and folders that a virtual machine shares. A rename is atomic there too.
CANNOT_FLUSH = (
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EACCES,
    errno.EPERM,
    errno.EBADF,
    errno.EISDIR,
    errno.EROFS,
)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder, which must exist.

    Args:
        folder: Folder that is not yet visible under its final name.
        files: Content by path below the folder, with `/` between its parts.

    Example:
        >>> write_files(Path("."), {"weights/layer.bin": b"1234"})
        >>> Path("weights/layer.bin").read_bytes()
        b'1234'
    """
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 lower-case hexadecimal digits.

    Example:
        >>> sha256_hex(b"")[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, read in pieces of 1 MiB to save memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write a file; a crash or a kill leaves the old content or the new, never a part.

    Args:
        path: Path of the file; its folder is created if it does not exist.
        data: New content.

    Raises:
        DermedgeError: The system refuses to write. No temporary file is left behind.

    Example:
        >>> atomic_write("notes/today.txt", b"done")
        >>> Path("notes/today.txt").read_text()
        'done'
    """
    with atomic_file(path) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing; rename it to `path` if the block succeeds.

    Args:
        path: Path of the file; its folder is created if it does not exist.

    Raises:
        DermedgeError: The system refuses to write. No temporary file is left behind.
    """
    with atomic_path(path) as temporary, temporary.open("xb") as stream:
        yield stream


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield the path of a temporary file; rename it to `path` if the block succeeds.

    For libraries that write to a path. `atomic_file` gives a stream.

    Args:
        path: Path of the file; its folder is created if it does not exist.

    Raises:
        DermedgeError: The system refuses to write. No temporary file is left behind.
    """
    path = Path(path)
    temporary = _sibling(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with name_full_disk(path):
            yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, whole or not at all.

    Raises:
        DermedgeError: The disk is full.

    Example:
        >>> append_line(Path("log.txt"), "first")
        >>> Path("log.txt").read_text().splitlines()
        ['first']
    """
    data = f"{line}\n".encode()
    with name_full_disk(path), path.open("ab", buffering=0) as stream:
        size = stream.tell()
        if stream.write(data) != len(data):
            stream.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Convert the errors of a full disk in the block to one that names `path`.

    Libraries raise errors of their own after a write failed, such as torch's
    RuntimeError; the cause is then found in the chain of exceptions.

    Args:
        path: File or folder that the user asked for.

    Raises:
        DermedgeError: The disk is full.

    Example:
        >>> with name_full_disk(Path("out")):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        dermedge_runtime.errors.DermedgeError: Cannot write out (No space left on device)...
    """
    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None and not (isinstance(link, OSError) and link.errno in DISK_FULL):
            link = link.__cause__ or link.__context__
        if link is None:
            raise
        raise _cannot_write(path, link) from error


@contextlib.contextmanager
def atomic_folder(
    path: str | Path, *, overwrite: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """Yield a temporary folder; rename it to `path` if the block succeeds.

    Args:
        path: Path of the finished folder.
        overwrite: Allow `path` to exist; it stays whole until it is replaced.
        marker: File that a folder must hold to be overwritten, so that a mistyped path
            does not delete somebody's photographs.

    Raises:
        UsageError: `path` exists and may not be replaced.
        DermedgeError: The system refuses to write. After any error the temporary folder
            is deleted.

    Example:
        >>> with atomic_folder("results") as folder:
        ...     _ = (folder / "table.csv").write_text("a,b")
        >>> Path("results/table.csv").read_text()
        'a,b'
    """
    import shutil

    path = Path(path)
    check_free(path, overwrite=overwrite, marker=marker)
    temporary = _sibling(path, "tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with name_full_disk(path):
            yield temporary
        _sync_tree(temporary, path)
        _move_into_place(temporary, path, overwrite=overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Check that a result may be written to `path`; call this before long work.

    Args:
        path: Path of the result.
        overwrite: As in `atomic_folder`.
        marker: As in `atomic_folder`.

    Raises:
        UsageError: The path has no name, or exists and may not be replaced.
    """
    if path.name in ("", ".", ".."):
        raise UsageError(f"{str(path)!r} cannot be an output. Name a new file or folder.")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise _already_exists(path)
    has_files = path.is_dir() and any(path.iterdir())
    if marker is not None and has_files and not (path / marker).is_file():
        raise UsageError(
            f"{path} is a folder without {marker}, so it is not overwritten. Choose another path."
        )


def _already_exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists already. Choose another path, or overwrite it (--overwrite).")


def _sibling(path: Path, kind: str) -> Path:
    """Return a new hidden name beside `path`, on the same file system."""
    return path.with_name(f".{path.name}.{kind}-{os.urandom(4).hex()}")


def _move_into_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a finished folder to `path`, and then delete the folder it replaces.

    POSIX has no rename that replaces a folder with files in it. So the old folder is
    renamed aside, and the new one renamed in: two system calls. A kill between them
    leaves both folders whole, the old one as `.NAME.old-XXXXXXXX`; nothing is lost or
    half written. Linux can swap two paths in one step (renameat2). That is not used,
    because it exists on one system only.
    """
    try:
        if overwrite and os.path.lexists(path):
            old = _sibling(path, "old")
            path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                old.rename(path)
                raise
            _remove(old)
        else:
            temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _already_exists(path) from error
        raise _cannot_write(path, error) from error


def _sync_tree(folder: Path, path: Path) -> None:
    try:
        for parent, _, names in os.walk(folder):
            for name in names:
                _sync(Path(parent, name))
            _sync(Path(parent))
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> DermedgeError:
    return DermedgeError(
        f"Cannot write {path} ({error.strerror}). Free space or choose a path you may write to."
    )


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk.

    Some systems cannot open a folder; they flush its names themselves.
    """
    try:
        # Windows flushes a file only for who may write to it.
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
