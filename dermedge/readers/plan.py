"""`plan_readers`: estimate the power of a planned study by simulation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dermedge.readers.obuchowski_rockette import compare_conditions, estimate_covariances
from dermedge.readers.scores import METRICS, AreaScore, MeanScore, Score
from dermedge.readers.simulate import STRUCTURES, draw_ratings
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.errors import UsageError
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.registry import pick_known
from dermedge_runtime.report import Interval

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PlannedStudy:
    """A number of readers and cases, and its estimated power.

    Attributes:
        readers: Number of readers.
        cases: Number of cases.
        malignant: Number of malignant cases among them.
        power: Share of simulated studies with a significant difference.
        width: Mean width of the 95 % interval of the difference.

    Examples:
        >>> PlannedStudy(10, 100, 50, Interval(0.8, 0.76, 0.83), 0.1).cases
        100
    """

    readers: int
    cases: int
    malignant: int
    power: Interval
    width: float


@dataclass(frozen=True)
class PlanReport:
    """Result of `plan_readers`.

    Attributes:
        metric: Compared metric.
        unaided: Its expected value unaided.
        aided: Its expected value aided.
        structure: Name of the variances.
        simulations: Simulated studies of each size.
        seed: Random seed.
        studies: The sizes and their power.

    Examples:
        >>> from dermedge import plan_readers
        >>> report = plan_readers([4], [40], simulations=20)
        >>> report.studies[0].malignant
        20
    """

    metric: str
    unaided: float
    aided: float
    structure: str
    simulations: int
    seed: int
    studies: tuple[PlannedStudy, ...]


def plan_readers(
    readers: Sequence[int],
    cases: Sequence[int],
    *,
    unaided: float = 0.75,
    aided: float = 0.80,
    metric: str = "auc",
    malignant: float = 0.5,
    structure: str = "HL",
    simulations: int = 500,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlanReport:
    """Estimate the power of studies with some numbers of readers and cases.

    Each simulated study is analysed as `analyze_readers` does: by Obuchowski-Rockette
    with random readers and cases, at the two-sided level of 5 %. With `aided` equal to
    `unaided`, the power is the rate of false positives.

    Args:
        readers: Numbers of readers, at least 2.
        cases: Numbers of cases.
        unaided: Expected value of the metric unaided, from 0.5 to below 1.
        aided: Expected value aided.
        metric: `auc`, `accuracy`, `balanced_accuracy`, `sensitivity` or `specificity`.
            For all but `auc`, sensitivity and specificity are equal.
        malignant: Share of malignant cases.
        structure: Variances of Roe and Metz: `HL`, `LL`, `HH` or `LH`. The first letter
            is the correlation of the data, the second the variance of readers.
        simulations: Simulated studies of each size.
        seed: Random seed.
        progress: Called after every simulated study.

    Raises:
        UsageError: A number or a name is not allowed.

    Source: Roe and Metz, Acad. Radiol. 4 (1997), for the model of the ratings.

    Example:
        >>> few, many = plan_readers([4, 12], [60], aided=0.9, simulations=40).studies
        >>> few.power.value < many.power.value
        True
    """
    pick_known("metric", metric, METRICS)
    pick_known("structure", structure, STRUCTURES)
    variances = STRUCTURES[structure]
    separations = (variances.separation(unaided, metric), variances.separation(aided, metric))
    report = progress or no_progress
    sizes = [(r, c) for r in readers for c in cases]
    studies = []
    for index, (count, size) in enumerate(sizes):
        positives = _check_size(count, size, malignant)
        truth = (np.arange(size) < positives).astype(np.float64)
        # Each size has random numbers of its own, so a further size changes no other.
        rng = np.random.default_rng([seed, count, size])
        found, widths = 0, []
        for number in range(simulations):
            ratings = draw_ratings(variances, separations, count, truth, rng)
            p, width = _test(ratings, truth, metric)
            found += p < SIGNIFICANT
            widths.append(width)
            note = f"{count} readers, {size} cases"
            report(index * simulations + number + 1, len(sizes) * simulations, note)
        power = _share(found, simulations)
        studies.append(PlannedStudy(count, size, positives, power, float(np.mean(widths))))
    return PlanReport(metric, unaided, aided, structure, simulations, seed, tuple(studies))


def _check_size(readers: int, cases: int, malignant: float) -> int:
    """Return the number of malignant cases.

    Raises:
        UsageError: The study is too small.
    """
    positives = round(cases * malignant)
    if readers < 2 or positives < 2 or cases - positives < 2:
        raise UsageError(
            f"A study of {readers} readers, {positives} malignant and {cases - positives} benign "
            "cases is too small. Plan at least 2 of each."
        )
    return positives


def _test(ratings: Floats, truth: Floats, metric: str) -> tuple[float, float]:
    """Return the p-value and the width of the interval, random readers and cases."""
    score = make_score(ratings, truth, metric)
    theta = score.at(np.ones((1, len(truth))))[0]
    result = compare_conditions(theta, estimate_covariances(score)).random
    # Identical answers in both conditions show no difference.
    if result is None or result.p is None:
        return 1.0, 0.0
    return result.p, (result.difference.high or 0.0) - (result.difference.low or 0.0)


def make_score(ratings: Floats, truth: Floats, metric: str) -> Score:
    """Return a metric of drawn ratings, whose threshold is 0.

    Args:
        ratings: [2, R, C].
        truth: 1 or 0 for each case, [C].
        metric: A name of `METRICS`.

    Examples:
        >>> ratings = np.array([[[-1.0, 1.0]], [[-1.0, -1.0]]])
        >>> make_score(ratings, np.array([0.0, 1.0]), "accuracy").at(np.ones((1, 2))).tolist()
        [[[1.0], [0.5]]]
    """
    if metric == "auc":
        return AreaScore(ratings, truth)
    correct = ((ratings >= 0) == truth).astype(np.float64)
    classes = {
        "accuracy": np.zeros(len(truth)),
        "balanced_accuracy": truth,
        "sensitivity": np.where(truth == 1, 0, -1),
        "specificity": np.where(truth == 0, 0, -1),
    }
    return MeanScore(correct, classes[metric].astype(np.intp))


def _share(hits: int, trials: int) -> Interval:
    """Return a share with Wilson's interval."""
    low, high = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    return Interval(hits / trials, float(low), float(high))
