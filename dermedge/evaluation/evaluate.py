"""`evaluate`: a bundle on a table of labelled images."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermedge.data.split import with_split
from dermedge.data.table import SPLITS, Table, digests, read_table, table_digest
from dermedge.evaluation.fairness import fairness
from dermedge.evaluation.report import (
    EvaluatedImage,
    EvaluationReport,
    Fairness,
    ReliabilityBin,
    Scores,
    SubgroupScores,
)
from dermedge.evaluation.table_predictions import table_predictions, unmapped
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Floats, Statistic
from dermedge_export.evaluation.predictions import Decoded, Predictions, decode_table
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import EngineError, UsageError
from dermedge_runtime.model import load
from dermedge_runtime.progress import Progress
from dermedge_runtime.report import DIGEST_PREFIX, TRAINING_IMAGES, Interval

METRICS = (
    "balanced_accuracy",
    "accuracy",
    "macro_auroc",
    "malignant_auroc",
    "sensitivity",
    "specificity",
    "ece",
)
OVERALL = ("", "")
RECALL = ("", "", "recall")
Rows = NDArray[np.bool_]


def evaluate(
    bundle: str | Path | Bundle,
    data: str | Path,
    *,
    split: str = "test",
    engine: str | None = None,
    threads: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Measures how good a bundle's predictions are, overall and for whom.

    Args:
        bundle: the path of a bundle, or an opened one.
        data: a data set's folder or table. A row's own `malignant` counts more than its diagnosis's.
        split: train, val, test or all.
        engine: as in `load`.
        threads: as in `load`.
        replicates: bootstrap replicates over lesions or patients.
        seed: of the bootstrap.
        progress: told how many images are done.

    Raises:
        UsageError: an unknown split or engine.
        DataError: the table or one of its images is unusable, or the split is empty.
        BundleError: the bundle is damaged, unsafe or too new.
        EngineError: the engine failed, or gave NaN or infinity.
    """
    if split not in (*SPLITS, "all"):
        raise UsageError(f"Unknown split {split!r}: use {', '.join(SPLITS)} or all.")
    everything = with_split(read_table(data))
    table = everything if split == "all" else everything.select_split(split)
    with load(bundle, engine=engine, threads=threads) as model:
        opened = model.bundle
        predictions = table_predictions(table, opened.spec, model.run, progress=progress)
        provenance = model.provenance
    _check_finite(predictions)
    decoded = decode_table(predictions, opened.spec, opened.postprocessing)
    overall, recall, subgroups = _scores(predictions, decoded, replicates, seed)
    seen = _trained_on(opened, table)
    foreign = unmapped(table.frame, opened.spec)
    labelled = decoded.labels >= 0
    counts = metrics.confusion(
        decoded.labels[labelled], decoded.predicted[labelled], len(decoded.names)
    )
    return EvaluationReport(
        model=provenance,
        data=table.name,
        data_digest=table_digest(table),
        split=split,
        labels=decoded.names,
        postprocessing=opened.postprocessing,
        threshold=decoded.threshold,
        overall=overall,
        recall=recall,
        support=dict(zip(decoded.names, counts.sum(axis=1).astype(int).tolist(), strict=True)),
        subgroups=subgroups,
        confusion=tuple(tuple(row) for row in counts.astype(int).tolist()),
        reliability=_reliability(decoded),
        roc=_roc(decoded, predictions.malignant),
        unmapped=foreign,
        trained_on=None if seen is None else tuple(np.array(predictions.image_ids)[seen].tolist()),
        warnings=tuple(_warnings(seen, split, foreign, len(table))),
        images=tuple(_images(table, predictions, decoded, seen)),
        fairness=_fairness(predictions, decoded, replicates, seed),
    )


def _check_finite(predictions: Predictions) -> None:
    for name, output in predictions.outputs.items():
        bad = ~np.isfinite(output.reshape(len(output), -1)).all(axis=1)
        if bad.any():
            example = predictions.image_ids[int(bad.argmax())]
            raise EngineError(
                f"Output {name!r} holds NaN or infinity for {int(bad.sum())} images, {example!r} the first: run "
                "`dermedge verify` on the bundle."
            )


def _scores(
    predictions: Predictions, decoded: Decoded, replicates: int, seed: int
) -> tuple[Scores, dict[str, Interval], tuple[SubgroupScores, ...]]:
    """Overall, recall by label, and by subgroup; one bootstrap serves them all."""
    parts: dict[tuple[str, str], Rows] = {OVERALL: np.ones(len(predictions), bool)}
    for column, values in predictions.subgroups.items():
        parts |= {(column, value): values == value for value in sorted(set(values.tolist()) - {""})}
    measures: dict[tuple[str, str, str], Statistic] = {
        (*part, name): measure
        for part, rows in parts.items()
        for name, measure in _measures(decoded, predictions.malignant, rows).items()
    }
    labelled = decoded.labels >= 0
    truth, predicted = decoded.labels[labelled], decoded.predicted[labelled]
    measures[RECALL] = lambda w: metrics.recalls(
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
            metrics={
                key[2]: metrics.interval(point[key], drawn[key])
                for key in measures
                if key[:2] == part and key != RECALL
            },
        )
        for part, rows in parts.items()
    }
    recall = {
        name: metrics.interval(point[RECALL][k], drawn[RECALL][:, k])
        for k, name in enumerate(decoded.names)
    }
    within = tuple(
        SubgroupScores(*part, found) for part, found in scores.items() if part != OVERALL
    )
    return scores[OVERALL], recall, within


def _measures(decoded: Decoded, malignant: Floats, rows: Rows) -> dict[str, Statistic]:
    """Every metric over some rows, as a function of all images' weights [..., N]."""
    labelled, known = rows & (decoded.labels >= 0), rows & np.isfinite(malignant)
    truth, predicted, likely = (
        decoded.labels[labelled],
        decoded.predicted[labelled],
        decoded.probabilities[labelled],
    )
    positive, scores, threshold = malignant[known] == 1, decoded.scores[known], decoded.threshold
    found: dict[str, Statistic] = dict.fromkeys(METRICS, _undefined)
    if decoded.names:
        found["balanced_accuracy"] = lambda w: metrics.balanced_accuracy(
            truth, predicted, len(decoded.names), w[..., labelled]
        )
        found["accuracy"] = lambda w: metrics.accuracy(truth, predicted, w[..., labelled])
        found["macro_auroc"] = lambda w: metrics.macro_auroc(truth, likely, w[..., labelled])
        found["ece"] = lambda w: metrics.ece(truth, likely, w[..., labelled])
    if np.isfinite(scores).any():
        found["malignant_auroc"] = lambda w: metrics.auroc(positive, scores, w[..., known])
        if threshold is not None:
            found["sensitivity"] = lambda w: metrics.sensitivity(
                positive, scores, threshold, w[..., known]
            )
            found["specificity"] = lambda w: metrics.specificity(
                positive, scores, threshold, w[..., known]
            )
    return found | _severity_and_masks(decoded, rows)


def _severity_and_masks(decoded: Decoded, rows: Rows) -> dict[str, Statistic]:
    """As `_measures`, of the tasks that only some models have."""
    found: dict[str, Statistic] = {}
    if decoded.graded is not None and decoded.graded.rows.any():
        chosen = rows & decoded.graded.rows
        levels, guessed = decoded.graded.levels[chosen], decoded.graded.predicted[chosen]
        found["severity_mae"] = lambda w: metrics.mean_absolute_error(
            levels, guessed, w[..., chosen]
        )
        found["severity_kappa"] = lambda w: metrics.quadratic_weighted_kappa(
            levels, guessed, w[..., chosen]
        )
    if decoded.outlined is not None and decoded.outlined.rows.any():
        masked = rows & decoded.outlined.rows
        dice = decoded.outlined.dice[masked]
        found["dice"] = lambda w: metrics.weighted_mean(dice, w[..., masked])
    return found


def _undefined(weights: Floats) -> Floats:
    return np.full(weights.shape[:-1], np.nan)


def _fairness(
    predictions: Predictions, decoded: Decoded, replicates: int, seed: int
) -> tuple[Fairness, ...]:
    decision: Rows | None = None
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


def _trained_on(bundle: Bundle, table: Table) -> Rows | None:
    """Which images [N] the model was trained on, by the digest of their files; None where the bundle does not tell."""
    if TRAINING_IMAGES not in bundle.files:
        return None
    prefixes = set(bundle.read(TRAINING_IMAGES).decode("ascii", "replace").split())
    return np.array([digest[:DIGEST_PREFIX] in prefixes for digest in digests(table)], bool)


def _warnings(
    seen: Rows | None, split: str, foreign: Mapping[str, int], count: int
) -> Iterator[str]:
    if seen is None:
        yield f"The bundle has no {TRAINING_IMAGES}, so nobody can tell whether it was trained on these images."
    elif seen.any():
        yield (
            f"The model was TRAINED ON {int(seen.sum())} of these {count} images: their numbers say nothing about new "
            "patients."
        )
    if split in ("val", "all"):
        yield "Images of val chose and calibrated the model, so it looks better on them than it is: report test."
    if foreign:
        named = ", ".join(f"{dx} {number}" for dx, number in foreign.items())
        yield f"{sum(foreign.values())} images have a diagnosis that no label of the model covers ({named}): left out."


def _reliability(decoded: Decoded) -> tuple[ReliabilityBin, ...]:
    """Confidence and accuracy by bin of confidence; () for a model that classifies nothing."""
    labelled = decoded.labels >= 0
    if not decoded.names or not labelled.any():
        return ()
    likely, truth = decoded.probabilities[labelled], decoded.labels[labelled]
    confidence, hit = likely.max(axis=1), likely.argmax(axis=1) == truth
    index, bins = metrics.confidence_bins(confidence), metrics.ECE_BINS
    found = []
    for k in range(bins):
        rows = index == k
        known = bool(rows.any())
        found.append(
            ReliabilityBin(
                low=k / bins,
                high=(k + 1) / bins,
                count=int(rows.sum()),
                confidence=float(confidence[rows].mean()) if known else None,
                accuracy=float(hit[rows].mean()) if known else None,
            )
        )
    return tuple(found)


def _roc(decoded: Decoded, malignant: Floats) -> tuple[tuple[float, float], ...]:
    """Corners of the ROC curve; () where it is undefined."""
    known = np.isfinite(malignant) & np.isfinite(decoded.scores)
    if len(set(malignant[known].tolist())) < 2:
        return ()
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(malignant[known], decoded.scores[known])
    return tuple(zip(false.tolist(), true.tolist(), strict=True))


def _images(
    table: Table, predictions: Predictions, decoded: Decoded, seen: Rows | None
) -> Iterator[EvaluatedImage]:
    def named(index: int) -> str | None:
        return decoded.names[index] if decoded.names and index >= 0 else None

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
            label=named(int(decoded.labels[row])),
            predicted=named(predicted),
            probability=float(decoded.probabilities[row, predicted]) if decoded.names else None,
            malignant=bool(malignant) if np.isfinite(malignant) else None,
            malignancy=float(score) if np.isfinite(score) else None,
            trained_on=bool(seen[row]) if seen is not None else False,
        )
