"""Hold and decode tables of predictions: outputs for many images, and their labels."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.conformal import conformal_sets
from dermedge_runtime.activations import sigmoid, softmax
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Kind, Postprocessing, Spec, Task

Array = NDArray[Any]
PostprocessingByTask = Mapping[str, Postprocessing]
_UNFITTED = Postprocessing()
Run = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[np.float32]]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Raw outputs of one model for N images, with labels and groups of the images.

    An optional column is None if it is unknown for all images.

    Attributes:
        image_ids: Names of the images.
        outputs: Logits by task, float32 [N, ...]; shapes as in `Task`.
        labels: Index of the diagnosis task's label, int64 [N]; -1 if unknown.
        malignant: 1, 0 or NaN for unknown, float64 [N].
        groups: Lesion or patient of each image, text [N]; the bootstrap resamples them.
        subgroups: Column (`fitzpatrick`, `sex`, `age_band`, `site`, `modality`) -> text
            [N]; "" if unknown.
        levels: Index of the ordinal task's label, int64 [N]; -1 if unknown.
        masks: 1 inside the lesion and 0 outside, int8 [N, S/4, S/4]; -1 throughout if
            unknown.
        foreign: Scores of the `ood` task for drawn images without skin, float32 [M];
            None if they were not run.

    Example:
        >>> table = Predictions(
        ...     image_ids=("a", "b"),
        ...     outputs={"malignancy": np.array([[2.0], [-1.0]], np.float32)},
        ...     labels=np.array([-1, -1]),
        ...     malignant=np.array([1.0, 0.0]),
        ...     groups=np.array(["lesion 1", "lesion 2"]),
        ... )
        >>> table.rows(np.array([True, False])).image_ids
        ('a',)
    """

    image_ids: tuple[str, ...]
    outputs: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    malignant: NDArray[np.float64]
    groups: NDArray[np.str_]
    subgroups: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    levels: NDArray[np.int64] | None = None
    masks: NDArray[np.int8] | None = None
    foreign: NDArray[np.float32] | None = None

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
                    f"Column {name!r} has {len(column)} rows for {len(self.image_ids)} images. "
                    "Give one row per image."
                )

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, mask: Array) -> "Predictions":
        """Return the rows that `mask` (bool [N], or indices) selects."""
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
            foreign=self.foreign,
        )


@dataclass(frozen=True, eq=False)
class Graded:
    """Severity levels of an ordinal task.

    Attributes:
        predicted: Predicted levels, int64 [N].
        levels: True levels, int64 [N]; -1 if unknown.

    Example:
        >>> severity = Graded(np.array([1, 2, 0]), levels=np.array([1, 1, -1]))
        >>> errors = np.abs(severity.predicted - severity.levels)
        >>> errors[severity.rows].tolist()
        [0, 1]
    """

    predicted: NDArray[np.int64]
    levels: NDArray[np.int64]

    @property
    def rows(self) -> NDArray[np.bool_]:
        """Images whose level is known, bool [N]."""
        return self.levels >= 0


@dataclass(frozen=True, eq=False)
class Outlined:
    """Masks of a `segment` task.

    Attributes:
        inside: Predicted masks, bool [N, S/4, S/4].
        dice: Dice coefficient with the true mask, float64 [N]; NaN if that is unknown
            or empty.
        empty: Images whose true mask is known and empty, bool [N].

    Example:
        >>> inside, empty = np.ones((2, 8, 8), bool), np.array([False, True])
        >>> lesions = Outlined(inside, np.array([0.75, np.nan]), empty)
        >>> lesions.dice[lesions.rows].tolist(), lesions.false_alarms.tolist()
        ([0.75], [False, True])
    """

    inside: NDArray[np.bool_]
    dice: NDArray[np.float64]
    empty: NDArray[np.bool_]

    @property
    def rows(self) -> NDArray[np.bool_]:
        """Images whose true mask has a lesion, bool [N]. The Dice coefficient counts them."""
        return np.isfinite(self.dice)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Images whose true mask is known, with or without a lesion, bool [N]."""
        return self.rows | self.empty

    @property
    def false_alarms(self) -> NDArray[np.bool_]:
        """Images without a lesion for which one is predicted, bool [N]."""
        return np.asarray(self.empty & self.inside.any(axis=(1, 2)))


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded table of predictions, from which metrics are computed.

    A model without a diagnosis task counts as a classifier of benign and malignant.

    Attributes:
        names: The K classes; empty for a model that classifies nothing.
        labels: True classes, int64 [N]; -1 if unknown.
        predicted: Predicted classes, int64 [N].
        probabilities: Class probabilities, float64 [N, K].
        scores: Malignancy scores, float64 [N]; NaN for a model without such a score.
        threshold: Threshold of the malignancy score; None if not fitted.
        graded: Severity levels; None for a model without an ordinal task.
        outlined: Masks; None for a model without a `segment` task.
        embedding: Embeddings, float32 [N, D]; None for a model without an `embed` task.
        maps: Class activation maps, float32 [N, K, h, w]; None for a model without them.
        rule_in: Smallest score that is malignant; None is the threshold.
        sets: Labels in the conformal sets, bool [N, K]; None if not fitted.
        coverage: Coverage that the sets are fitted to; None if not fitted.
        ood_scores: Scores of the `ood` task, float64 [N]; None for a model without one.
        ood: Flagged images, bool [N]; None if the threshold is not fitted.

    Example:
        >>> decoded = Decoded(
        ...     names=("nv", "mel"),
        ...     labels=np.array([0, 1, -1]),
        ...     predicted=np.array([0, 0, 1]),
        ...     probabilities=np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]),
        ...     scores=np.array([0.1, 0.4, 0.8]),
        ...     threshold=0.3,
        ... )
        >>> known = decoded.labels >= 0
        >>> (decoded.predicted == decoded.labels)[known].tolist()
        [True, False]
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
    maps: NDArray[np.float32] | None = None
    rule_in: float | None = None
    sets: NDArray[np.bool_] | None = None
    coverage: float | None = None
    ood_scores: NDArray[np.float64] | None = None
    ood: NDArray[np.bool_] | None = None

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Labelled images whose conformal set holds their class, bool [N]."""
        covered = np.zeros(len(self.labels), bool)
        if self.sets is not None:
            rows = np.flatnonzero(self.labels >= 0)
            covered[rows] = self.sets[rows, self.labels[rows]]
        return covered

    @property
    def referred(self) -> NDArray[np.bool_]:
        """Images whose decision is `refer`, bool [N]."""
        flagged = np.zeros(len(self.scores), bool) if self.ood is None else self.ood
        if self.threshold is None or self.rule_in is None:
            return flagged
        return np.asarray(
            flagged | ((self.scores >= self.threshold) & (self.scores < self.rule_in))
        )


def predict_table(
    run: Run, images: Iterable[NDArray[np.uint8]], *, batch: int = 32
) -> dict[str, NDArray[np.float32]]:
    """Run a model on preprocessed images, batch by batch.

    Args:
        run: The model, from uint8 [B, S, S, 3] to outputs [B, ...] by task.
        images: Preprocessed images, uint8 [S, S, 3] each.
        batch: Largest number of images in one call.

    Returns:
        Outputs by task, float32 [N, ...].

    Example:
        >>> images = [np.full((4, 4, 3), level, np.uint8) for level in (0, 50, 100)]
        >>> run = lambda batch: {"mean": batch.mean((1, 2, 3), np.float32)[:, None]}
        >>> predict_table(run, images, batch=2)["mean"].ravel().tolist()
        [0.0, 50.0, 100.0]
    """
    parts: dict[str, list[NDArray[np.float32]]] = {}
    for chunk in _batches(images, batch):
        for name, output in run(np.stack(chunk)).items():
            parts.setdefault(name, []).append(np.asarray(output, np.float32))
    return {name: np.concatenate(part) for name, part in parts.items()}


def probabilities(
    predictions: Predictions, spec: Spec, postprocessing: PostprocessingByTask
) -> NDArray[np.float64]:
    """Return diagnosis probabilities, softmax(z / T).

    NaN and infinity pass through; the gate counts them.

    Returns:
        Probabilities, float64 [N, K]; [N, 0] for a model without a diagnosis task.
    """
    task = spec.diagnosis
    if task is None:
        return np.empty((len(predictions), 0))
    temperature = _temperature(task.name, postprocessing)
    return softmax(_read_logits(predictions, task.name), temperature)


def malignancy_scores(
    predictions: Predictions, spec: Spec, postprocessing: PostprocessingByTask
) -> NDArray[np.float64]:
    """Return malignancy scores.

    The score is sigmoid(z / T) of a binary malignancy task, else the summed probability
    of the malignant labels.

    Returns:
        Scores in 0..1, float64 [N]; NaN for a model without either.
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
    predictions: Predictions, spec: Spec, postprocessing: PostprocessingByTask
) -> Decoded:
    """Decode a table of predictions, as `dermedge_runtime.decode` does per image.

    Masks stay on the output's own grid [S/4, S/4], where the device enlarges them
    first.

    Args:
        predictions: Outputs for N images.
        spec: Tasks and labels of the model.
        postprocessing: Fitted for the model, by task; a task that is missing is not
            fitted.

    Raises:
        DataError: The output of a diagnosis or malignancy task is missing.

    Example:
        >>> from dermedge_runtime.spec import Preprocess
        >>> spec = Spec("toy", "1", (Task("malignancy", "binary"),), Preprocess(8))
        >>> table = Predictions(
        ...     ("a", "b"),
        ...     {"malignancy": np.array([[0.0], [-4.0]], np.float32)},
        ...     np.array([-1, -1]),
        ...     np.array([1.0, 0.0]),
        ...     np.array(["a", "b"]),
        ... )
        >>> fitted = {"malignancy": Postprocessing(temperature=2.0, threshold=0.4)}
        >>> decoded = decode_table(table, spec, fitted)
        >>> decoded.scores.round(3).tolist(), decoded.predicted.tolist()
        ([0.5, 0.119], [1, 0])
    """
    embed = _first_task(predictions, spec, "embed")
    cam = _first_task(predictions, spec, "cam")
    return replace(
        _classes(predictions, spec, postprocessing),
        graded=graded(predictions, spec, postprocessing),
        outlined=outlined(predictions, spec, postprocessing),
        embedding=None if embed is None else predictions.outputs[embed.name],
        maps=None if cam is None else predictions.outputs[cam.name],
        **_decode_ood(predictions, spec, postprocessing),
    )


def _classes(predictions: Predictions, spec: Spec, postprocessing: PostprocessingByTask) -> Decoded:
    scores = malignancy_scores(predictions, spec, postprocessing)
    fitted = _fitted(spec.malignancy, postprocessing)
    threshold, rule_in = fitted.threshold, fitted.rule_in
    if spec.diagnosis is not None:
        names = tuple(label.id for label in spec.diagnosis.labels)
        diagnosed = probabilities(predictions, spec, postprocessing)
        conformal = _fitted(spec.diagnosis, postprocessing).conformal
        return Decoded(
            names,
            predictions.labels,
            diagnosed.argmax(axis=1),
            diagnosed,
            scores,
            threshold,
            rule_in=rule_in,
            sets=None if conformal is None else conformal_sets(diagnosed, conformal),
            coverage=None if conformal is None else conformal.coverage,
        )
    names = ("benign", "malignant") if spec.malignancy is not None else ()
    labels = np.where(np.isnan(predictions.malignant), -1, predictions.malignant).astype(np.int64)
    predicted = (scores >= (0.5 if threshold is None else threshold)).astype(np.int64)
    both = np.stack([1 - scores, scores], axis=1)[:, : len(names)]
    known = labels if names else np.full_like(labels, -1)
    return Decoded(names, known, predicted, both, scores, threshold, rule_in=rule_in)


def _decode_ood(
    predictions: Predictions, spec: Spec, postprocessing: PostprocessingByTask
) -> dict[str, Any]:
    """Return `ood_scores` and `ood` of the first `ood` task, as far as they are known."""
    task = _first_task(predictions, spec, "ood")
    if task is None:
        return {}
    scores = _read_logits(predictions, task.name)[:, 0]
    threshold = _fitted(task, postprocessing).ood_threshold
    return {"ood_scores": scores, "ood": None if threshold is None else scores > threshold}


def _fitted(task: Task | None, postprocessing: PostprocessingByTask) -> Postprocessing:
    return postprocessing.get(task.name, _UNFITTED) if task is not None else _UNFITTED


def graded(
    predictions: Predictions, spec: Spec, postprocessing: PostprocessingByTask
) -> Graded | None:
    """Decode the levels of the first ordinal task; None if there is no such output."""
    task = _first_task(predictions, spec, "ordinal")
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
    """Return the severity level of each image.

    `dermedge_runtime.decode.ordinal_level` gives the same level for one image.

    Args:
        logits: Cumulative logits [N, K-1] of K levels.
        temperature: Divisor of the logits.

    Returns:
        Levels in 0..K-1, int64 [N].
    """
    above = sigmoid(np.asarray(logits, np.float64) / temperature)
    return np.asarray((np.minimum.accumulate(above, axis=1) > 0.5).sum(axis=1), np.int64)


def outlined(
    predictions: Predictions, spec: Spec, postprocessing: PostprocessingByTask
) -> Outlined | None:
    """Decode the masks of the first `segment` task; None if there is no such output.

    The masks stay on the output's own grid. The threshold is the fitted one, or 0.5.
    """
    task = _first_task(predictions, spec, "segment")
    if task is None:
        return None
    fitted = postprocessing.get(task.name)
    threshold = 0.5 if fitted is None or fitted.threshold is None else fitted.threshold
    inside = mask_probabilities(predictions, task.name, postprocessing) >= threshold
    overlap, empty = np.full(len(predictions), np.nan), np.zeros(len(predictions), bool)
    if predictions.masks is not None:
        known = (predictions.masks >= 0).all(axis=(1, 2))
        empty = np.asarray(known & ~(predictions.masks > 0).any(axis=(1, 2)))
        rows = known & ~empty
        overlap[rows] = metrics.dice(predictions.masks[rows] > 0, inside[rows])
    return Outlined(inside, overlap, empty)


def mask_probabilities(
    predictions: Predictions, task: str, postprocessing: PostprocessingByTask
) -> NDArray[np.float64]:
    """Return sigmoid(z / T) of a `segment` output, float64 [N, S/4, S/4]."""
    logits = _read_logits(predictions, task)[:, 0]
    return sigmoid(logits / _temperature(task, postprocessing))


def _first_task(predictions: Predictions, spec: Spec, kind: Kind) -> Task | None:
    """Return the first task of a kind that has an output.

    A reference that is stored in a bundle lacks the large outputs.
    """
    return next(
        (task for task in spec.tasks if task.kind == kind and task.name in predictions.outputs),
        None,
    )


def _read_logits(predictions: Predictions, task: str) -> NDArray[np.float64]:
    """Return a task's logits in float64, as the device decodes them."""
    if task not in predictions.outputs:
        raise DataError(
            f"The model gave no output {task!r}, only {sorted(predictions.outputs)}. "
            "Export it again."
        )
    return predictions.outputs[task].astype(np.float64)


def _temperature(task: str, postprocessing: PostprocessingByTask) -> float:
    fitted = postprocessing.get(task)
    return 1.0 if fitted is None or fitted.temperature is None else fitted.temperature


def _batches(images: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, size)):
        yield chunk
