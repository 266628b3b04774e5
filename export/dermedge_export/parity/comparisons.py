"""List the metrics that compare two tables of predictions, and the images of each."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Array, Floats
from dermedge_export.evaluation.predictions import Decoded, Outlined, Predictions
from dermedge_export.parity.gate import MINIMUM_CASES

Metric = Callable[[Decoded, Array, Floats | None], Floats]


@dataclass(frozen=True)
class MetricComparison:
    """One metric to compare, over the images that it counts.

    Attributes:
        metric: A key of `gate.LIMITS`.
        measure: Function of a decoded side, the images' indices or mask, and bootstrap
            weights, that returns the metric.
        rows: Images that the metric counts, bool [N].
        absent: Reason why the metric does not apply; empty if it does.
        note: Text for the report.
        comparisons: Number of comparisons of which the worst one is reported. The 95 %
            bound has to hold for all of them at once (Bonferroni). Otherwise one
            subgroup of many looks worse by chance.
        enough: Largest value of the reference that counts; a better one adds no loss.

    Example:
        >>> rows = np.ones(3, bool)
        >>> MetricComparison("ece", _ece, rows, absent="no labelled image").absent
        'no labelled image'
    """

    metric: str
    measure: Metric
    rows: NDArray[np.bool_]
    absent: str = ""
    note: str = ""
    comparisons: int = 1
    enough: float = np.inf


def list_comparisons(sides: tuple[Decoded, Decoded], table: Predictions) -> list[MetricComparison]:
    """Return the comparisons of a model, in the order of the report.

    Args:
        sides: Reference and candidate, decoded.
        table: Predictions of the reference, for what is known about the images.
    """
    first, second = sides
    everything = np.ones(len(table), bool)
    labelled = first.labels >= 0
    positive = table.malignant == 1
    no_classes = "" if first.names else "the model classifies nothing"
    unlabelled = no_classes or ("" if labelled.any() else "no labelled image")
    unscored = "the model gives no malignancy score" if np.isnan(first.scores).all() else ""
    unknown = unscored or (
        "" if np.isfinite(table.malignant).any() else "no image known as malignant or benign"
    )
    unfitted = (
        "no threshold was fitted" if first.threshold is None or second.threshold is None else ""
    )
    return [
        # The reference agrees with itself everywhere. So the candidate's loss is its
        # share of changed classes, and it has an interval like any other metric.
        MetricComparison("top1_agreement", partial(_agrees, first), everything, no_classes),
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
        *(
            [
                MetricComparison(
                    "conformal_coverage",
                    _coverage,
                    labelled,
                    unlabelled,
                    enough=_asked_coverage(first),
                )
            ]
            if have_sets(sides)
            else []
        ),
        *_task_comparisons(sides, everything),
    ]


def _task_comparisons(
    sides: tuple[Decoded, Decoded], everything: NDArray[np.bool_]
) -> Iterator[MetricComparison]:
    """Yield the comparisons of tasks that only some models have."""
    first, second = sides
    same = np.ones(len(everything))
    if first.ood is not None and second.ood is not None:
        retained = _mean_of(sides, ~first.ood, ~second.ood)
        yield MetricComparison("ood_retention", retained, everything)
    if first.graded is not None and second.graded is not None:
        rows = first.graded.rows
        agree = first.graded.predicted == second.graded.predicted
        yield MetricComparison("level_agreement", _mean_of(sides, same, agree), everything)
        yield MetricComparison(
            "severity_kappa", _kappa, rows, "" if rows.any() else "no image with a known severity"
        )
    if first.outlined is not None and second.outlined is not None:
        yield from _mask_comparisons(sides, first.outlined, second.outlined)
    if first.embedding is not None and second.embedding is not None:
        # Embeddings share a large common part. Without centring, the cosine would be
        # near 1 even where the differences between images are lost.
        centre = first.embedding.mean(0)
        cosine = metrics.logit_cosine(first.embedding - centre, second.embedding - centre)
        yield MetricComparison("embedding_cosine", _mean_of(sides, same, cosine), everything)
    if first.maps is not None and second.maps is not None:
        # The map of one label on both sides: the one that the reference shows.
        images = np.arange(len(everything))
        shown = (side.maps[images, first.predicted] for side in sides if side.maps is not None)
        alike = metrics.logit_cosine(*shown)
        yield MetricComparison("cam_cosine", _mean_of(sides, same, alike), everything)


def _mask_comparisons(
    sides: tuple[Decoded, Decoded], first: Outlined, second: Outlined
) -> Iterator[MetricComparison]:
    """Yield the comparisons of masks. Pairs of empty masks do not count."""
    overlap = metrics.dice(first.inside, second.inside)
    marked, blank = np.isfinite(overlap), int(np.isnan(overlap).sum())
    yield MetricComparison(
        "mask_overlap",
        _mean_of(sides, np.ones(len(overlap)), overlap),
        marked,
        note=f"{blank} images without a predicted lesion do not count" if blank else "",
    )
    yield MetricComparison(
        "dice",
        _mean_of(sides, first.dice, second.dice),
        first.rows,
        "" if first.rows.any() else "no image with a marked lesion",
        f"{first.empty.sum()} empty masks do not count; lesions predicted there: "
        f"{first.false_alarms.sum()} by the reference, {second.false_alarms.sum()} by the candidate"
        if first.empty.any()
        else "",
    )


def have_sets(sides: tuple[Decoded, Decoded]) -> bool:
    """Return whether conformal sets were fitted for reference and candidate."""
    return all(side.sets is not None for side in sides)


def subgroup_comparisons(
    first: Decoded, table: Predictions, metric: str = "worst_subgroup"
) -> dict[tuple[str, str], MetricComparison]:
    """Return a comparison for each subgroup of labelled images.

    Args:
        first: The decoded reference.
        table: Predictions of the reference, with the subgroup columns.
        metric: `worst_subgroup` compares balanced accuracy, `worst_subgroup_coverage`
            the coverage of conformal sets.

    Returns:
        (column, value) -> comparison, for each value that a labelled image has.
    """
    of_sets = metric == "worst_subgroup_coverage"
    rows = {
        (column, value): (values == value) & (first.labels >= 0)
        for column, values in table.subgroups.items()
        for value in sorted(set(values.tolist()) - {""})
    }
    return {
        (column, value): MetricComparison(
            metric,
            _coverage if of_sets else _balanced_accuracy,
            chosen,
            note=f"{column} {value}",
            comparisons=_count_large(rows.values()),
            enough=_asked_coverage(first) if of_sets else np.inf,
        )
        for (column, value), chosen in rows.items()
        if chosen.any()
    }


def label_comparisons(first: Decoded) -> dict[tuple[str, str], MetricComparison]:
    """Return a comparison of the coverage of conformal sets for each label with an image.

    Args:
        first: The decoded reference.

    Returns:
        ("class", label) -> comparison.
    """
    rows = {("class", name): first.labels == index for index, name in enumerate(first.names)}
    return {
        key: MetricComparison(
            "worst_label_coverage",
            _coverage,
            chosen,
            note=f"label {key[1]}, fitted to {_asked_coverage(first):.4g}",
            comparisons=_count_large(rows.values()),
            enough=_asked_coverage(first),
        )
        for key, chosen in rows.items()
        if chosen.any()
    }


def class_comparisons(first: Decoded) -> dict[tuple[str, str], MetricComparison]:
    """Return a comparison of recall for each class with a labelled image.

    Among images of one class, recall is the balanced accuracy.

    Returns:
        ("class", label) -> comparison.
    """
    rows = {("class", name): first.labels == index for index, name in enumerate(first.names)}
    return {
        key: MetricComparison("balanced_accuracy", _balanced_accuracy, chosen)
        for key, chosen in rows.items()
        if chosen.any()
    }


def _count_large(parts: Iterable[NDArray[np.bool_]]) -> int:
    """Return the number of parts that can become the worst one, and 1 if there is none.

    These have MINIMUM_CASES or more, so only these count in the Bonferroni correction.
    """
    return max(1, sum(int(part.sum()) >= MINIMUM_CASES for part in parts))


def _asked_coverage(first: Decoded) -> float:
    """Return the coverage that a loss of coverage counts from.

    A reference whose sets cover more than they are fitted to does so by chance.
    """
    return np.inf if first.coverage is None else first.coverage


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


def _coverage(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    return metrics.weighted_mean(side.covered[rows], weights)


def _sensitivity(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    threshold = np.inf if side.threshold is None else side.threshold
    return metrics.weighted_mean(side.scores[rows] >= threshold, weights)


def _undefined(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    """Return NaN for the point value or for each replicate."""
    return np.full(() if weights is None else weights.shape[:-1], np.nan)


def _mean_of(sides: tuple[Decoded, Decoded], first: Array, second: Array) -> Metric:
    """Return a metric: the mean over images of `first` or `second` [N], by side."""
    return lambda side, rows, weights: metrics.weighted_mean(
        (first if side is sides[0] else second)[rows], weights
    )


def _kappa(side: Decoded, rows: Array, weights: Floats | None) -> Floats:
    if side.graded is None:
        return _undefined(side, rows, weights)
    return metrics.quadratic_weighted_kappa(
        side.graded.levels[rows], side.graded.predicted[rows], weights
    )
