"""Decode the raw outputs of a network into a Prediction.

The arithmetic is a few lines in float64, the same in every language.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dermedge_runtime import activations
from dermedge_runtime.errors import EngineError
from dermedge_runtime.quality import QualityLimits, describe_lesion, measure_lesion
from dermedge_runtime.spec import AGAIN, Conformal, Json, Postprocessing, Spec, Task, to_json

Array = npt.NDArray[Any]
Outputs = dict[str, npt.NDArray[np.float32]]
"""Raw outputs of an engine by task, float32 [N, ...]."""

Decision = Literal["malignant", "benign", "refer"]
ReferReason = Literal["ood", "uncertain"]

_UNFITTED = Postprocessing()


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """A label and its probability.

    Example:
        >>> from dermedge_runtime.model import load
        >>> with load("toy.dermedge") as model:
        ...     for label in model.predict("lesion.png").labels:
        ...         print(f"{label.name}: {label.probability:.0%}")
        Basal cell carcinoma: 68%
        Melanocytic naevus: 30%
        Melanoma: 1%
    """

    id: str
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds spent on one image: in preprocessing, and in the engine.

    Example:
        >>> from dermedge_runtime.model import load
        >>> with load("toy.dermedge") as model:
        ...     timing = model.predict("lesion.png").timing
        >>> 0 < timing.preprocess_ms + timing.engine_ms
        True
    """

    preprocess_ms: float
    engine_ms: float


@dataclass(frozen=True, slots=True)
class Provenance:
    """Bundle and engine that computed a prediction.

    Example:
        >>> from dermedge_runtime.model import load
        >>> with load("toy.dermedge") as model:
        ...     source = model.predict("lesion.png").provenance
        >>> f"{source.name} {source.version}, {source.precision} for {source.target}"
        'toy 1.0.0, fp32 for cpu'
    """

    bundle: str
    name: str
    version: str
    target: str
    precision: str
    engine: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """Decoded outputs of a model for one image.

    A field is None (`labels` empty) if the model has no such task, or if the value it
    needs was not fitted.

    `labels` are those of the diagnosis task, most probable first. `malignancy` is the
    score that `threshold` turns into `decision`. The decision `refer` means that a
    person must decide; `refer_reason` is `ood`, or `uncertain` for a score that is
    neither clearly benign nor clearly malignant. `conformal_set` has the ids of the
    labels that fit the image, most probable first; it may be empty. `ood` is True for
    an image unlike the training images, whose `ood_score` exceeds the fitted threshold.
    `severity` is the level of the ordinal task, counted from 0. `mask` is bool [S, S]
    in the preprocessed frame. `cam` is the class activation map of the most probable
    label, float32 [h, w] over the same frame: its mean is the label's logit, and places
    with larger values raise it more. `embedding` is L2-normalised. `quality` has a text
    for each reason to take the photograph again, if any: signs of damage, and measures
    of the pixels and of the mask beyond the bundle's limits.

    Example:
        >>> from dermedge_runtime.model import load
        >>> with load("toy.dermedge") as model:
        ...     prediction = model.predict("lesion.png")
        >>> prediction.labels[0].id, prediction.decision
        ('bcc', 'malignant')
    """

    labels: tuple[ScoredLabel, ...] = ()
    malignancy: float | None = None
    threshold: float | None = None
    decision: Decision | None = None
    refer_reason: ReferReason | None = None
    conformal_set: tuple[str, ...] | None = None
    ood: bool | None = None
    ood_score: float | None = None
    severity: int | None = None
    mask: npt.NDArray[np.bool_] | None = field(default=None, compare=False)
    cam: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    embedding: tuple[float, ...] | None = None
    timing: Timing | None = None
    provenance: Provenance | None = None
    quality: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """Convert the prediction to JSON types.

        The mask itself is left out; `mask_fraction` is the part of the frame it covers.
        `cam` is left out, and `quality` if it is empty.
        """
        data: Json = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name == "mask":
                data["mask_fraction"] = None if value is None else float(value.mean())
            elif entry.name != "cam" and (value or entry.name != "quality"):
                data[entry.name] = to_json(value)
        return data


def decode(
    outputs: Mapping[str, Array],
    spec: Spec,
    postprocessing: Mapping[str, Postprocessing],
    *,
    timing: Timing | None = None,
    provenance: Provenance | None = None,
    quality: tuple[str, ...] = (),
    limits: QualityLimits | None = None,
) -> Prediction:
    """Decode the outputs of one image.

    Args:
        outputs: One array per task, without the batch dimension; shapes as in `Task`.
        spec: Spec of the model.
        postprocessing: Fitted values by task. A task without an entry has none.
        timing: Timing to store in the prediction.
        provenance: Provenance to store in the prediction.
        quality: Sentences about the image to store in the prediction.
        limits: Limits of image quality. With them, a sentence about the size of the
            lesion follows the others, if the model has a mask. None judges no mask.

    Raises:
        EngineError: An output is missing, has a wrong shape, or holds NaN or infinity.

    Example:
        >>> from dermedge_runtime.spec import Preprocess
        >>> tasks = (Task("malignancy", "binary"),)
        >>> spec = Spec("toy", "1", tasks, Preprocess(size=48))
        >>> fitted = {"malignancy": Postprocessing(temperature=2.0, threshold=0.4)}
        >>> decode({"malignancy": np.zeros(1, np.float32)}, spec, fitted).decision
        'malignant'
    """
    found: dict[str, Any] = {}
    for task in spec.tasks:
        array = _checked(outputs, task, spec.preprocess.size)
        fitted = postprocessing.get(task.name, _UNFITTED)
        # Of several tasks that give a field, the first counts.
        found = {**_decode_task(task, array, fitted, spec), **found}
    maps = found.pop("maps", None)
    if maps is not None and spec.diagnosis is not None:
        row = [label.id for label in spec.diagnosis.labels].index(found["labels"][0].id)
        found["cam"] = np.asarray(maps[row], np.float32)
    if limits is not None and "mask" in found:
        quality += describe_lesion(measure_lesion(found["mask"]), limits)
    scored = spec.malignancy
    fitted = _UNFITTED if scored is None else postprocessing.get(scored.name, _UNFITTED)
    decision, reason = _decide(found.get("malignancy"), fitted, found.get("ood"))
    return Prediction(
        threshold=fitted.threshold,
        decision=decision,
        refer_reason=reason,
        timing=timing,
        provenance=provenance,
        quality=quality,
        **found,
    )


def _decode_task(task: Task, array: Array, fitted: Postprocessing, spec: Spec) -> dict[str, Any]:
    """Return the fields of a prediction that one task gives, and `maps` of a `cam` task."""
    temperature = 1.0 if fitted.temperature is None else fitted.temperature
    if task.kind in ("segment", "cam"):
        _check_finite(task, bool(np.isfinite(array).all()))
        if task.kind == "cam":
            return {"maps": array}
        if fitted.threshold is None:
            return {}
        size = spec.preprocess.size
        return {"mask": segment_mask(array[0], size, temperature, fitted.threshold)}
    # Plain floats, not arrays: one image has few values, so numpy's cost per call would
    # exceed the arithmetic. dermedge_export/evaluation/predictions.py decodes whole
    # tables.
    values: list[float] = array.tolist()
    _check_finite(task, all(map(math.isfinite, values)))
    if task is spec.diagnosis:
        return _decode_diagnosis(task, softmax(values, temperature), fitted, spec)
    if task is spec.malignancy:
        return {"malignancy": sigmoid(values[0] / temperature)}
    if task.kind == "ordinal":
        return {"severity": ordinal_level(values, temperature)}
    if task.kind == "embed":
        return {"embedding": tuple(values)}
    if task.kind == "ood":
        threshold = fitted.ood_threshold
        return {"ood_score": values[0], "ood": None if threshold is None else values[0] > threshold}
    return {}


def _decode_diagnosis(
    task: Task, probabilities: Sequence[float], fitted: Postprocessing, spec: Spec
) -> dict[str, Any]:
    """Return the labels, their conformal set, and the score if the diagnosis gives it."""
    fields: dict[str, Any] = {"labels": _rank(task, probabilities)}
    if fitted.conformal is not None:
        fields["conformal_set"] = conformal_set(fields["labels"], task, fitted.conformal)
    if task is spec.malignancy:
        fields["malignancy"] = _sum_malignant(task, probabilities)
    return fields


def _decide(
    score: float | None, fitted: Postprocessing, ood: bool | None
) -> tuple[Decision | None, ReferReason | None]:
    """Return the decision for a malignancy score, and the reason if it is `refer`."""
    if ood:
        return "refer", "ood"
    if score is None or fitted.threshold is None:
        return None, None
    if score < fitted.threshold:
        return "benign", None
    if fitted.rule_in is None or score >= fitted.rule_in:
        return "malignant", None
    return "refer", "uncertain"


def conformal_set(
    labels: Sequence[ScoredLabel], task: Task, conformal: Conformal
) -> tuple[str, ...]:
    """Return the ids of the labels whose conformal score is at most their quantile.

    Args:
        labels: Labels of the task, most probable first.
        task: The `classify` task.
        conformal: Fitted method and quantiles.

    Example:
        >>> from dermedge_runtime.spec import Label
        >>> task = Task("type", "classify", (Label("a", "A"), Label("b", "B")))
        >>> labels = [ScoredLabel("b", "B", 0.7), ScoredLabel("a", "A", 0.3)]
        >>> conformal_set(labels, task, Conformal("aps", 0.9, (0.95, 0.95)))
        ('b',)

    Source: `lac`, Sadinle et al., Least Ambiguous Set-Valued Classifiers with Bounded
    Error Levels, JASA 2019. `aps`, Romano et al., Classification with Valid and Adaptive
    Coverage, NeurIPS 2020, without randomization. `raps`, Angelopoulos et al.,
    Uncertainty Sets for Image Classifiers using Conformal Prediction, ICLR 2021.
    """
    quantiles = dict(zip((label.id for label in task.labels), conformal.quantiles, strict=True))
    members, total = [], 0.0
    for rank, label in enumerate(labels, start=1):
        total += label.probability
        score = 1.0 - label.probability if conformal.method == "lac" else total
        if conformal.method == "raps":
            score += conformal.penalty * max(0, rank - conformal.free)
        quantile = quantiles[label.id]
        if quantile is None or score <= quantile:
            members.append(label.id)
    return tuple(members)


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return exp(z / T), normalised to a sum of one.

    Example:
        >>> softmax([0.0, 0.0])
        [0.5, 0.5]
    """
    top = max(logits)
    powers = [math.exp((z - top) / temperature) for z in logits]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + exp(-z)), without overflow.

    Example:
        >>> sigmoid(0.0), sigmoid(-1000.0)
        (0.5, 0.0)
    """
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)


def ordinal_level(logits: Sequence[float], temperature: float = 1.0) -> int:
    """Return the level of an ordinal task.

    It is the number of cumulative probabilities P(y > k) above 0.5, after a running
    minimum has made them non-increasing.

    Example:
        >>> ordinal_level([3.0, 1.0, -2.0])
        2
    """
    # P(y > k) cannot grow with k, but independent outputs can. The running minimum
    # corrects that.
    level, lowest = 0, 1.0
    for logit in logits:
        lowest = min(lowest, sigmoid(logit / temperature))
        level += lowest > 0.5
    return level


def segment_mask(
    logits: Array, size: int, temperature: float, threshold: float
) -> npt.NDArray[np.bool_]:
    """Return the mask of a segment task, bool [size, size].

    It is the sigmoid of the logits, enlarged bilinearly, at or above the threshold.
    Pixel centres are at halves and edges are repeated; columns are interpolated before
    rows.

    Args:
        logits: Logits [h, w].
        size: S, side of the mask in pixels.
        temperature: Divides the logits.
        threshold: Smallest probability inside the mask.
    """
    probability = activations.sigmoid(logits.astype(np.float64) / temperature)
    return enlarge(probability, size) >= threshold


def enlarge(values: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Enlarge values [h, w] bilinearly to [size, size]; columns before rows.

    Pixel centres are at halves and edges are repeated.

    Args:
        values: The values.
        size: Side of the result.

    Example:
        >>> enlarge(np.array([[0.0, 1.0]]), 4)[0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    return _enlarge(_enlarge(values.T, size).T, size)


def _enlarge(rows: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Interpolate linearly along the first axis."""
    count = rows.shape[0]
    # Clipping the centres repeats the edges: outside the samples the weight is 0.
    centre = np.clip((np.arange(size) + 0.5) * (count / size) - 0.5, 0, count - 1)
    low = centre.astype(np.intp)
    high = np.minimum(low + 1, count - 1)
    weight = (centre - low)[:, None]
    enlarged: npt.NDArray[np.float64] = rows[low] + (rows[high] - rows[low]) * weight
    return enlarged


def _sum_malignant(task: Task, probabilities: Sequence[float]) -> float:
    # Labels whose sources disagree (None) count as neither.
    chosen = [p for label, p in zip(task.labels, probabilities, strict=True) if label.malignant]
    return min(sum(chosen), 1.0)  # a sum of rounded probabilities may exceed 1 by 1e-16


def _rank(task: Task, probabilities: Sequence[float]) -> tuple[ScoredLabel, ...]:
    """Return the labels, most probable first; equal ones keep the task's order."""
    scored = [
        ScoredLabel(label.id, label.name, p)
        for label, p in zip(task.labels, probabilities, strict=True)
    ]
    return tuple(sorted(scored, key=lambda label: -label.probability))


def expected_shape(task: Task, size: int) -> tuple[int | None, ...]:
    """Return the shape of a task's output for one image; None is a free width.

    Args:
        task: The task.
        size: S, side of the network's input in pixels.

    Example:
        >>> expected_shape(Task("lesion", "segment"), 224)
        (1, 56, 56)
    """
    if task.kind == "classify":
        return (len(task.labels),)
    if task.kind == "ordinal":
        return (len(task.labels) - 1,)
    if task.kind == "segment":  # networks predict masks at a quarter of the resolution
        return (1, size // 4, size // 4)
    if task.kind == "cam":
        return (len(task.labels), None, None)
    return (1,) if task.kind in ("binary", "ood") else (None,)


def fits_shape(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Return whether a shape is the expected one, of which None is a free width.

    Example:
        >>> fits_shape((7, 4, 4), (7, None, None)), fits_shape((7, 4), (7, None, None))
        (True, False)
    """
    return len(shape) == len(expected) and all(
        want in (None, have) for have, want in zip(shape, expected, strict=True)
    )


def _checked(outputs: Mapping[str, Array], task: Task, size: int) -> Array:
    """Return a task's output; raise EngineError if it is missing or misshapen."""
    values = outputs.get(task.name)
    if values is None:
        raise EngineError(
            f"The engine gave no output {task.name!r}, only {sorted(outputs)}. {AGAIN}"
        )
    expected = expected_shape(task, size)
    if values.shape != expected and not fits_shape(values.shape, expected):
        raise EngineError(
            f"Output {task.name!r} has shape {list(values.shape)}, not {list(expected)}. {AGAIN}"
        )
    return values


def _check_finite(task: Task, finite: bool) -> None:
    if not finite:
        raise EngineError(
            f"Output {task.name!r} holds NaN or infinity. Run `dermedge verify` on the bundle."
        )
