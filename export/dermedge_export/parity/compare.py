"""Compare two tables of predictions for the same images, overall and by subgroup."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Array, Floats, Statistic
from dermedge_export.evaluation.ood import ood_task
from dermedge_export.evaluation.predictions import (
    Decoded,
    PostprocessingByTask,
    Predictions,
    decode_table,
)
from dermedge_export.parity import gate
from dermedge_export.parity.comparisons import (
    MetricComparison,
    class_comparisons,
    have_sets,
    label_comparisons,
    list_comparisons,
    subgroup_comparisons,
)
from dermedge_export.parity.gate import MINIMUM_CASES, RELATIVE, Measurement
from dermedge_runtime.errors import DataError
from dermedge_runtime.report import Interval, ParityReport, Subgroup
from dermedge_runtime.spec import Spec

Sides = tuple[Decoded, Decoded]


def parity(
    reference: Predictions,
    candidate: Predictions,
    spec: Spec,
    reference_post: PostprocessingByTask,
    candidate_post: PostprocessingByTask,
    *,
    precision: str,
    basis: str,
    engine: str,
    hardware: str,
    limits: Mapping[str, float] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> ParityReport:
    """Compare a candidate's predictions with its reference's, and check the limits.

    Each side is decoded with its own fitted postprocessing, as it will be on a device.
    Losses come with intervals of a paired bootstrap over lesions or patients. Without
    labelled images only agreement is checked, and the basis says so.

    Args:
        reference: Predictions of the fp32 student.
        candidate: Predictions of the artifact for the same images in the same order.
        spec: Tasks and labels of both.
        reference_post: Postprocessing fitted on the reference's val predictions.
        candidate_post: Postprocessing fitted on the candidate's val predictions.
        precision: Precision of the candidate; it selects the limits.
        basis: The images that are compared, such as `test split of ham10000`.
        engine: Engine that ran the candidate.
        hardware: Hardware that the engine ran on.
        limits: Tighter limits of a target, by metric.
        replicates: Number of bootstrap replicates.
        seed: Seed of the bootstrap.

    Returns:
        The report, with the status of every limit.

    Raises:
        DataError: The tables are not over the same images, or the reference gives NaN
            or Inf.
        UsageError: The precision or a limit is unknown.

    Example:
        >>> from dermedge_runtime.spec import Label, Preprocess, Task
        >>> labels = (Label("nv", "nevus", False), Label("mel", "melanoma", True))
        >>> tasks = (Task("diagnosis", "classify", labels),)
        >>> spec = Spec("toy", "1", tasks, Preprocess(32))
        >>> truth = np.arange(200) % 2
        >>> logits = np.eye(2, dtype=np.float32)[truth]
        >>> names = tuple(str(n) for n in range(200))
        >>> table = Predictions(
        ...     names, {"diagnosis": logits}, truth, truth * 1.0, np.array(names)
        ... )
        >>> names = {"basis": "toy", "engine": "numpy", "hardware": "cpu"}
        >>> report = parity(table, table, spec, {}, {}, precision="fp32", **names)
        >>> report.agreement["top1"], report.agreement["max_abs"]
        (1.0, 0.0)
    """
    allowed = gate.limits_for(precision, limits)
    broken = _check_pair(reference, candidate)
    sides = (
        decode_table(reference, spec, reference_post),
        decode_table(candidate, spec, candidate_post),
    )
    comparisons = list_comparisons(sides, reference)
    within = subgroup_comparisons(sides[0], reference)
    by_class = class_comparisons(sides[0])
    with_sets = have_sets(sides)
    covered = (
        subgroup_comparisons(sides[0], reference, "worst_subgroup_coverage") if with_sets else {}
    )
    by_label = label_comparisons(sides[0]) if with_sets else {}
    measured = [Measurement("non_finite", len(candidate), Interval(float(broken)))]
    subgroups: list[Measurement] = []
    classes: list[Measurement] = []
    coverage: list[Measurement] = []
    agreement: dict[str, float] = {}
    if broken:
        measured += [
            Measurement(comparison.metric, None, note="outputs are not finite")
            for comparison in comparisons
        ]
    else:
        agreement = _agreement(reference, candidate, sides)
        measured.append(_relative_difference(reference, candidate))
        # One bootstrap serves all comparisons, so that they share their replicates.
        parts = (within, by_class, covered, by_label)
        every = [*comparisons, *(one for part in parts for one in part.values())]
        results = iter(_measure(every, sides, reference.groups, replicates, seed))
        measured += islice(results, len(comparisons))
        thresholds = (_ood_threshold(spec, reference_post), _ood_threshold(spec, candidate_post))
        measured += _rejection((reference, candidate), thresholds, replicates, seed)
        subgroups, classes, within_sets, coverage = (
            list(islice(results, len(part))) for part in parts
        )
        if (sides[0].labels >= 0).any():
            measured.append(_worst_of(subgroups, "worst_subgroup"))
            if with_sets:
                measured.append(_worst_of(within_sets, "worst_subgroup_coverage"))
                measured.append(_worst_of(coverage, "worst_label_coverage"))
        elif not _has_other_truth(sides[0], reference):
            basis += " (no labels: agreement only)"
    checked = tuple(gate.check_limit(m, allowed[m.metric]) for m in measured if m.metric in allowed)
    return ParityReport(
        status=gate.overall_status(checked),
        basis=basis,
        cases=len(candidate),
        engine=engine,
        hardware=hardware,
        precision=precision,
        limits=checked,
        subgroups=_by_subgroup(within, subgroups),
        agreement=agreement | {"non_finite": float(broken)},
        classes=_by_subgroup(by_class, classes),
        coverage=_by_subgroup(by_label, coverage),
    )


def _has_other_truth(first: Decoded, table: Predictions) -> bool:
    """Return whether malignancy, severity or a mask is known for any image."""
    known = [np.isfinite(table.malignant)]
    known += [first.graded.rows] if first.graded is not None else []
    known += [first.outlined.known] if first.outlined is not None else []
    return any(bool(rows.any()) for rows in known)


def _check_pair(reference: Predictions, candidate: Predictions) -> int:
    """Return the number of images for which the candidate gives NaN or Inf.

    Raises:
        DataError: The two tables cannot be compared.
    """
    if reference.image_ids != candidate.image_ids:
        raise DataError(
            f"The reference has {len(reference)} images and the candidate {len(candidate)}, or "
            "their order differs. Run both on the same table."
        )
    if len(reference) == 0:
        raise DataError("The table has no images to compare. Name a split that has images.")
    for name, output in reference.outputs.items():
        shape = candidate.outputs[name].shape if name in candidate.outputs else None
        if shape != output.shape:
            raise DataError(
                f"Output {name!r} has shape {output.shape} in the reference and {shape} in the "
                "candidate. Export the model again."
            )
    bad = _not_finite(reference)
    if bad.any():
        example = reference.image_ids[int(bad.argmax())]
        raise DataError(
            f"The reference itself gives NaN or Inf for image {example!r}. Train or export the "
            "model again."
        )
    return int(_not_finite(candidate).sum())


def _not_finite(table: Predictions) -> NDArray[np.bool_]:
    """Return the images for which any output holds NaN or Inf, bool [N]."""
    bad = np.zeros(len(table), bool)
    for output in table.outputs.values():
        bad |= ~np.isfinite(output.reshape(len(table), -1)).all(axis=1)
    return bad


def _by_subgroup(
    keys: Iterable[tuple[str, str]], measurements: list[Measurement]
) -> tuple[Subgroup, ...]:
    """Return the measurements by (column, value); empty if nothing was measured."""
    return tuple(
        Subgroup(column, value, m.cases or 0, m.reference, m.candidate, m.loss)
        for (column, value), m in zip(keys, measurements, strict=False)
    )


def _measure(
    comparisons: list[MetricComparison],
    sides: Sides,
    groups: Array,
    replicates: int,
    seed: int,
) -> list[Measurement]:
    """Measure each comparison on both sides, over the same bootstrap replicates."""

    def both(comparison: MetricComparison, weights: Floats | None) -> Floats:
        chosen = None if weights is None else weights[:, comparison.rows]
        values = [comparison.measure(side, comparison.rows, chosen) for side in sides]
        return np.stack(values, axis=-1)

    statistics: dict[int, Statistic] = {
        index: partial(both, comparison)
        for index, comparison in enumerate(comparisons)
        if not comparison.absent and comparison.rows.any()
    }
    drawn = metrics.bootstrap(groups, statistics, replicates=replicates, seed=seed)
    measurements = []
    for index, comparison in enumerate(comparisons):
        if index in drawn:
            measurement = _with_interval(
                comparison.metric,
                both(comparison, None),
                drawn[index],
                comparison.comparisons,
                comparison.enough,
            )
            count = int(comparison.rows.sum())
            measurements.append(replace(measurement, cases=count, note=comparison.note))
        else:
            cases = None if comparison.absent else 0
            note = comparison.absent or comparison.note
            measurements.append(Measurement(comparison.metric, cases, note=note))
    return measurements


def _with_interval(
    metric: str, point: Floats, pairs: Floats, comparisons: int = 1, enough: float = np.inf
) -> Measurement:
    """Return one metric's measurement, without its number of cases.

    Args:
        metric: A key of `gate.LIMITS`.
        point: Values of reference and candidate over all images, [2].
        pairs: The same in each bootstrap replicate, [R, 2].
        comparisons: As in `MetricComparison`.
        enough: As in `MetricComparison`.
    """
    # Both sides are measured on the same replicate, so the images that are hard for
    # both cancel in its loss. The interval of the loss is much narrower than two
    # separate ones.
    losses = _loss(metric, pairs, enough)
    loss = metrics.interval(_loss(metric, point, enough), losses)
    # The lower bound is the 5 % quantile of the losses, one-sided at 95 %. The worst of
    # k subgroups is selected for its loss, so its bound is taken at 5 % / k
    # (Bonferroni): then the bounds of all k hold together with 95 %.
    level = 0.05 / comparisons
    return Measurement(
        metric=metric,
        cases=None,
        loss=loss,
        reference=metrics.interval(point[0], pairs[:, 0]),
        candidate=metrics.interval(point[1], pairs[:, 1]),
        bound=None if loss.low is None else float(np.nanquantile(losses, level)),
    )


def _loss(metric: str, pair: Floats, enough: float) -> Floats:
    """Return the loss of the candidate, [..., 2] -> [...]; positive if it is worse."""
    if metric == "ece":
        return np.asarray(pair[..., 1] - pair[..., 0])
    loss = np.minimum(pair[..., 0], enough) - pair[..., 1]
    return metrics.ratio(loss, pair[..., 0]) if metric in RELATIVE else loss


def _worst_of(parts: list[Measurement], metric: str) -> Measurement:
    """Return the largest loss among the subgroups or labels of 100 cases or more."""
    large = [
        (m.loss.value, m)
        for m in parts
        if (m.cases or 0) >= MINIMUM_CASES and m.loss.value is not None
    ]
    if large:
        return max(large, key=lambda pair: pair[0])[1]
    most = max((m.cases or 0 for m in parts), default=0)
    kind = "label" if metric == "worst_label_coverage" else "subgroup"
    note = (
        f"no {kind} has {MINIMUM_CASES} cases"
        if most
        else "no skin type, sex, age, site or modality is known"
    )
    return Measurement(metric, min(most, MINIMUM_CASES - 1), note=note)


def _relative_difference(reference: Predictions, candidate: Predictions) -> Measurement:
    """Measure `max_abs`: the largest difference of an output, relative to its scale.

    Each output has a scale of its own, because a model's tasks differ in theirs. The
    note names the output with the largest relative difference, and that scale.
    """
    relative = {
        name: metrics.relative_difference(output, candidate.outputs[name])
        for name, output in reference.outputs.items()
    }
    worst = max(relative, key=lambda name: relative[name])
    scale = metrics.output_scale(reference.outputs[worst])
    note = f"output {worst!r} of scale {scale:.3g}"
    return Measurement("max_abs", len(candidate), Interval(relative[worst]), note=note)


def _ood_threshold(spec: Spec, fitted: PostprocessingByTask) -> float | None:
    task = ood_task(spec)
    return None if task is None or task.name not in fitted else fitted[task.name].ood_threshold


def _rejection(
    tables: tuple[Predictions, Predictions],
    thresholds: tuple[float | None, float | None],
    replicates: int,
    seed: int,
) -> list[Measurement]:
    """Measure the share of drawn images without skin that each side flags.

    The list is empty if the images were not run, or a threshold was not fitted.
    """
    flags = [
        table.foreign > threshold
        for table, threshold in zip(tables, thresholds, strict=True)
        if table.foreign is not None and threshold is not None
    ]
    if len(flags) < 2:
        return []

    def both(weights: Floats | None) -> Floats:
        return np.stack([metrics.weighted_mean(side, weights) for side in flags], axis=-1)

    # Each drawing is a group of its own, and all of them count.
    count = len(flags[0])
    drawn = metrics.bootstrap(
        np.arange(count).astype(str), {0: both}, replicates=replicates, seed=seed
    )
    measurement = _with_interval("ood_rejection", both(None), drawn[0])
    return [replace(measurement, cases=count, note="drawn images without skin")]


def _agreement(reference: Predictions, candidate: Predictions, sides: Sides) -> dict[str, float]:
    """Return numbers that need no labels, and the loss of recall of each class.

    They are reported and not checked. `max_abs` and `max_abs:TASK` are absolute.
    """
    numbers: dict[str, float] = {}
    for name, output in reference.outputs.items():
        other = candidate.outputs[name]
        numbers[f"max_abs:{name}"] = float(
            np.abs(output.astype(np.float64) - other.astype(np.float64)).max()
        )
        if output[0].size > 1:
            numbers[f"cosine:{name}"] = float(metrics.logit_cosine(output, other).mean())
    numbers["max_abs"] = max(
        value for name, value in numbers.items() if name.startswith("max_abs:")
    )
    cosines = [value for name, value in numbers.items() if name.startswith("cosine:")]
    if cosines:
        numbers["cosine"] = min(cosines)
    first, second = sides
    if not first.names:
        return numbers
    numbers["top1"] = float(metrics.top1_agreement(first.predicted, second.predicted))
    numbers["kl"] = float(metrics.kl_divergence(first.probabilities, second.probabilities).mean())
    known = first.labels >= 0
    recall = [
        metrics.recalls(first.labels[known], side.predicted[known], len(first.names))
        for side in sides
    ]
    losses = zip(first.names, recall[0] - recall[1], strict=True)
    return numbers | {
        f"recall_loss:{name}": float(loss) for name, loss in losses if np.isfinite(loss)
    }
