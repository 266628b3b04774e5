"""Define a probe's task on a table: classes, labels and splits."""

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dermedge.data.table import Table, groups
from dermedge.evaluation.table_predictions import diagnosis_labels
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Kind, Spec

Labels = NDArray[np.int64]
Groups = NDArray[np.str_]

# Task -> (kind of its output, column of the table that holds the label)
TASKS: dict[str, tuple[Kind, str]] = {
    "diagnosis": ("classify", "dx"),
    "malignancy": ("binary", "malignant"),
    "severity": ("ordinal", "severity"),
    "segment": ("segment", "mask"),
}


@dataclass(frozen=True, eq=False)
class ProbeSplit:
    """Rows of one split with a known label.

    Attributes:
        table: The N rows.
        labels: Class index [N] of each row.
        groups: Lesion or patient [N] of each row.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> table = read_table("lesions")
        >>> part = ProbeSplit(table, np.zeros(80, np.int64), np.arange(80).astype(str))
        >>> len(part), len(part.rows(np.array([3, 5])))
        (80, 2)
    """

    table: Table
    labels: Labels
    groups: Groups

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: NDArray[np.intp]) -> "ProbeSplit":
        """Return some of the rows, by index."""
        return ProbeSplit(
            self.table.replace(self.table.frame.iloc[chosen]),
            self.labels[chosen],
            self.groups[chosen],
        )


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """Task on a table whose rows all have a split.

    Attributes:
        name: One of `TASKS`.
        classes: Names of the classes.
        table: The N rows.
        labels: Class index [N] of each row, -1 if the label is unknown or no class
            covers it. For a segmentation, 0 for a row with a mask and -1 for a row
            without one.
        groups: Lesion or patient [N] of each row.
        kind: Kind of the task's output.

    Examples:
        >>> from dermedge import Bundle
        >>> from dermedge.data.table import read_table
        >>> from dermedge.data.split import with_split
        >>> table = with_split(read_table("lesions"))
        >>> spec = Bundle.open("toy.dermedge").spec
        >>> task = make_probe_task("malignancy", table, spec)
        >>> task.kind, task.classes
        ('binary', ('benign', 'malignant'))
    """

    name: str
    classes: tuple[str, ...]
    table: Table
    labels: Labels
    groups: Groups
    kind: Kind

    def select(self, split: str) -> ProbeSplit:
        """Return the rows of a split whose label is known.

        Raises:
            DataError: The split is empty, or none of its labels is known.
        """
        self.table.select_split(split)  # Its error lists the splits of the table.
        chosen = np.flatnonzero(
            (self.table.frame["split"] == split).to_numpy() & (self.labels >= 0)
        )
        if len(chosen) == 0:
            column = TASKS[self.name][1]
            raise DataError(
                f"No {split} row of {self.table.file} has a {column} that the task {self.name} can "
                f"use. Fill the column {column!r}, or choose another task."
            )
        return ProbeSplit(self.table, self.labels, self.groups).rows(chosen)

    def count_unlabelled(self, split: str) -> int:
        """Count the rows of a split without a known class, which are left out."""
        return int(((self.table.frame["split"] == split).to_numpy() & (self.labels < 0)).sum())


def make_probe_task(name: str, table: Table, spec: Spec) -> ProbeTask:
    """Make a task on a table.

    The classes of `diagnosis` are the diagnoses of the train split. A narrower
    diagnosis of another split counts as the class that covers it. The levels of
    `severity` go from 0 to the highest level of the table.

    Args:
        name: One of `TASKS`.
        table: The rows, all in a split.
        spec: Spec of any model; its tasks are not used.

    Raises:
        DataError: The train split has fewer than two different labels, or no mask.

    Examples:
        >>> from dermedge import Bundle
        >>> from dermedge.data.table import read_table
        >>> from dermedge.data.split import with_split
        >>> table = with_split(read_table("lesions"))
        >>> make_probe_task("segment", table, Bundle.open("toy.dermedge").spec).classes
        ('background', 'lesion')
    """
    frame, (kind, column) = table.frame, TASKS[name]
    train = (frame["split"] == "train").to_numpy()
    classes: tuple[str, ...]
    if name == "diagnosis":
        from dermedge.train.tasks import derive_tasks

        tasks = derive_tasks(frame[train], str(table.root), ("diagnosis",))
        classes = tuple(label.id for label in tasks[0].labels)
        labels = diagnosis_labels(frame, replace(spec, tasks=tasks))
    elif name == "segment":
        classes = ("background", "lesion")
        labels = np.where(frame[column] != "", 0, -1).astype(np.int64)
    else:
        labels = frame[column].fillna(-1).to_numpy(np.int64)
        levels = max(1, int(labels.max())) + 1
        classes = (
            ("benign", "malignant") if name == "malignancy" else tuple(map(str, range(levels)))
        )
    different = len(set(labels[train & (labels >= 0)].tolist()))
    if different < (1 if name == "segment" else 2):
        raise DataError(
            f"The train rows of {table.file} have {different} different labels in the column "
            f"{column!r}, too few for the task {name}. Fill the column, or choose another task."
        )
    return ProbeTask(name, classes, table, labels, groups(frame).to_numpy(str), kind)


def draw_fraction(labels: Labels, groups: Groups, fraction: float, seed: int) -> NDArray[np.intp]:
    """Draw a fraction of every class's images, by whole lesions or patients.

    The seed shuffles the groups. Class by class, the rarest first, groups are taken
    until the class has its fraction; each class gets at least one group. A group that
    holds several classes counts for all of them.

    Args:
        labels: Class index [N] of each image.
        groups: Lesion or patient [N] of each image.
        fraction: Fraction of each class's images, above 0 and at most 1. Groups are
            taken whole, so it may become larger.
        seed: Random seed of the order.

    Returns:
        Indices of the images, ascending.

    Examples:
        >>> labels = np.array([0] * 8 + [1] * 2)
        >>> groups = np.repeat(np.arange(5), 2).astype(str)
        >>> rows = draw_fraction(labels, groups, 0.25, seed=0)
        >>> len(rows), sorted(set(labels[rows].tolist()))
        (4, [0, 1])
    """
    counts = np.bincount(labels)
    members = {group: np.flatnonzero(groups == group) for group in dict.fromkeys(groups.tolist())}
    # A hash orders the groups, so the draw does not depend on the order of the rows.
    order = sorted(members, key=lambda group: sha256(f"{seed}:{group}".encode()).digest())
    chosen: set[str] = set()
    for label in sorted(np.flatnonzero(counts), key=lambda k: (counts[k], k)):
        wanted = max(1, round(fraction * int(counts[label])))
        holding = [group for group in order if (labels[members[group]] == label).any()]
        taken = sum(
            int((labels[members[group]] == label).sum()) for group in holding if group in chosen
        )
        for group in holding:
            if taken >= wanted:
                break
            if group not in chosen:
                chosen.add(group)
                taken += int((labels[members[group]] == label).sum())
    return np.flatnonzero(np.isin(groups, sorted(chosen)))


def find_shared_groups(task: ProbeTask) -> list[str]:
    """Return the lesions or patients that are in train and in test.

    Examples:
        >>> from dermedge import Bundle
        >>> from dermedge.data.table import read_table
        >>> from dermedge.data.split import with_split
        >>> table = with_split(read_table("lesions"))
        >>> spec = Bundle.open("toy.dermedge").spec
        >>> find_shared_groups(make_probe_task("segment", table, spec))
        []
    """
    split = task.table.frame["split"].to_numpy()
    return sorted(set(task.groups[split == "train"]) & set(task.groups[split == "test"]))
