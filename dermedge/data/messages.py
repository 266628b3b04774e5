"""Shorten values of tables for messages."""

from collections.abc import Iterable

LONGEST = 80
"""Number of characters of a value that a message shows."""
COLUMNS_SHOWN = 20


def quote(value: object) -> str:
    """Return a value as a literal of at most about 80 characters; bytes as their size.

    Examples:
        >>> quote("nevus"), quote(bytes(12225))
        ("'nevus'", '<12,225 bytes>')
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value):,} bytes>"
    if isinstance(value, str):
        rest = f"... ({len(value):,} characters)" if len(value) > LONGEST else ""
        return f"{value[:LONGEST]!r}{rest}"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def list_columns(names: Iterable[object]) -> str:
    """Return the first names of columns, separated by commas.

    Examples:
        >>> list_columns(["file", "label"])
        'file, label'
    """
    shown = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in map(str, names)]
    rest = len(shown) - COLUMNS_SHOWN
    return ", ".join([*shown[:COLUMNS_SHOWN], *([f"and {rest} more"] if rest > 0 else [])])
