"""Which tasks a table can teach."""

from collections.abc import Callable, Sequence
from typing import Any

from dermedge.data.taxonomy import TAXONOMY, resolve
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Label, Task


def derive_tasks(frame: Any, where: str, wanted: Sequence[str] | None = None) -> tuple[Task, ...]:
    """The tasks that the training rows `frame` of a table can teach.

    `diagnosis` has the labels present, in the taxonomy's order; `malignancy` needs both answers; `severity` is ordinal
    over the levels present; `segmentation` gives the task `lesion`, and needs a mask.

    Args:
        frame: the training rows.
        where: names the table in messages.
        wanted: of TASKS, all of which the table must teach. None is `diagnosis` and `malignancy`, whichever it teaches,
            or where it teaches neither, `severity`.

    Raises:
        DataError: a wanted task cannot be derived; or none can.
        UsageError: an unknown task is wanted.
    """
    if wanted is None:
        found = [_DERIVED[name](frame) for name in ("diagnosis", "malignancy")]
        tasks = tuple(task for task in found if isinstance(task, Task))
        severity = _severity(frame) if not tasks else ""
        if isinstance(severity, Task):
            return (severity,)
        if not tasks:
            raise DataError(
                f"The training rows of {where} {found[0]}, {found[1]}, {severity}, so no task can be derived: fill one "
                "of these columns."
            )
        return tasks
    unknown = sorted(set(wanted) - set(TASKS))
    if unknown or not wanted:
        raise UsageError(
            f"{', '.join(unknown) or 'No task'} cannot be learned: choose of {', '.join(TASKS)}."
        )
    chosen = []
    for name in (name for name in TASKS if name in wanted):
        task = _DERIVED[name](frame)
        if not isinstance(task, Task):
            raise DataError(
                f"The training rows of {where} {task}: fill that column, or leave the task {name!r} out."
            )
        chosen.append(task)
    return tuple(chosen)


def _diagnosis(frame: Any) -> Task | str:
    """The task, or what the rows lack for it."""
    present = set(frame["dx"]) - {""}
    if len(present) < 2:
        return f"have {len(present)} diagnoses, two are needed (column dx)"
    order = {name: i for i, name in enumerate(TAXONOMY)}
    labels = tuple(
        Label(d.id, d.name, d.malignant, {"icd11": d.icd11} if d.icd11 else {})
        for d in sorted(map(resolve, present), key=lambda diagnosis: order[diagnosis.id])
    )
    return Task("diagnosis", "classify", labels)


def _malignancy(frame: Any) -> Task | str:
    if set(frame["malignant"].dropna().unique()) >= {0, 1}:
        return Task("malignancy", "binary")
    return "do not tell malignant from benign lesions (column malignant)"


def _severity(frame: Any) -> Task | str:
    levels = sorted({int(level) for level in frame["severity"].dropna()})
    if len(levels) < 2:
        return f"have {len(levels)} levels of severity, two are needed (column severity)"
    return Task(
        "severity", "ordinal", tuple(Label(str(level), f"severity {level}") for level in levels)
    )


def _segmentation(frame: Any) -> Task | str:
    return (
        Task("lesion", "segment") if (frame["mask"] != "").any() else "have no mask (column mask)"
    )


_DERIVED: dict[str, Callable[[Any], Task | str]] = {
    "diagnosis": _diagnosis,
    "malignancy": _malignancy,
    "severity": _severity,
    "segmentation": _segmentation,
}
TASKS = tuple(_DERIVED)
