"""Metrics of predictions, and the bootstrap that says how sure they are.

Every metric takes optional integer `weights`: None for the point value (a 0-d array), [N] or [R, N] for how often each
image occurs in each of R bootstrap replicates, which gives [] or [R]. So one replicate costs a weighted sum, not a copy
of the predictions, and two models are compared on the very same replicates.

A metric that is undefined (no case, only one class) is NaN. A class that no image of a replicate belongs to is left out
of that replicate's mean over classes, as it is left out of the point value.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.report import Interval

Array = NDArray[Any]
Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Key = TypeVar("Key", bound=Hashable)

CHUNK = 4_000_000  # weights held at once, 32 MB
ECE_BINS = 15


def ratio(part: Floats, whole: Floats) -> Floats:
    """Part / whole, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    quotient = np.full(part.shape, np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient


def weighted_mean(values: Array, weights: Floats | None = None) -> Floats:
    """Mean of `values` [N]."""
    weights = _weights(len(values), weights)
    return ratio(weights @ np.asarray(values, np.float64), weights.sum(-1))


def mean_of_known(values: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN where all is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1))


def confusion(
    labels: Array, predicted: Array, classes: int, weights: Floats | None = None
) -> Floats:
    """Counts [..., K, K] of true class by predicted class, for `labels` and `predicted` [N] in 0..K-1."""
    weights = _weights(len(labels), weights)
    cells = np.eye(classes * classes)[np.asarray(labels) * classes + np.asarray(predicted)]
    return np.asarray(weights @ cells).reshape(*weights.shape[:-1], classes, classes)


def recalls(labels: Array, predicted: Array, classes: int, weights: Floats | None = None) -> Floats:
    """Recall of each class [..., K], NaN for a class without a case."""
    weights = _weights(len(labels), weights)
    member = np.eye(classes)[np.asarray(labels)]
    hit = member * (np.asarray(labels) == np.asarray(predicted))[:, None]
    return ratio(weights @ hit, weights @ member)


def balanced_accuracy(
    labels: Array, predicted: Array, classes: int, weights: Floats | None = None
) -> Floats:
    """Mean recall over the classes that have a case."""
    return mean_of_known(recalls(labels, predicted, classes, weights))


def accuracy(labels: Array, predicted: Array, weights: Floats | None = None) -> Floats:
    """Share of images whose predicted class is the true one."""
    return weighted_mean(np.asarray(labels) == np.asarray(predicted), weights)


def auroc(positive: Array, scores: Array, weights: Floats | None = None) -> Floats:
    """Area under the ROC curve of `scores` [N] for `positive` [N]: the share of pairs in order, ties counting half.

    NaN without a positive or without a negative.
    """
    weights, positive, scores = (
        _weights(len(scores), weights),
        np.asarray(positive, bool),
        np.asarray(scores),
    )
    if len(scores) == 0:
        return np.full(weights.shape[:-1], np.nan)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.concatenate(([True], np.diff(scores[order]) != 0)))
    ranked = weights[..., order]
    positives, negatives = ranked * positive[order], ranked * ~positive[order]
    if len(starts) < len(scores):
        positives, negatives = (
            np.add.reduceat(side, starts, axis=-1) for side in (positives, negatives)
        )
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    return ratio((positives * below).sum(-1), positives.sum(-1) * negatives.sum(-1))


def macro_auroc(labels: Array, probabilities: Array, weights: Floats | None = None) -> Floats:
    """Mean over classes of the one-vs-rest AUROC of `probabilities` [N, K]; classes without a case or without a
    counter-example are left out.
    """
    areas = [
        auroc(np.asarray(labels) == k, probabilities[:, k], weights)
        for k in range(probabilities.shape[1])
    ]
    return mean_of_known(np.stack(areas, axis=-1))


def sensitivity(
    positive: Array, scores: Array, threshold: float, weights: Floats | None = None
) -> Floats:
    """Share of positives with score >= threshold."""
    rows = np.asarray(positive, bool)
    weights = _weights(len(rows), weights)
    return weighted_mean(np.asarray(scores)[rows] >= threshold, weights[..., rows])


def specificity(
    positive: Array, scores: Array, threshold: float, weights: Floats | None = None
) -> Floats:
    """Share of negatives with score < threshold."""
    rows = ~np.asarray(positive, bool)
    weights = _weights(len(rows), weights)
    return weighted_mean(np.asarray(scores)[rows] < threshold, weights[..., rows])


def confidence_bins(confidence: Array, bins: int = ECE_BINS) -> NDArray[np.int64]:
    """Which of the equal-width bins (0, 1/bins], ... each `confidence` [N] falls into."""
    return np.clip(
        np.ceil(np.asarray(confidence, np.float64) * bins).astype(np.int64) - 1, 0, bins - 1
    )


def ece(
    labels: Array, probabilities: Array, weights: Floats | None = None, bins: int = ECE_BINS
) -> Floats:
    """Expected calibration error: the gap between confidence and accuracy of the most probable class of `probabilities`
    [N, K], averaged over equal-width bins of confidence.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    weights = _weights(len(labels), weights)
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == np.asarray(labels)) - confidence
    per_bin = weights @ (np.eye(bins)[confidence_bins(confidence, bins)] * gap[:, None])
    return ratio(np.abs(per_bin).sum(-1), weights.sum(-1))


def dice(mask: Array, predicted: Array) -> Floats:
    """Dice coefficient [N] of boolean masks [N, H, W]; 1 where both are empty.

    Source: Dice, Measures of the amount of ecologic association between species, Ecology 26 (1945).
    """
    mask, predicted = np.asarray(mask, bool), np.asarray(predicted, bool)
    both = (mask & predicted).sum(axis=(1, 2))
    total = mask.sum(axis=(1, 2)) + predicted.sum(axis=(1, 2))
    return np.where(total > 0, ratio(2.0 * both, total), 1.0)


def mean_absolute_error(levels: Array, predicted: Array, weights: Floats | None = None) -> Floats:
    """Mean distance, in levels, of the `predicted` levels [N] from the true ones [N]."""
    return weighted_mean(
        np.abs(np.asarray(levels, np.float64) - np.asarray(predicted, np.float64)), weights
    )


def quadratic_weighted_kappa(
    levels: Array, predicted: Array, weights: Floats | None = None
) -> Floats:
    """Agreement of the `predicted` levels [N] with the true ones [N] beyond chance: 1 less the ratio of the mean
    squared distance to the one that the same levels would have if they were dealt out at random.

    NaN where all levels, true and predicted, are the same.

    Source: Cohen, Weighted kappa, Psychological Bulletin 70 (1968).
    """
    weights = _weights(len(levels), weights)
    truth, guess = np.asarray(levels, np.float64), np.asarray(predicted, np.float64)
    count = weights.sum(-1)
    found = weights @ (truth - guess) ** 2
    expected = weights @ (truth**2 + guess**2) - 2 * ratio(
        (weights @ truth) * (weights @ guess), count
    )
    # What is left of nothing after rounding is nothing: levels are whole numbers, so the least sum is about 1.
    return 1 - ratio(found, np.where(expected > 1e-6, expected, 0.0))


def top1_agreement(first: Array, second: Array, weights: Floats | None = None) -> Floats:
    """Share of images that two models put into the same class (`first`, `second` [N])."""
    return accuracy(first, second, weights)


def kl_divergence(reference: Array, candidate: Array) -> Floats:
    """KL(reference || candidate) in nats [N] of probabilities [N, K]."""
    tiny = np.finfo(np.float64).tiny
    p, q = (
        np.maximum(reference.astype(np.float64), tiny),
        np.maximum(candidate.astype(np.float64), tiny),
    )
    return np.asarray((p * (np.log(p) - np.log(q))).sum(axis=1))


def logit_cosine(reference: Array, candidate: Array) -> Floats:
    """Cosine [N] between two models' logits [N, K]; 1 where both are zero."""
    a, b = (side.reshape(len(side), -1).astype(np.float64) for side in (reference, candidate))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.all(a == b, axis=1)
    return np.where(same, 1.0, np.nan_to_num(ratio((a * b).sum(axis=1), lengths)))


def bootstrap(
    groups: Array, statistics: Mapping[Key, Statistic], *, replicates: int = 1000, seed: int = 0
) -> dict[Key, Floats]:
    """Bootstrap replicates of every statistic, resampling whole `groups` [N] (lesions or patients) with replacement.

    Photographs of one lesion are no independent cases, so they enter a replicate together. All statistics see the same
    replicates: a statistic that computes two models' metrics is a paired comparison.

    Args:
        groups: the group of each image.
        statistics: name -> function of weights [r, N], how often each image occurs, that returns [r, ...].
        replicates: how many to draw.
        seed: of the random draws.

    Returns:
        name -> [replicates, ...]; NaN throughout where there is one group only, which tells nothing of a spread.

    Source: Rutter, Bootstrap estimation of diagnostic accuracy with patient-clustered data, Acad. Radiol. 7 (2000);
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    count, rng = len(names), np.random.default_rng(seed)
    parts: dict[Key, list[Floats]] = {name: [] for name in statistics}
    step = max(1, CHUNK // max(1, len(index)))
    for first in range(0, replicates, step):
        size = min(step, replicates - first)
        if count < 2:
            weights = np.zeros((size, len(index)))
        else:
            drawn = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
            times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
            weights = times[:, index].astype(np.float64)
        for name, statistic in statistics.items():
            parts[name].append(statistic(weights))
    return {name: np.concatenate(part) for name, part in parts.items()}


def interval(value: Array | float, replicates: Array, level: float = 0.95) -> Interval:
    """A point value with its percentile interval; without one where fewer than half of the replicates are defined."""
    point = float(value)
    defined = replicates[np.isfinite(replicates)]
    if not np.isfinite(point) or 2 * len(defined) < len(replicates) or len(defined) == 0:
        return Interval(point if np.isfinite(point) else None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(point, float(low), float(high))


def _weights(count: int, weights: Floats | None) -> Floats:
    return np.ones(count) if weights is None else np.asarray(weights, np.float64)
