"""Two tables of predictions over the same images, compared: what a candidate lost, and for whom."""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Array, Floats, Statistic
from dermedge_export.evaluation.predictions import Decoded, Predictions, decode_table
from dermedge_export.parity import gate
from dermedge_export.parity.comparisons import (
    MetricComparison,
    class_comparisons,
    list_comparisons,
    subgroup_comparisons,
)
from dermedge_export.parity.gate import MINIMUM_CASES, RELATIVE, Measurement
from dermedge_runtime.errors import DataError
from dermedge_runtime.report import Interval, ParityReport, Subgroup
from dermedge_runtime.spec import Postprocessing, Spec


def parity(
    reference: Predictions,
    candidate: Predictions,
    spec: Spec,
    reference_post: Mapping[str, Postprocessing],
    candidate_post: Mapping[str, Postprocessing],
    *,
    precision: str,
    basis: str,
    engine: str,
    hardware: str,
    limits: Mapping[str, float] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> ParityReport:
    """Compares a candidate's predictions with its reference's, and judges the losses.

    Each side is decoded with its own fitted postprocessing, as it will be on a device. Losses come with intervals of a
    paired bootstrap over lesions or patients. Without a labelled image only agreement is judged, and the basis says so.

    Args:
        reference: of the fp32 student.
        candidate: of the artifact, over the same images in the same order.
        spec: of both.
        reference_post: fitted on the reference's validation predictions.
        candidate_post: fitted on the candidate's.
        precision: of the candidate; picks the limits.
        basis: on what is compared, such as `test split of ham10000`.
        engine: that ran the candidate.
        hardware: that the engine ran on.
        limits: a target's tighter limits, by metric.
        replicates: bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        DataError: the tables are not over the same images, or the reference itself gives NaN or Inf.
        UsageError: an unknown precision or limit.
    """
    allowed = gate.limits_for(precision, limits)
    broken = _check_pair(reference, candidate)
    sides = (
        decode_table(reference, spec, reference_post),
        decode_table(candidate, spec, candidate_post),
    )
    comparisons, within = (
        list_comparisons(sides, reference),
        subgroup_comparisons(sides[0], reference),
    )
    by_class = class_comparisons(sides[0])
    measured = [Measurement("non_finite", len(candidate), Interval(float(broken)))]
    subgroups: list[Measurement] = []
    classes: list[Measurement] = []
    agreement: dict[str, float] = {}
    if broken:
        measured += [
            Measurement(q.metric, None, note="outputs are not finite") for q in comparisons
        ]
    else:
        agreement = _agreement(reference, candidate, sides)
        measured.append(Measurement("max_abs", len(candidate), Interval(agreement["max_abs"])))
        asked = [*comparisons, *within.values(), *by_class.values()]
        found = iter(_compare(asked, sides, reference.groups, replicates, seed))
        measured += islice(found, len(comparisons))
        subgroups, classes = list(islice(found, len(within))), list(found)
        if (sides[0].labels >= 0).any():
            measured.append(_worst(subgroups))
        elif not _told(sides[0], reference):
            basis += " (no labels: agreement only)"
    judged = tuple(gate.check_limit(m, allowed[m.metric]) for m in measured if m.metric in allowed)
    return ParityReport(
        status=gate.overall_status(judged),
        basis=basis,
        cases=len(candidate),
        engine=engine,
        hardware=hardware,
        precision=precision,
        limits=judged,
        subgroups=_named(within, subgroups),
        agreement=agreement | {"non_finite": float(broken)},
        classes=_named(by_class, classes),
    )


def _told(first: Decoded, table: Predictions) -> bool:
    """Whether anything but a diagnosis is known of any image."""
    known = [np.isfinite(table.malignant)] + [
        task.rows for task in (first.graded, first.outlined) if task is not None
    ]
    return any(bool(rows.any()) for rows in known)


def _check_pair(reference: Predictions, candidate: Predictions) -> int:
    """How many of the candidate's images have an output that is not finite."""
    if reference.image_ids != candidate.image_ids:
        raise DataError(
            f"The reference predicts {len(reference)} images and the candidate {len(candidate)}, not the same in the "
            "same order; run both on one table."
        )
    if len(reference) == 0:
        raise DataError("No image to compare on: the table is empty; name a split that has images.")
    for name, output in reference.outputs.items():
        shape = candidate.outputs[name].shape if name in candidate.outputs else None
        if shape != output.shape:
            raise DataError(
                f"Output {name!r} is {output.shape} of the reference and {shape} of the candidate; export again."
            )
    bad = _not_finite(reference)
    if bad.any():
        example = reference.image_ids[int(bad.argmax())]
        raise DataError(
            f"The reference itself gives NaN or Inf for image {example!r}; train or export it again."
        )
    return int(_not_finite(candidate).sum())


def _not_finite(table: Predictions) -> NDArray[np.bool_]:
    bad = np.zeros(len(table), bool)
    for output in table.outputs.values():
        bad |= ~np.isfinite(output.reshape(len(table), -1)).all(axis=1)
    return bad


def _named(keys: Iterable[tuple[str, str]], found: list[Measurement]) -> tuple[Subgroup, ...]:
    """What was found by (column, value); nothing where nothing was measured."""
    return tuple(
        Subgroup(column, value, m.cases or 0, m.reference, m.candidate, m.loss)
        for (column, value), m in zip(keys, found, strict=False)
    )


def _compare(
    comparisons: list[MetricComparison],
    sides: tuple[Decoded, Decoded],
    groups: Array,
    replicates: int,
    seed: int,
) -> list[Measurement]:
    """Both sides' values and the loss of every question, with intervals over the same replicates."""

    def both(question: MetricComparison, weights: Floats | None) -> Floats:
        chosen = None if weights is None else weights[:, question.rows]
        return np.stack([question.measure(side, question.rows, chosen) for side in sides], axis=-1)

    statistics: dict[int, Statistic] = {
        index: partial(both, question)
        for index, question in enumerate(comparisons)
        if not question.absent and question.rows.any()
    }
    drawn = metrics.bootstrap(groups, statistics, replicates=replicates, seed=seed)
    found = []
    for index, question in enumerate(comparisons):
        if index not in drawn:
            cases = None if question.absent else 0
            found.append(Measurement(question.metric, cases, note=question.absent or question.note))
            continue
        point, pairs = both(question, None), drawn[index]
        losses = _loss(question.metric, pairs)
        spread = metrics.interval(_loss(question.metric, point), losses)
        found.append(
            Measurement(
                metric=question.metric,
                cases=int(question.rows.sum()),
                loss=spread,
                reference=metrics.interval(point[0], pairs[:, 0]),
                candidate=metrics.interval(point[1], pairs[:, 1]),
                bound=None
                if spread.low is None
                else float(np.nanquantile(losses, 0.05 / question.comparisons)),
                note=question.note,
            )
        )
    return found


def _loss(metric: str, pair: Floats) -> Floats:
    """How much worse the candidate is: [..., 2] -> [...]."""
    loss = pair[..., 1] - pair[..., 0] if metric == "ece" else pair[..., 0] - pair[..., 1]
    return metrics.ratio(loss, pair[..., 0]) if metric in RELATIVE else loss


def _worst(subgroups: list[Measurement]) -> Measurement:
    """The largest loss among the subgroups of 100 cases or more."""
    large = [
        (m.loss.value, m)
        for m in subgroups
        if (m.cases or 0) >= MINIMUM_CASES and m.loss.value is not None
    ]
    if large:
        return max(large, key=lambda pair: pair[0])[1]
    most = max((m.cases or 0 for m in subgroups), default=0)
    note = (
        f"no subgroup has {MINIMUM_CASES} cases"
        if most
        else "no skin type, sex, age or site is known"
    )
    return Measurement("worst_subgroup", min(most, MINIMUM_CASES - 1), note=note)


def _agreement(
    reference: Predictions, candidate: Predictions, sides: tuple[Decoded, Decoded]
) -> dict[str, float]:
    """Numbers that need no labels, and the loss of recall of each class, which is reported but not judged."""
    found: dict[str, float] = {}
    for name, output in reference.outputs.items():
        other = candidate.outputs[name]
        found[f"max_abs:{name}"] = float(
            np.abs(output.astype(np.float64) - other.astype(np.float64)).max()
        )
        if output[0].size > 1:
            found[f"cosine:{name}"] = float(metrics.logit_cosine(output, other).mean())
    found["max_abs"] = max(value for name, value in found.items() if name.startswith("max_abs:"))
    cosines = [value for name, value in found.items() if name.startswith("cosine:")]
    if cosines:
        found["cosine"] = min(cosines)
    first, second = sides
    if not first.names:
        return found
    found["top1"] = float(metrics.top1_agreement(first.predicted, second.predicted))
    found["kl"] = float(metrics.kl_divergence(first.probabilities, second.probabilities).mean())
    known = first.labels >= 0
    recall = [
        metrics.recalls(first.labels[known], side.predicted[known], len(first.names))
        for side in sides
    ]
    losses = zip(first.names, recall[0] - recall[1], strict=True)
    return found | {
        f"recall_loss:{name}": float(loss) for name, loss in losses if np.isfinite(loss)
    }
