"""Raw outputs of a network -> a Prediction. A few lines of arithmetic in float64, the same in every language."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dermedge_runtime import activations
from dermedge_runtime.errors import EngineError
from dermedge_runtime.spec import Json, Postprocessing, Spec, Task, to_json

Array = npt.NDArray[Any]

_UNFITTED = Postprocessing()


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """A label and its probability."""

    id: str
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds spent on one image: from the encoded source to the tensor, and in the engine."""

    preprocess_ms: float
    engine_ms: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which bundle said so, and which engine computed it."""

    bundle: str
    name: str
    version: str
    target: str
    precision: str
    engine: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model says about one image. A field is None (`labels` empty) where the model has no such task, or where
    what it takes was not fitted.

    `labels` are those of the diagnosis task, most probable first. `malignancy` is the score that `threshold` turns into
    `decision`. `severity` is the level of the ordinal task, counted from 0. `mask` is bool [S, S] in the preprocessed
    frame. `embedding` is L2-normalised.
    """

    labels: tuple[ScoredLabel, ...] = ()
    malignancy: float | None = None
    threshold: float | None = None
    decision: Literal["malignant", "benign"] | None = None
    conformal_set: tuple[str, ...] | None = None
    ood: bool | None = None
    severity: int | None = None
    mask: npt.NDArray[np.bool_] | None = field(default=None, compare=False)
    embedding: tuple[float, ...] | None = None
    timing: Timing | None = None
    provenance: Provenance | None = None

    def to_json(self) -> Json:
        """The prediction as JSON types; of the mask only `mask_fraction`, the part of the frame that it covers."""
        data: Json = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "mask":
                data["mask_fraction"] = None if value is None else float(value.mean())
            else:
                data[entry.name] = to_json(value)
        return data


def decode(
    outputs: Mapping[str, Array],
    spec: Spec,
    postprocessing: Mapping[str, Postprocessing],
    *,
    timing: Timing | None = None,
    provenance: Provenance | None = None,
) -> Prediction:
    """Reads the outputs of one image.

    Args:
        outputs: One array per task, without the batch dimension; shapes as in `Task`.
        spec: The model's tasks and labels.
        postprocessing: Keyed by task; a task that is missing here has nothing fitted.
        timing: Carried into the prediction.
        provenance: Carried into the prediction.

    Raises:
        EngineError: An output is missing, has a wrong shape, or holds NaN or infinity.
    """
    diagnosis, malignancy = spec.diagnosis, spec.malignancy
    labels: tuple[ScoredLabel, ...] = ()
    score: float | None = None
    found: dict[str, Any] = {}
    for task in spec.tasks:
        fitted = postprocessing.get(task.name, _UNFITTED)
        temperature = 1.0 if fitted.temperature is None else fitted.temperature
        array = _checked(outputs, task, spec.preprocess.size)
        if task.kind == "segment":
            _check_finite(task, bool(np.isfinite(array).all()))
            if "mask" not in found and fitted.threshold is not None:
                found["mask"] = segment_mask(
                    array[0], spec.preprocess.size, temperature, fitted.threshold
                )
            continue
        values: list[float] = array.tolist()
        _check_finite(task, all(map(math.isfinite, values)))
        if task is diagnosis:
            probabilities = softmax(values, temperature)
            labels = _ranked(task, probabilities)
            if task is malignancy:
                score = sum(
                    p
                    for label, p in zip(task.labels, probabilities, strict=True)
                    if label.malignant
                )
        elif task is malignancy:
            score = sigmoid(values[0] / temperature)
        elif task.kind == "ordinal" and "severity" not in found:
            found["severity"] = ordinal_level(values, temperature)
        elif task.kind == "embed" and "embedding" not in found:
            found["embedding"] = tuple(values)
    threshold = (
        None if malignancy is None else postprocessing.get(malignancy.name, _UNFITTED).threshold
    )
    if score is not None:
        score = min(score, 1.0)
        if threshold is not None:
            found["decision"] = "malignant" if score >= threshold else "benign"
    return Prediction(labels, score, threshold, timing=timing, provenance=provenance, **found)


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """exp(z / T), normalised to a sum of one."""
    top = max(logits)
    powers = [math.exp((z - top) / temperature) for z in logits]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-z)), without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)


def ordinal_level(logits: Sequence[float], temperature: float = 1.0) -> int:
    """How many of the cumulative probabilities P(y > k), made non-increasing by a running minimum, are above 0.5."""
    level, lowest = 0, 1.0
    for logit in logits:
        lowest = min(lowest, sigmoid(logit / temperature))
        level += lowest > 0.5
    return level


def segment_mask(
    logits: Array, size: int, temperature: float, threshold: float
) -> npt.NDArray[np.bool_]:
    """Sigmoid of logits [h, w], enlarged bilinearly to [size, size], >= threshold.

    Half-pixel centres, edges repeated; columns are interpolated before rows.
    """
    probability = activations.sigmoid(logits.astype(np.float64) / temperature)
    columns = _enlarged(probability.T, size).T
    return _enlarged(columns, size) >= threshold


def _enlarged(rows: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Linear interpolation along the first axis."""
    count = rows.shape[0]
    centre = np.clip((np.arange(size) + 0.5) * (count / size) - 0.5, 0, count - 1)
    low = centre.astype(np.intp)
    high = np.minimum(low + 1, count - 1)
    weight = (centre - low)[:, None]
    enlarged: npt.NDArray[np.float64] = rows[low] + (rows[high] - rows[low]) * weight
    return enlarged


def _ranked(task: Task, probabilities: Sequence[float]) -> tuple[ScoredLabel, ...]:
    scored = [
        ScoredLabel(label.id, label.name, p)
        for label, p in zip(task.labels, probabilities, strict=True)
    ]
    return tuple(sorted(scored, key=lambda label: -label.probability))


def expected_shape(task: Task, size: int) -> tuple[int | None, ...]:
    """The shape of a task's output without the batch dimension; None where the model chooses the width."""
    if task.kind == "classify":
        return (len(task.labels),)
    if task.kind == "ordinal":
        return (len(task.labels) - 1,)
    if task.kind == "segment":
        return (1, size // 4, size // 4)
    return (1,) if task.kind == "binary" else (None,)


def _checked(outputs: Mapping[str, Array], task: Task, size: int) -> Array:
    values = outputs.get(task.name)
    if values is None:
        raise EngineError(
            f"The engine gave no output {task.name!r}, only {sorted(outputs)}: export the model again."
        )
    expected = expected_shape(task, size)
    if values.shape != expected and not (expected == (None,) and values.ndim == 1):
        raise EngineError(
            f"Output {task.name!r} has shape {list(values.shape)}, not {list(expected)}: export the model again."
        )
    return values


def _check_finite(task: Task, finite: bool) -> None:
    if not finite:
        raise EngineError(
            f"Output {task.name!r} holds NaN or infinity: run `dermedge verify` on the bundle."
        )
