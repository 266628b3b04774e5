"""Choose the magnitude at which an int8 activation saturates."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.run import peak, watch_tensors
from dermedge_runtime.errors import DermedgeError

LEVELS = 127  # int8 steps on either side of zero; TensorRT does not use -128 for weights
BINS = 2048  # of a histogram of magnitudes, as in Migacz (2017)
STEP = 16  # bins between two thresholds that are tried; each costs a pass over the histogram
# Added to the shares of a distribution, so that an empty bin does not diverge
# infinitely.
EPSILON = 1e-7


def clip_thresholds(
    graph: bytes, names: Sequence[str], images: NDArray[np.uint8], method: str
) -> dict[str, float]:
    """Return the magnitude at which each tensor saturates.

    Args:
        graph: The fp32 ONNX model.
        names: Float tensors of the graph.
        images: Calibration images, uint8 [N, S, S, 3].
        method: `minmax` takes the largest magnitude; `entropy` applies
            `entropy_threshold` to the tensor's histogram.

    Raises:
        DermedgeError: The graph gives NaN or Inf on one of the images.
    """
    peaks = np.zeros(len(names), np.float32)
    for values in watch_tensors(graph, names, images):
        peaks = np.maximum(peaks, [peak(value) for value in values])
    if not np.isfinite(peaks).all():
        raise DermedgeError(
            "The student gives NaN or Inf on calibration images. Train it again, or repair the "
            "images."
        )
    if method == "minmax":
        return {name: float(largest) for name, largest in zip(names, peaks, strict=True)}
    counts = np.zeros((len(names), BINS))
    for values in watch_tensors(graph, names, images):
        for row, value, largest in zip(counts, values, peaks, strict=True):
            # A ReLU leaves mostly zeros. They are exact at any scale, and would draw
            # the threshold towards zero.
            row += np.histogram(np.abs(value[value != 0]), BINS, (0, float(largest) or 1))[0]
    shares = [entropy_threshold(row) for row in counts]
    return {
        name: float(largest * share)
        for name, largest, share in zip(names, peaks, shares, strict=True)
    }


def entropy_threshold(counts: NDArray[np.float64]) -> float:
    """Return the best threshold for a histogram of magnitudes, as a share of its span.

    The threshold minimizes the KL divergence between the histogram and its 8-bit
    version. Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.

    Example:
        >>> import numpy as np
        >>> magnitudes = np.append(np.linspace(0, 1, 10_000), 40)  # one outlier
        >>> counts, _ = np.histogram(magnitudes, 2048, (0, 40))
        >>> 1 / 40 <= entropy_threshold(counts.astype(float)) < 4 / 40
        True
        >>> entropy_threshold(np.ones(2048))
        1.0
    """
    best, least = 1.0, np.inf
    for end in range(LEVELS + 1, len(counts) + 1, STEP):
        # The reference distribution: values beyond the threshold are counted in the
        # last bin, because they saturate there.
        inside = counts[:end]
        clipped = inside.copy()
        clipped[-1] += counts[end:].sum()
        # The 8-bit distribution: the bins of one level share its count evenly. Bins
        # that are empty in the histogram stay empty, as values never fall there.
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
