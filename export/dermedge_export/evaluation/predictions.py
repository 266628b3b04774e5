"""Tables of predictions: what a model answered for many images, and what is known about those images."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation import metrics
from dermedge_runtime.activations import sigmoid, softmax
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Kind, Postprocessing, Spec, Task

Array = NDArray[Any]
Run = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Raw outputs of one model over N images, with what is known about each image.

    `outputs` are logits float32 [N, ...] keyed by task; `labels` int64 [N] indexes the diagnosis task's labels, -1 if
    unknown; `malignant` float64 [N] is 1, 0 or NaN; `groups` [N] names the lesion or patient; `subgroups` maps a column
    (`fitzpatrick`, `sex`, `age_band`, `site`) to text [N], "" where unknown. `levels` int64 [N] indexes the ordinal
    task's labels, -1 if unknown; `masks` int8 [N, S/4, S/4] is 1 inside the lesion and 0 outside, -1 throughout if
    unknown. None tells nothing of any image.
    """

    image_ids: tuple[str, ...]
    outputs: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    malignant: NDArray[np.float64]
    groups: NDArray[np.str_]
    subgroups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    levels: NDArray[np.int64] | None = None
    masks: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        columns: dict[str, Array] = {
            "labels": self.labels,
            "malignant": self.malignant,
            "groups": self.groups,
        }
        optional = {"levels": self.levels, "masks": self.masks}
        columns |= {name: column for name, column in optional.items() if column is not None}
        for name, column in (columns | dict(self.outputs) | dict(self.subgroups)).items():
            if len(column) != len(self.image_ids):
                raise DataError(
                    f"Column {name!r} has {len(column)} rows for {len(self.image_ids)} images; give one each."
                )

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, mask: Array) -> "Predictions":
        """The rows that `mask` (boolean [N], or indices) selects."""
        chosen = np.arange(len(self))[mask]
        return Predictions(
            image_ids=tuple(self.image_ids[i] for i in chosen),
            outputs={name: output[chosen] for name, output in self.outputs.items()},
            labels=self.labels[chosen],
            malignant=self.malignant[chosen],
            groups=self.groups[chosen],
            subgroups={name: column[chosen] for name, column in self.subgroups.items()},
            levels=None if self.levels is None else self.levels[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )


@dataclass(frozen=True, eq=False)
class Graded:
    """The severity by an ordinal task: the `predicted` and the true `levels` int64 [N], -1 where unknown."""

    predicted: NDArray[np.int64]
    levels: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.bool_]:
        """The images whose level is known, [N]."""
        return self.levels >= 0


@dataclass(frozen=True, eq=False)
class Outlined:
    """The masks by a `segment` task: what is `inside` bool [N, S/4, S/4], and the `dice` coefficient float64 [N] with
    the true mask, NaN where that is unknown.
    """

    inside: NDArray[np.bool_]
    dice: NDArray[np.float64]

    @property
    def rows(self) -> NDArray[np.bool_]:
        """The images whose mask is known, [N]."""
        return np.isfinite(self.dice)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A table of predictions, decoded: what metrics are computed from.

    A model without a diagnosis task is read as a classifier of benign and malignant; `names` holds its K classes, none
    for a model that classifies nothing. `labels` int64 [N] is -1 where unknown, `predicted` is int64 [N],
    `probabilities` float64 [N, K], `scores` float64 [N] of malignancy, NaN for a model that says nothing of it.
    `graded`, `outlined` and `embedding` float32 [N, D] are None for a model without such a task.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    scores: NDArray[np.float64]
    threshold: float | None
    graded: Graded | None = None
    outlined: Outlined | None = None
    embedding: NDArray[np.float32] | None = None


def predict_table(
    run: Run, images: Iterable[NDArray[np.uint8]], *, batch: int = 32
) -> dict[str, NDArray[np.float32]]:
    """Outputs [N, ...] of `run` over preprocessed `images` uint8 [S, S, 3], in batches of at most `batch`."""
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for chunk in _batches(images, batch):
        for name, output in run(np.stack(chunk)).items():
            parts.setdefault(name, []).append(np.asarray(output, np.float32))
    return {name: np.concatenate(part) for name, part in parts.items()}


def probabilities(
    predictions: Predictions, spec: Spec, postprocessing: Mapping[str, Postprocessing]
) -> NDArray[np.float64]:
    """Diagnosis probabilities [N, K], softmax(z / T); [N, 0] for a model without a diagnosis task."""
    task = spec.diagnosis
    if task is None:
        return np.empty((len(predictions), 0))
    temperature = _temperature(task.name, postprocessing)
    return softmax(_read_logits(predictions, task.name), temperature)


def malignancy_scores(
    predictions: Predictions, spec: Spec, postprocessing: Mapping[str, Postprocessing]
) -> NDArray[np.float64]:
    """Malignancy score [N]: sigmoid(z / T) of the `malignancy` task where there is one, else the summed probability of
    the malignant labels; NaN for a model that has neither.
    """
    task = spec.malignancy
    if task is None:
        return np.full(len(predictions), np.nan)
    if task.kind == "binary":
        temperature = _temperature(task.name, postprocessing)
        return sigmoid(_read_logits(predictions, task.name)[:, 0] / temperature)
    chosen = np.array([label.malignant is True for label in task.labels])
    return np.asarray(
        np.minimum(probabilities(predictions, spec, postprocessing)[:, chosen].sum(axis=1), 1.0)
    )


def decode_table(
    predictions: Predictions, spec: Spec, postprocessing: Mapping[str, Postprocessing]
) -> Decoded:
    """Classes, probabilities and malignancy scores of a table of predictions, its levels, masks and embeddings."""
    embed = _answered(predictions, spec, "embed")
    return replace(
        _classes(predictions, spec, postprocessing),
        graded=graded(predictions, spec, postprocessing),
        outlined=outlined(predictions, spec, postprocessing),
        embedding=None if embed is None else predictions.outputs[embed.name],
    )


def _classes(
    predictions: Predictions, spec: Spec, postprocessing: Mapping[str, Postprocessing]
) -> Decoded:
    scores = malignancy_scores(predictions, spec, postprocessing)
    fitted = postprocessing.get(spec.malignancy.name) if spec.malignancy is not None else None
    threshold = fitted.threshold if fitted is not None else None
    if spec.diagnosis is not None:
        names = tuple(label.id for label in spec.diagnosis.labels)
        diagnosed = probabilities(predictions, spec, postprocessing)
        return Decoded(
            names, predictions.labels, diagnosed.argmax(axis=1), diagnosed, scores, threshold
        )
    names = ("benign", "malignant") if spec.malignancy is not None else ()
    labels = np.where(np.isnan(predictions.malignant), -1, predictions.malignant).astype(np.int64)
    predicted = (scores >= (0.5 if threshold is None else threshold)).astype(np.int64)
    both = np.stack([1 - scores, scores], axis=1)[:, : len(names)]
    return Decoded(
        names, labels if names else np.full_like(labels, -1), predicted, both, scores, threshold
    )


def graded(
    predictions: Predictions, spec: Spec, postprocessing: Mapping[str, Postprocessing]
) -> Graded | None:
    """The severity by the first ordinal task; None where there is no such output."""
    task = _answered(predictions, spec, "ordinal")
    if task is None:
        return None
    levels = (
        np.full(len(predictions), -1, np.int64)
        if predictions.levels is None
        else predictions.levels
    )
    temperature = _temperature(task.name, postprocessing)
    return Graded(ordinal_levels(_read_logits(predictions, task.name), temperature), levels)


def ordinal_levels(logits: Array, temperature: float = 1.0) -> NDArray[np.int64]:
    """Return the level [N] of cumulative `logits` [N, K-1], as the scalar
    `dermedge_runtime.decode.ordinal_level` does.
    """
    above = sigmoid(np.asarray(logits, np.float64) / temperature)
    return np.asarray((np.minimum.accumulate(above, axis=1) > 0.5).sum(axis=1), np.int64)


def outlined(
    predictions: Predictions, spec: Spec, postprocessing: Mapping[str, Postprocessing]
) -> Outlined | None:
    """The masks by the first `segment` task, on the output's own grid, at its threshold or where none was fitted at
    0.5; None where there is no such output.
    """
    task = _answered(predictions, spec, "segment")
    if task is None:
        return None
    fitted = postprocessing.get(task.name)
    threshold = 0.5 if fitted is None or fitted.threshold is None else fitted.threshold
    inside = mask_probabilities(predictions, task.name, postprocessing) >= threshold
    overlap = np.full(len(predictions), np.nan)
    if predictions.masks is not None:
        known = (predictions.masks >= 0).all(axis=(1, 2))
        overlap[known] = metrics.dice(predictions.masks[known] > 0, inside[known])
    return Outlined(inside, overlap)


def mask_probabilities(
    predictions: Predictions, task: str, postprocessing: Mapping[str, Postprocessing]
) -> NDArray[np.float64]:
    """Of every cell [N, S/4, S/4] of a `segment` output: sigmoid(z / T)."""
    logits = _read_logits(predictions, task)[:, 0]
    return sigmoid(logits / _temperature(task, postprocessing))


def _answered(predictions: Predictions, spec: Spec, kind: Kind) -> Task | None:
    """The first task of a kind whose outputs are there: a reference that travels in a bundle leaves large ones out."""
    return next(
        (task for task in spec.tasks if task.kind == kind and task.name in predictions.outputs),
        None,
    )


def _read_logits(predictions: Predictions, task: str) -> NDArray[np.float64]:
    """Return a task's logits in float64, as the device decodes them."""
    if task not in predictions.outputs:
        raise DataError(
            f"The model gave no output {task!r}, only {sorted(predictions.outputs)}; export it again."
        )
    return predictions.outputs[task].astype(np.float64)


def _temperature(task: str, postprocessing: Mapping[str, Postprocessing]) -> float:
    fitted = postprocessing.get(task)
    return 1.0 if fitted is None or fitted.temperature is None else fitted.temperature


def _batches(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, size)):
        yield chunk
