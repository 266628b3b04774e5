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


def compare_readers(unaided: Floats, aided: Floats) -> PairedTest:
    """Compare the readers' values unaided and aided, with the reader as the unit.

    Wilcoxon's test is exact for at most 50 readers without ties, as scipy chooses.

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
    if not differences.any():
        return 1.0, 0.0  # scipy has no p-value if nobody changed.
    p = float(stats.wilcoxon(differences).pvalue)
    changed = differences[differences != 0]
    count = len(changed)
    ranks = stats.rankdata(np.abs(changed))
    ties = np.unique(ranks, return_counts=True)[1].astype(np.float64)
    # scipy has the statistic of its approximation only if it chose to approximate.
    variance = count * (count + 1) * (2 * count + 1) / 24 - float((ties**3 - ties).sum()) / 48
    centre = count * (count + 1) / 4
    return p, (float(ranks[changed > 0].sum()) - centre) / math.sqrt(variance)


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
