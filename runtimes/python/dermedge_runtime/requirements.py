"""Compare an engine's version with what a bundle requires."""

import operator
import re
from collections.abc import Callable, Iterable
from typing import Any

from dermedge_runtime.errors import BundleError, EngineError

COMPARATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+)*")
# A bound of more digits would be no version, and other languages round it.
_BOUND = re.compile(rf"({'|'.join(COMPARATORS)})([0-9]{{1,9}}(?:\.[0-9]{{1,9}})*)")
_REQUIREMENT = re.compile(rf"([A-Za-z0-9][A-Za-z0-9._-]*)({_BOUND.pattern}(?:,{_BOUND.pattern})*)?")


def check_requirement(requirement: object) -> None:
    """Check one entry of an artifact's `requires`, such as `onnxruntime>=1.17,<2`.

    Raises:
        BundleError: It is not a name, optionally followed by bounds of its version.

    Example:
        >>> check_requirement("onnxruntime>=1.17,<2")
        >>> check_requirement("onnxruntime~=1.17")
        Traceback (most recent call last):
        dermedge_runtime.errors.BundleError: The requirement 'onnxruntime~=1.17' is not...
    """
    if not isinstance(requirement, str) or not _REQUIREMENT.fullmatch(requirement):
        raise BundleError(
            f"The requirement {requirement!r} is not a name with bounds, such as "
            "'onnxruntime>=1.17,<2'. Export the model again."
        )


def check_engine(name: str, version: str, requires: Iterable[str]) -> None:
    """Check that an engine satisfies what an artifact requires of it.

    Requirements of other names are ignored: an engine cannot know the version of a
    phone's system. Of the version, the numbers at its beginning count.

    Args:
        name: Name of the engine.
        version: Version of the engine.
        requires: The artifact's `requires`.

    Raises:
        EngineError: The version is outside a bound, or does not begin with a number.

    Example:
        >>> check_engine("onnxruntime", "1.23.2", ["onnxruntime>=1.17", "iOS>=17"])
        >>> check_engine("onnxruntime", "1.16.3", ["onnxruntime>=1.17"])
        Traceback (most recent call last):
        dermedge_runtime.errors.EngineError: The bundle requires onnxruntime>=1.17, and...
    """
    for requirement in requires:
        found = _REQUIREMENT.fullmatch(requirement)
        if found and found[1] == name and not _satisfies(version, found[2] or ""):
            raise EngineError(
                f"The bundle requires {requirement}, and this is {name} {version}. "
                "Install a version that fits, or export the model again."
            )


def _satisfies(version: str, bounds: str) -> bool:
    """Return whether a version is within all bounds, such as `>=1.17,<2`."""
    numbers = _NUMBERS.match(version)
    return not bounds or (
        numbers is not None
        and all(
            COMPARATORS[comparator](*_padded(numbers[0], bound))
            for comparator, bound in _BOUND.findall(bounds)
        )
    )


def _padded(*versions: str) -> list[list[int]]:
    """Return the numbers of versions, filled with zeros to one length: 1.2 is 1.2.0."""
    numbers = [[int(number) for number in version.split(".")] for version in versions]
    longest = max(map(len, numbers))
    return [parts + [0] * (longest - len(parts)) for parts in numbers]
