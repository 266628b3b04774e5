"""`report.html`: everything that is known about a bundle on one page that needs nothing else, no script and no
network.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from dermedge.data.table import Table, read_table
from dermedge.data.taxonomy import TAXONOMY
from dermedge.evaluation.fairness import MINIMUM_CASES as FAIR_MINIMUM
from dermedge.evaluation.report import EvaluationReport, SubgroupScores
from dermedge.report import plots, text
from dermedge.report.fairness import comparisons
from dermedge.report.forest import forest
from dermedge.report.images import choose, thumbnails
from dermedge.report.summary import OTHER_TASKS, classifies, lost, part, summary, warnings
from dermedge.report.training import training
from dermedge_export.model_card import calibrated_on, kept_fp32, other_details
from dermedge_export.parity.gate import MINIMUM_CASES
from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.report import (
    CANDIDATES_REPORT,
    PARITY_REPORT,
    LatencyReport,
    VerifyReport,
    read_report,
)

FILE = "report.html"
HEADLINE = (
    "balanced_accuracy",
    "malignant_auroc",
    "sensitivity",
    "specificity",
    "severity_kappa",
    "dice",
)
BY_GROUP = ("balanced_accuracy", "severity_kappa", "dice")
FILTERS = (
    *(
        "percent",
        "percent_fine",
        "points",
        "decimal",
        "significant",
        "whole",
        "megabytes",
        "milliseconds",
        "digested",
    ),
    *("low_high", "spread", "interval", "number", "remark"),
)


def write_report(
    out: Path,
    *,
    bundle: Bundle,
    evaluation: EvaluationReport | None = None,
    parity: Mapping[str, Any] | None = None,
    latency: LatencyReport | None = None,
    verification: VerifyReport | None = None,
    runs: Sequence[Mapping[str, Any]] = (),
    data: Path | None = None,
    images: bool = True,
    title: str | None = None,
) -> Path:
    """Writes one self-contained HTML page for whoever must judge or hand on the bundle; the same input gives the same
    bytes. The bundle alone is enough: the page then shows what it carries, its parity and how it was chosen.

    Args:
        out: the file to write or replace; in a folder, `report.html`.
        bundle: the bundle that everything else is about.
        evaluation: what `evaluate` found, None where it did not run.
        parity: in place of the bundle's own `reports/parity.json`; empty where there is none.
        latency: what `bench` measured, None where it did not run.
        verification: what `verify` answered, None where it did not run.
        runs: `run.json` of the trainings, in their order.
        data: the table that the example images of `evaluation` come from.
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
    parity = read_report(bundle, PARITY_REPORT) if parity is None else parity
    table = read_table(data) if data is not None else None
    page = _environment().get_template("report.html.j2")
    content = page.render(
        title=title or f"{bundle.spec.name} {bundle.spec.version}",
        bundle=bundle,
        evaluation=evaluation,
        parity=parity,
        latency=latency,
        verification=verification,
        images=images,
        runs=[training(run) for run in runs],
        summary=list(summary(bundle, evaluation, parity, latency)),
        warnings=list(warnings(bundle, evaluation, parity, verification, table)),
        plots=_plots(evaluation, latency),
        minimum=MINIMUM_CASES,
        made_by=f"dermedge {version('dermedge')}",
        **_artifact(bundle),
        **_compared(bundle, evaluation, parity),
        **_evaluated(bundle, evaluation, table if images else None),
    )
    out = out / FILE if out.is_dir() else out
    atomic_write(out, content.encode("utf-8", "replace"))
    return out


def _artifact(bundle: Bundle) -> dict[str, Any]:
    """What is known about the file."""
    return {
        "size": sum(len(bundle.read(name)) for name in artifact_files(bundle)),
        "details": other_details(bundle.artifact),
        "calibration": calibrated_on(bundle.artifact),
        "kept": kept_fp32(bundle.artifact),
        "licences": sorted(name for name in bundle.files if name.startswith("LICENSES/")),
    }


def _compared(
    bundle: Bundle, evaluation: EvaluationReport | None, parity: Mapping[str, Any]
) -> dict[str, Any]:
    """What the artifact lost against its student, and against which others it was chosen."""
    names, search = _names(bundle, evaluation), read_report(bundle, CANDIDATES_REPORT)
    return {
        "engine": evaluation.model.engine if evaluation is not None else parity.get("engine"),
        "postprocessing": (bundle if evaluation is None else evaluation).postprocessing,
        "names": names,
        "limits": text.LIMITS,
        "lost": lost(parity),
        "forest": forest(parity, names),
        "tried_on": search.get("basis")
        or "the validation split, or drawn lesions where there were no data",
        "candidates": [
            entry for entry in search.get("candidates") or () if isinstance(entry, Mapping)
        ],
        "machine": search.get("machine"),
    }


def _evaluated(
    bundle: Bundle, evaluation: EvaluationReport | None, table: Table | None
) -> dict[str, Any]:
    """How accurate the model is, and on which images."""
    if evaluation is None:
        return {"examples": []}
    shown = _metrics(evaluation)
    return {
        "every_metric": text.METRICS,
        "metrics": shown,
        "classifies": classifies(evaluation),
        "headline": [name for name in HEADLINE if name in shown],
        "by_group": next((name for name in BY_GROUP if name in shown), BY_GROUP[0]),
        "part": part(evaluation),
        "subgroups": _groups(evaluation.subgroups),
        "fairness": comparisons(evaluation.fairness, evaluation.labels, _names(bundle, evaluation)),
        "fair_minimum": FAIR_MINIMUM,
        "examples": _examples(bundle, evaluation, table),
    }


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
    environment.globals["status_of"] = text.status_of
    return environment


def _check_same_bundle(
    bundle: Bundle,
    evaluation: EvaluationReport | None,
    latency: LatencyReport | None,
    verification: VerifyReport | None,
) -> None:
    told = {} if evaluation is None else {"evaluation": evaluation.model.bundle}
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


def _names(bundle: Bundle, evaluation: EvaluationReport | None) -> dict[str, str]:
    """What people call every label and diagnosis that occurs."""
    names = {label.id: label.name for task in bundle.spec.tasks for label in task.labels}
    if evaluation is None:
        return names
    seen = {
        image.dx: TAXONOMY[image.dx].name for image in evaluation.images if image.dx in TAXONOMY
    }
    return seen | {label: label for label in evaluation.labels} | names


def _metrics(evaluation: EvaluationReport) -> dict[str, text.Named]:
    """What is said of the model: all that a classifier is asked, measured or not; of other tasks what was measured."""
    found = evaluation.overall.metrics
    return {
        name: named
        for name, named in text.METRICS.items()
        if text.interval(found.get(name)).value is not None
        or (classifies(evaluation) and name not in OTHER_TASKS)
    }


def _groups(found: Iterable[SubgroupScores]) -> list[tuple[str, list[SubgroupScores]]]:
    """Subgroups by their column under its name for people; skin type comes first."""
    columns: dict[str, list[SubgroupScores]] = {name: [] for name in text.COLUMNS}
    for group in found:
        columns.setdefault(group.column, []).append(group)
    return [(text.COLUMNS.get(name, name), groups) for name, groups in columns.items() if groups]


def _examples(
    bundle: Bundle, evaluation: EvaluationReport, table: Table | None
) -> list[dict[str, Any]]:
    if table is None:
        return []
    chosen = choose(evaluation)
    made = thumbnails(table, chosen, bundle.spec.preprocess)
    return [
        {"kind": kind, "cards": [(image, made[image.image_id]) for image in kind.images]}
        for kind in chosen
    ]


def _plots(evaluation: EvaluationReport | None, latency: LatencyReport | None) -> dict[str, Any]:
    sustained = plots.sustained(latency.sustained) if latency is not None else None
    if evaluation is None:
        return {"sustained": sustained}
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
        "sustained": sustained,
    }
