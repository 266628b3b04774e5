"""Prepare the standard streams for any text, any code page and a closed pipe."""

import io
import os
import sys


def prepare_streams() -> None:
    """Replace closed standard streams, and escape what a stream's code page lacks.

    A closed standard stream would give its descriptor to the next file that is opened,
    and an engine's log would be written into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The system returns the lowest free number.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Discard the output that cannot be written, so that Python does not try at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
