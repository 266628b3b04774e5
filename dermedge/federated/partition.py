"""Divide one table among simulated clients, at random or with a label skew."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge.data.split import with_split
from dermedge.data.table import Table, groups
from dermedge_runtime.errors import DataError, UsageError

ATTEMPTS = 1000
SMALLEST = 20
"""Fewest images of a client."""


@dataclass(frozen=True)
class Partition:
    """Division of one table among clients.

    Attributes:
        clients: Number of clients.
        skew: Concentration of the Dirichlet distribution that gives each client's share
            of each label: .1 is strong, 100 is none. None divides evenly.
        seed: Random seed of the division.

    Raises:
        UsageError: A value is out of range.

    Example:
        >>> Partition(clients=3, skew=0.3).seed
        0
    """

    clients: int
    skew: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clients < 2 or (self.skew is not None and not self.skew > 0):
            raise UsageError(
                f"A partition into {self.clients} clients with skew {self.skew} is not possible. "
                "Give at least 2 clients, and a skew above 0."
            )


def divide(table: Table, partition: Partition) -> dict[str, Table]:
    """Divide the groups of a table among clients named `client-1`, `client-2` and so on.

    The splits of the table are kept, so the test images of all clients together are
    those of the table. A label is the malignancy of a group, or its diagnosis if the
    table has no malignancy. A draw that leaves a client with too few images, without val
    or test images, or without malignant or benign train images, is repeated.

    Source of the label skew: Hsu, Qi and Brown, "Measuring the effects of non-identical
    data distribution for federated visual classification", 2019.

    Raises:
        DataError: No draw gives each client enough images.

    Example:
        >>> from dermedge.data.table import read_table
        >>> parts = divide(read_table("lesions"), Partition(clients=2))
        >>> list(parts), sum(map(len, parts.values()))
        (['client-1', 'client-2'], 80)
    """
    table = with_split(table)
    frame = table.frame
    ids = groups(frame).to_numpy(str)
    named = frame["malignant"].map("{:.0f}".format).to_numpy(str)
    labels = named if frame["malignant"].notna().any() else frame["dx"].to_numpy(str)
    names, first = np.unique(ids, return_index=True)
    strata = np.char.add(np.char.add(labels[first], "/"), frame["split"].to_numpy(str)[first])
    rng = np.random.default_rng(partition.seed)
    for _ in range(ATTEMPTS):
        owner = dict(zip(names, _draw(labels[first], strata, partition, rng), strict=True))
        owners = np.array([owner[name] for name in ids])
        parts = {
            f"client-{number + 1}": table.replace(frame[owners == number])
            for number in range(partition.clients)
        }
        if all(_is_usable(part) for part in parts.values()):
            return parts
    raise DataError(
        f"{len(table)} images cannot be divided into {partition.clients} clients with skew "
        f"{partition.skew}. Use fewer clients or a larger skew."
    )


def _draw(
    labels: NDArray[Any], strata: NDArray[Any], partition: Partition, rng: np.random.Generator
) -> NDArray[Any]:
    """Return the client of each group."""
    owner = np.zeros(len(labels), np.int64)
    shares = {
        label: np.full(partition.clients, 1 / partition.clients)
        if partition.skew is None
        else rng.dirichlet(np.full(partition.clients, partition.skew))
        for label in np.unique(labels)
    }
    # The shares of a label are the same in every split.
    for stratum in np.unique(strata):
        places = rng.permutation(np.flatnonzero(strata == stratum))
        bounds = np.cumsum(shares[labels[places[0]]])[:-1] * len(places)
        for number, part in enumerate(np.split(places, np.round(bounds).astype(int))):
            owner[part] = number
    return owner


def _is_usable(part: Table) -> bool:
    sizes = part.frame["split"].value_counts().reindex(["train", "val", "test"]).fillna(0)
    train = part.frame["malignant"][part.frame["split"] == "train"].dropna()
    return (
        len(part) >= SMALLEST and bool((sizes > 0).all()) and (train.empty or train.nunique() == 2)
    )
