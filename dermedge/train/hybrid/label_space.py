"""Map the diagnoses of several sources into one label space."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge.data.taxonomy import TAXONOMY, lineage

Flags = NDArray[np.bool_]


def label_space() -> tuple[str, ...]:
    """Return the ids of all diagnoses, in the order of the label head's outputs.

    Example:
        >>> "mel" in label_space()
        True
    """
    return tuple(TAXONOMY)


def source_vocabulary(diagnoses: Collection[str]) -> frozenset[str]:
    """Return the classes that a source can label: its diagnoses and their ancestors.

    Args:
        diagnoses: Ids of the diagnoses that occur in the source; "" is ignored.

    Example:
        >>> sorted(source_vocabulary(["sk", ""]))
        ['bkl', 'keratinocytic', 'sk']
    """
    return frozenset(wider for dx in diagnoses if dx for wider in lineage(dx))


def label_targets(
    diagnoses: Sequence[str], vocabulary: Collection[str], space: Sequence[str]
) -> tuple[Flags, Flags]:
    """Return multi-hot targets and allowed entries of rows of one source.

    A diagnosis is positive together with its ancestors. Entries that are not allowed do
    not count in the loss:

    - classes outside the source's vocabulary,
    - descendants of a row's diagnosis, because the label leaves them open,
    - all classes of a row without a diagnosis.

    Args:
        diagnoses: Ids of the taxonomy, "" for unknown.
        vocabulary: Classes that the source can label.
        space: Class ids of the columns.

    Returns:
        Targets and allowed entries, bool [N, C] each.

    Example:
        >>> space = ["keratinocytic", "bkl", "sk", "mel"]
        >>> vocabulary = ["keratinocytic", "bkl", "sk"]
        >>> positive, allowed = label_targets(["bkl"], vocabulary, space)
        >>> positive[0].tolist()
        [True, True, False, False]
        >>> allowed[0].tolist()
        [True, True, False, False]
    """
    column = {name: index for index, name in enumerate(space)}
    ancestors = {name: set(lineage(name)) for name in space}
    rows_of = {"": (np.zeros(len(space), bool), np.zeros(len(space), bool))}
    for dx in set(diagnoses) - {""}:
        positive, allowed = np.zeros(len(space), bool), np.zeros(len(space), bool)
        positive[[column[name] for name in ancestors[dx] if name in column]] = True
        narrower = {name for name in vocabulary if dx in ancestors.get(name, ()) and name != dx}
        known = [name for name in vocabulary if name in column and name not in narrower]
        allowed[[column[name] for name in known]] = True
        rows_of[dx] = (positive, allowed)
    rows = [rows_of[dx] for dx in diagnoses]
    return np.stack([positive for positive, _ in rows]), np.stack([allowed for _, allowed in rows])
