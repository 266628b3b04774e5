"""Convert errors of a command to one printed line and an exit code."""

import os
import sys
from collections.abc import Sequence

from dermedge.workflows.extras import missing_extra
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.files import DISK_FULL
from dermedge_runtime.printable import printable


def explain(error: Exception, args: Sequence[str] = ()) -> DermedgeError | None:
    """Convert an expected error to a `DermedgeError`.

    Args:
        error: The error that a command raised.
        args: The command line, whose first word names the verb.

    Returns:
        The error to print, or None for a defect, whose traceback must stay visible.
    """
    if isinstance(error, DermedgeError):
        return error
    if isinstance(error, ModuleNotFoundError):
        verb = next((arg for arg in args if not arg.startswith("-")), "")
        return missing_extra(error, f"dermedge {verb}", verb)
    if isinstance(error, OSError) and error.filename is not None:
        return DermedgeError(
            f"{os.fsdecode(error.filename)}: {error.strerror}. "
            "Check the path, its permissions and the free space."
        )
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return DermedgeError(f"The output cannot be written: {error.strerror}. Free space.")
    return None


def print_error(error: object) -> None:
    """Print an error to standard error, always as one line."""
    # print, because click.echo would write across a progress bar.
    print(f"Error: {printable(error)}", file=sys.stderr)
