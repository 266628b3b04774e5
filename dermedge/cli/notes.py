"""Print what was understood in tables."""

import contextlib
import logging
from collections.abc import Iterator

import click

from dermedge.cli.streams import is_first_process
from dermedge_runtime.printable import printable


@contextlib.contextmanager
def print_notes() -> Iterator[None]:
    """Print the notes on tables to standard error, each once."""
    logger = logging.getLogger("dermedge.data")
    level, handler = logger.level, _NotesHandler(logging.INFO)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _NotesHandler(logging.Handler):
    """A handler that prints no message twice, because commands read a table often."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = printable(record.getMessage())
        if message not in self._printed and is_first_process():
            self._printed.add(message)
            click.echo(message, err=True)
