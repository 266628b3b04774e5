"""Define the callback to which long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with the number of steps done, their total, and a note on the current step."""


def no_progress(done: int, total: int, note: str) -> None:
    """Ignore a progress report; the default where a caller passes no callback."""
