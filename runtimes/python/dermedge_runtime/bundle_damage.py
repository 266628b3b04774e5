"""Name the damage of a bundle: what copying, synchronising or Git did to a file."""

import hashlib
from collections.abc import Sequence

from dermedge_runtime.container import DAMAGED, HEAD, LFS_POINTER, WAIT, Container, lfs_pointer
from dermedge_runtime.errors import BundleError
from dermedge_runtime.system_files import is_unfinished

LARGEST_TEXT = 1 << 24
"""Size in bytes above which a file is not searched for line ends."""


def missing_files(container: Container, names: Sequence[str]) -> BundleError:
    """Return the error for files that do not exist.

    Args:
        container: The bundle's files.
        names: Names of one or more missing files.

    Example:
        >>> from pathlib import Path
        >>> from dermedge_runtime.container import open_container
        >>> with open_container(Path("toy.dermedge")) as container:
        ...     print(missing_files(container, ["a.txt"]))
        toy.dermedge misses 'a.txt'. Get the bundle again from where it was exported.
    """
    for name in names:
        # iCloud writes such a file for one that is not on the disk.
        folder, slash, file = name.rpartition("/")
        if (placeholder := f"{folder}{slash}.{file}.icloud") in container.sizes:
            return BundleError(
                f"{name!r} in {container.path} is not downloaded: there is only "
                f"{placeholder!r}. {WAIT}"
            )
    return BundleError(f"{container.path} misses {_quote(names)}. {DAMAGED}")


def unlisted_files(container: Container, names: Sequence[str]) -> BundleError:
    """Return the error for files that the manifest does not list.

    Args:
        container: The bundle's files.
        names: Names of one or more files.
    """
    unfinished = [name for name in names if is_unfinished(name.rpartition("/")[2])]
    if unfinished:
        return BundleError(
            f"{container.path} holds {_quote(unfinished)}, a download or copy that has not "
            f"ended. {WAIT}"
        )
    return BundleError(
        f"{container.path} holds {_quote(names)}, which its manifest does not list. {DAMAGED}"
    )


def changed_file(container: Container, name: str, expected: str) -> BundleError:
    """Return the error for a file whose content is not the one of the export.

    Args:
        container: The bundle's files.
        name: Name of the file.
        expected: SHA-256 of its content at the export, in hexadecimal.
    """
    if error := absent_content(container, name):
        return error
    if container.sizes[name] <= LARGEST_TEXT:
        unix = container.read(name).replace(b"\r\n", b"\n")
        if hashlib.sha256(unix).hexdigest() == expected:
            return BundleError(
                f"{name!r} in {container.path} has Windows line ends, as Git writes them. Add "
                "'*.dermedge/** -text' to .gitattributes and check the bundle out again."
            )
    return BundleError(
        f"{name!r} in {container.path} is damaged: its SHA-256 does not fit the manifest. {DAMAGED}"
    )


def absent_content(container: Container, name: str) -> BundleError | None:
    """Return the error for a file that only holds the place of the real one, if it does.

    Args:
        container: The bundle's files.
        name: Name of an existing file.
    """
    where = f"{name!r} in {container.path}"
    if container.sizes[name] == 0:
        return BundleError(f"{where} is empty (0 bytes). {WAIT}")
    with container.stream(name) as stream:
        return lfs_pointer(where) if stream.read(HEAD) == LFS_POINTER else None


def _quote(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
