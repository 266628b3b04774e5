"""Compare paired readings: Wilcoxon over readers, McNemar over cases."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dermedge.readers.report import McNemarTest, PairedTest
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.report import Interval

EXACT_BELOW = 25
"""Number of changed answers below which McNemar's test is exact."""
MOST_EXACT = 50
"""Largest number of readers for which Wilcoxon's test is exact."""


def compare_readers(unaided: Floats, aided: Floats) -> PairedTest:
    """Compare the readers' values unaided and aided, with the reader as the unit.

    Wilcoxon's test is exact for at most 50 readers, also with ties.

    Args:
        unaided: Value of each reader, [R].
        aided: Value of each reader, [R].

    Sources: Wilcoxon, Individual comparisons by ranking methods, Biometrics Bull. 1
    (1945). Rosenthal, Meta-Analytic Procedures for Social Research, 1991, for r.

    Examples:
        >>> compare_readers(np.array([0.5, 0.6, 0.7]), np.array([0.6, 0.8, 0.75])).p
        0.25
    """
    # Equal metrics may differ in the last bits, which would be ranked as differences.
    differences = np.round(aided - unaided, 12)
    count = len(differences)
    mean, p, z = float(differences.mean()), None, None
    interval = Interval(mean)
    if count > 1:
        error = float(differences.std(ddof=1)) / math.sqrt(count)
        width = error * float(stats.t.ppf(0.975, count - 1))
        interval = Interval(mean, mean - width, mean + width)
        p, z = _wilcoxon(differences)
    effect = None if z is None else min(abs(z) / math.sqrt(count), 1.0)
    return PairedTest(count, float(np.median(differences)), p, z, effect, interval)


def _wilcoxon(differences: Floats) -> tuple[float, float]:
    """Return the two-sided p-value and the standardised statistic.

    Readers without a change are left out. scipy's test is not used: for a dozen readers
    with tied changes it takes more than a second.
    """
    changed = differences[differences != 0]
    count = len(changed)
    if not count:
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(changed))
    positive = float(ranks[changed > 0].sum())
    # Under the null hypothesis each rank is positive or negative by the toss of a coin.
    z = (positive - ranks.sum() / 2) / (math.sqrt((ranks**2).sum()) / 2)
    if count > MOST_EXACT:
        return float(2 * stats.norm.sf(abs(z))), float(z)
    # Number of ways to reach each sum. Ties have half ranks, so sums are doubled.
    ways = np.ones(1)
    for rank in np.rint(2 * ranks).astype(int):
        ways = np.concatenate([ways, np.zeros(rank)]) + np.concatenate([np.zeros(rank), ways])
    place = round(2 * positive)
    tail = min(ways[: place + 1].sum(), ways[place:].sum())
    return min(1.0, 2 * float(tail) / 2.0**count), float(z)


def mcnemar(unaided: NDArray[np.bool_], aided: NDArray[np.bool_]) -> McNemarTest:
    """Test whether as many answers became right as became wrong.

    Args:
        unaided: True for right answers, any shape.
        aided: The same readings, aided.

    Source: McNemar, Note on the sampling error of the difference between correlated
    proportions, Psychometrika 12 (1947).

    Examples:
        >>> mcnemar(np.zeros(5, bool), np.ones(5, bool)).p
        0.0625
    """
    gained, lost = int((~unaided & aided).sum()), int((unaided & ~aided).sum())
    changed = gained + lost
    if changed < EXACT_BELOW:
        p = float(stats.binomtest(gained, changed).pvalue) if changed else 1.0
        return McNemarTest(gained, lost, p, "exact")
    statistic = (abs(gained - lost) - 1) ** 2 / changed if gained != lost else 0.0
    return McNemarTest(gained, lost, float(stats.chi2.sf(statistic, 1)), "chi-squared")
