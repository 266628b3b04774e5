"""Compute metrics over all images and subgroups, on shared bootstrap replicates."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermedge.evaluation.report import Scores, SubgroupScores
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Floats, Statistic
from dermedge_export.evaluation.predictions import Decoded, Predictions
from dermedge_runtime.report import Interval

CLASSIFICATION_METRICS = (
    "balanced_accuracy",
    "accuracy",
    "macro_auroc",
    "malignant_auroc",
    "sensitivity",
    "specificity",
    "ece",
)
OVERALL = ("", "")
CLASS = "class"
RECALL_KEY = ("", "", "recall")
RowMask = NDArray[np.bool_]


@dataclass(frozen=True)
class ImageScores:
    """Scores over all images, recall by label, and scores by subgroup.

    Examples:
        >>> ImageScores(Scores(0, 0, 0, 0, {}), {}, ()).overall.cases
        0
    """

    overall: Scores
    recall: dict[str, Interval]
    subgroups: tuple[SubgroupScores, ...]
    classes: tuple[SubgroupScores, ...] = ()


def score_images(
    predictions: Predictions, decoded: Decoded, *, replicates: int, seed: int
) -> ImageScores:
    """Compute every metric over all images and over each subgroup.

    All metrics share the same bootstrap replicates, so each replicate is drawn once.

    Args:
        predictions: Predictions for N images, with their labels, groups and subgroups.
        decoded: The same predictions, decoded.
        replicates: Bootstrap replicates over lesions or patients.
        seed: Random seed of the bootstrap.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> from dermedge.data.split import with_split
        >>> from dermedge_export.evaluation.predictions import decode_table
        >>> from dermedge.evaluation.table_predictions import table_predictions
        >>> import dermedge
        >>> with dermedge.load("toy.dermedge") as model:
        ...     spec = model.bundle.spec
        ...     table = with_split(read_table("lesions")).select_split("test")
        ...     predictions = table_predictions(table, spec, model.run)
        >>> decoded = decode_table(predictions, spec, {})
        >>> scores = score_images(predictions, decoded, replicates=10, seed=0)
        >>> 0 <= scores.overall.metrics["accuracy"].value <= 1
        True
    """
    # A subgroup is a mask over all rows, not a smaller table: its weights in a
    # replicate are then those of the overall score, and each replicate is drawn once.
    parts: dict[tuple[str, str], RowMask] = {OVERALL: np.ones(len(predictions), bool)}
    for column, values in predictions.subgroups.items():
        parts |= {(column, value): values == value for value in sorted(set(values.tolist()) - {""})}
    measures: dict[tuple[str, str, str], Statistic] = {
        (*part, name): measure
        for part, rows in parts.items()
        for name, measure in make_measures(decoded, predictions.malignant, rows).items()
    }
    by_class = {(CLASS, name): decoded.labels == k for k, name in enumerate(decoded.names)}
    measures |= {
        (*part, name): measure
        for part, rows in by_class.items()
        for name, measure in _abstention_measures(decoded, rows).items()
    }
    labelled = decoded.labels >= 0
    truth, predicted = decoded.labels[labelled], decoded.predicted[labelled]
    # Recall has a column per class, so it is one measure with values [..., K].
    measures[RECALL_KEY] = lambda w: metrics.recalls(
        truth, predicted, len(decoded.names), w[..., labelled]
    )
    drawn = metrics.bootstrap(predictions.groups, measures, replicates=replicates, seed=seed)
    point = {key: measure(np.ones(len(predictions))) for key, measure in measures.items()}
    scores = {
        part: Scores(
            cases=int(rows.sum()),
            labelled=int((rows & labelled).sum()),
            malignant=int((rows & (predictions.malignant == 1)).sum()),
            groups=len(set(predictions.groups[rows].tolist())),
            **_count_empty_masks(decoded, rows),
            metrics={
                key[2]: metrics.interval(point[key], drawn[key])
                for key in measures
                if key[:2] == part and key != RECALL_KEY
            },
        )
        for part, rows in (parts | by_class).items()
    }
    recall = {
        name: metrics.interval(point[RECALL_KEY][k], drawn[RECALL_KEY][:, k])
        for k, name in enumerate(decoded.names)
    }
    subgroups = tuple(SubgroupScores(*part, scores[part]) for part in parts if part != OVERALL)
    classes = tuple(SubgroupScores(*part, scores[part]) for part in by_class)
    return ImageScores(scores[OVERALL], recall, subgroups, classes)


def make_measures(decoded: Decoded, malignant: Floats, rows: RowMask) -> dict[str, Statistic]:
    """Return every metric over some rows, as a function of weights [..., N].

    Args:
        decoded: Decoded predictions of N images.
        malignant: True malignancy [N]; NaN if unknown.
        rows: The images that enter the metrics, bool [N].

    Example:
        >>> import dermedge
        >>> from dermedge.data.table import read_table
        >>> from dermedge.evaluation.table_predictions import table_predictions
        >>> from dermedge_export.evaluation.predictions import decode_table
        >>> with dermedge.load("toy.dermedge") as model:
        ...     spec, table = model.bundle.spec, read_table("lesions")
        ...     predictions = table_predictions(table, spec, model.run)
        >>> decoded = decode_table(predictions, spec, {})
        >>> measures = make_measures(decoded, predictions.malignant, np.ones(80, bool))
        >>> 0 <= float(measures["accuracy"](np.ones(80))) <= 1
        True
    """
    measures: dict[str, Statistic] = dict.fromkeys(CLASSIFICATION_METRICS, _undefined)
    measures |= _diagnosis_measures(decoded, rows)
    measures |= _malignancy_measures(decoded, malignant, rows)
    measures |= _abstention_measures(decoded, rows)
    if decoded.ood is not None:
        flagged = decoded.ood[rows]
        measures["ood_flagged"] = lambda w: metrics.weighted_mean(flagged, w[..., rows])
    return measures | _severity_and_mask_measures(decoded, rows)


def _abstention_measures(decoded: Decoded, rows: RowMask) -> dict[str, Statistic]:
    """Return the metrics of conformal sets and of the decision `refer`, where fitted."""
    measures: dict[str, Statistic] = {}
    if decoded.sets is not None:
        labelled = rows & (decoded.labels >= 0)
        covered, sizes = decoded.covered[labelled], decoded.sets[rows].sum(axis=1)
        measures["coverage"] = lambda w: metrics.weighted_mean(covered, w[..., labelled])
        measures["set_size"] = lambda w: metrics.weighted_mean(sizes, w[..., rows])
    if decoded.rule_in is not None or decoded.ood is not None:
        referred = decoded.referred[rows]
        measures["referred"] = lambda w: metrics.weighted_mean(referred, w[..., rows])
    return measures


def _diagnosis_measures(decoded: Decoded, rows: RowMask) -> dict[str, Statistic]:
    """Return the metrics over classes; none for a model without classes."""
    if not decoded.names:
        return {}
    labelled = rows & (decoded.labels >= 0)
    truth, predicted, likely = (
        decoded.labels[labelled],
        decoded.predicted[labelled],
        decoded.probabilities[labelled],
    )
    return {
        "balanced_accuracy": lambda w: metrics.balanced_accuracy(
            truth, predicted, len(decoded.names), w[..., labelled]
        ),
        "accuracy": lambda w: metrics.accuracy(truth, predicted, w[..., labelled]),
        "macro_auroc": lambda w: metrics.macro_auroc(truth, likely, w[..., labelled]),
        "ece": lambda w: metrics.ece(truth, likely, w[..., labelled]),
    }


def _malignancy_measures(
    decoded: Decoded, malignant: Floats, rows: RowMask
) -> dict[str, Statistic]:
    """Return the metrics of malignant against benign; none without a score."""
    # Diagnoses that sources disagree on have no malignancy; they enter the metrics over
    # classes but none of these.
    known = rows & np.isfinite(malignant)
    positive, scores, threshold = malignant[known] == 1, decoded.scores[known], decoded.threshold
    if not np.isfinite(scores).any():
        return {}
    measures: dict[str, Statistic] = {
        "malignant_auroc": lambda w: metrics.auroc(positive, scores, w[..., known])
    }
    if threshold is not None:
        measures["sensitivity"] = lambda w: metrics.sensitivity(
            positive, scores, threshold, w[..., known]
        )
        measures["specificity"] = lambda w: metrics.specificity(
            positive, scores, threshold, w[..., known]
        )
    return measures


def _severity_and_mask_measures(decoded: Decoded, rows: RowMask) -> dict[str, Statistic]:
    """Return the metrics of severity and lesion masks, if the model predicts them."""
    measures: dict[str, Statistic] = {}
    if decoded.graded is not None and decoded.graded.rows.any():
        graded = rows & decoded.graded.rows
        levels, predicted = decoded.graded.levels[graded], decoded.graded.predicted[graded]
        measures["severity_mae"] = lambda w: metrics.mean_absolute_error(
            levels, predicted, w[..., graded]
        )
        measures["severity_kappa"] = lambda w: metrics.quadratic_weighted_kappa(
            levels, predicted, w[..., graded]
        )
    if decoded.outlined is not None and decoded.outlined.known.any():
        masked = rows & decoded.outlined.rows
        dice = decoded.outlined.dice[masked]
        measures["dice"] = lambda w: metrics.weighted_mean(dice, w[..., masked])
    return measures


def _count_empty_masks(decoded: Decoded, rows: RowMask) -> dict[str, int]:
    """Return `empty_masks` and `false_alarms` of `Scores` over some rows."""
    if decoded.outlined is None:
        return {}
    return {
        "empty_masks": int((rows & decoded.outlined.empty).sum()),
        "false_alarms": int((rows & decoded.outlined.false_alarms).sum()),
    }


def describe_empty_masks(empty: int, false_alarms: int) -> str:
    """Return a sentence about masks that the Dice coefficient does not count.

    Args:
        empty: Number of empty masks.
        false_alarms: Number of these for which a lesion is predicted.

    Example:
        >>> describe_empty_masks(3, 1)
        '3 masks are empty and do not count in the Dice coefficient; ... for 1 of them.'
    """
    masks = "mask is empty and does" if empty == 1 else "masks are empty and do"
    return (
        f"{empty} {masks} not count in the Dice coefficient; the model predicts a lesion for "
        f"{false_alarms} of them."
    )


def _undefined(weights: Floats) -> Floats:
    return np.full(weights.shape[:-1], np.nan)
