"""The unified label space: what a row's diagnosis says of every class, and what its source could have said."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge.data.taxonomy import TAXONOMY, lineage

Flags = NDArray[np.bool_]


def label_space() -> tuple[str, ...]:
    """The ids of all diagnoses, in the taxonomy's order: one output of the label head each."""
    return tuple(TAXONOMY)


def sources_vocabulary(diagnoses: Collection[str]) -> frozenset[str]:
    """The classes that a source can label, given those that occur in it: these and all wider ones."""
    return frozenset(wider for dx in diagnoses if dx for wider in lineage(dx))


def label_targets(
    diagnoses: Sequence[str], vocabulary: Collection[str], space: Sequence[str]
) -> tuple[Flags, Flags]:
    """Multi-hot targets and allowed entries, bool [N, C] each, of rows of one source.

    A diagnosis holds together with all wider ones. A class narrower than a row's own diagnosis may or may not be
    true, so it is not allowed there; nor is any class outside the source's vocabulary. Rows without a diagnosis
    have no allowed entry.

    Args:
        diagnoses: ids of the taxonomy, "" for unknown.
        vocabulary: what the source can label.
        space: the columns.
    """
    column = {name: index for index, name in enumerate(space)}
    wider = {name: set(lineage(name)) for name in space}
    of = {"": (np.zeros(len(space), bool), np.zeros(len(space), bool))}
    for dx in set(diagnoses) - {""}:
        true, known = np.zeros(len(space), bool), np.zeros(len(space), bool)
        true[[column[name] for name in wider[dx] if name in column]] = True
        narrower = {name for name in vocabulary if dx in wider.get(name, ()) and name != dx}
        known[[column[name] for name in vocabulary if name in column and name not in narrower]] = (
            True
        )
        of[dx] = (true, known)
    rows = [of[dx] for dx in diagnoses]
    return np.stack([true for true, _ in rows]), np.stack([known for _, known in rows])
