"""Write `report.html`: one page about a bundle, without scripts or network."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from dermedge.data.table import Table, read_table
from dermedge.data.taxonomy import diagnosis_name
from dermedge.evaluation.fairness import MINIMUM_CASES as FAIR_MINIMUM
from dermedge.evaluation.report import EvaluationReport, SubgroupScores
from dermedge.report import plots, text
from dermedge.report.fairness import make_comparisons
from dermedge.report.forest import draw_forest
from dermedge.report.images import choose_examples, draw_explanations, make_thumbnails
from dermedge.report.robustness import make_curves
from dermedge.report.summary import (
    OTHER_TASKS,
    balanced_accuracy_loss,
    describe_split,
    is_classifier,
    list_warnings,
    summarize_numbers,
)
from dermedge.report.training import summarize_run
from dermedge_export.model_card import abstention_values, calibrated_on, kept_fp32, other_details
from dermedge_export.parity.gate import MINIMUM_CASES
from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.overlay import MEANING
from dermedge_runtime.packages import dermedge_version
from dermedge_runtime.report import (
    CANDIDATES_REPORT,
    PARITY_REPORT,
    LatencyReport,
    VerifyReport,
    outcome_name,
    read_report,
)

FILE = "report.html"
HEADLINE_METRICS = (
    "balanced_accuracy",
    "malignant_auroc",
    "sensitivity",
    "specificity",
    "severity_kappa",
    "dice",
)
OPTIONAL_METRICS = (*OTHER_TASKS, "coverage", "set_size", "referred", "ood_flagged")
SUBGROUP_METRICS = ("balanced_accuracy", "severity_kappa", "dice")
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
        "shorten_digests",
    ),
    *("interval_ends", "with_interval", "read_interval", "format_note"),
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
    """Write one self-contained HTML page about a bundle.

    The page is for readers who approve the bundle or pass it on. The bundle alone is
    enough: the page then shows its contents, its parity and the selection among the
    candidates. The same input gives the same bytes.

    Args:
        out: File to write or replace. In a folder, `report.html` is written.
        bundle: The bundle that all reports are about.
        evaluation: Report of `evaluate`; None if it did not run.
        parity: Parity report as JSON; by default the bundle's own
            `reports/parity.json`. Empty for a bundle without one.
        latency: Report of `bench`; None if it did not run.
        verification: Report of `verify`; None if it did not run.
        runs: Content of `run.json` of each training, in order.
        data: Table that the example images of `evaluation` come from.
        images: Show images of `data` on the page.
        title: Title of the page; by default the model's name and version.

    Returns:
        The written file.

    Raises:
        UsageError: A report is about another bundle.
        DataError: `data` is not a readable table.
        BundleError: The bundle changed after it was opened.
        DermedgeError: The file cannot be written.

    Examples:
        >>> from dermedge import Bundle
        >>> from dermedge.workflows.evaluate import evaluate
        >>> from dermedge.report.html import write_report
        >>> evaluation = evaluate("toy.dermedge", "lesions", replicates=10)
        >>> bundle = Bundle.open("toy.dermedge")
        >>> write_report(Path("report.html"), bundle=bundle, evaluation=evaluation).name
        'report.html'
    """
    _check_same_bundle(bundle, evaluation, latency, verification)
    parity = read_report(bundle, PARITY_REPORT) if parity is None else parity
    table = read_table(data) if data is not None else None
    page = page_environment().get_template("report.html.j2")
    content = page.render(
        title=title or f"{bundle.spec.name} {bundle.spec.version}",
        bundle=bundle,
        evaluation=evaluation,
        parity=parity,
        latency=latency,
        verification=verification,
        images=images,
        runs=[summarize_run(run) for run in runs],
        summary=list(summarize_numbers(bundle, evaluation, parity, latency)),
        warnings=list(list_warnings(bundle, evaluation, parity, verification, table)),
        plots=_draw_plots(evaluation, latency),
        minimum=MINIMUM_CASES,
        made_by=f"dermedge {dermedge_version()}",
        **_describe_artifact(bundle),
        **_describe_parity(bundle, evaluation, parity),
        **_describe_accuracy(bundle, evaluation, table if images else None),
    )
    out = out / FILE if out.is_dir() else out
    # Lone surrogates in file names cannot be encoded; they become question marks.
    atomic_write(out, content.encode("utf-8", "replace"))
    return out


def _describe_artifact(bundle: Bundle) -> dict[str, Any]:
    """Return the template values about the model file."""
    return {
        "size": sum(len(bundle.read(name)) for name in artifact_files(bundle)),
        "details": other_details(bundle.artifact),
        "calibration": calibrated_on(bundle.artifact),
        "explanations": draw_explanations(bundle),
        "meaning": MEANING,
        "kept": kept_fp32(bundle.artifact),
        "licences": sorted(name for name in bundle.files if name.startswith("LICENSES/")),
    }


def _describe_parity(
    bundle: Bundle, evaluation: EvaluationReport | None, parity: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the template values about parity and the candidates."""
    names, search = _display_names(bundle, evaluation), read_report(bundle, CANDIDATES_REPORT)
    return {
        "engine": evaluation.model.engine if evaluation is not None else parity.get("engine"),
        "postprocessing": (bundle if evaluation is None else evaluation).postprocessing,
        "names": names,
        "limits": text.GATE_METRICS,
        "lost": balanced_accuracy_loss(parity),
        "forest": draw_forest(parity, names),
        "tried_on": search.get("basis")
        or "the val split, or drawn lesions for an export without data",
        "candidates": [
            entry for entry in search.get("candidates") or () if isinstance(entry, Mapping)
        ],
        "machine": search.get("machine"),
    }


def _describe_accuracy(
    bundle: Bundle, evaluation: EvaluationReport | None, table: Table | None
) -> dict[str, Any]:
    """Return the template values about accuracy, subgroups and example images."""
    if evaluation is None:
        return {"examples": [], "robustness": {}}
    shown = _select_metrics(evaluation)
    return {
        "every_metric": text.EVALUATION_METRICS,
        "metrics": shown,
        "classifies": is_classifier(evaluation),
        "headline": [name for name in HEADLINE_METRICS if name in shown],
        "by_group": next((name for name in SUBGROUP_METRICS if name in shown), SUBGROUP_METRICS[0]),
        "part": describe_split(evaluation),
        "subgroups": _group_by_column(evaluation.subgroups),
        "abstention": _describe_abstention(evaluation),
        "aimed": next(
            (fit.conformal.coverage for fit in evaluation.postprocessing.values() if fit.conformal),
            None,
        ),
        "fairness": make_comparisons(
            evaluation.fairness, evaluation.labels, _display_names(bundle, evaluation)
        ),
        "fair_minimum": FAIR_MINIMUM,
        "robustness": make_curves(evaluation.robustness),
        "examples": _examples(bundle, evaluation, table),
    }


def page_environment() -> jinja2.Environment:
    # Names come from data sets and bundles, so everything is escaped. A misspelt
    # variable raises an error instead of leaving a gap in the page.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dermedge.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {name: getattr(text, name) for name in FILTERS}
    environment.filters["written"] = lambda value, kind: text.FORMATS[kind](value)
    environment.filters["outcome_name"] = outcome_name
    environment.globals["abstention_values"] = abstention_values
    environment.globals["agreement"] = text.describe_agreement
    environment.globals["status_of"] = text.status_of
    return environment


def _check_same_bundle(
    bundle: Bundle,
    evaluation: EvaluationReport | None,
    latency: LatencyReport | None,
    verification: VerifyReport | None,
) -> None:
    bundles = {} if evaluation is None else {"evaluation": evaluation.model.bundle}
    if latency is not None:
        bundles["latency report"] = latency.bundle
    # A verification that could not open the bundle names its path instead of its id.
    if verification is not None and text.DIGEST.fullmatch(verification.bundle):
        bundles["verification"] = verification.bundle
    for report, identifier in bundles.items():
        if identifier != bundle.id:
            raise UsageError(
                f"The {report} is about bundle {identifier[:12]}, not about {bundle.id[:12]} "
                f"({bundle.path.name}). Create it again for this bundle."
            )


def _display_names(bundle: Bundle, evaluation: EvaluationReport | None) -> dict[str, str]:
    """Return the display name of every label and diagnosis that occurs."""
    names = {label.id: label.name for task in bundle.spec.tasks for label in task.labels}
    if evaluation is None:
        return names
    seen = {image.dx: diagnosis_name(image.dx) for image in evaluation.images if image.dx}
    return seen | {label: label for label in evaluation.labels} | names


def _select_metrics(evaluation: EvaluationReport) -> dict[str, text.MetricText]:
    """Return the metrics to show: all of a classifier, measured ones of other tasks."""
    metrics = evaluation.overall.metrics
    return {
        name: metric
        for name, metric in text.EVALUATION_METRICS.items()
        if text.read_interval(metrics.get(name)).value is not None
        or (is_classifier(evaluation) and name not in OPTIONAL_METRICS)
    }


def _group_by_column(subgroups: Iterable[SubgroupScores]) -> list[tuple[str, list[SubgroupScores]]]:
    """Group subgroups by the display name of their column; skin type comes first."""
    columns: dict[str, list[SubgroupScores]] = {name: [] for name in text.COLUMN_TITLES}
    for group in subgroups:
        columns.setdefault(group.column, []).append(group)
    return [
        (text.COLUMN_TITLES.get(name, name), groups) for name, groups in columns.items() if groups
    ]


def _describe_abstention(evaluation: EvaluationReport) -> dict[str, Any] | None:
    """Return columns and rows of the table of sets and referrals; None without them."""
    columns = [
        name
        for name in ("coverage", "set_size", "referred")
        if text.read_interval(evaluation.overall.metrics.get(name)).value is not None
    ]
    if not columns:
        return None
    known = [group for group in evaluation.classes if group.scores.cases]
    rows = [("Diagnosis", known)] if known else []
    return {"columns": columns, "rows": rows + _group_by_column(evaluation.subgroups)}


def _examples(
    bundle: Bundle, evaluation: EvaluationReport, table: Table | None
) -> list[dict[str, Any]]:
    if table is None:
        return []
    kinds = choose_examples(evaluation)
    urls = make_thumbnails(table, kinds, bundle.spec.preprocess)
    return [
        {"kind": kind, "cards": [(image, urls[image.image_id]) for image in kind.images]}
        for kind in kinds
    ]


def _draw_plots(
    evaluation: EvaluationReport | None, latency: LatencyReport | None
) -> dict[str, Any]:
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
