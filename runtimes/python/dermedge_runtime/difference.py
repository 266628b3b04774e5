"""Find where a prediction differs from the golden one, and why."""

import math
from collections.abc import Mapping, Sequence

from dermedge_runtime.decode import Array, softmax
from dermedge_runtime.spec import AGAIN, Json, Postprocessing, Spec, Task, to_json

# Languages differ in the last digits of exp(); a wrong formula differs by far more.
DECODED_WITHIN = 1e-6
SOLVED = ("labels", "malignancy")
"""Fields whose temperature can be computed from the prediction."""


def describe_difference(
    actual: Json,
    golden: Json,
    outputs: Mapping[str, Array],
    spec: Spec,
    fitted: Mapping[str, Postprocessing],
) -> str:
    """Describe the first difference of two predictions, its cause and what to do.

    The golden prediction was decoded at export from the same outputs. If other labels,
    another temperature or another threshold explain it, the message names them.

    Args:
        actual: Prediction as this machine decodes `outputs`, as JSON.
        golden: Prediction of the golden case, as JSON.
        outputs: Outputs of the golden case by task, without the batch dimension.
        spec: Spec of the bundle.
        fitted: Postprocessing of the bundle by task.

    Returns:
        Sentences, or "" if the predictions are equal. Numbers may differ by 1e-6, and a
        missing key is null.

    Example:
        >>> from dermedge_runtime.bundle import Bundle
        >>> toy = Bundle.open("toy.dermedge")
        >>> case = toy.golden()[0]
        >>> other = {**case.prediction, "threshold": 0.9}
        >>> model = (case.expected, toy.spec, toy.postprocessing)
        >>> describe_difference(case.prediction, other, *model)
        "threshold is ..., not 0.9. Task 'malignancy' has temperature..."
    """
    difference = _find_difference(actual, golden, "")
    if not difference:
        return ""
    cause, explained = _find_cause(actual, golden, outputs, spec, fitted)
    advice = AGAIN if explained else "Install the newest dermedge."
    return " ".join(filter(None, (f"{difference}.", cause, advice)))


def _find_difference(actual: object, want: object, where: str) -> str:
    """Describe the first difference between two JSON values; "" if there is none.

    A missing key is null, so that fields may be added later.
    """
    if isinstance(actual, Mapping) and isinstance(want, Mapping):
        keys = sorted({*actual, *want})
        parts = [(actual.get(key), want.get(key), f"{where}.{key}") for key in keys]
    elif isinstance(actual, list) and isinstance(want, list) and len(actual) == len(want):
        parts = [(actual[i], want[i], f"{where}[{i}]") for i in range(len(actual))]
    elif _is_same(actual, want):
        return ""
    else:
        return f"{where.lstrip('.') or 'it'} is {actual!r}, not {want!r}"
    return next(filter(None, (_find_difference(*part) for part in parts)), "")


def _is_same(actual: object, want: object) -> bool:
    if isinstance(actual, bool) or isinstance(want, bool):
        return actual is want
    if isinstance(actual, (int, float)) and isinstance(want, (int, float)):
        return abs(actual - want) <= DECODED_WITHIN
    return type(actual) is type(want) and actual == want


def _find_cause(
    actual: Json,
    golden: Json,
    outputs: Mapping[str, Array],
    spec: Spec,
    fitted: Mapping[str, Postprocessing],
) -> tuple[str, bool]:
    """Return a sentence about the task whose field differs, and whether it explains it."""
    for field, task in _fields(spec).items():
        if task is None or not _find_difference(actual.get(field), golden.get(field), field):
            continue
        if field == "labels" and (text := _compare_labels(actual[field], golden.get(field), task)):
            return text, True
        if field == "malignancy" and task.kind == "classify":
            # The labels and their probabilities are equal, so the sum is another one.
            malignant = [label.id for label in task.labels if label.malignant]
            return f"The malignant labels of task {task.name!r} are {malignant}.", True
        values = fitted.get(task.name, Postprocessing())
        text = f"Task {task.name!r} has {_describe(values)}"
        logits = [float(value) for value in outputs[task.name].ravel()]
        other = _solve_temperature(golden, task, logits) if field in SOLVED else None
        if other is not None and not math.isclose(other, values.temperature or 1, rel_tol=1e-4):
            return f"{text}, but temperature {other:.4g} gives the golden prediction.", True
        return f"{text}.", field == "threshold"
    return "", False


def _fields(spec: Spec) -> dict[str, Task | None]:
    """Return the task that gives each field; a field comes after those it follows from."""

    def first(kind: str) -> Task | None:
        return next((task for task in spec.tasks if task.kind == kind), None)

    return {
        "labels": spec.diagnosis,
        "malignancy": spec.malignancy,
        "threshold": spec.malignancy,
        "ood_score": first("ood"),
        "ood": first("ood"),
        "decision": spec.malignancy,
        "refer_reason": spec.malignancy,
        "conformal_set": spec.diagnosis,
        "severity": first("ordinal"),
        "mask_fraction": first("segment"),
        "embedding": first("embed"),
    }


def _describe(values: Postprocessing) -> str:
    """Name the temperature and the threshold, and the other values that are fitted."""
    text = f"temperature {_written(values.temperature)} and threshold {_written(values.threshold)}"
    others = {
        "rule_in": values.rule_in,
        "ood_threshold": values.ood_threshold,
        **(to_json(values.conformal) if values.conformal else {}),
    }
    return ", ".join(
        [text, *(f"{key} {value}" for key, value in others.items() if value is not None)]
    )


def _written(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def _compare_labels(actual: list[Json], golden: object, task: Task) -> str:
    """Describe other ids, names or another order of labels; "" if only numbers differ."""
    pairs = _names(golden)
    own = {label.id: label.name for label in task.labels}
    if pairs is None or dict(pairs).keys() != own.keys():
        other = sorted(dict(pairs)) if pairs is not None else golden
        return f"Task {task.name!r} has the labels {sorted(own)}, and the golden case {other}."
    for key, name in pairs:
        if name != own[key]:
            return f"The label {key!r} is {own[key]!r}, and in the golden case {name!r}."
    ours, theirs = (_probabilities(labels) for labels in (actual, golden))
    if theirs is None or ours is None:
        return ""
    moved = any(abs(ours[key] - theirs[key]) > DECODED_WITHIN for key in own)
    same = zip(sorted(ours.values()), sorted(theirs.values()), strict=True)
    if moved and all(abs(one - other) <= DECODED_WITHIN for one, other in same):
        return f"The labels of task {task.name!r} are in another order than at the export."
    return ""


def _names(labels: object) -> list[tuple[str, object]] | None:
    """Return ids and names of a prediction's labels; None if they are something else."""
    try:
        return [(str(label["id"]), label["name"]) for label in labels]  # type: ignore[attr-defined]
    except (TypeError, KeyError):
        return None


def _probabilities(labels: object) -> dict[str, float] | None:
    """Return the probabilities of a prediction's labels by id; None if there are none."""
    try:
        return {str(one["id"]): float(one["probability"]) for one in labels}  # type: ignore[attr-defined]
    except (TypeError, KeyError, ValueError):
        return None


def _solve_temperature(golden: Json, task: Task, logits: Sequence[float]) -> float | None:
    """Return the temperature that gives the golden probabilities; None if none does."""
    if task.kind == "binary":
        # A score is the softmax of its logit and 0.
        score = golden.get("malignancy")
        logits = [logits[0], 0.0]
        wanted = [score, 1 - score] if isinstance(score, float) else []
    else:
        by_id = _probabilities(golden.get("labels")) or {}
        wanted = [by_id.get(label.id, 0.0) for label in task.labels]
    if not wanted or not all(0 < value < 1 for value in wanted):
        return None
    # The logarithm of a ratio of probabilities is a difference of logits, divided by T.
    high, low = logits.index(max(logits)), logits.index(min(logits))
    ratio = math.log(wanted[high] / wanted[low])
    if ratio <= 0:
        return None
    temperature = (logits[high] - logits[low]) / ratio
    again = softmax(logits, temperature) if temperature > 0 else [math.nan] * len(wanted)
    fits = all(abs(a - b) <= DECODED_WITHIN for a, b in zip(again, wanted, strict=True))
    return temperature if fits else None
