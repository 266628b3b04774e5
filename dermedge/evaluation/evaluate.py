"""Evaluate a loaded model on a table of labelled images."""

from collections.abc import Iterator, Sequence

import numpy as np

from dermedge.data.table import SPLITS, Table, table_digest
from dermedge.evaluation.fairness import fairness
from dermedge.evaluation.known_images import (
    KnownImages,
    describe_known_images,
    describe_unmapped,
    find_known_images,
)
from dermedge.evaluation.report import (
    EvaluatedImage,
    EvaluationReport,
    Fairness,
    ReliabilityBin,
    Scores,
)
from dermedge.evaluation.robustness import measure_robustness
from dermedge.evaluation.scores import RowMask, describe_empty_masks, score_images
from dermedge.evaluation.table_predictions import check_finite, count_unmapped, table_predictions
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.conformal import describe_unfitted
from dermedge_export.evaluation.metrics import Floats
from dermedge_export.evaluation.predictions import Decoded, Predictions, decode_table
from dermedge_runtime.errors import UsageError
from dermedge_runtime.model import Model
from dermedge_runtime.progress import Progress


def select_rows(table: Table, split: str, limit: int | None = None) -> Table:
    """Return the rows of a table to evaluate.

    The whole table has its splits before rows are selected: a split of fewer rows would
    put other images into test, among them images that the model was trained on.

    Args:
        table: The whole table, with splits.
        split: train, val, test or all.
        limit: Largest number of images, evenly spread over the split; None is all.

    Raises:
        UsageError: The split is unknown, or the limit is not positive.
        DataError: The split is empty.

    Example:
        >>> from dermedge.data.split import with_split
        >>> from dermedge.data.table import read_table
        >>> len(select_rows(with_split(read_table("lesions")), "all", limit=20))
        20
    """
    if split not in (*SPLITS, "all"):
        raise UsageError(f"Unknown split {split!r}. Use {', '.join(SPLITS)} or all.")
    if limit is not None and limit < 1:
        raise UsageError(f"The limit is {limit} images. Use 1 or more.")
    chosen = table if split == "all" else table.select_split(split)
    if limit is None or limit >= len(chosen):
        return chosen
    rows = np.linspace(0, len(chosen) - 1, limit).round().astype(int)
    return chosen.replace(chosen.frame.iloc[rows].reset_index(drop=True))


def evaluate_model(
    model: Model,
    table: Table,
    *,
    split: str = "test",
    replicates: int = 1000,
    seed: int = 0,
    corruptions: Sequence[str] = (),
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measure the accuracy of a loaded model on some rows of a table.

    Args:
        model: The model.
        table: The rows, as from `select_rows`.
        split: Name of the rows, for the report.
        replicates: Bootstrap replicates over lesions or patients.
        seed: Random seed of the bootstrap.
        corruptions: Names of corruptions to measure as well.
        progress: Called with the number of images done.

    Raises:
        DataError: An image is unusable.
        EngineError: The engine failed, or returned NaN or infinity.

    Example:
        >>> from dermedge import load
        >>> from dermedge.data.split import with_split
        >>> from dermedge.data.table import read_table
        >>> rows = select_rows(with_split(read_table("lesions")), "test")
        >>> with load("toy.dermedge") as model:
        ...     evaluate_model(model, rows, replicates=10).overall.cases
        12
    """
    opened = model.bundle
    predictions = table_predictions(table, opened.spec, model.run, progress=progress)
    check_finite(predictions)
    robustness = (
        measure_robustness(
            model, table, corruptions, replicates=replicates, seed=seed, progress=progress
        )
        if corruptions
        else None
    )
    decoded = decode_table(predictions, opened.spec, opened.postprocessing)
    scores = score_images(predictions, decoded, replicates=replicates, seed=seed)
    known = find_known_images(opened, table)
    unmapped = count_unmapped(table.frame, opened.spec)
    confusion = _count_confusion(decoded)
    return EvaluationReport(
        model=model.provenance,
        data=table.name,
        data_digest=table_digest(table),
        split=split,
        labels=decoded.names,
        postprocessing=opened.postprocessing,
        threshold=decoded.threshold,
        overall=scores.overall,
        recall=scores.recall,
        support=dict(zip(decoded.names, map(sum, confusion), strict=True)),
        subgroups=scores.subgroups,
        confusion=confusion,
        reliability=_bin_confidence(decoded),
        roc=_roc_corners(decoded, predictions.malignant),
        unmapped=unmapped,
        trained_on=_select_ids(predictions, known.training),
        warnings=(
            *describe_known_images(known, len(table)),
            *describe_unmapped(unmapped),
            *describe_unfitted(opened.spec, opened.postprocessing),
            *_describe_masks(scores.overall),
        ),
        images=tuple(_list_images(table, predictions, decoded, known)),
        fairness=_compare_groups(predictions, decoded, replicates, seed),
        classes=scores.classes,
        robustness=robustness,
    )


def _describe_masks(scores: Scores) -> tuple[str, ...]:
    if not scores.empty_masks:
        return ()
    return (describe_empty_masks(scores.empty_masks, scores.false_alarms),)


def _count_confusion(decoded: Decoded) -> tuple[tuple[int, ...], ...]:
    """Count the labelled images by true label (rows) and predicted label (columns)."""
    labelled = decoded.labels >= 0
    counts = metrics.confusion(
        decoded.labels[labelled], decoded.predicted[labelled], len(decoded.names)
    )
    return tuple(tuple(row) for row in counts.astype(int).tolist())


def _select_ids(predictions: Predictions, rows: RowMask | None) -> tuple[str, ...] | None:
    return None if rows is None else tuple(np.array(predictions.image_ids)[rows].tolist())


def _compare_groups(
    predictions: Predictions, decoded: Decoded, replicates: int, seed: int
) -> tuple[Fairness, ...]:
    # Without a threshold the model makes no decision, so equalised odds is undefined.
    # The diagnoses can still be compared.
    decision: RowMask | None = None
    if decoded.threshold is not None and np.isfinite(decoded.scores).any():
        decision = decoded.scores >= decoded.threshold
    return fairness(
        decoded.labels,
        decoded.predicted,
        len(decoded.names),
        predictions.subgroups,
        predictions.groups,
        positive=predictions.malignant,
        decision=decision,
        replicates=replicates,
        seed=seed,
    )


def _bin_confidence(decoded: Decoded) -> tuple[ReliabilityBin, ...]:
    """Compute confidence and accuracy by bin; () without labelled images."""
    labelled = decoded.labels >= 0
    if not decoded.names or not labelled.any():
        return ()
    likely, truth = decoded.probabilities[labelled], decoded.labels[labelled]
    confidence, hit = likely.max(axis=1), likely.argmax(axis=1) == truth
    index, bins = metrics.confidence_bins(confidence), metrics.ECE_BINS
    parts = []
    for k in range(bins):
        rows = index == k
        known = bool(rows.any())
        parts.append(
            ReliabilityBin(
                low=k / bins,
                high=(k + 1) / bins,
                count=int(rows.sum()),
                confidence=float(confidence[rows].mean()) if known else None,
                accuracy=float(hit[rows].mean()) if known else None,
            )
        )
    return tuple(parts)


def _roc_corners(decoded: Decoded, malignant: Floats) -> tuple[tuple[float, float], ...]:
    """Compute the corners of the ROC curve; () if it is undefined."""
    known = np.isfinite(malignant) & np.isfinite(decoded.scores)
    if len(set(malignant[known].tolist())) < 2:
        return ()
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(malignant[known], decoded.scores[known])
    return tuple(zip(false.tolist(), true.tolist(), strict=True))


def _list_images(
    table: Table, predictions: Predictions, decoded: Decoded, known: KnownImages
) -> Iterator[EvaluatedImage]:
    """Yield each image with its labels and its predictions."""

    def label_name(index: int) -> str | None:
        return decoded.names[index] if decoded.names and index >= 0 else None

    referred = decoded.referred
    for row, image_id in enumerate(predictions.image_ids):
        predicted, score, malignant = (
            int(decoded.predicted[row]),
            decoded.scores[row],
            predictions.malignant[row],
        )
        yield EvaluatedImage(
            image_id=image_id,
            image=str(table.frame["image"].iloc[row]),
            dx=str(table.frame["dx"].iloc[row]),
            label=label_name(int(decoded.labels[row])),
            predicted=label_name(predicted),
            probability=float(decoded.probabilities[row, predicted]) if decoded.names else None,
            malignant=bool(malignant) if np.isfinite(malignant) else None,
            malignancy=float(score) if np.isfinite(score) else None,
            trained_on=bool(known.training[row]) if known.training is not None else False,
            referred=bool(referred[row]),
        )
