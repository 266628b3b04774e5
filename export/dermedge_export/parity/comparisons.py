"""What is asked of two tables of predictions: the metrics that are compared, and the images that each counts."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Array, Floats
from dermedge_export.evaluation.predictions import Decoded, Predictions
from dermedge_export.parity.gate import MINIMUM_CASES

Metric = Callable[[Decoded, Array, Floats | None], Floats]


@dataclass(frozen=True)
class MetricComparison:
    """One metric to compare, over the `rows` [N] that it counts. `absent` says why it is not asked at all.

    `comparisons` is how many questions it is the worst answer of: a 95 % bound that holds for all of them at once
    (Bonferroni) is needed there, else one subgroup of many looks worse by chance.
    """

    metric: str
    measure: Metric
    rows: NDArray[np.bool_]
    absent: str = ""
    note: str = ""
    comparisons: int = 1


def list_comparisons(sides: tuple[Decoded, Decoded], table: Predictions) -> list[MetricComparison]:
    """The metrics that a bootstrap is drawn for, in the order of the report."""
    first, second = sides
    everything, labelled, positive = (
        np.ones(len(table), bool),
        first.labels >= 0,
        table.malignant == 1,
    )
    silent = "" if first.names else "the model classifies nothing"
    unlabelled = silent or ("" if labelled.any() else "no labelled image")
    unscored = "the model gives no malignancy score" if np.isnan(first.scores).all() else ""
    unknown = unscored or (
        "" if np.isfinite(table.malignant).any() else "no image known as malignant or benign"
    )
    unfitted = (
        "no threshold was fitted" if first.threshold is None or second.threshold is None else ""
    )
    return [
        # Against itself the reference agrees everywhere, so the candidate's loss is its share of changed classes.
        MetricComparison("top1_agreement", partial(_agrees, first), everything, silent),
        MetricComparison("balanced_accuracy", _balanced_accuracy, labelled, unlabelled),
        MetricComparison("macro_auroc", _macro_auroc, labelled, unlabelled),
        MetricComparison(
            "malignant_sensitivity",
            _undefined if unfitted else _sensitivity,
            positive,
            unknown,
            unfitted,
        ),
        MetricComparison("ece", _ece, labelled, unlabelled),
        *_task_comparisons(sides, everything),
    ]


def _task_comparisons(
    sides: tuple[Decoded, Decoded], everything: NDArray[np.bool_]
) -> Iterator[MetricComparison]:
    """Of the tasks that only some models have; nothing is asked of the others."""
    first, second = sides
    same = np.ones(len(everything))
    if first.graded is not None and second.graded is not None:
        rows = first.graded.rows
        agree = first.graded.predicted == second.graded.predicted
        yield MetricComparison("level_agreement", _mean_of(sides, same, agree), everything)
        yield MetricComparison(
            "severity_kappa", _kappa, rows, "" if rows.any() else "no image with a known severity"
        )
    if first.outlined is not None and second.outlined is not None:
        rows = first.outlined.rows
        overlap = metrics.dice(first.outlined.inside, second.outlined.inside)
        dice = _mean_of(sides, first.outlined.dice, second.outlined.dice)
        yield MetricComparison("mask_overlap", _mean_of(sides, same, overlap), everything)
        yield MetricComparison(
            "dice", dice, rows, "" if rows.any() else "no image with a known mask"
        )
    if first.embedding is not None and second.embedding is not None:
        centre = first.embedding.mean(
            0
        )  # what all images have in common would hide what tells them apart
        cosine = metrics.logit_cosine(first.embedding - centre, second.embedding - centre)
        yield MetricComparison("embedding_cosine", _mean_of(sides, same, cosine), everything)


def subgroup_comparisons(
    first: Decoded, table: Predictions
) -> dict[tuple[str, str], MetricComparison]:
    """Balanced accuracy within every (column, value) that a labelled image is known to belong to."""
    rows = {
        (column, value): (values == value) & (first.labels >= 0)
        for column, values in table.subgroups.items()
        for value in sorted(set(values.tolist()) - {""})
    }
    comparisons = sum(int(chosen.sum()) >= MINIMUM_CASES for chosen in rows.values())
    return {
        (column, value): MetricComparison(
            "worst_subgroup",
            _balanced_accuracy,
            chosen,
            note=f"{column} {value}",
            comparisons=max(1, comparisons),
        )
        for (column, value), chosen in rows.items()
        if chosen.any()
    }


def class_comparisons(first: Decoded) -> dict[tuple[str, str], MetricComparison]:
    """Recall of every class that a labelled image belongs to; among images of one class it is the balanced accuracy."""
    rows = {("class", name): first.labels == index for index, name in enumerate(first.names)}
    return {
        key: MetricComparison("balanced_accuracy", _balanced_accuracy, chosen)
        for key, chosen in rows.items()
        if chosen.any()
    }


def _agrees(first: Decoded, side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    return metrics.top1_agreement(first.predicted[rows], side.predicted[rows], weights)


def _balanced_accuracy(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    return metrics.balanced_accuracy(
        side.labels[rows], side.predicted[rows], len(side.names), weights
    )


def _macro_auroc(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    return metrics.macro_auroc(side.labels[rows], side.probabilities[rows], weights)


def _ece(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    return metrics.ece(side.labels[rows], side.probabilities[rows], weights)


def _sensitivity(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    threshold = np.inf if side.threshold is None else side.threshold
    return metrics.weighted_mean(side.scores[rows] >= threshold, weights)


def _undefined(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    return np.full(() if weights is None else weights.shape[:-1], np.nan)


def _mean_of(sides: tuple[Decoded, Decoded], first: Array, second: Array) -> Metric:
    """The mean over images of what is known of each of them, [N], by side."""
    return lambda side, rows, weights: metrics.weighted_mean(
        (first if side is sides[0] else second)[rows], weights
    )


def _kappa(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    if side.graded is None:
        return _undefined(side, rows, weights)
    return metrics.quadratic_weighted_kappa(
        side.graded.levels[rows], side.graded.predicted[rows], weights
    )
