"""Compute the metrics of a probe on test, with intervals, and compare groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermedge.data.subgroups import subgroup_columns
from dermedge.evaluation.fairness import fairness
from dermedge.evaluation.report import Fairness
from dermedge.probing.task import Labels, ProbeSplit, ProbeTask
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Floats, Statistic
from dermedge_runtime.report import Interval

# Images per batch of the released segmentation, whose metrics are means over batches.
RELEASED_BATCH = 64


@dataclass(frozen=True)
class Bootstrap:
    """Number of bootstrap replicates, and their random seed.

    Examples:
        >>> Bootstrap(replicates=1000, seed=0).replicates
        1000
    """

    replicates: int
    seed: int


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """Metrics, recall of each class, and comparisons of groups, over the test rows.

    Examples:
        >>> ProbeScores({"accuracy": Interval(0.8)}, {}, ()).metrics["accuracy"].value
        0.8
    """

    metrics: Mapping[str, Interval]
    recall: Mapping[str, Interval]
    fairness: tuple[Fairness, ...]


def score_probabilities(
    task: ProbeTask,
    test: ProbeSplit,
    probabilities: Floats,
    *,
    threshold: float | None,
    bootstrap: Bootstrap,
    retrieval: Mapping[str, Floats] | None = None,
) -> ProbeScores:
    """Score predicted probabilities of a task that is not a segmentation.

    Args:
        task: The task.
        test: The N test rows.
        probabilities: Predicted probabilities [N, K].
        threshold: Threshold of the malignancy score, for the task `malignancy`.
        bootstrap: Settings of the bootstrap over lesions or patients.
        retrieval: Further values [N] by metric. The metric is their mean over the rows
            that are not NaN.

    Examples:
        >>> from dermedge import Bundle
        >>> from dermedge.data.table import read_table
        >>> from dermedge.data.split import with_split
        >>> from dermedge.probing.task import make_probe_task
        >>> table = with_split(read_table("lesions"))
        >>> spec = Bundle.open("toy.dermedge").spec
        >>> task = make_probe_task("malignancy", table, spec)
        >>> test = task.select("test")
        >>> perfect = np.eye(2)[test.labels]
        >>> scores = score_probabilities(
        ...     task, test, perfect, threshold=0.5, bootstrap=Bootstrap(10, 0)
        ... )
        >>> scores.metrics["balanced_accuracy"].value
        1.0
    """
    classes, labels = len(task.classes), test.labels
    predicted = predict_classes(task, probabilities, threshold)
    measures = _make_measures(task, labels, predicted, probabilities, threshold)
    measures |= {name: _mean_of_known(values) for name, values in (retrieval or {}).items()}
    recalls = _bootstrap_recalls(labels, predicted, classes, test.groups, bootstrap)
    binary = task.kind == "binary"
    return ProbeScores(
        bootstrap_intervals(measures, test.groups, bootstrap),
        dict(zip(task.classes, recalls, strict=True)),
        fairness(
            labels,
            predicted,
            classes,
            subgroup_columns(test.table.frame),
            test.groups,
            positive=labels.astype(np.float64) if binary else None,
            decision=predicted == 1 if binary else None,
            replicates=bootstrap.replicates,
            seed=bootstrap.seed,
        ),
    )


def predict_classes(task: ProbeTask, probabilities: Floats, threshold: float | None) -> Labels:
    """Return the class [N] that probabilities [N, K] predict.

    It is the most probable class; benign or malignant by the threshold, 0.5 by default;
    or, for an ordinal task, the number of levels exceeded with a probability above 0.5.

    Examples:
        >>> from dermedge import Bundle
        >>> from dermedge.data.table import read_table
        >>> from dermedge.data.split import with_split
        >>> from dermedge.probing.task import make_probe_task
        >>> table = with_split(read_table("lesions"))
        >>> spec = Bundle.open("toy.dermedge").spec
        >>> task = make_probe_task("malignancy", table, spec)
        >>> predict_classes(task, np.array([[0.6, 0.4]]), threshold=0.3).tolist()
        [1]
    """
    if task.kind == "ordinal":
        # P(y > k) from P(y = k). A level counts if it is exceeded with more than one
        # half, as in `dermedge_runtime.decode`.
        above = 1 - np.cumsum(probabilities, axis=1)[:, :-1]
        return np.asarray((above > 0.5).sum(axis=1), np.int64)
    if task.kind == "binary":
        return np.asarray(
            probabilities[:, 1] >= (0.5 if threshold is None else threshold), np.int64
        )
    return np.asarray(probabilities.argmax(axis=1), np.int64)


def bootstrap_intervals(
    measures: Mapping[str, Statistic], groups: NDArray[np.str_], bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Compute every measure's value and interval, all on the same replicates.

    Args:
        measures: Metrics as functions of the rows' weights [..., N].
        groups: Lesion or patient [N] of each row; the bootstrap resamples these.
        bootstrap: Settings of the bootstrap.

    Examples:
        >>> from dermedge_export.evaluation import metrics
        >>> hit = np.array([1.0, 1.0, 0.0, 1.0])
        >>> groups = np.array(["a", "b", "c", "d"])
        >>> measures = {"accuracy": lambda w: metrics.weighted_mean(hit, w)}
        >>> bootstrap_intervals(measures, groups, Bootstrap(50, 0))["accuracy"].value
        0.75
    """
    drawn = metrics.bootstrap(
        groups, measures, replicates=bootstrap.replicates, seed=bootstrap.seed
    )
    whole = np.ones(len(groups))
    return {
        name: metrics.interval(measure(whole), drawn[name]) for name, measure in measures.items()
    }


def score_masks(
    counts: NDArray[np.int64],
    lesion: NDArray[np.bool_],
    groups: NDArray[np.str_],
    bootstrap: Bootstrap,
) -> dict[str, Interval]:
    """Compute the metrics of a segmentation from pixel counts.

    `mean_iou` is the intersection over union of all pixels of all images, averaged over
    background and lesion. `dice` and `jaccard` are those of the lesion, averaged over
    images whose mask has a lesion. `pixel_accuracy` is over all pixels.

    Args:
        counts: Pixels [N, 2, 2] of background and lesion, in the intersection and in
            the union of mask and prediction.
        lesion: Images whose mask has a lesion, bool [N].
        groups: Lesion or patient [N] of each image; the bootstrap resamples these.
        bootstrap: Settings of the bootstrap.

    Examples:
        >>> counts = np.array([[[50, 70], [30, 50]]])
        >>> found = score_masks(counts, np.array([True]), np.array(["a"]), Bootstrap(10, 0))
        >>> found["dice"].value
        0.75
    """
    both, either = counts[:, :, 0].astype(np.float64), counts[:, :, 1].astype(np.float64)
    right, pixels = both.sum(axis=1), both[:, 0] + either[:, 1]
    jaccard = metrics.ratio(both[lesion, 1], either[lesion, 1])
    dice = metrics.ratio(2 * both[lesion, 1], (both + either)[lesion, 1])
    return bootstrap_intervals(
        {
            "mean_iou": lambda w: metrics.mean_of_known(metrics.ratio(w @ both, w @ either)),
            "dice": lambda w: metrics.weighted_mean(dice, w[..., lesion]),
            "jaccard": lambda w: metrics.weighted_mean(jaccard, w[..., lesion]),
            "pixel_accuracy": lambda w: metrics.ratio(w @ right, w @ pixels),
        },
        groups,
        bootstrap,
    )


def score_masks_as_released(
    counts: NDArray[np.int64], groups: NDArray[np.str_], bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Compute the metrics of a segmentation as the released code of DermINO does.

    Each is computed over all pixels of a batch of 64 images, and then averaged over the
    batches. `released_miou` and `released_dice` are means over background and lesion.
    `released_jaccard` counts the pixels of both classes together, so that it is
    accuracy / (2 - accuracy). They are higher than `jaccard` and `dice` of the lesion.

    Args:
        counts: Pixels [N, 2, 2] of background and lesion, in the intersection and in
            the union of mask and prediction, in the order of the test split.
        groups: Lesion or patient [N] of each image; the bootstrap resamples these.
        bootstrap: Settings of the bootstrap.

    Examples:
        >>> counts = np.array([[[50, 70], [30, 50]]])
        >>> found = score_masks_as_released(counts, np.array(["a"]), Bootstrap(10, 0))
        >>> round(found["released_jaccard"].value, 3), round(found["released_dice"].value, 3)
        (0.667, 0.792)
    """
    pixels = counts.astype(np.float64)
    batches = [
        slice(start, start + RELEASED_BATCH) for start in range(0, len(counts), RELEASED_BATCH)
    ]

    def pool(weights: Floats) -> tuple[Floats, Floats]:
        """Return the pixels of each batch in intersection and union, [..., B, 2]."""
        both, either = (
            np.stack([weights[..., rows] @ pixels[rows, :, kind] for rows in batches], axis=-2)
            for kind in range(2)
        )
        return both, either

    def accuracy(weights: Floats) -> Floats:
        both, either = pool(weights)
        # Each pixel that is wrong is in the union of both classes.
        right = both.sum(-1)
        return metrics.ratio(right, (right + either.sum(-1)) / 2)

    def miou(weights: Floats) -> Floats:
        both, either = pool(weights)
        return metrics.mean_of_known(metrics.ratio(both, either))

    def dice(weights: Floats) -> Floats:
        both, either = pool(weights)
        return metrics.mean_of_known(metrics.ratio(2 * both, both + either))

    return bootstrap_intervals(
        {
            "released_accuracy": lambda w: metrics.mean_of_known(accuracy(w)),
            "released_miou": lambda w: metrics.mean_of_known(miou(w)),
            "released_jaccard": lambda w: metrics.mean_of_known(accuracy(w) / (2 - accuracy(w))),
            "released_dice": lambda w: metrics.mean_of_known(dice(w)),
        },
        groups,
        bootstrap,
    )


def macro_f1(labels: Labels, predicted: Labels, classes: int, weights: Floats) -> Floats:
    """Average F1 over the classes that occur in labels or predictions.

    F1 is the harmonic mean of precision and recall. scikit-learn averages the same
    classes.

    Args:
        labels: Class index [N] of each row.
        predicted: Predicted class index [N] of each row.
        classes: Number of classes.
        weights: Weights [..., N] of the rows.

    Examples:
        >>> labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
        >>> round(macro_f1(labels, predicted, 3, np.ones(4)).item(), 3)
        0.556
    """
    member, called = np.eye(classes)[labels], np.eye(classes)[predicted]
    either = weights @ member + weights @ called
    return metrics.mean_of_known(metrics.ratio(2 * (weights @ (member * called)), either))


def _make_measures(
    task: ProbeTask,
    labels: Labels,
    predicted: Labels,
    probabilities: Floats,
    threshold: float | None,
) -> dict[str, Statistic]:
    """Return every metric of the task, as a function of the rows' weights [..., N]."""
    classes = len(task.classes)
    balanced: dict[str, Statistic] = {
        "balanced_accuracy": lambda w: metrics.balanced_accuracy(labels, predicted, classes, w)
    }
    f1: dict[str, Statistic] = {"macro_f1": lambda w: macro_f1(labels, predicted, classes, w)}
    measures = balanced | {"accuracy": lambda w: metrics.accuracy(labels, predicted, w)}
    if task.kind == "binary":
        return _malignancy_measures(labels, probabilities[:, 1], threshold) | measures | f1
    if task.kind == "ordinal":
        measures = {
            "mean_absolute_error": lambda w: metrics.mean_absolute_error(labels, predicted, w),
            "quadratic_weighted_kappa": lambda w: metrics.quadratic_weighted_kappa(
                labels, predicted, w
            ),
        } | measures
    auroc: dict[str, Statistic] = {
        "macro_auroc": lambda w: metrics.macro_auroc(labels, probabilities, w)
    }
    return measures | auroc | f1


def _malignancy_measures(
    labels: Labels, scores: Floats, threshold: float | None
) -> dict[str, Statistic]:
    positive = labels == 1
    measures: dict[str, Statistic] = {"auroc": lambda w: metrics.auroc(positive, scores, w)}
    if threshold is not None:
        measures["sensitivity"] = lambda w: metrics.sensitivity(positive, scores, threshold, w)
        measures["specificity"] = lambda w: metrics.specificity(positive, scores, threshold, w)
    return measures


def _bootstrap_recalls(
    labels: Labels, predicted: Labels, classes: int, groups: NDArray[np.str_], bootstrap: Bootstrap
) -> Sequence[Interval]:
    def recalls(weights: Floats) -> Floats:
        return metrics.recalls(labels, predicted, classes, weights)

    drawn = metrics.bootstrap(
        groups, {"recall": recalls}, replicates=bootstrap.replicates, seed=bootstrap.seed
    )["recall"]
    return [
        metrics.interval(value, drawn[:, k])
        for k, value in enumerate(recalls(np.ones(len(labels))))
    ]


def _mean_of_known(values: Floats) -> Statistic:
    known = ~np.isnan(values)
    return lambda w: metrics.weighted_mean(values[known], w[..., known])
