"""Fit temperatures, thresholds and conformal sets of one artifact on validation data."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from dermedge_export.evaluation.conformal import (
    MARGIN,
    conformal_quantile,
    fit_conformal,
)
from dermedge_export.evaluation.metrics import Array, dice
from dermedge_export.evaluation.ood import fit_ood_threshold, ood_task
from dermedge_export.evaluation.predictions import (
    Predictions,
    malignancy_scores,
    mask_probabilities,
    probabilities,
)
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Postprocessing, Spec

TEMPERATURES = (0.05, 20.0)  # range of the fit
SENSITIVITY = 0.90  # of malignant images, at the fitted threshold
COVERAGE = 0.90  # of the images of each label, by conformal sets and by `rule_in`
Fitted = dict[str, Postprocessing]
MASK_THRESHOLDS = (0.5, *(0.5 + sign * step / 20 for step in range(1, 10) for sign in (-1, 1)))


@dataclass(frozen=True)
class FitOptions:
    """The targets that decision thresholds and conformal sets are fitted to.

    Attributes:
        sensitivity: Share of malignant images whose score reaches the threshold.
        coverage: Share of the images of each label whose conformal set holds it, and
            share of benign images whose score stays below `rule_in`.

    Raises:
        UsageError: A value is not between 0 and 1.

    Example:
        >>> FitOptions(sensitivity=0.95).coverage
        0.9
    """

    sensitivity: float = SENSITIVITY
    coverage: float = COVERAGE

    def __post_init__(self) -> None:
        for name in ("sensitivity", "coverage"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise UsageError(
                    f"The {name} {value} is not between 0 and 1. Give one such as 0.9."
                )


def fit_temperature(logits: Array, labels: Array) -> float:
    """Fit the temperature that minimises the negative log likelihood of labels.

    Args:
        logits: [N, K] of a `classify` task, or [N, 1] of a `binary` task.
        labels: Class indices [N], or 1 / 0 for a binary task. Rows with -1 or NaN, or
            with logits that are not finite, are left out.

    Returns:
        The temperature, from 0.05 to 20.

    Raises:
        DataError: No row is left.

    Example:
        >>> logits = np.array([[4.0, 0.0]] * 3 + [[0.0, 4.0]])
        >>> round(fit_temperature(logits, np.zeros(4)), 2)  # 3 of 4 are right, not 98 %
        3.64

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    scores, wanted = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    usable = np.isfinite(scores).all(axis=1) & np.isfinite(wanted) & (wanted >= 0)
    scores, truth = scores[usable], wanted[usable].astype(np.int64)
    if len(scores) == 0:
        raise DataError(
            "The val split has no labelled image with finite logits to fit a temperature on. "
            "Give labelled validation images."
        )
    if scores.shape[1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=1)
    # Relative to the true class, the loss is log(1 + sum over the others of
    # exp(difference / T)). The search runs over log T, in which the loss is nearly
    # symmetric around its minimum.
    differences = scores - scores[np.arange(len(scores)), truth][:, None]

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp.reduce(differences / math.exp(log_temperature), axis=1).mean())

    low, high = (math.log(bound) for bound in TEMPERATURES)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return float(np.clip(math.exp(best.x), *TEMPERATURES))


def fit_threshold(
    scores: Array, malignant: Array, sensitivity: float = SENSITIVITY
) -> float | None:
    """Fit the highest threshold that keeps a sensitivity on malignant images.

    The threshold is the score of one malignant image, lowered by one part in a million.
    That image then stays malignant on a device that computes its score in float32.

    Args:
        scores: Malignancy scores in 0..1, [N].
        malignant: 1, 0 or NaN for unknown, [N]. Rows with NaN, and scores that are not
            finite, are left out.
        sensitivity: Smallest share of malignant images with score >= threshold.

    Returns:
        The threshold, or None without a malignant image.

    Example:
        >>> scores, malignant = np.array([0.9, 0.8, 0.3, 0.6]), np.array([1, 1, 1, 0])
        >>> round(fit_threshold(scores, malignant, sensitivity=0.6), 3)
        0.8
    """
    scores, malignant = np.asarray(scores, np.float64), np.asarray(malignant, np.float64)
    positives = np.sort(scores[(malignant == 1) & np.isfinite(scores)])[::-1]
    if len(positives) == 0:
        return None
    needed = max(1, math.ceil(sensitivity * len(positives) - 1e-9))
    return float(positives[needed - 1]) * (1 - MARGIN)


def fit_rule_in(scores: Array, malignant: Array, threshold: float, coverage: float) -> float | None:
    """Fit the score that a benign image stays below with a probability of `coverage`.

    Together, `threshold` and `rule_in` are a conformal set of benign and malignant: a
    score between them fits both.

    Args:
        scores: Malignancy scores in 0..1, [N].
        malignant: 1, 0 or NaN for unknown, [N].
        threshold: Fitted threshold, the lowest value of `rule_in`.
        coverage: Share of benign images below `rule_in`.

    Returns:
        The score, at most 1. None with fewer than `needed_images(coverage)` benign
        images.

    Example:
        >>> fit_rule_in(np.arange(1, 20) / 20, np.zeros(19), 0.3, 0.9)
        0.900001
    """
    benign = scores[(malignant == 0) & np.isfinite(scores)]
    quantile = conformal_quantile(benign, coverage)
    return None if quantile is None else float(min(1.0, max(threshold, quantile)))


def fit_mask_threshold(probabilities: Array, masks: Array) -> float | None:
    """Select the threshold of `MASK_THRESHOLDS` with the highest mean Dice coefficient.

    Of equal thresholds, the nearest to 0.5 is selected. An empty mask counts 1 if
    nothing is predicted and 0 otherwise, so that false alarms cost as much as misses.

    Args:
        probabilities: [N, h, w]; rows that are not finite are left out.
        masks: 1 inside the lesion and 0 outside, [N, h, w]; rows with -1 are left out.

    Returns:
        The threshold, or None if no mask with a lesion is left.

    Example:
        >>> fit_mask_threshold(np.array([[[0.3, 0.1]]]), np.array([[[1, 0]]]))
        0.3
    """
    rows = np.isfinite(probabilities).all(axis=(1, 2)) & (masks >= 0).all(axis=(1, 2))
    truth, usable = masks[rows] > 0, probabilities[rows]
    if not truth.any():
        return None

    def score(threshold: float) -> float:
        return float(np.nan_to_num(dice(truth, usable >= threshold), nan=1.0).mean())

    return max(MASK_THRESHOLDS, key=score)


def fit_postprocessing(
    predictions: Predictions, spec: Spec, options: FitOptions | None = None
) -> dict[str, Postprocessing]:
    """Fit the postprocessing of each task, as far as labels allow.

    Args:
        predictions: Predictions of one artifact for the val split.
        spec: Tasks and labels of the model.
        options: Sensitivity and coverage to fit.

    Returns:
        Postprocessing by task. A field is None if no image is labelled for it.
    """
    options = options or FitOptions()
    fitted = {task.name: Postprocessing() for task in spec.tasks}
    _fit_temperatures(fitted, predictions, spec)
    _fit_sets(fitted, predictions, spec, options.coverage)
    _fit_decision(fitted, predictions, spec, options)
    segment = next((task for task in spec.tasks if task.kind == "segment"), None)
    if (
        segment is not None
        and segment.name in predictions.outputs
        and predictions.masks is not None
    ):
        inside = mask_probabilities(predictions, segment.name, fitted)
        fitted[segment.name] = Postprocessing(
            threshold=fit_mask_threshold(inside, predictions.masks)
        )
    task = ood_task(spec)
    if task is not None and task.name in predictions.outputs:
        scores = predictions.outputs[task.name][:, 0]
        fitted[task.name] = Postprocessing(ood_threshold=fit_ood_threshold(scores))
    return fitted


def _fit_temperatures(fitted: Fitted, predictions: Predictions, spec: Spec) -> None:
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


def _fit_sets(fitted: Fitted, predictions: Predictions, spec: Spec, coverage: float) -> None:
    task = spec.diagnosis
    if task is not None:
        likely = probabilities(predictions, spec, fitted)
        sets = fit_conformal(likely, predictions.labels, predictions.groups, coverage)
        fitted[task.name] = replace(fitted[task.name], conformal=sets)


def _fit_decision(
    fitted: Fitted, predictions: Predictions, spec: Spec, options: FitOptions
) -> None:
    task = spec.malignancy
    if task is None:
        return
    scores = malignancy_scores(predictions, spec, fitted)
    threshold = fit_threshold(scores, predictions.malignant, options.sensitivity)
    rule_in = None
    if threshold is not None:
        rule_in = fit_rule_in(scores, predictions.malignant, threshold, options.coverage)
    fitted[task.name] = replace(fitted[task.name], threshold=threshold, rule_in=rule_in)
