"""Turn arrays of logits into probabilities by softmax and sigmoid."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def softmax(logits: Array, temperature: float = 1.0, *, axis: int = 1) -> Array:
    """Return exp(z / T), normalised to a sum of one along `axis`.

    The largest logit is subtracted before the division, as in
    `dermedge_runtime.decode.softmax`, so that both round alike. NaN and infinity pass
    through as NaN.

    Args:
        logits: Floats of any shape; the result has the same shape and type.
        temperature: Positive divisor T of the logits.
        axis: Axis of the classes; 1 because tables are [N, K].

    Returns:
        Probabilities.

    Example:
        >>> softmax(np.array([[0.0, 0.0], [0.0, 800.0]])).tolist()
        [[0.5, 0.5], [0.0, 1.0]]
    """
    with np.errstate(invalid="ignore"):
        powers = np.exp((logits - logits.max(axis=axis, keepdims=True)) / temperature)
        return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """Return 1 / (1 + exp(-z)) of each element, without overflow.

    Args:
        logits: Floats of any shape; the result has the same shape and type.

    Returns:
        Probabilities; NaN where the logit is NaN.

    Example:
        >>> sigmoid(np.array([-800.0, 0.0, 800.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    # exp of a non-positive number cannot overflow; it may underflow to 0, as it should.
    power = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1.0, power) / (1.0 + power), logits.dtype)
