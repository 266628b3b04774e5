"""`report.html`: everything that is known about a bundle on one page that needs nothing else, no script and no
network.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from dermedge.data.table import Table, read_table
from dermedge.data.taxonomy import TAXONOMY
from dermedge.evaluate.report import EvaluationReport
from dermedge.report import plots, text
from dermedge.report.images import choose, thumbnails
from dermedge.report.training import training
from dermedge_export.gate import MINIMUM_CASES
from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.report import LatencyReport, VerifyReport

T = TypeVar("T")

FILE = "report.html"
DRAWN = "procedural"
STATUSES = ("passed", "warn", "failed", "insufficient", "not_run")
FILTERS = (
    *("percent", "percent_fine", "points", "decimal", "significant", "whole", "megabytes", "milliseconds", "digested"),
    *("low_high", "spread", "interval", "number", "remark"),
)


def write_report(
    out: Path,
    *,
    bundle: Bundle,
    evaluation: EvaluationReport,
    parity: Mapping[str, Any],
    latency: LatencyReport | None,
    verification: VerifyReport | None,
    runs: Sequence[Mapping[str, Any]],
    data: Path | None,
    images: bool = True,
    title: str | None = None,
) -> Path:
    """Writes one self-contained HTML page for whoever must judge or hand on the bundle; the same input gives the same
    bytes.

    Args:
        out: the file to write or replace; in a folder, `report.html`.
        bundle: the bundle that everything else is about.
        evaluation: what `evaluate` found.
        parity: the bundle's `reports/parity.json`; empty where it has none.
        latency: what `bench` measured, None where it did not run.
        verification: what `verify` answered, None where it did not run.
        runs: `run.json` of the trainings, in their order.
        data: the table that the example images come from.
        images: whether the page may show images of `data`.
        title: of the page; by default the model's name.

    Returns:
        The file.

    Raises:
        UsageError: a report is about another bundle.
        DataError: `data` is no readable table.
        BundleError: the bundle was changed since it was opened.
        DermedgeError: the file cannot be written.
    """
    _check_same_bundle(bundle, evaluation, latency, verification)
    table = read_table(data) if data is not None else None
    page = _environment().get_template("report.html.j2")
    content = page.render(
        title=title or f"{bundle.spec.name} {bundle.spec.version}",
        bundle=bundle,
        size=sum(len(bundle.read(name)) for name in artifact_files(bundle)),
        evaluation=evaluation,
        overall=evaluation.overall,
        names=_names(bundle, evaluation),
        summary=list(_summary(bundle, evaluation, latency)),
        warnings=list(_warnings(bundle, evaluation, parity, verification, table)),
        parity=parity,
        latency=latency,
        verification=verification,
        examples=_examples(bundle, evaluation, table if images else None),
        images=images,
        plots=_plots(evaluation, latency),
        runs=[training(run) for run in runs],
        minimum=MINIMUM_CASES,
        metrics=text.METRICS,
        limits=text.LIMITS,
        part=_part(evaluation),
        subgroups=_groups(evaluation.subgroups, lambda group: group.column),
        lost=_groups(parity.get("subgroups") or (), lambda group: group.get("column")),
        licences=sorted(name for name in bundle.files if name.startswith("LICENSES/")),
        made_by=f"dermedge {version('dermedge')}",
    )
    out = out / FILE if out.is_dir() else out
    atomic_write(out, content.encode("utf-8", "replace"))
    return out


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dermedge.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {name: getattr(text, name) for name in FILTERS}
    environment.filters["written"] = lambda value, kind: text.FORMATS[kind](value)
    environment.globals["agreement"] = text.agreement
    environment.globals["status_of"] = _status
    return environment


def _status(value: Any) -> str:
    """A report's status; what is none of the known words counts as not run."""
    word = value.get("status") if isinstance(value, Mapping) else getattr(value, "status", None)
    return word if isinstance(word, str) and word in STATUSES else "not_run"


def _check_same_bundle(
    bundle: Bundle, evaluation: EvaluationReport, latency: LatencyReport | None, verification: VerifyReport | None
) -> None:
    told = {"evaluation": evaluation.model.bundle}
    if latency is not None:
        told["latency report"] = latency.bundle
    if verification is not None and text.DIGEST.fullmatch(
        verification.bundle
    ):  # else it names the path it could not open
        told["verification"] = verification.bundle
    for what, found in told.items():
        if found != bundle.id:
            raise UsageError(
                f"The {what} is about bundle {found[:12]}, not about {bundle.id[:12]} ({bundle.path.name}); make it "
                "again for this bundle."
            )


def _names(bundle: Bundle, evaluation: EvaluationReport) -> dict[str, str]:
    """What people call every label and diagnosis that occurs."""
    names = {image.dx: TAXONOMY[image.dx].name for image in evaluation.images if image.dx in TAXONOMY}
    names |= {label: label for label in evaluation.labels}
    return names | {label.id: label.name for task in bundle.spec.tasks for label in task.labels}


def _part(evaluation: EvaluationReport) -> str:
    """Which images were evaluated."""
    split = "all splits" if evaluation.split == "all" else f"{evaluation.split} split"
    return f"{split} of {evaluation.data}"


def _groups(found: Iterable[T], column: Callable[[T], Any]) -> list[tuple[str, list[T]]]:
    """Subgroups by their column under its name for people; skin type comes first."""
    columns: dict[str, list[T]] = {name: [] for name in text.COLUMNS}
    for group in found:
        columns.setdefault(str(column(group)), []).append(group)
    return [(text.COLUMNS.get(name, name), groups) for name, groups in columns.items() if groups]


def _summary(bundle: Bundle, evaluation: EvaluationReport, latency: LatencyReport | None) -> Iterator[str]:
    """The key numbers in plain words; what is not known is not said."""
    overall = evaluation.overall
    found = {name: text.interval(overall.metrics.get(name)) for name in text.METRICS}
    where = f"On {overall.cases:,} images of {overall.groups:,} lesions or patients ({_part(evaluation)})"
    balanced = found["balanced_accuracy"]
    if balanced.value is None:
        yield f"{where}, nothing is known about its diagnoses."
    else:
        ends = text.low_high(balanced, "percent")
        sure = "" if ends == text.NO_INTERVAL else f" (95 % interval {ends})"
        told = f"it tells {len(evaluation.labels)} diagnoses apart with a balanced accuracy of"
        yield f"{where}, {told} {text.percent(balanced.value)}{sure}."
    if found["malignant_auroc"].value is not None:
        yield f"It ranks malignant above benign images with an AUROC of {text.decimal(found['malignant_auroc'].value)}."
    if found["sensitivity"].value is not None and found["specificity"].value is not None:
        sensitivity, specificity = (text.percent(found[name].value) for name in ("sensitivity", "specificity"))
        yield (
            f"At its threshold of {text.decimal(evaluation.threshold)} it finds {sensitivity} of the malignant images "
            f"and clears {specificity} of the benign ones."
        )
    if latency is not None:
        cpu = latency.device.get("cpu") or latency.device.get("machine") or "this device"
        threads = f", {latency.threads} thread{'s' if latency.threads > 1 else ''}" if latency.threads else ""
        yield f"One prediction takes {text.milliseconds(latency.end_to_end.p50)} from file to answer ({cpu}{threads})."


def _warnings(
    bundle: Bundle,
    evaluation: EvaluationReport,
    parity: Mapping[str, Any],
    verification: VerifyReport | None,
    table: Table | None,
) -> Iterator[tuple[str, str]]:
    """What a reader must know before any number, as (status, sentence)."""
    if _status(verification) == "failed":
        yield "failed", "Verification FAILED: here, this bundle is not the model that was exported. Do not use it."
    if _status(parity) == "failed":
        yield "failed", "The parity gate FAILED: the artifact lost more than its target allows."
    sides = [side for side in bundle.parity.values() if isinstance(side, Mapping)]
    allowed = [reason for side in sides for reason in side.get("allowed_failures") or ()]
    for reason in dict.fromkeys(map(str, allowed)):
        yield "failed", f"The bundle was written although its gate failed: {reason}"
    if table is not None and len(table) and (table.frame["source"] == DRAWN).all():
        yield (
            "warn",
            "The images are drawn, not photographed: the numbers show that the way from image to report works and say "
            "nothing about accuracy on patients.",
        )
    for warning in evaluation.warnings:
        yield "failed" if evaluation.trained_on and "TRAINED" in warning else "warn", warning
    overall = evaluation.overall
    if overall.labelled < MINIMUM_CASES:
        yield (
            "warn",
            f"Only {overall.labelled} images have a label: fewer than {MINIMUM_CASES} are too few to judge a model on.",
        )
    elif 0 < overall.malignant < MINIMUM_CASES and text.interval(overall.metrics.get("sensitivity")).value is not None:
        yield (
            "warn",
            f"Only {overall.malignant} images are malignant: sensitivity is uncertain, as its interval shows.",
        )


def _examples(bundle: Bundle, evaluation: EvaluationReport, table: Table | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    chosen = choose(evaluation)
    made = thumbnails(table, chosen, bundle.spec.preprocess)
    return [{"kind": kind, "cards": [(image, made[image.image_id]) for image in kind.images]} for kind in chosen]


def _plots(evaluation: EvaluationReport, latency: LatencyReport | None) -> dict[str, Any]:
    metrics = evaluation.overall.metrics
    return {
        "reliability": plots.reliability(evaluation.reliability, metrics.get("ece")),
        "roc": plots.roc(
            evaluation.roc,
            metrics.get("malignant_auroc"),
            evaluation.threshold,
            metrics.get("sensitivity"),
            metrics.get("specificity"),
        ),
        "sustained": plots.sustained(latency.sustained) if latency is not None else None,
    }
