"""Define a finding: one result of the check of a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "info"]
EXAMPLES = 5
"""Largest number of examples that a finding lists."""


@dataclass(frozen=True)
class Finding:
    """One result of the check of a data set.

    Attributes:
        level: "error", "warning" or "info".
        code: Identifier of the kind of finding, for programs.
        message: Sentences for a person: what is wrong, then what to do.
        count: Number of affected rows, pairs, classes or subgroups.
        examples: Names of the first few of these.

    Examples:
        >>> Finding("info", "empty_split", "The table has no val rows.", 0).level
        'info'
    """

    level: Level
    code: str
    message: str
    count: int
    examples: tuple[str, ...] = ()


def count_items(
    level: Level, code: str, subjects: tuple[str, str], message: str, items: Sequence[str]
) -> Iterator[Finding]:
    """Yield a finding about some items, if there are any.

    Args:
        level: Level of the finding.
        code: Code of the finding.
        subjects: Start of the message for one item and for several, after their number.
        message: Rest of the message.
        items: The items; the first few become examples.
    """
    if items:
        subject = subjects[0] if len(items) == 1 else subjects[1]
        text = f"{len(items)} {subject} {message}"
        yield Finding(level, code, text, len(items), tuple(items[:EXAMPLES]))
