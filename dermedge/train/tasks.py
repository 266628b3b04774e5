"""Derive the tasks that a model can learn from a table."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dermedge.data.taxonomy import TAXONOMY, resolve, split_diagnoses
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Label, Task

if TYPE_CHECKING:
    import pandas as pd


def derive_tasks(
    frame: "pd.DataFrame", where: str, wanted: Sequence[str] | None = None
) -> tuple[Task, ...]:
    """Return the tasks that a model can learn from the train rows of a table.

    - `diagnosis` has the diagnoses that occur, in the order of the taxonomy.
    - `malignancy` needs malignant and benign rows.
    - `severity` is ordinal over the levels that occur.
    - `segmentation` becomes the task `lesion` and needs a mask.
    - `embedding` becomes the task `features`, as in imported teachers: the normalised
      pooled features. It needs no column.

    Args:
        frame: The train rows.
        where: Name of the table, for messages.
        wanted: Names from TASKS. The table must have the labels of all of them. None
            takes `diagnosis` and `malignancy` if the table has their labels, and
            otherwise `severity`.

    Raises:
        DataError: The rows lack the labels of a wanted task, or of all tasks.
        UsageError: `wanted` is empty or names an unknown task.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"dx": ["nv", "mel"], "malignant": [0.0, 1.0]})
        >>> [task.name for task in derive_tasks(frame, "table.csv")]
        ['diagnosis', 'malignancy']
    """
    if wanted is None:
        return _derive_default(frame, where)
    unknown = sorted(set(wanted) - set(TASKS))
    if unknown or not wanted:
        raise UsageError(
            f"{', '.join(unknown) or 'No task'} cannot be learned. Choose from {', '.join(TASKS)}."
        )
    tasks = []
    for name in (name for name in TASKS if name in wanted):
        task = _DERIVED[name](frame)
        if not isinstance(task, Task):
            raise DataError(
                f"The train rows of {where} {task}. Fill that column, or leave the task {name!r} "
                "out."
            )
        tasks.append(task)
    return tuple(tasks)


def _derive_default(frame: "pd.DataFrame", where: str) -> tuple[Task, ...]:
    derived = [_derive_diagnosis(frame), _derive_malignancy(frame)]
    tasks = tuple(task for task in derived if isinstance(task, Task))
    if tasks:
        return tasks
    severity = _derive_severity(frame)
    if isinstance(severity, Task):
        return (severity,)
    raise DataError(
        f"The train rows of {where} {derived[0]}, {derived[1]}, {severity}, so no task can be "
        "derived. Fill one of these columns."
    )


def _derive_diagnosis(frame: "pd.DataFrame") -> Task | str:
    """Return the task, or the reason why the rows lack its labels.

    The functions for the other tasks return the same.
    """
    # A row with several diagnoses teaches none of them, so it makes no class.
    present = {dx for dx in frame["dx"] if len(split_diagnoses(dx)) == 1}
    if len(present) < 2:
        return f"have {len(present)} diagnoses, two are needed (column dx)"
    order = {name: i for i, name in enumerate(TAXONOMY)}
    labels = tuple(
        Label(d.id, d.name, d.malignant, {"icd11": d.icd11} if d.icd11 else {})
        for d in sorted(map(resolve, present), key=lambda diagnosis: order[diagnosis.id])
    )
    return Task("diagnosis", "classify", labels)


def _derive_malignancy(frame: "pd.DataFrame") -> Task | str:
    if set(frame["malignant"].dropna().unique()) >= {0, 1}:
        return Task("malignancy", "binary")
    return "do not hold both malignant and benign lesions (column malignant)"


def _derive_severity(frame: "pd.DataFrame") -> Task | str:
    levels = sorted({int(level) for level in frame["severity"].dropna()})
    if len(levels) < 2:
        return f"have {len(levels)} levels of severity, two are needed (column severity)"
    labels = tuple(Label(str(level), f"severity {level}") for level in levels)
    return Task("severity", "ordinal", labels)


def _derive_segmentation(frame: "pd.DataFrame") -> Task | str:
    has_masks = (frame["mask"] != "").any()
    return Task("lesion", "segment") if has_masks else "have no mask (column mask)"


def _derive_embedding(frame: "pd.DataFrame") -> Task | str:
    return Task("features", "embed")


_DERIVED: dict[str, Callable[["pd.DataFrame"], Task | str]] = {
    "diagnosis": _derive_diagnosis,
    "malignancy": _derive_malignancy,
    "severity": _derive_severity,
    "segmentation": _derive_segmentation,
    "embedding": _derive_embedding,
}
TASKS = tuple(_DERIVED)
