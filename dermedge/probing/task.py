"""What a probe asks of a table: the answer that is known of every row, and which rows are fitted on."""

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from dermedge.data.table import Table, groups
from dermedge.evaluation.table_predictions import labels as diagnosis_labels
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Kind, Spec

Labels = NDArray[np.int64]
Groups = NDArray[np.str_]

# Task -> (kind of answer, column that holds it)
TASKS: dict[str, tuple[Kind, str]] = {
    "diagnosis": ("classify", "dx"),
    "malignancy": ("binary", "malignant"),
    "severity": ("ordinal", "severity"),
    "segment": ("segment", "mask"),
}


@dataclass(frozen=True, eq=False)
class ProbeSplit:
    """The rows of one split whose answer is known: `labels` [N] of them, `groups` [N], the lesion or patient."""

    table: Table
    labels: Labels
    groups: Groups

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: NDArray[np.intp]) -> "ProbeSplit":
        """Some of its rows, by index."""
        return ProbeSplit(
            self.table.replace(self.table.frame.iloc[chosen]),
            self.labels[chosen],
            self.groups[chosen],
        )


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """A task on a table whose rows are all in a split.

    `labels` [N] index `names`, -1 where the answer is unknown or no class covers it; of a segmentation they only tell
    which rows have a mask (0) and which have none (-1). `groups` [N] names the lesion or patient.
    """

    task: str
    names: tuple[str, ...]
    table: Table
    labels: Labels
    groups: Groups

    @property
    def kind(self) -> Kind:
        """Of the task's answer."""
        return TASKS[self.task][0]

    def part(self, split: str) -> ProbeSplit:
        """The rows of a split whose answer is known.

        Raises:
            DataError: there are none.
        """
        self.table.select_split(split)  # says what there is where the split is empty
        chosen = np.flatnonzero(
            (self.table.frame["split"] == split).to_numpy() & (self.labels >= 0)
        )
        if len(chosen) == 0:
            column = TASKS[self.task][1]
            raise DataError(
                f"No {split} row of {self.table.file} has a {column} that the task {self.task} can use: fill the "
                f"column {column!r}, or choose another task."
            )
        return ProbeSplit(self.table, self.labels, self.groups).rows(chosen)

    def unanswered(self, split: str) -> int:
        """How many rows of a split are left out, as nothing is known of them or no class covers them."""
        return int(((self.table.frame["split"] == split).to_numpy() & (self.labels < 0)).sum())


def make_probe_task(task: str, table: Table, spec: Spec) -> ProbeTask:
    """A task on a table.

    The classes of `diagnosis` are the diagnoses of the train split; a narrower one of another split counts as the class
    that covers it. The levels of `severity` go from 0 to the highest of the table.

    Args:
        task: one of TASKS.
        table: every row in a split.
        spec: any model's.

    Raises:
        DataError: the train split holds fewer than two answers, so that there is nothing to learn.
    """
    frame, (_, column) = table.frame, TASKS[task]
    train = (frame["split"] == "train").to_numpy()
    if task == "diagnosis":
        from dermedge.train.tasks import derive_tasks

        classes = derive_tasks(frame[train], str(table.root), ("diagnosis",))
        names = tuple(label.id for label in classes[0].labels)
        labels = diagnosis_labels(frame, replace(spec, tasks=classes))
    elif task == "segment":
        names, labels = (
            ("background", "lesion"),
            np.where(frame[column] != "", 0, -1).astype(np.int64),
        )
    else:
        labels = frame[column].fillna(-1).to_numpy(np.int64)
        highest = 1 if task == "malignancy" else max(1, int(labels.max()))
        names = (
            ("benign", "malignant") if task == "malignancy" else tuple(map(str, range(highest + 1)))
        )
    answers = len(set(labels[train & (labels >= 0)].tolist()))
    if answers < (1 if task == "segment" else 2):
        raise DataError(
            f"The train rows of {table.file} hold {answers} different answers in the column {column!r}, too few for "
            f"the task {task}: fill the column, or choose another task."
        )
    return ProbeTask(task, names, table, labels, groups(frame).to_numpy(str))


def draw_fraction(labels: Labels, groups: Groups, fraction: float, seed: int) -> NDArray[np.intp]:
    """A share of every class's images, by whole groups: the labels that a clinic could afford.

    Groups are taken in an order drawn from the seed, class by class, the rarest first, until a class has its share; of
    every class there is at least one group. A group that holds several classes counts for all of them.

    Args:
        labels: [N], class indices.
        groups: [N], the lesion or patient.
        fraction: share of each class's images, over 0 and up to 1; a group is taken whole, so it may become more.
        seed: of the order.

    Returns:
        Indices of the images, ascending.
    """
    counts = np.bincount(labels)
    members = {group: np.flatnonzero(groups == group) for group in dict.fromkeys(groups.tolist())}
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


def shared_groups(question: ProbeTask) -> list[str]:
    """Lesions or patients that stand in train and in test."""
    split = question.table.frame["split"].to_numpy()
    return sorted(set(question.groups[split == "train"]) & set(question.groups[split == "test"]))
