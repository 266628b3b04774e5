"""Compute conformal sets of whole tables, as `dermedge_runtime.decode` does per image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.spec import Conformal

Array = NDArray[Any]


def conformal_scores(probabilities: Array, conformal: Conformal) -> NDArray[np.float64]:
    """Return the conformal score of each label; a label is in the set up to its quantile.

    Args:
        probabilities: Class probabilities [N, K].
        conformal: Method and its parameters; the quantiles are not used.

    Returns:
        Scores, float64 [N, K].

    Example:
        >>> aps = Conformal("aps", 0.9, (None, None, None))
        >>> conformal_scores(np.array([[0.25, 0.5, 0.25]]), aps).tolist()
        [[0.75, 0.5, 1.0]]

    Source: see `dermedge_runtime.decode.conformal_set`.
    """
    if conformal.method == "lac":
        return np.asarray(1.0 - probabilities, np.float64)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1).cumsum(axis=1)
    if conformal.method == "raps":
        ranks = np.arange(1, probabilities.shape[1] + 1)
        ranked = ranked + conformal.penalty * np.maximum(0, ranks - conformal.free)
    scores = np.empty(probabilities.shape)
    np.put_along_axis(scores, order, ranked, axis=1)
    return scores


def conformal_sets(probabilities: Array, conformal: Conformal) -> NDArray[np.bool_]:
    """Return which labels are in the set of each image, bool [N, K].

    Args:
        probabilities: Class probabilities [N, K]; rows with NaN have the labels without
            a quantile only.
        conformal: Fitted method and quantiles.

    Example:
        >>> lac = Conformal("lac", 0.9, (0.6, 0.6, None))
        >>> conformal_sets(np.array([[0.5, 0.3, 0.2]]), lac).tolist()
        [[True, False, True]]
    """
    quantiles = [np.inf if value is None else value for value in conformal.quantiles]
    sets = conformal_scores(probabilities, conformal) <= quantiles
    missing = np.array([value is None for value in conformal.quantiles])
    return np.asarray(sets | missing)
