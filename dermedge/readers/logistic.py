"""Fit a logistic regression of right answers with crossed effects of reader and case."""

import math
import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from dermedge.readers.report import MixedLogistic
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.report import Interval


def fit_logistic(readings: pd.DataFrame) -> MixedLogistic | None:
    """Fit right answers by the condition, with random intercepts of readers and cases.

    statsmodels estimates the coefficients and the standard deviations by variational
    Bayes, with normal priors: mean 0 and standard deviation 2 for the coefficients, 1
    for the log of the standard deviations. A variational interval is too narrow. So
    the interval comes from the curvature of the joint posterior at the estimates.

    The model has no interaction of condition and reader. If the effect of the aid
    differs between readers, the interval is too narrow for a new reader.

    Args:
        readings: Columns `reader`, `case`, `aided` (0 or 1) and `correct`.

    Returns:
        The odds ratio, or None if the answers of a condition are all right or all wrong.

    Source: Breslow and Clayton, Approximate inference in generalized linear mixed
    models, J. Am. Stat. Assoc. 88 (1993).

    Examples:
        >>> from dermedge.readers.simulate import draw_study
        >>> fit = fit_logistic(draw_study(readers=4, cases=30, seed=2).readings)
        >>> fit.odds_ratio.low < fit.odds_ratio.value < fit.odds_ratio.high
        True
    """
    share = readings.groupby("aided")["correct"].mean()
    if len(share) < 2 or share.isin((0, 1)).any():
        return None
    from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM

    # The condition is centred: then its coefficient hardly depends on the intercept.
    fixed = np.column_stack([np.ones(len(readings)), readings["aided"] - 0.5])
    random, ident = _indicators(readings)
    model = BinomialBayesMixedGLM(
        readings["correct"].to_numpy(float), fixed, random, ident, vcp_p=1, fe_p=2
    )
    size = fixed.shape[1] + 2 + random.shape[1]
    with warnings.catch_warnings():
        # Its line search ends a little above the wanted gradient in large studies.
        warnings.filterwarnings("ignore", message="VB fitting did not converge")
        # Given starting values, because statsmodels draws them from numpy's global seed.
        fit = model.fit_vb(mean=np.zeros(size), sd=np.full(size, 0.5))
    spread = np.exp(np.asarray(fit.vcp_mean))
    error = _standard_error(
        fixed, random, fixed @ fit.fe_mean + random @ fit.vc_mean, spread[ident]
    )
    effect = float(fit.fe_mean[1])
    low, high = effect - 1.96 * error, effect + 1.96 * error
    odds = Interval(math.exp(effect), math.exp(low), math.exp(high))
    return MixedLogistic(odds, float(spread[0]), float(spread[1]), len(readings))


def _indicators(
    readings: pd.DataFrame,
) -> tuple[sparse.csr_matrix, NDArray[np.intp]]:
    """Return the indicators of readers and cases [N, R + C], and 0 or 1 for each."""
    parts = []
    for name in ("reader", "case"):
        codes = pd.factorize(readings[name])[0]
        ones = np.ones(len(codes))
        parts.append(sparse.csr_matrix((ones, (np.arange(len(codes)), codes))))
    ident = np.repeat([0, 1], [part.shape[1] for part in parts])
    return sparse.csr_matrix(sparse.hstack(parts)), ident


def _standard_error(
    fixed: Floats, random: sparse.csr_matrix, predictor: Floats, spread: Floats
) -> float:
    """Return the standard error of the condition's coefficient.

    It is the root of an entry of the inverse of the joint posterior's curvature, in
    which the random intercepts are correlated with the coefficients.
    """
    share = 1 / (1 + np.exp(-predictor))
    design = sparse.hstack([sparse.csr_matrix(fixed), random]).tocsr()
    curvature = (design.T @ sparse.diags(share * (1 - share)) @ design).toarray()
    prior = np.concatenate([np.full(fixed.shape[1], 1 / 2**2), 1 / spread**2])
    inverse = np.linalg.inv(curvature + np.diag(prior))
    return math.sqrt(inverse[1, 1])
