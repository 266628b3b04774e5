"""Metrics of predictions, and the bootstrap that gives their confidence intervals.

Every metric takes optional `weights`, the number of times that each image occurs:

- None: each image once. The metric is a 0-d array, the point value.
- [N]: one bootstrap replicate. The metric is a 0-d array.
- [R, N]: R bootstrap replicates. The metric has the shape [R].

A replicate then costs a weighted sum, not a copy of the predictions. Two models are
compared on the same replicates.

A metric that is undefined (no case, only one class) is NaN. A mean over classes leaves
out the classes without an image, in a replicate as in the point value.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.report import Interval

# Scikit-learn and scipy have these metrics and a bootstrap, one replicate at a time.
# The gate needs 1000 replicates of a dozen metrics and of every subgroup: paired, so
# that both models see the same images; clustered, so that photographs of one lesion
# stay together; weighted, so that all replicates are one matrix product. The tests hold
# each metric against scikit-learn.

Array = NDArray[Any]
Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Key = TypeVar("Key", bound=Hashable)

CHUNK = 4_000_000  # bootstrap weights held at once: 32 MB
ECE_BINS = 15


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole; NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    quotient = np.full(part.shape, np.nan)
    np.divide(part, whole, out=quotient, where=whole > 0)
    return quotient


def weighted_mean(values: Array, weights: Floats | None = None) -> Floats:
    """Return the weighted mean of `values` [N].

    Example:
        >>> weighted_mean(np.array([1.0, 3.0]), np.array([[1, 1], [3, 1]])).tolist()
        [2.0, 1.5]
    """
    weights = _weights(len(values), weights)
    return ratio(weights @ np.asarray(values, np.float64), weights.sum(-1))


def mean_of_known(values: Floats) -> Floats:
    """Return the mean over the last axis without NaN; NaN where all values are NaN."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1))


def confusion(
    labels: Array, predicted: Array, classes: int, weights: Floats | None = None
) -> Floats:
    """Return counts [..., K, K] of true class by predicted class.

    Args:
        labels: True classes [N] in 0..K-1.
        predicted: Predicted classes [N] in 0..K-1.
        classes: Number of classes K.
        weights: Bootstrap weights; see the module.

    Example:
        >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """
    weights = _weights(len(labels), weights)
    cells = np.eye(classes * classes)[np.asarray(labels) * classes + np.asarray(predicted)]
    return np.asarray(weights @ cells).reshape(*weights.shape[:-1], classes, classes)


def recalls(labels: Array, predicted: Array, classes: int, weights: Floats | None = None) -> Floats:
    """Return the recall of each class [..., K]; NaN for a class without a case."""
    weights = _weights(len(labels), weights)
    member = np.eye(classes)[np.asarray(labels)]
    hit = member * (np.asarray(labels) == np.asarray(predicted))[:, None]
    return ratio(weights @ hit, weights @ member)


def balanced_accuracy(
    labels: Array, predicted: Array, classes: int, weights: Floats | None = None
) -> Floats:
    """Return the mean recall over the classes that have a case.

    Example:
        >>> float(balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]), 2))
        0.5
    """
    return mean_of_known(recalls(labels, predicted, classes, weights))


def accuracy(labels: Array, predicted: Array, weights: Floats | None = None) -> Floats:
    """Return the share of images whose predicted class is the true one."""
    return weighted_mean(np.asarray(labels) == np.asarray(predicted), weights)


def auroc(positive: Array, scores: Array, weights: Floats | None = None) -> Floats:
    """Return the area under the ROC curve of `scores` [N] for `positive` [N].

    It is the share of (positive, negative) pairs that are in order; a tie counts half.
    It is NaN without a positive or without a negative.

    Example:
        >>> float(auroc(np.array([0, 1, 1]), np.array([0.2, 0.2, 0.9])))
        0.75
    """
    weights = _weights(len(scores), weights)
    positive, scores = np.asarray(positive, bool), np.asarray(scores)
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
    """Return the mean over classes of the one-vs-rest AUROC of `probabilities` [N, K].

    Classes without a case or without a counter-example are left out.
    """
    areas = [
        auroc(np.asarray(labels) == k, probabilities[:, k], weights)
        for k in range(probabilities.shape[1])
    ]
    return mean_of_known(np.stack(areas, axis=-1))


def sensitivity(
    positive: Array, scores: Array, threshold: float, weights: Floats | None = None
) -> Floats:
    """Return the share of positives with score >= threshold.

    Example:
        >>> float(sensitivity(np.array([1, 1, 0]), np.array([0.9, 0.2, 0.7]), 0.5))
        0.5
    """
    rows = np.asarray(positive, bool)
    weights = _weights(len(rows), weights)
    return weighted_mean(np.asarray(scores)[rows] >= threshold, weights[..., rows])


def specificity(
    positive: Array, scores: Array, threshold: float, weights: Floats | None = None
) -> Floats:
    """Return the share of negatives with score < threshold."""
    rows = ~np.asarray(positive, bool)
    weights = _weights(len(rows), weights)
    return weighted_mean(np.asarray(scores)[rows] < threshold, weights[..., rows])


def confidence_bins(confidence: Array) -> NDArray[np.int64]:
    """Return the bin of each `confidence` [N] among `ECE_BINS` bins of equal width.

    The bins are closed above: (0, 1/15], (1/15, 2/15], ...; 0 belongs to the first.
    """
    above = np.ceil(np.asarray(confidence, np.float64) * ECE_BINS).astype(np.int64)
    return np.clip(above - 1, 0, ECE_BINS - 1)


def ece(labels: Array, probabilities: Array, weights: Floats | None = None) -> Floats:
    """Return the expected calibration error of `probabilities` [N, K].

    It is the gap between confidence and accuracy of the most probable class, averaged
    over 15 bins of confidence.

    Example:
        >>> float(ece(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]])))
        0.25

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    weights = _weights(len(labels), weights)
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == np.asarray(labels)) - confidence
    per_bin = weights @ (np.eye(ECE_BINS)[confidence_bins(confidence)] * gap[:, None])
    return ratio(np.abs(per_bin).sum(-1), weights.sum(-1))


def dice(mask: Array, predicted: Array) -> Floats:
    """Return Dice coefficients [N] of boolean masks [N, H, W]; NaN where both are empty.

    A pair of empty masks shows nothing about the overlap. As a success, it would raise
    the mean of a model that never finds a lesion.

    Example:
        >>> masks = np.array([[[1, 1]], [[0, 0]]])
        >>> predicted = np.array([[[1, 0]], [[0, 0]]])
        >>> dice(masks, predicted).round(3).tolist()
        [0.667, nan]

    Source: Dice, Measures of the amount of ecologic association between species,
    Ecology 26 (1945).
    """
    mask, predicted = np.asarray(mask, bool), np.asarray(predicted, bool)
    both = (mask & predicted).sum(axis=(1, 2))
    total = mask.sum(axis=(1, 2)) + predicted.sum(axis=(1, 2))
    return ratio(2.0 * both, total)


def mean_absolute_error(levels: Array, predicted: Array, weights: Floats | None = None) -> Floats:
    """Return the mean absolute distance of `predicted` levels [N] from `levels` [N]."""
    return weighted_mean(
        np.abs(np.asarray(levels, np.float64) - np.asarray(predicted, np.float64)), weights
    )


def quadratic_weighted_kappa(
    levels: Array, predicted: Array, weights: Floats | None = None
) -> Floats:
    """Return the agreement of `predicted` levels [N] with `levels` [N] beyond chance.

    It is 1 minus the ratio of two mean squared distances: the observed one, and the one
    of the same levels in random order. It is NaN if all levels are the same.

    Example:
        >>> float(quadratic_weighted_kappa(np.array([0, 1, 2]), np.array([0, 1, 2])))
        1.0

    Source: Cohen, Weighted kappa, Psychological Bulletin 70 (1968).
    """
    weights = _weights(len(levels), weights)
    truth, guess = np.asarray(levels, np.float64), np.asarray(predicted, np.float64)
    count = weights.sum(-1)
    observed = weights @ (truth - guess) ** 2
    expected = weights @ (truth**2 + guess**2) - 2 * ratio(
        (weights @ truth) * (weights @ guess), count
    )
    # Levels are whole numbers, so a sum above zero is about 1 or more. A smaller one is
    # the rounding error of zero, and kappa is undefined there.
    return 1 - ratio(observed, np.where(expected > 1e-6, expected, 0.0))


def top1_agreement(first: Array, second: Array, weights: Floats | None = None) -> Floats:
    """Return the share of images to which two models give the same class (each [N])."""
    return accuracy(first, second, weights)


def kl_divergence(reference: Array, candidate: Array) -> Floats:
    """Return KL(reference || candidate) in nats [N] of probabilities [N, K]."""
    tiny = np.finfo(np.float64).tiny
    p, q = (np.maximum(side.astype(np.float64), tiny) for side in (reference, candidate))
    return np.asarray((p * (np.log(p) - np.log(q))).sum(axis=1))


def logit_cosine(reference: Array, candidate: Array) -> Floats:
    """Return the cosine [N] of two models' logits [N, ...]; 1 where both are equal."""
    a, b = (side.reshape(len(side), -1).astype(np.float64) for side in (reference, candidate))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    same = np.all(a == b, axis=1)
    return np.where(same, 1.0, np.nan_to_num(ratio((a * b).sum(axis=1), lengths)))


def output_scale(reference: Array) -> float:
    """Return the scale of an output: the usual magnitude of its largest values.

    It is the 95th percentile over images of each image's largest absolute value, and at
    least 1. A maximum instead of the percentile would let one image with extreme logits
    hide the errors of the others.

    The scale is at least 1, because logits below 1 may be the small difference of large
    sums. Their rounding error does not shrink with them, and it does not change a
    probability noticeably. So a relative limit is absolute for outputs up to 1.

    Args:
        reference: Output of the fp32 student, [N, ...].

    Example:
        >>> output_scale(np.array([[0.1, -0.2], [0.3, 0.0]]))
        1.0
        >>> output_scale(np.array([[10.0, -20.0], [-20.0, 5.0]]))
        20.0
    """
    largest = np.abs(np.asarray(reference, np.float64)).reshape(len(reference), -1).max(axis=1)
    return max(1.0, float(np.quantile(largest, 0.95)))


def relative_difference(reference: Array, candidate: Array) -> float:
    """Return the largest absolute difference of two outputs as a share of their scale.

    Float32 rounds each product and sum to a part in 2^24 of its size, so the rounding
    errors of logits grow with the logits. An absolute limit would refuse good exports
    of models with large logits.

    Args:
        reference: Output of the fp32 student, [N, ...]. `output_scale` of it is the
            unit.
        candidate: Output of the artifact for the same images, [N, ...].

    Example:
        >>> logits = np.array([[10.0, -20.0], [20.0, 5.0]])
        >>> relative_difference(logits, logits + 0.5)
        0.025
    """
    wide = np.asarray(reference, np.float64)
    return float(np.abs(wide - np.asarray(candidate, np.float64)).max()) / output_scale(wide)


def bootstrap(
    groups: Array, statistics: Mapping[Key, Statistic], *, replicates: int = 1000, seed: int = 0
) -> dict[Key, Floats]:
    """Draw bootstrap replicates of statistics, resampling whole groups.

    Photographs of one lesion are not independent, so they enter a replicate together.
    All statistics see the same replicates: a statistic that computes the metrics of two
    models is a paired comparison.

    Args:
        groups: Lesion or patient of each image [N].
        statistics: Name -> function of weights [r, N], how often each image occurs,
            that returns [r, ...].
        replicates: Number of replicates.
        seed: Seed of the random draws.

    Returns:
        Name -> [replicates, ...]. With a single group all values are NaN, because one
        group gives no spread.

    Example:
        >>> hits = np.array([1.0, 1.0, 0.0, 1.0])
        >>> groups = np.array(["a", "a", "b", "c"])
        >>> draws = bootstrap(groups, {"accuracy": lambda w: weighted_mean(hits, w)})
        >>> draws["accuracy"].shape
        (1000,)

    Sources: Rutter, Bootstrap estimation of diagnostic accuracy with patient-clustered
    data, Acad. Radiol. 7 (2000). Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    count, rng = len(names), np.random.default_rng(seed)
    parts: dict[Key, list[Floats]] = {name: [] for name in statistics}
    # Replicates come in chunks, so that the weights of 1000 replicates of a large table
    # fit into memory. The random stream does not depend on the chunk's size.
    step = max(1, CHUNK // max(1, len(index)))
    for first in range(0, replicates, step):
        size = min(step, replicates - first)
        if count < 2:
            weights = np.zeros((size, len(index)))  # makes every statistic undefined
        else:
            # A replicate draws `count` groups. Offsets by replicate let one bincount
            # over all replicates count how often each group was drawn.
            drawn = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
            times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
            weights = times[:, index].astype(np.float64)
        for name, statistic in statistics.items():
            parts[name].append(statistic(weights))
    return {name: np.concatenate(part) for name, part in parts.items()}


def interval(value: Array | float, replicates: Array, level: float = 0.95) -> Interval:
    """Return a point value with its percentile interval.

    There is no interval if fewer than half of the replicates are defined, as for a
    class with one image. The defined replicates would be a biased sample.

    Args:
        value: Value over all images; NaN if undefined.
        replicates: Values in the bootstrap replicates [R].
        level: Confidence level.

    Example:
        >>> interval(0.5, np.full(1000, 0.5))
        Interval(value=0.5, low=0.5, high=0.5)
    """
    point = float(value)
    defined = replicates[np.isfinite(replicates)]
    if not np.isfinite(point) or 2 * len(defined) < len(replicates) or len(defined) == 0:
        return Interval(point if np.isfinite(point) else None)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(point, float(low), float(high))


def _weights(count: int, weights: Floats | None) -> Floats:
    """Return weights as float64; None becomes one occurrence of each image, [count]."""
    return np.ones(count) if weights is None else np.asarray(weights, np.float64)
