"""Fit the threshold of an `ood` task."""

import math

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.spec import Spec, Task

RETENTION = 0.95
"""Share of the val images that the fitted threshold does not flag."""
MARGIN = 1e-6
"""Relative; more than the rounding of a score in float32."""


def ood_task(spec: Spec) -> Task | None:
    """Return the first task of the kind `ood`, or None."""
    return next((task for task in spec.tasks if task.kind == "ood"), None)


def fit_ood_threshold(scores: NDArray[np.floating], retention: float = RETENTION) -> float | None:
    """Fit the lowest threshold that keeps a share of images unflagged.

    The threshold is the score of one image, raised by one part in a million. That image
    then stays unflagged on a device that rounds its score in another way.

    Args:
        scores: Scores of an `ood` task for val images, [N]; those that are not finite
            are left out.
        retention: Smallest share of images with score <= threshold.

    Returns:
        The threshold, or None without an image.

    Example:
        >>> round(fit_ood_threshold(np.arange(1, 101) / 100), 3)
        0.95
    """
    known = np.sort(np.asarray(scores, np.float64)[np.isfinite(scores)])
    if len(known) == 0:
        return None
    kept = max(1, math.ceil(retention * len(known) - 1e-9))
    return float(known[kept - 1]) * (1 + MARGIN)
