"""Prepare the standard streams for any text, any code page and a closed pipe."""

import errno
import io
import os
import sys
from pathlib import Path


def prepare_streams() -> None:
    """Replace standard streams that are closed, and escape what a code page lacks.

    A closed standard stream would give its descriptor to the next file that is opened,
    and an engine's log would be written into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        is_output = descriptor > 0
        try:
            # In a script without standard error, bash gives this number to the script.
            os.write(descriptor, b"") if is_output else os.fstat(descriptor)
        except OSError as error:
            if error.errno == errno.EBADF:  # Others, such as a full disk, are not hidden.
                os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        if getattr(sys, name) is None:
            null = Path(os.devnull).open("w" if is_output else "r")  # noqa: SIM115
            setattr(sys, name, null)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Discard the output that cannot be written, so that Python does not try at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_first_process() -> bool:
    """Return True unless `torchrun` started this process with a rank above 0."""
    return os.environ.get("RANK", "0") == "0"
