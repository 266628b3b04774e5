"""The magnitude at which an activation saturates: where its scale ends."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.fp16 import peak, watched
from dermedge_runtime.errors import DermedgeError

LEVELS = 127  # int8 on either side of zero; TensorRT leaves -128 out for weights
BINS = 2048  # of a histogram of magnitudes
STEP = 16  # bins from one threshold that is tried to the next
EPSILON = (
    1e-7  # added to shares of a distribution, so that an empty bin does not diverge infinitely
)


def clip_thresholds(
    graph: bytes, names: Sequence[str], images: NDArray[np.uint8], method: str
) -> dict[str, float]:
    """The threshold of each of the tensors `names`: the largest magnitude that was seen (`minmax`), or the one that
    `entropy_threshold` finds in its histogram (`entropy`).

    Raises:
        DermedgeError: the graph gives NaN or Inf on one of the images.
    """
    peaks = np.zeros(len(names), np.float32)
    for values in watched(graph, names, images):
        peaks = np.maximum(peaks, [peak(value) for value in values])
    if not np.isfinite(peaks).all():
        raise DermedgeError(
            "The student gives NaN or Inf on calibration images: train it again, or repair the images."
        )
    if method == "minmax":
        return {name: float(largest) for name, largest in zip(names, peaks, strict=True)}
    counts = np.zeros((len(names), BINS))
    for values in watched(graph, names, images):
        for row, value, largest in zip(counts, values, peaks, strict=True):
            # Zeros, most of what a ReLU leaves, are exact at any scale and would draw the threshold towards them.
            row += np.histogram(np.abs(value[value != 0]), BINS, (0, float(largest) or 1))[0]
    shares = [entropy_threshold(row) for row in counts]
    return {
        name: float(largest * share)
        for name, largest, share in zip(names, peaks, shares, strict=True)
    }


def entropy_threshold(counts: NDArray[np.float64]) -> float:
    """Where to cut a histogram of magnitudes, as a share of its span, so that what 8 bits leave of it diverges least
    from it (Migacz, "8-bit Inference with TensorRT", GTC 2017).
    """
    best, least = 1.0, np.inf
    for end in range(LEVELS + 1, len(counts) + 1, STEP):
        inside = counts[:end]
        clipped = inside.copy()
        clipped[-1] += counts[end:].sum()
        level = np.arange(end) * (LEVELS + 1) // end
        filled = np.bincount(level, inside > 0)
        rounded = (np.bincount(level, inside) / np.maximum(filled, 1))[level] * (inside > 0)
        if not rounded.any():
            continue
        p, q = clipped / clipped.sum() + EPSILON, rounded / rounded.sum() + EPSILON
        divergence = float(np.sum(p * np.log(p / q)))
        if divergence < least:
            best, least = end / len(counts), divergence
    return best
