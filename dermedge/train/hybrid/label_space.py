"""Map the diagnoses of several sources into one label space."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge.data.taxonomy import TAXONOMY, lineage, split_diagnoses

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
        diagnoses: Cells of the column `dx` of the source; "" is ignored.

    Example:
        >>> sorted(source_vocabulary(["sk;lplk", ""]))
        ['bkl', 'keratinocytic', 'lplk', 'sk']
    """
    return frozenset(
        wider for cell in diagnoses for dx in split_diagnoses(cell) for wider in lineage(dx)
    )


def label_targets(
    diagnoses: Sequence[str], vocabulary: Collection[str], space: Sequence[str]
) -> tuple[Flags, Flags]:
    """Return multi-hot targets and allowed entries of rows of one source.

    A diagnosis is positive together with its ancestors. Entries that are not allowed do
    not count in the loss:

    - classes outside the source's vocabulary,
    - descendants of a row's diagnosis, because the label leaves them open, unless they
      are positive by another diagnosis of the row,
    - all classes of a row without a diagnosis.

    Args:
        diagnoses: Ids of the taxonomy, "" for unknown; `;` separates several of one
            row.
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
    ancestors = {name: frozenset(lineage(name)) for name in space}
    nothing = np.zeros(len(space), bool)
    rows_of = {"": (nothing, nothing)}
    for cell in set(diagnoses) - {""}:
        found = set(split_diagnoses(cell))
        wider = {name for dx in found for name in lineage(dx)}
        positive = np.array([name in wider for name in space])
        narrower = np.array([not found.isdisjoint(ancestors[name]) for name in space])
        listed = np.array([name in vocabulary for name in space])
        rows_of[cell] = (positive, listed & (positive | ~narrower))
    rows = [rows_of[cell] for cell in diagnoses]
    return np.stack([positive for positive, _ in rows]), np.stack([allowed for _, allowed in rows])
