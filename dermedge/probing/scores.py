"""What a probe answered on test, measured: metrics with their intervals, and for whom they are worse."""

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

RECALL = "recall"


@dataclass(frozen=True)
class Bootstrap:
    """How many replicates, and the seed they are drawn from."""

    replicates: int
    seed: int


@dataclass(frozen=True, eq=False)
class ProbeScores:
    """Metrics, recall of each class, and fairness, over the test rows."""

    metrics: Mapping[str, Interval]
    recall: Mapping[str, Interval]
    fairness: tuple[Fairness, ...]


def scores(
    question: ProbeTask,
    test: ProbeSplit,
    probabilities: Floats,
    *,
    threshold: float | None,
    bootstrap: Bootstrap,
    ranked: Mapping[str, Floats] | None = None,
) -> ProbeScores:
    """Measure answers to a task that is not a segmentation.

    Args:
        question: the task.
        test: N rows.
        probabilities: [N, K].
        threshold: of the malignancy score, for the task `malignancy`.
        bootstrap: over lesions or patients.
        ranked: further values [N] by metric, whose mean over the rows where they are known is the metric.
    """
    classes, labels = len(question.names), test.labels
    predicted = predictions(question, probabilities, threshold)
    measures = _measures(question, labels, predicted, probabilities, threshold)
    measures |= {name: _mean(values) for name, values in (ranked or {}).items()}
    binary = question.kind == "binary"
    return ProbeScores(
        intervals(measures, test.groups, bootstrap),
        dict(
            zip(
                question.names,
                _recalls(labels, predicted, classes, test.groups, bootstrap),
                strict=True,
            )
        ),
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


def predictions(question: ProbeTask, probabilities: Floats, threshold: float | None) -> Labels:
    """The class [N] that probabilities [N, K] stand for: the likeliest; benign or malignant by the threshold; of an
    ordinal task the number of levels that are exceeded with a probability over one half.
    """
    if question.kind == "ordinal":
        above = 1 - np.cumsum(probabilities, axis=1)[:, :-1]
        return np.asarray((above > 0.5).sum(axis=1), np.int64)
    if question.kind == "binary":
        return np.asarray(
            probabilities[:, 1] >= (0.5 if threshold is None else threshold), np.int64
        )
    return np.asarray(probabilities.argmax(axis=1), np.int64)


def intervals(
    measures: Mapping[str, Statistic], groups: NDArray[np.str_], bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Every measure's value with its interval, all on the same replicates."""
    drawn = metrics.bootstrap(
        groups, measures, replicates=bootstrap.replicates, seed=bootstrap.seed
    )
    whole = np.ones(len(groups))
    return {
        name: metrics.interval(measure(whole), drawn[name]) for name, measure in measures.items()
    }


def segment_scores(
    counts: NDArray[np.int64], groups: NDArray[np.str_], bootstrap: Bootstrap
) -> dict[str, Interval]:
    """Metrics of a segmentation.

    `mean_iou` is the intersection over union of all pixels of all images, averaged over background and lesion; `dice`
    and `jaccard` are of the lesion, averaged over images, 1 where nothing is there and nothing was found;
    `pixel_accuracy` is over all pixels.

    Args:
        counts: pixels [N, 2, 2], of background and lesion, in the intersection and in the union of mask and prediction.
        groups: [N], the lesion or patient.
        bootstrap: over them.
    """
    both, either = counts[:, :, 0].astype(np.float64), counts[:, :, 1].astype(np.float64)
    right, pixels = both.sum(axis=1), both[:, 0] + either[:, 1]
    empty = either[:, 1] == 0
    jaccard = np.where(empty, 1.0, metrics.ratio(both[:, 1], either[:, 1]))
    dice = np.where(empty, 1.0, metrics.ratio(2 * both[:, 1], both[:, 1] + either[:, 1]))
    return intervals(
        {
            "mean_iou": lambda w: metrics.mean_of_known(metrics.ratio(w @ both, w @ either)),
            "dice": lambda w: metrics.weighted_mean(dice, w),
            "jaccard": lambda w: metrics.weighted_mean(jaccard, w),
            "pixel_accuracy": lambda w: metrics.ratio(w @ right, w @ pixels),
        },
        groups,
        bootstrap,
    )


def macro_f1(labels: Labels, predicted: Labels, classes: int, weights: Floats) -> Floats:
    """Mean over the classes that have a case of F1, the harmonic mean of precision and recall."""
    member, called = np.eye(classes)[labels], np.eye(classes)[predicted]
    there = weights @ member
    found = metrics.ratio(2 * (weights @ (member * called)), there + weights @ called)
    return metrics.mean_of_known(np.where(there > 0, found, np.nan))


def _measures(
    question: ProbeTask,
    labels: Labels,
    predicted: Labels,
    probabilities: Floats,
    threshold: float | None,
) -> dict[str, Statistic]:
    """Every metric of the task, as a function of the rows' weights [..., N]."""
    classes = len(question.names)
    balanced: Statistic = lambda w: metrics.balanced_accuracy(labels, predicted, classes, w)  # noqa: E731
    if question.kind == "binary":
        positive, score = labels == 1, probabilities[:, 1]
        found: dict[str, Statistic] = {"auroc": lambda w: metrics.auroc(positive, score, w)}
        if threshold is not None:
            found["sensitivity"] = lambda w: metrics.sensitivity(positive, score, threshold, w)
            found["specificity"] = lambda w: metrics.specificity(positive, score, threshold, w)
        return found | {"balanced_accuracy": balanced}
    found = {
        "balanced_accuracy": balanced,
        "accuracy": lambda w: metrics.accuracy(labels, predicted, w),
    }
    if question.kind == "ordinal":
        return {
            "mean_absolute_error": lambda w: metrics.mean_absolute_error(labels, predicted, w),
            "quadratic_weighted_kappa": lambda w: metrics.quadratic_weighted_kappa(
                labels, predicted, w
            ),
        } | found
    found["macro_auroc"] = lambda w: metrics.macro_auroc(labels, probabilities, w)
    found["macro_f1"] = lambda w: macro_f1(labels, predicted, classes, w)
    return found


def _recalls(
    labels: Labels, predicted: Labels, classes: int, groups: NDArray[np.str_], bootstrap: Bootstrap
) -> Sequence[Interval]:
    def recalls(weights: Floats) -> Floats:
        return metrics.recalls(labels, predicted, classes, weights)

    drawn = metrics.bootstrap(
        groups, {RECALL: recalls}, replicates=bootstrap.replicates, seed=bootstrap.seed
    )[RECALL]
    return [
        metrics.interval(value, drawn[:, k])
        for k, value in enumerate(recalls(np.ones(len(labels))))
    ]


def _mean(values: Floats) -> Statistic:
    known = ~np.isnan(values)
    return lambda w: metrics.weighted_mean(values[known], w[..., known])
