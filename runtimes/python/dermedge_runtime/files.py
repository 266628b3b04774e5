"""Digests, canonical JSON, strict JSON, and writes that a kill cannot leave half done."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dermedge_runtime.errors import DermedgeError, UsageError


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of the bytes, as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file, read in pieces so that a large model does not fill the memory."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def atomic_write(path: str | Path, data: bytes) -> None:
    """Writes a file so that after a crash or kill the old content or the new one stands there, never a part.

    Raises:
        DermedgeError: where the system refuses; nothing is left behind.
    """
    path = Path(path)
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise DermedgeError(
            f"Cannot write {path} ({error.strerror}); free space or choose a path you may write to."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    path: str | Path, *, overwrite: bool = False, marker: str | None = None
) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and vanishes when it does not.

    Args:
        path: where the finished folder shall stand.
        overwrite: whether something may stand there already; it stays whole until the new folder replaces it.
        marker: a file that a folder must hold to be overwritten, so that a mistyped path does not cost a photo album.

    Raises:
        UsageError: where `path` exists and may not be replaced.
        DermedgeError: where the system refuses to write.
    """
    import shutil

    path = Path(path)
    check_free(path, overwrite=overwrite, marker=marker)
    temporary = _beside(path, "tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise DermedgeError(
            f"Cannot write {path} ({error.strerror}); choose a path you may write to."
        ) from error
    try:
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        _put(temporary, path, overwrite=overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: Path, *, overwrite: bool, marker: str | None = None) -> None:
    """Raises UsageError unless a result may be written to `path`; call it before an hour of work, not after."""
    if path.name in ("", ".", ".."):
        raise UsageError(f"{str(path)!r} cannot be an output; name a new file or folder.")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UsageError(
            f"{path} exists already; choose another path, or overwrite it (--overwrite)."
        )
    if (
        marker is not None
        and path.is_dir()
        and any(path.iterdir())
        and not (path / marker).is_file()
    ):
        raise UsageError(
            f"{path} is a folder without {marker}, so it is not overwritten; choose another path."
        )


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{os.urandom(4).hex()}")


def _put(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Moves the finished folder to `path`; what stood there is deleted last."""
    try:
        if not (overwrite and os.path.lexists(path)):
            temporary.rename(path)
        elif _exchange(temporary, path):
            _remove(temporary)
        else:
            old = _beside(path, "old")
            path.rename(old)
            try:
                temporary.rename(path)
            except OSError:
                old.rename(path)
                raise
            _remove(old)
        _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise UsageError(
                f"{path} exists already; choose another path, or overwrite it (--overwrite)."
            ) from error
        raise DermedgeError(
            f"Cannot write {path} ({error.strerror}); choose a path you may write to."
        ) from error


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two paths in one step where the system can (Linux); two renames would leave a moment without either."""
    import ctypes

    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return bool(
        swap(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(exchange)) == 0
    )


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(path: Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk; systems that cannot open a folder do without."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
