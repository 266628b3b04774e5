"""What a reader must be told in words: the key numbers, and what makes them doubtful."""

from collections.abc import Iterator, Mapping
from typing import Any

from dermedge.data.table import Table
from dermedge.evaluation.fairness_text import COLUMN_NAMES, exceeds_chance
from dermedge.evaluation.report import EvaluationReport
from dermedge.report import text
from dermedge_export.parity.gate import MINIMUM_CASES
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.report import Interval, LatencyReport, VerifyReport

DRAWN = "procedural"
OTHER_TASKS = ("severity_kappa", "severity_mae", "dice")


def summary(
    bundle: Bundle,
    evaluation: EvaluationReport | None,
    parity: Mapping[str, Any],
    latency: LatencyReport | None,
) -> Iterator[str]:
    """The key numbers in plain words; what is not known is not said."""
    if evaluation is None:
        yield from _agreement(bundle, parity)
    else:
        yield from _accuracy(evaluation)
    if latency is not None:
        cpu = latency.device.get("cpu") or latency.device.get("machine") or "this device"
        threads = (
            f", {latency.threads} thread{'s' if latency.threads > 1 else ''}"
            if latency.threads
            else ""
        )
        yield f"One prediction takes {text.milliseconds(latency.end_to_end.p50)} from file to answer ({cpu}{threads})."


def _agreement(bundle: Bundle, parity: Mapping[str, Any]) -> Iterator[str]:
    """How close the artifact is to its student."""
    same = text.number((parity.get("agreement") or {}).get("top1"))
    artifact = f"{bundle.artifact.precision} artifact"
    if same is None:
        yield f"The {artifact} was not compared with its student on classified images."
        return
    where = (
        f"On {text.whole(parity.get('cases'))} images ({parity.get('basis') or 'not stated which'})"
    )
    yield f"{where} the {artifact} gives its student's first diagnosis in {text.percent(same)}."
    loss = lost(parity)
    if loss.value is not None:
        ends = text.low_high(loss, "percent_fine")
        yield f"It lost {text.percent_fine(loss.value)} of the student's balanced accuracy (95 % interval {ends})."


def lost(parity: Mapping[str, Any]) -> Interval:
    """The loss of balanced accuracy, as a share of the student's."""
    limits = [
        limit for limit in parity.get("limits") or () if limit.get("metric") == "balanced_accuracy"
    ]
    return text.interval(limits[0].get("loss") if limits else None)


def classifies(evaluation: EvaluationReport) -> bool:
    """Whether the model is asked for diagnoses: it knows some, or nothing else was measured."""
    found = evaluation.overall.metrics
    return bool(evaluation.labels) or not any(
        text.interval(found.get(name)).value is not None for name in OTHER_TASKS
    )


def _accuracy(evaluation: EvaluationReport) -> Iterator[str]:
    """How good the model is on the images that it was evaluated on."""
    overall = evaluation.overall
    found = {name: text.interval(overall.metrics.get(name)) for name in text.METRICS}
    where = f"On {overall.cases:,} images of {overall.groups:,} lesions or patients ({part(evaluation)})"
    balanced = found["balanced_accuracy"]
    if not classifies(evaluation):
        yield f"Measured {where[0].lower()}{where[1:]}."
    elif balanced.value is None:
        yield f"{where}, nothing is known about its diagnoses."
    else:
        ends = text.low_high(balanced, "percent")
        sure = "" if ends == text.NO_INTERVAL else f" (95 % interval {ends})"
        told = f"it tells {len(evaluation.labels)} diagnoses apart with a balanced accuracy of"
        yield f"{where}, {told} {text.percent(balanced.value)}{sure}."
    if found["malignant_auroc"].value is not None:
        yield f"It ranks malignant above benign images with an AUROC of {text.decimal(found['malignant_auroc'].value)}."
    if found["sensitivity"].value is not None and found["specificity"].value is not None:
        sensitivity, specificity = (
            text.percent(found[name].value) for name in ("sensitivity", "specificity")
        )
        yield (
            f"At its threshold of {text.decimal(evaluation.threshold)} it finds {sensitivity} of the malignant images "
            f"and clears {specificity} of the benign ones."
        )
    yield from _severity_and_masks(found)


def _severity_and_masks(found: Mapping[str, Interval]) -> Iterator[str]:
    """How good the model is at what only some models do."""
    if found["severity_kappa"].value is not None:
        kappa, distance = (
            text.decimal(found[name].value) for name in ("severity_kappa", "severity_mae")
        )
        yield f"It grades severity with a quadratic weighted kappa of {kappa}, on average {distance} levels off."
    if found["dice"].value is not None:
        yield f"Its masks overlap with the marked lesions by a Dice coefficient of {text.decimal(found['dice'].value)}."


def warnings(
    bundle: Bundle,
    evaluation: EvaluationReport | None,
    parity: Mapping[str, Any],
    verification: VerifyReport | None,
    table: Table | None,
) -> Iterator[tuple[str, str]]:
    """What a reader must know before any number, as (status, sentence)."""
    if text.status_of(verification) == "failed":
        yield (
            "failed",
            "Verification FAILED: here, this bundle is not the model that was exported. Do not use it.",
        )
    if text.status_of(parity) == "failed":
        yield "failed", "The parity gate FAILED: the artifact lost more than its target allows."
    sides = [side for side in bundle.parity.values() if isinstance(side, Mapping)]
    allowed = [reason for side in sides for reason in side.get("allowed_failures") or ()]
    for reason in dict.fromkeys(map(str, allowed)):
        yield "failed", f"The bundle was written although its gate failed: {reason}"
    device = bundle.parity["device"]
    if text.status_of(device) == "not_run":
        rest = f" To do {device['todo']}." if device.get("todo") else ""
        yield "warn", f"On the device itself nothing has been measured yet.{rest}"
    if table is not None and len(table) and (table.frame["source"] == DRAWN).all():
        yield (
            "warn",
            "The images are drawn, not photographed: the numbers show that the way from image to report works and say "
            "nothing about accuracy on patients.",
        )
    if evaluation is not None:
        yield from _doubts(evaluation)


def _doubts(evaluation: EvaluationReport) -> Iterator[tuple[str, str]]:
    """What makes the measured accuracy doubtful."""
    for warning in evaluation.warnings:
        yield "failed" if evaluation.trained_on and "TRAINED" in warning else "warn", warning
    for found in evaluation.fairness:
        if exceeds_chance(found.gap.value, found.chance_high):
            column, gap = COLUMN_NAMES.get(found.column, found.column), text.points(found.gap.value)
            yield (
                "warn",
                f"Worst served is {column} {found.worst}: {gap} below the best group, more than chance explains.",
            )
    overall = evaluation.overall
    if classifies(evaluation) and overall.labelled < MINIMUM_CASES:
        yield (
            "warn",
            f"Only {overall.labelled} images have a label: fewer than {MINIMUM_CASES} are too few to judge a model on.",
        )
    elif (
        0 < overall.malignant < MINIMUM_CASES
        and text.interval(overall.metrics.get("sensitivity")).value is not None
    ):
        yield (
            "warn",
            f"Only {overall.malignant} images are malignant: sensitivity is uncertain, as its interval shows.",
        )


def part(evaluation: EvaluationReport) -> str:
    """Which images were evaluated."""
    split = "all splits" if evaluation.split == "all" else f"{evaluation.split} split"
    return f"{split} of {evaluation.data}"
