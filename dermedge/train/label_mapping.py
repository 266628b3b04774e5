"""Map the labels of one model to those of another through the taxonomy."""

import numpy as np
from numpy.typing import NDArray

from dermedge.data.taxonomy import project
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Task


def map_labels(own: Task, wanted: Task, name: str) -> NDArray[np.intp] | None:
    """Return the index among `wanted.labels` that covers each of a teacher's labels.

    Every label must be covered, and every wanted label must cover one. Otherwise a
    student would learn that a diagnosis which the teacher does not know never occurs.

    Args:
        own: Task of the teacher.
        wanted: Task of the student, of the same name.
        name: Name of the teacher, for the message.

    Returns:
        Indices [K], or None if both tasks have the same labels in the same order.

    Raises:
        DataError: The kinds differ, or the labels cannot be mapped.

    Example:
        >>> from dermedge_runtime.spec import Label
        >>> def task(*ids):
        ...     return Task("diagnosis", "classify", tuple(Label(i, i) for i in ids))
        >>> map_labels(task("mel", "nv", "mel_in_situ"), task("nv", "mel"), "teacher").tolist()
        [1, 0, 1]
    """
    if own.kind != wanted.kind:
        raise DataError(
            f"The task {own.name!r} of the teacher {name!r} is of kind {own.kind}, not "
            f"{wanted.kind}. Use teachers of the same tasks."
        )
    have, want = [label.id for label in own.labels], [label.id for label in wanted.labels]
    if have == want:
        return None
    # The levels of an ordinal task have no taxonomy, and cumulative logits cannot be
    # regrouped.
    covering = {label: _cover(label, want) if own.kind == "classify" else None for label in have}
    lost = [label for label, target in covering.items() if target is None]
    unknown = [label for label in want if label not in covering.values()]
    if lost or unknown:
        reasons = [f"no student label covers {', '.join(lost)}"] if lost else []
        reasons += [f"the teacher does not know {', '.join(unknown)}"] if unknown else []
        raise DataError(
            f"The labels of the teacher {name!r} ({', '.join(have)}) do not map to those of the "
            f"student ({', '.join(want)}): {' and '.join(reasons)}. Use another teacher, or name "
            "the teacher with the coarser labels first."
        )
    return np.array([want.index(str(covering[label])) for label in have], np.intp)


def _cover(label: str, wanted: list[str]) -> str | None:
    if label in wanted:
        return label
    try:
        return project(label, wanted)
    except DataError:  # not a label of the taxonomy
        return None
