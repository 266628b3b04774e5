"""One tree of diagnoses, and the names under which the public data sets know them.

The tree is in `dermedge.data.diagnoses`, the names are in `dermedge.data.aliases`.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from dermedge.data.aliases import ALIASES, SOURCE_ALIASES
from dermedge.data.diagnoses import DIAGNOSES, Diagnosis
from dermedge_runtime.errors import DataError

__all__ = ["ALIASES", "SOURCE_ALIASES", "TAXONOMY", "Diagnosis", "lineage", "project", "resolve"]

TAXONOMY: Mapping[str, Diagnosis] = MappingProxyType(
    {diagnosis.id: diagnosis for diagnosis in DIAGNOSES}
)


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", re.sub("['\u2019]", "", name.strip().casefold()))


_KNOWN: Mapping[str, str] = {
    **{_key(d.name): d.id for d in DIAGNOSES},
    **{_key(alias): target for alias, target in ALIASES.items()},
    **{_key(d.id): d.id for d in DIAGNOSES},
}
_KNOWN_OF: Mapping[str, Mapping[str, str]] = {
    source: {_key(alias): target for alias, target in aliases.items()}
    for source, aliases in SOURCE_ALIASES.items()
}


def resolve(name: str, source: str | None = None) -> Diagnosis:
    """The diagnosis that a label stands for: an id, a name or an alias; case and separators do not matter.

    Args:
        name: the label.
        source: the public set it comes from (a key of `SOURCE_ALIASES`), whose own meaning of a label comes first; any
            other is read by the common names.

    Raises:
        DataError: for a label that the taxonomy does not know.
    """
    key = _key(name)
    found = _KNOWN_OF.get(source or "", {}).get(key) or _KNOWN.get(key)
    if found is not None:
        return TAXONOMY[found]
    close = difflib.get_close_matches(key, _KNOWN, n=3, cutoff=0.6)
    meant = list(dict.fromkeys(_KNOWN[match] for match in close))
    hint = f"did you mean {' or '.join(repr(m) for m in meant)}? If not, use" if meant else "use"
    raise DataError(
        f"Label {name!r} is not in the taxonomy: {hint} an id of dermedge.data.TAXONOMY, a wider one such as 'other', "
        "or leave the cell empty."
    )


def lineage(diagnosis: str) -> Iterator[str]:
    """The ids from a diagnosis up to the root of its branch, itself first."""
    step: str | None = resolve(diagnosis).id
    while step is not None:
        yield step
        step = TAXONOMY[step].parent


def project(diagnosis: str, labels: Collection[str]) -> str | None:
    """The narrowest of `labels` that covers a diagnosis (`sk` is a `bkl`), or None where none does."""
    return next((step for step in lineage(diagnosis) if step in labels), None)
