"""What is fitted on validation data for one artifact: a temperature per task, and the thresholds of malignancy and of
masks.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from dermedge_export.evaluation.metrics import Array, dice
from dermedge_export.evaluation.predictions import (
    Predictions,
    malignancy_scores,
    mask_probabilities,
)
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Postprocessing, Spec

TEMPERATURES = (0.05, 20.0)
SENSITIVITY = 0.90
MARGIN = 1e-6
MASK_THRESHOLDS = (0.5, *(0.5 + sign * step / 20 for step in range(1, 10) for sign in (-1, 1)))


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature in 0.05..20 that minimises the negative log likelihood of `labels`.

    Args:
        logits: [N, K] of a `classify` task, or [N, 1] of a `binary` task.
        labels: [N] class indices, or 1 / 0 for a binary task; rows with -1 or NaN, or with logits that are not finite,
            are left out.

    Raises:
        DataError: no row is left.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    scores, wanted = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    usable = np.isfinite(scores).all(axis=1) & np.isfinite(wanted) & (wanted >= 0)
    scores, truth = scores[usable], wanted[usable].astype(np.int64)
    if len(scores) == 0:
        raise DataError(
            "No labelled row with finite logits to fit a temperature on; give labelled validation images."
        )
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    # Relative to the true class, the loss is log(1 + sum over the others of exp(difference / T)).
    against = scores - scores[np.arange(len(scores)), truth][:, None]

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp.reduce(against / math.exp(log_temperature), axis=1).mean())

    low, high = (math.log(bound) for bound in TEMPERATURES)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return float(np.clip(math.exp(found.x), *TEMPERATURES))


def fit_threshold(
    scores: Array, malignant: Array, sensitivity: float = SENSITIVITY
) -> float | None:
    """The highest threshold at which at least `sensitivity` of the malignant have score >= threshold.

    It is the score of one malignant image, lowered by one part in a million: that image stays malignant where a device
    computes its score in float32.

    Args:
        scores: [N] malignancy scores in 0..1.
        malignant: [N] 1, 0 or NaN; rows with NaN, and scores that are not finite, are left out.
        sensitivity: the share of malignant images to find.

    Returns:
        The threshold, or None without a malignant image.
    """
    scores, malignant = np.asarray(scores, np.float64), np.asarray(malignant, np.float64)
    positives = np.sort(scores[(malignant == 1) & np.isfinite(scores)])[::-1]
    if len(positives) == 0:
        return None
    needed = max(1, math.ceil(sensitivity * len(positives) - 1e-9))
    return float(positives[needed - 1]) * (1 - MARGIN)


def fit_mask_threshold(probabilities: Array, masks: Array) -> float | None:
    """The threshold of MASK_THRESHOLDS with the highest mean Dice coefficient; of equal ones the nearest to 0.5.

    Args:
        probabilities: [N, h, w]; rows that are not finite are left out.
        masks: [N, h, w], 1 inside the lesion and 0 outside; rows with -1 are left out.

    Returns:
        The threshold, or None where no row is left.
    """
    rows = np.isfinite(probabilities).all(axis=(1, 2)) & (masks >= 0).all(axis=(1, 2))
    if not rows.any():
        return None
    inside, likely = masks[rows] > 0, probabilities[rows]
    return max(
        MASK_THRESHOLDS, key=lambda threshold: float(dice(inside, likely >= threshold).mean())
    )


def fit_postprocessing(predictions: Predictions, spec: Spec) -> dict[str, Postprocessing]:
    """What validation `predictions` allow to fit, for every task of `spec`; the rest stays None."""
    fitted = {task.name: Postprocessing() for task in spec.tasks}
    truths: list[tuple[str, NDArray[np.float64]]] = []
    if spec.diagnosis is not None:
        truths.append((spec.diagnosis.name, predictions.labels.astype(np.float64)))
    task = spec.malignancy
    if task is not None and task.kind == "binary":
        truths.append((task.name, np.nan_to_num(predictions.malignant, nan=-1.0)))
    for name, truth in truths:
        logits = predictions.outputs[name]
        if (np.isfinite(logits).all(axis=1) & (truth >= 0)).any():
            fitted[name] = Postprocessing(temperature=fit_temperature(logits, truth))
    scores = malignancy_scores(predictions, spec, fitted)
    if task is not None:
        threshold = fit_threshold(scores, predictions.malignant)
        fitted[task.name] = Postprocessing(fitted[task.name].temperature, threshold)
    segment = next((task for task in spec.tasks if task.kind == "segment"), None)
    if (
        segment is not None
        and segment.name in predictions.outputs
        and predictions.masks is not None
    ):
        likely = mask_probabilities(predictions, segment.name, fitted)
        fitted[segment.name] = Postprocessing(
            threshold=fit_mask_threshold(likely, predictions.masks)
        )
    return fitted
