"""Look up names in registries of `module:attribute` entries.

A registry holds the built-in names and those that installed packages add as entry
points. The groups are `dermedge.targets`, `dermedge.exporters`, `dermedge.runtimes` and
`dermedge.datasets`. Only this module reads them.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from dermedge_runtime.errors import MissingExtraError, UsageError


def list_entries(builtin: Mapping[str, str], group: str) -> dict[str, str]:
    """Return all entries of a group by name.

    Args:
        builtin: Built-in entries. An installed package cannot replace one of them.
        group: Entry-point group.
    """
    from importlib.metadata import entry_points

    return {**{point.name: point.value for point in entry_points(group=group)}, **builtin}


def lookup(kind: str, name: str, builtin: Mapping[str, str], group: str) -> Any:
    """Import the object with a registered name.

    Installed packages are searched only for a name that is not built in.

    Args:
        kind: Kind of the name, for messages, such as `engine`.
        name: Name to look up.
        builtin: Built-in entries.
        group: Entry-point group.

    Raises:
        UsageError: The name is unknown; the message has the nearest known one.

    Example:
        >>> lookup("codec", "json", {"json": "json:dumps"}, "dermedge.codecs")([1])
        '[1]'
    """
    if name in builtin:
        return load_entry(builtin[name])
    known = list_entries(builtin, group)
    return load_entry(known[pick_known(kind, name, known)])


def load_entry(entry: str, *, extra: str | None = None) -> Any:
    """Import the object that `module:attribute` names.

    Args:
        entry: Module and attribute; a dotted attribute reaches into classes.
        extra: Extra of dermedge that installs the packages this module imports.

    Raises:
        MissingExtraError: The module, or one that it imports, is not installed, and
            `extra` is given.
        UsageError: There is no such module or attribute.

    Example:
        >>> load_entry("pathlib:PurePosixPath.name")
        <property object at ...>
    """
    module, _, attribute = entry.partition("[")[0].strip().partition(":")
    try:
        loaded: Any = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            loaded = getattr(loaded, part)
    except ModuleNotFoundError as error:
        if extra is not None:
            raise MissingExtraError(error.name or module, extra, entry) from error
        raise UsageError(
            f"Cannot load {entry!r} ({error}). Install the missing package, or remove that plug-in."
        ) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"Cannot load {entry!r} ({error}). Install a version of that plug-in that fits."
        ) from error
    return loaded


def pick_known(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Args:
        kind: Kind of the name, for the message.
        name: Name to check.
        known: All known names.

    Raises:
        UsageError: The name is unknown; the message has the nearest known one and all.

    Example:
        >>> pick_known("target", "jetsn", ["cpu", "jetson"])
        Traceback (most recent call last):
        dermedge_runtime.errors.UsageError: Unknown target 'jetsn'. Did you mean 'jetso...
    """
    import difflib

    names = sorted(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"Unknown {kind} {name!r}. {hint}Known: {', '.join(names) or 'none'}.")
