"""Compare two conditions by the Obuchowski-Rockette method, for crossed studies.

Every reader reads every case in both conditions. The metric of reader j in condition i
is a mean plus effects of condition, reader and their interaction, plus an error whose
covariances come from the cases: cov1 between conditions of one reader, cov2 between
readers in one condition, cov3 between readers and conditions.

Sources:
- Obuchowski and Rockette, Hypothesis testing of diagnostic accuracy for multiple
  readers and multiple tests, Commun. Stat. Simul. Comput. 24 (1995): the model.
- Hillis, A comparison of denominator degrees of freedom methods for multiple observer
  ROC analysis, Stat. Med. 26 (2007): the degrees of freedom.
- Hillis, Berbaum and Metz, Recent developments in the Dorfman-Berbaum-Metz procedure,
  Acad. Radiol. 15 (2008): the unified formulas.
- DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated
  ROC curves, Biometrics 44 (1988): the covariance of areas.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dermedge.readers.scores import AreaScore, Score
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.report import Interval

# Rounding errors leave variances of about 1e-20 where all readings agree.
NO_VARIANCE = 1e-15


@dataclass(frozen=True)
class ErrorCovariances:
    """Error variance and covariances of a metric.

    Attributes:
        variance: Mean error variance of a reader in a condition.
        cov1: Mean covariance of one reader's two conditions.
        cov2: Mean covariance of two readers in one condition.
        cov3: Mean covariance of two readers in two conditions.
        conditions: Variance and cov2 of each condition alone, unaided and aided.
        method: `delong` or `jackknife`.

    Examples:
        >>> ErrorCovariances(8e-4, 3e-4, 3e-4, 2e-4, ((1e-3, 4e-4), (6e-4, 2e-4))).cov1
        0.0003
    """

    variance: float
    cov1: float
    cov2: float
    cov3: float
    conditions: tuple[tuple[float, float], tuple[float, float]]
    method: str = "jackknife"


@dataclass(frozen=True)
class EffectTest:
    """Test of no difference between the conditions, with 95 % intervals.

    Attributes:
        statistic: F, or chi-squared for fixed readers. None if no reading varies.
        df: Degrees of freedom of the denominator of F; None for the normal distribution.
        p: Two-sided p-value.
        difference: Aided minus unaided.
        unaided: Mean over readers, from the unaided readings alone.
        aided: Mean over readers, from the aided readings alone.

    Examples:
        >>> EffectTest(4.5, 15.3, 0.05, Interval(0.04), Interval(0.9), Interval(0.94)).df
        15.3
    """

    statistic: float | None
    df: float | None
    p: float | None
    difference: Interval
    unaided: Interval
    aided: Interval


@dataclass(frozen=True)
class ObuchowskiRockette:
    """Three analyses of a metric, which generalise to different populations.

    Attributes:
        covariances: Error variance and covariances.
        reader_variance: Variance of the readers; it may be negative. None for one reader.
        interaction_variance: Variance of the interaction of readers and conditions.
        random: Random readers, random cases. None for one reader.
        fixed_readers: These readers, random cases.
        fixed_cases: Random readers, these cases. None for one reader.

    Examples:
        >>> theta = np.array([[0.80, 0.85, 0.75], [0.85, 0.88, 0.83]])
        >>> error = ErrorCovariances(8e-4, 3e-4, 3e-4, 2e-4, ((1e-3, 4e-4), (6e-4, 2e-4)))
        >>> result = compare_conditions(theta, error)
        >>> round(result.random.df, 1), round(result.random.p, 3)
        (7.6, 0.032)
    """

    covariances: ErrorCovariances
    reader_variance: float | None
    interaction_variance: float | None
    random: EffectTest | None
    fixed_readers: EffectTest
    fixed_cases: EffectTest | None


def estimate_covariances(score: Score) -> ErrorCovariances:
    """Estimate the error covariances of a metric: areas by DeLong, others by jackknife.

    Args:
        score: Metric of readings of the shape [2, R, C].

    Examples:
        >>> from dermedge.readers.scores import MeanScore
        >>> hits = np.array([[[1.0, 1.0, 0.0, 1.0]], [[1.0, 1.0, 1.0, 1.0]]])
        >>> round(estimate_covariances(MeanScore(hits, np.zeros(4, int))).variance, 6)
        0.03125
    """
    if isinstance(score, AreaScore):
        covariance, method = delong_covariance(score), "delong"
    else:
        covariance, method = jackknife_covariance(score), "jackknife"
    readers = len(covariance) // 2
    blocks = covariance.reshape(2, readers, 2, readers)
    same, across = [blocks[i, :, i] for i in (0, 1)], blocks[0, :, 1]
    conditions = [(float(np.diag(part).mean()), _off_diagonal(part)) for part in same]
    return ErrorCovariances(
        variance=sum(variance for variance, _ in conditions) / 2,
        cov1=float(np.diag(across).mean()),
        cov2=sum(cov2 for _, cov2 in conditions) / 2,
        cov3=_off_diagonal(across),
        conditions=(conditions[0], conditions[1]),
        method=method,
    )


def _off_diagonal(part: Floats) -> float:
    count = len(part) * (len(part) - 1)
    return float((part.sum() - np.trace(part)) / count) if count else 0.0


def jackknife_covariance(score: Score) -> Floats:
    """Return the covariance of a metric between readings by leaving out each case.

    Args:
        score: Metric of readings of the shape [2, R, C].

    Returns:
        [2 R, 2 R], the readings of the first condition first.

    Source: Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982.

    Examples:
        >>> from dermedge.readers.scores import MeanScore
        >>> score = MeanScore(np.array([[[1.0, 0.0]], [[1.0, 1.0]]]), np.zeros(2, int))
        >>> jackknife_covariance(score).tolist()
        [[0.25, 0.0], [0.0, 0.0]]
    """
    counted = np.flatnonzero(score.counted)
    weights = np.tile(score.counted.astype(np.float64), (len(counted), 1))
    weights[np.arange(len(counted)), counted] = 0
    without = score.at(weights).reshape(len(counted), -1)
    # The only case of a class leaves an undefined metric if it is left out.
    without = without[np.isfinite(without).all(1)]
    deviation = without - without.mean(0)
    size = len(without)
    covariance: Floats = (size - 1) / size * deviation.T @ deviation
    return covariance


def delong_covariance(score: AreaScore) -> Floats:
    """Return DeLong's covariance of the areas of all readings, [2 R, 2 R].

    Examples:
        >>> ratings = np.array([[[1.0, 2.0, 2.0, 3.0]], [[1.0, 2.0, 3.0, 3.0]]])
        >>> delong_covariance(AreaScore(ratings, np.array([0.0, 0.0, 1.0, 1.0]))).shape
        (2, 2)
    """
    total = np.zeros(())
    for placements in score.placements:
        size = placements.shape[1]
        deviation = placements - placements.mean(1, keepdims=True)
        # One malignant or one benign case gives no variance.
        total = total + deviation @ deviation.T / max(1, size - 1) / size
    return total


def compare_conditions(theta: Floats, error: ErrorCovariances) -> ObuchowskiRockette:
    """Test the difference of two conditions in three ways.

    Args:
        theta: Metric of each reader, [2, R], unaided first.
        error: Error covariances of the metric.

    Examples:
        >>> theta = np.array([[0.80, 0.85, 0.75], [0.85, 0.88, 0.83]])
        >>> error = ErrorCovariances(8e-4, 3e-4, 3e-4, 2e-4, ((1e-3, 4e-4), (6e-4, 2e-4)))
        >>> compare_conditions(theta, error).fixed_cases.df
        2
    """
    readers = theta.shape[1]
    covariance = max(error.cov2 - error.cov3, 0.0)
    fixed_readers = _test(
        theta,
        error.variance - error.cov1 + (readers - 1) * covariance,
        df=None,
        single=[(v + (readers - 1) * max(cov2, 0.0), None) for v, cov2 in error.conditions],
    )
    if readers == 1:
        return ObuchowskiRockette(error, None, None, None, fixed_readers, None)
    free = readers - 1
    between = theta.var(1, ddof=1)  # Mean squares of readers, for each condition.
    interaction = float((theta[1] - theta[0]).var(ddof=1)) / 2
    readers_square = 2 * float(theta.mean(0).var(ddof=1))
    denominator = interaction + readers * covariance
    single = []
    for square, (_, cov2) in zip(between.tolist(), error.conditions, strict=True):
        total = square + readers * max(cov2, 0.0)
        single.append((total, _hillis_df(total, square, free)))
    return ObuchowskiRockette(
        covariances=error,
        reader_variance=(readers_square - interaction) / 2 - error.cov1 + error.cov3,
        interaction_variance=interaction - error.variance + error.cov1 + error.cov2 - error.cov3,
        random=_test(theta, denominator, _hillis_df(denominator, interaction, free), single),
        fixed_readers=fixed_readers,
        fixed_cases=_test(theta, interaction, free, [(float(each), free) for each in between]),
    )


def _hillis_df(denominator: float, square: float, free: int) -> float | None:
    """Return Hillis' degrees of freedom; None if no reader differs from another."""
    return denominator**2 / (square**2 / free) if square > NO_VARIANCE else None


def _test(
    theta: Floats,
    denominator: float,
    df: float | None,
    single: list[tuple[float, float | None]],
) -> EffectTest:
    """Test the difference of the means with the mean square of its error.

    Args:
        theta: Metric of each reader, [2, R].
        denominator: Denominator of F.
        df: Degrees of freedom of the denominator; None is the normal distribution.
        single: Mean square and degrees of freedom for each condition alone.
    """
    readers = theta.shape[1]
    means = theta.mean(1)
    difference = float(means[1] - means[0])
    error = math.sqrt(max(2 / readers * denominator, 0.0))
    alone = [
        _interval(float(mean), math.sqrt(max(square / readers, 0.0)), free, (0.0, 1.0))
        for mean, (square, free) in zip(means, single, strict=True)
    ]
    if denominator <= NO_VARIANCE:
        return EffectTest(None, df, None, Interval(difference), alone[0], alone[1])
    t = difference / error
    p = 2 * (stats.norm.sf(abs(t)) if df is None else stats.t.sf(abs(t), df))
    interval = _interval(difference, error, df, (-1.0, 1.0))
    return EffectTest(t**2, df, float(p), interval, alone[0], alone[1])


def _interval(
    value: float, error: float, df: float | None, limits: tuple[float, float]
) -> Interval:
    """Return a value with its 95 % interval, cut at the metric's limits."""
    if error**2 <= NO_VARIANCE:
        return Interval(value)
    width = error * float(stats.norm.ppf(0.975) if df is None else stats.t.ppf(0.975, df))
    return Interval(value, max(value - width, limits[0]), min(value + width, limits[1]))
