"""Names to `module:attribute`: what is built in, and what third parties add by entry points.

Groups: `dermedge.targets`, `dermedge.exporters`, `dermedge.runtimes`, `dermedge.datasets`; they are read only here.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from dermedge_runtime.errors import MissingExtraError, UsageError


def list_entries(builtin: Mapping[str, str], group: str) -> dict[str, str]:
    """All names of a group. A built-in name cannot be taken over by an installed package."""
    from importlib.metadata import entry_points

    return {**{point.name: point.value for point in entry_points(group=group)}, **builtin}


def lookup(kind: str, name: str, builtin: Mapping[str, str], group: str) -> Any:
    """What `name` stands for, imported. Installed packages are only searched for a name that is not built in.

    Raises:
        UsageError: for an unknown name, with the nearest known one.
    """
    if name in builtin:
        return load_entry(builtin[name])
    known = list_entries(builtin, group)
    return load_entry(known[pick_known(kind, name, known)])


def load_entry(entry: str, *, extra: str | None = None) -> Any:
    """The object that `module:attribute` names.

    Args:
        entry: the name; a dotted attribute reaches into classes.
        extra: the extra of dermedge that brings what this module imports.

    Raises:
        MissingExtraError: where the module, or one that it imports, is not installed and `extra` is given.
        UsageError: where there is no such module or attribute.
    """
    module, _, attribute = entry.partition("[")[0].strip().partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split(".") if attribute else ():
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        if extra is not None:
            raise MissingExtraError(error.name or module, extra, entry) from error
        raise UsageError(
            f"Cannot load {entry!r} ({error}); install what it needs, or remove that plug-in."
        ) from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"Cannot load {entry!r} ({error}); install a fitting version of that plug-in."
        ) from error
    return found


def pick_known(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` itself where it is known.

    Raises:
        UsageError: where it is not, with the nearest known name and all of them.
    """
    import difflib

    names = sorted(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"unknown {kind} {name!r}; {hint}known: {', '.join(names) or 'none'}")
