"""Summarize a bundle's reports in sentences: key numbers and warnings."""

from collections.abc import Iterator, Mapping
from typing import Any

from dermedge.data.table import Table
from dermedge.evaluation.fairness_text import COLUMN_NAMES, exceeds_chance
from dermedge.evaluation.report import EvaluationReport
from dermedge.report import text
from dermedge_export.parity.gate import MINIMUM_CASES
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.report import Interval, LatencyReport, VerifyReport

DRAWN_SOURCE = "procedural"
OTHER_TASKS = ("severity_kappa", "severity_mae", "dice")
Metrics = Mapping[str, Interval]


def summarize_numbers(
    bundle: Bundle,
    evaluation: EvaluationReport | None,
    parity: Mapping[str, Any],
    latency: LatencyReport | None,
) -> Iterator[str]:
    """Yield sentences with the key numbers; unknown numbers are left out.

    Args:
        bundle: The bundle.
        evaluation: Report of `evaluate`. Without it the agreement with the student is
            summarized.
        parity: Parity report as JSON.
        latency: Report of `bench`.

    Examples:
        >>> from dermedge import Bundle
        >>> next(summarize_numbers(Bundle.open("toy.dermedge"), None, {}, None))
        'The fp32 artifact was not compared with its student on classified images.'
    """
    if evaluation is None:
        yield from _summarize_agreement(bundle, parity)
    else:
        yield from _summarize_accuracy(evaluation)
    if latency is not None:
        cpu = latency.device.get("cpu") or latency.device.get("machine") or "this device"
        threads = ""
        if latency.threads:
            threads = f", {latency.threads} thread{'s' if latency.threads > 1 else ''}"
        time = text.milliseconds(latency.end_to_end.p50)
        yield f"One prediction takes {time} from image file to result ({cpu}{threads})."


def _summarize_agreement(bundle: Bundle, parity: Mapping[str, Any]) -> Iterator[str]:
    same = text.finite_number((parity.get("agreement") or {}).get("top1"))
    artifact = f"{bundle.artifact.precision} artifact"
    if same is None:
        yield f"The {artifact} was not compared with its student on classified images."
        return
    basis = parity.get("basis") or "basis not stated"
    yield (
        f"On {text.whole(parity.get('cases'))} images ({basis}), the {artifact} predicts the same "
        f"first diagnosis as its student for {text.percent(same)}."
    )
    loss = balanced_accuracy_loss(parity)
    if loss.value is not None:
        ends = text.interval_ends(loss, "percent_fine")
        yield (
            f"It lost {text.percent_fine(loss.value)} of the student's balanced accuracy (95 % "
            f"interval {ends})."
        )


def balanced_accuracy_loss(parity: Mapping[str, Any]) -> Interval:
    """Return the loss of balanced accuracy, as a share of the student's.

    Args:
        parity: Parity report as JSON.

    Examples:
        >>> limits = [{"metric": "balanced_accuracy", "loss": {"value": 0.01}}]
        >>> balanced_accuracy_loss({"limits": limits}).value
        0.01
    """
    limits = [
        limit for limit in parity.get("limits") or () if limit.get("metric") == "balanced_accuracy"
    ]
    return text.read_interval(limits[0].get("loss") if limits else None)


def is_classifier(evaluation: EvaluationReport) -> bool:
    """Return True if the page shows classification metrics.

    This holds for a model with classes, and if no metric of another task was measured.

    Examples:
        >>> from dermedge.workflows.evaluate import evaluate
        >>> is_classifier(evaluate("toy.dermedge", "lesions", replicates=10))
        True
    """
    metrics = evaluation.overall.metrics
    return bool(evaluation.labels) or not any(
        text.read_interval(metrics.get(name)).value is not None for name in OTHER_TASKS
    )


def _summarize_accuracy(evaluation: EvaluationReport) -> Iterator[str]:
    overall = evaluation.overall
    metrics = {
        name: text.read_interval(overall.metrics.get(name)) for name in text.EVALUATION_METRICS
    }
    where = (
        f"On {overall.cases:,} images of {overall.groups:,} lesions or patients "
        f"({describe_split(evaluation)})"
    )
    balanced = metrics["balanced_accuracy"]
    if not is_classifier(evaluation):
        yield f"Measured {where[0].lower()}{where[1:]}."
    elif balanced.value is None:
        yield f"{where}, its diagnoses were not measured."
    else:
        ends = text.interval_ends(balanced, "percent")
        certainty = "" if ends == text.NO_INTERVAL else f" (95 % interval {ends})"
        yield (
            f"{where}, the model classifies {len(evaluation.labels)} diagnoses with a balanced "
            f"accuracy of {text.percent(balanced.value)}{certainty}."
        )
    yield from _summarize_malignancy(metrics, evaluation.threshold)
    yield from _summarize_severity_and_masks(metrics)


def _summarize_malignancy(metrics: Metrics, threshold: float | None) -> Iterator[str]:
    if metrics["malignant_auroc"].value is not None:
        auroc = text.decimal(metrics["malignant_auroc"].value)
        yield f"It ranks malignant above benign images with an AUROC of {auroc}."
    if metrics["sensitivity"].value is not None and metrics["specificity"].value is not None:
        sensitivity, specificity = (
            text.percent(metrics[name].value) for name in ("sensitivity", "specificity")
        )
        yield (
            f"At its threshold of {text.decimal(threshold)} it detects {sensitivity} of the "
            f"malignant images and correctly calls {specificity} of the benign images benign."
        )


def _summarize_severity_and_masks(metrics: Metrics) -> Iterator[str]:
    if metrics["severity_kappa"].value is not None:
        kappa, distance = (
            text.decimal(metrics[name].value) for name in ("severity_kappa", "severity_mae")
        )
        yield (
            f"It grades severity with a quadratic weighted kappa of {kappa} and a mean error of "
            f"{distance} levels."
        )
    if metrics["dice"].value is not None:
        dice = text.decimal(metrics["dice"].value)
        yield f"Its masks overlap with the marked lesions with a Dice coefficient of {dice}."


def list_warnings(
    bundle: Bundle,
    evaluation: EvaluationReport | None,
    parity: Mapping[str, Any],
    verification: VerifyReport | None,
    table: Table | None,
) -> Iterator[tuple[str, str]]:
    """Yield warnings that belong before any number, as (status, sentence).

    Args:
        bundle: The bundle.
        evaluation: Report of `evaluate`.
        parity: Parity report as JSON.
        verification: Report of `verify`.
        table: Table of the evaluated images.

    Examples:
        >>> from dermedge import Bundle
        >>> bundle = Bundle.open("toy.dermedge")
        >>> next(list_warnings(bundle, None, {"status": "failed"}, None, None))
        ('failed', 'The parity gate FAILED: ...')
    """
    if text.status_of(verification) == "failed":
        yield (
            "failed",
            "Verification FAILED: on this machine the bundle does not reproduce the exported "
            "model. Do not use it.",
        )
    if text.status_of(parity) == "failed":
        yield (
            "failed",
            "The parity gate FAILED: the artifact lost more accuracy than its target allows.",
        )
    # Both sides of parity may have allowed failures; the same reason is shown once.
    sides = [side for side in bundle.parity.values() if isinstance(side, Mapping)]
    allowed = [reason for side in sides for reason in side.get("allowed_failures") or ()]
    for reason in dict.fromkeys(map(str, allowed)):
        yield "failed", f"The bundle was written although its gate failed: {reason}"
    device = bundle.parity["device"]
    if text.status_of(device) == "not_run":
        todo = f" To do {device['todo']}." if device.get("todo") else ""
        yield "warn", f"Nothing has been measured on the target device yet.{todo}"
    if table is not None and len(table) and (table.frame["source"] == DRAWN_SOURCE).all():
        yield (
            "warn",
            "The images are drawn, not photographed. The numbers show that the software works; "
            "they say nothing about accuracy on patients.",
        )
    if evaluation is not None:
        yield from _list_doubts(evaluation)


def _list_doubts(evaluation: EvaluationReport) -> Iterator[tuple[str, str]]:
    """Yield reasons to doubt the measured accuracy."""
    for warning in evaluation.warnings:
        # Scores on training images are worthless, so this warning has the colour of a
        # failure.
        yield "failed" if evaluation.trained_on and "TRAINED" in warning else "warn", warning
    for comparison in evaluation.fairness:
        if exceeds_chance(comparison.gap.value, comparison.chance_high):
            column = COLUMN_NAMES.get(comparison.column, comparison.column)
            gap = text.points(comparison.gap.value)
            yield (
                "warn",
                f"By {column}, accuracy is lowest for {comparison.worst}: {gap} below the best "
                "group, more than chance explains.",
            )
    overall = evaluation.overall
    if is_classifier(evaluation) and overall.labelled < MINIMUM_CASES:
        yield (
            "warn",
            f"Only {overall.labelled} images have a label. At least {MINIMUM_CASES} are needed to "
            "assess a model.",
        )
    elif (
        0 < overall.malignant < MINIMUM_CASES
        and text.read_interval(overall.metrics.get("sensitivity")).value is not None
    ):
        yield (
            "warn",
            f"Only {overall.malignant} images are malignant, so the sensitivity is uncertain; see "
            "its interval.",
        )


def describe_split(evaluation: EvaluationReport) -> str:
    """Return a short name of the evaluated images.

    Examples:
        >>> from dermedge.workflows.evaluate import evaluate
        >>> describe_split(evaluate("toy.dermedge", "lesions", split="all", replicates=10))
        'all splits of lesions'
    """
    split = "all splits" if evaluation.split == "all" else f"{evaluation.split} split"
    return f"{split} of {evaluation.data}"
