"""Write the report of a reader study as JSON and as one HTML page."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dermedge.readers.report import JSON_FILE, PAGE_FILE, Change, ReaderReport
from dermedge.report.forest import Scale, interval_values, make_scale
from dermedge.report.html import page_environment
from dermedge.report.text import COLUMN_TITLES, interval_ends, points, read_interval
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.files import atomic_folder, write_files
from dermedge_runtime.packages import dermedge_version
from dermedge_runtime.report import Interval
from dermedge_runtime.spec import to_json

NAMES: Mapping[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "percent"),
    "balanced_accuracy": ("Balanced accuracy", "percent"),
    "sensitivity": ("Sensitivity", "percent"),
    "specificity": ("Specificity", "percent"),
    "auc": ("Area under the ROC curve", "decimal"),
}
"""Name for people and format of each metric."""

ANALYSES = (
    ("random", "Random readers, random cases", "other readers and other cases"),
    ("fixed_readers", "Fixed readers, random cases", "these readers and other cases"),
    ("fixed_cases", "Random readers, fixed cases", "other readers and these cases"),
)
RATES: Mapping[str, str] = {
    "gained": "Of the wrong unaided answers, became right",
    "lost": "Of the right unaided answers, became wrong",
    "corrected": "Of the wrong answers where the model is right, became right",
    "automation_bias": "Of the right answers where the model is wrong, became wrong "
    "(automation bias)",
    "switched": "Of the answers that differed from the model's, became the model's",
}
GROUPS = {"reader_group": "Group of readers", "truth": "True label", "dx": "Diagnosis"}


def write_reader_report(report: ReaderReport, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write `readers.json` and `readers.html` into a folder.

    The page needs no network and runs no script. The same report gives the same bytes.

    Args:
        report: Report of `analyze_readers`.
        out: The folder.
        overwrite: Replace an existing folder of such a report.

    Returns:
        The page.

    Raises:
        UsageError: The folder exists.
        DermedgeError: It cannot be written.

    Example:
        >>> from dermedge import analyze_readers
        >>> from dermedge.readers.simulate import write_study
        >>> table = write_study("study.csv", readers=4, cases=40)
        >>> write_reader_report(analyze_readers(table, replicates=50), "study").name
        'readers.html'
    """
    out = Path(out)
    content = {
        JSON_FILE: canonical_json(to_json(report)) + b"\n",
        PAGE_FILE: render_page(report).encode("utf-8", "replace"),
    }
    with atomic_folder(out, overwrite=overwrite, marker=JSON_FILE) as folder:
        write_files(folder, content)
    return out / PAGE_FILE


def render_page(report: ReaderReport) -> str:
    """Return the HTML page of a report.

    Examples:
        >>> from dermedge import analyze_readers
        >>> from dermedge.readers.simulate import write_study
        >>> table = write_study("study.csv", readers=4, cases=40)
        >>> "Balanced accuracy" in render_page(analyze_readers(table, replicates=50))
        True
    """
    differences = [comparison.difference for comparison in report.pooled.values()]
    by_reader = [reader.metrics[report.primary].difference for reader in report.by_reader]
    by_group = [group.accuracy.difference for group in report.subgroups]
    return (
        page_environment()
        .get_template("readers.html.j2")
        .render(
            report=report,
            names=NAMES,
            analyses=ANALYSES,
            rates=RATES,
            titles={**COLUMN_TITLES, **GROUPS},
            lead=_summarize(report),
            warnings=[check for check in report.checks if check.status == "warn"],
            pooled=_draw(differences, [NAMES[name][0] for name in report.pooled]),
            readers=_draw(by_reader, [reader.reader for reader in report.by_reader]),
            groups=_draw(by_group, [f"{group.column} {group.value}" for group in report.subgroups]),
            columns=_list_columns(report),
            format_p=format_p,
            state_p=state_p,
            matrix=list(_list_changes(report.changes.matrix)),
            made_by=f"dermedge {dermedge_version()}",
        )
    )


def _summarize(report: ReaderReport) -> str:
    """Return the main result in one or two sentences."""
    name = NAMES[report.primary][0]
    result = report.anova[report.primary]
    test = result.random or result.fixed_readers
    value = test.difference.value or 0.0
    direction = "higher" if value > 0 else "lower"
    change = f"was {abs(100 * value):.1f} points {direction}" if value else "did not change"
    ends = interval_ends(test.difference, "points_bare")
    sentence = f"With the model, {name[0].lower()}{name[1:]} {change} (95 % interval {ends}"
    p = "" if test.p is None else f", {state_p(test.p)}"
    scope = "Obuchowski-Rockette, random readers and cases"
    if result.random is None:
        scope = "Obuchowski-Rockette, this reader and random cases"
    return f"{sentence}{p}; {scope})."


def format_p(p: float | None) -> str:
    """Return a p-value with three digits, never as 0.

    Examples:
        >>> format_p(0.0412), format_p(1e-6), format_p(None)
        ('0.041', '< 0.001', 'not run')
    """
    if p is None:
        return "not run"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def state_p(p: float) -> str:
    """Return a p-value for a sentence.

    Examples:
        >>> state_p(0.0412), state_p(1e-6)
        ('p = 0.041', 'p < 0.001')
    """
    text = format_p(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _draw(differences: Iterable[Interval], labels: Iterable[str]) -> dict[str, Any]:
    """Draw differences on one scale: the axis, and one line for each."""
    intervals = [read_interval(each) for each in differences]
    if not intervals:
        return {"axis": Markup(""), "lines": []}
    scale: Scale = make_scale(interval_values(intervals))
    lines = [
        scale.line(
            each,
            allowed=None,
            class_="",
            label=f"{label}: {points(each.value)}, 95 % interval {interval_ends(each, 'points')}.",
        )
        for each, label in zip(intervals, labels, strict=True)
    ]
    axis = scale.axis("Scale of the differences below, aided minus unaided, in points")
    return {"axis": axis, "lines": lines}


def _list_columns(report: ReaderReport) -> list[tuple[str, list[int]]]:
    """Return the columns of the subgroups with the indices of their rows."""
    columns: dict[str, list[int]] = {}
    for index, group in enumerate(report.subgroups):
        columns.setdefault(group.column, []).append(index)
    return list(columns.items())


def _list_changes(matrix: Iterable[Change]) -> Iterable[dict[str, Any]]:
    for change in matrix:
        total = change.aided_right + change.aided_wrong
        yield {
            "model": {True: "right", False: "wrong", None: "no prediction"}[change.model_right],
            "unaided": "right" if change.unaided_right else "wrong",
            "right": change.aided_right,
            "wrong": change.aided_wrong,
            "total": total,
            "bias": change.unaided_right and change.model_right is False,
        }
