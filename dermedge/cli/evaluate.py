"""`dermedge evaluate`: options and printing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dermedge.cli.console import (
    bundle_argument,
    data_option,
    emit,
    engine_option,
    interval,
    json_option,
    print_line,
    progress,
    table,
    threads_option,
)

if TYPE_CHECKING:
    from dermedge.evaluation.report import EvaluationReport, Fairness, Robustness


SUBGROUP_COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "malignant_auroc": "malignant AUROC",
    "sensitivity": "sensitivity",
    "severity_kappa": "severity kappa",
    "dice": "Dice",
    "coverage": "coverage",
    "set_size": "set size",
    "referred": "referred",
    "ood_flagged": "flagged as foreign",
}
ABSTENTION = ("coverage", "set_size", "referred")
CHANCE = "by chance (1 in 20 above)"


@click.command("evaluate")
@bundle_argument
@data_option
@click.option("--split", default="test", show_default=True, help="train, val, test or all.")
@click.option(
    "--replicates",
    type=click.IntRange(min=10),
    default=1000,
    show_default=True,
    help="Bootstrap replicates.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Random seed of the bootstrap."
)
@click.option("--limit", type=click.IntRange(min=1), help="Largest number of images. [all]")
@click.option(
    "--corruptions",
    is_flag=False,
    flag_value="all",
    metavar="[NAMES]",
    help="Also measure corrupted photographs: all kinds, or names separated by commas.",
)
@engine_option
@threads_option
@json_option
def command(
    bundle: Path,
    data: Path,
    split: str,
    replicates: int,
    seed: int,
    limit: int | None,
    corruptions: str | None,
    engine: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Evaluate BUNDLE on labelled images.

    BUNDLE may also be the folder of a student, a teacher or an ensemble. Such a model
    runs in torch, with temperature, thresholds and conformal sets fitted on val.

    Metrics have 95 % intervals over lesions or patients, overall and per subgroup.

    Skin types (I-II, III-IV, V-VI) and sexes with at least 30 images are compared. The
    report names the worst subgroup, its gap to the best one, and the equalised-odds
    difference at the decision threshold.

    Next to each difference are the median and the 95th percentile of differences
    between randomly assigned groups. Only a difference above the 95th percentile is
    more than chance.

    With --corruptions, every photograph is also corrupted at three severities (JPEG
    compression, blur, exposure, white balance, reflections, hair, a ruler, another
    crop). The report gives each metric, its change, and the share of these photographs
    that the image quality of the bundle flags.
    """
    from dermedge.workflows.evaluate import evaluate

    with progress("evaluate") as report_progress:
        report = evaluate(
            bundle,
            data,
            split=split,
            engine=engine,
            threads=threads,
            replicates=replicates,
            seed=seed,
            limit=limit,
            corruptions=corruptions.split(",") if corruptions is not None else None,
            progress=report_progress,
        )
    emit(report, as_json, show)


def show(report: "EvaluationReport") -> None:
    """Print warnings, metrics, classes, subgroups and their comparison."""
    for warning in report.warnings:
        print_line(f"Warning: {warning}", fg="yellow", err=True)
    scores = report.overall
    measured = [name for name, value in scores.metrics.items() if value.value is not None]
    table(
        ("metric", "value (95 % interval)"),
        [(name, interval(scores.metrics[name])) for name in measured],
        f"{scores.cases} images of {scores.groups} groups, split {report.split}",
    )
    if report.labels:
        sets = [name for name in ABSTENTION if name in measured]
        abstention = {group.value: group.scores.metrics for group in report.classes}
        table(
            (
                "class",
                "images",
                "recall (95 % interval)",
                *(SUBGROUP_COLUMNS[name] for name in sets),
            ),
            [
                (
                    label,
                    report.support.get(label, 0),
                    interval(report.recall.get(label)),
                    *(interval(abstention.get(label, {}).get(name)) for name in sets),
                )
                for label in report.labels
            ],
        )
    if report.subgroups:
        # A model of severity has no sensitivity and a classifier no Dice, so only
        # measured columns are shown.
        shown = {name: title for name, title in SUBGROUP_COLUMNS.items() if name in measured}
        rows = [
            (
                f"{group.column} {group.value}",
                group.scores.cases,
                *(interval(group.scores.metrics.get(name)) for name in shown),
            )
            for group in report.subgroups
        ]
        table(("subgroup", "images", *shown.values()), rows)
    show_fairness(report.fairness, report.labels)
    if report.robustness is not None:
        show_robustness(report.robustness)


def show_robustness(robustness: "Robustness") -> None:
    """Print how one metric changes with each corruption and severity."""
    measured = {name for name, value in robustness.clean.items() if value.value is not None}
    metric = next((name for name in SUBGROUP_COLUMNS if name in measured), None)
    rows = []
    for entry in robustness.corruptions:
        change = entry.change.get(metric) if metric else None
        flagged = "-" if entry.flagged is None else f"{entry.flagged:.1%}"
        rows.append((entry.corruption, entry.severity, interval(change), flagged))
    title = f"change of {SUBGROUP_COLUMNS[metric]}" if metric else "change"
    clean = robustness.clean_flagged
    table(
        ("corruption", "severity", f"{title} (95 % interval)", "flagged"),
        rows,
        f"{robustness.images} corrupted photographs"
        + ("" if clean is None else f"; flagged as they are: {clean:.1%}"),
    )


def show_fairness(comparisons: "Sequence[Fairness]", labels: Sequence[str]) -> None:
    """Print comparisons of subgroups with the differences by chance, then a summary."""
    from dermedge.evaluation.fairness_text import COLUMN_NAMES, summarize

    if not comparisons:
        why = (
            "No image with a known class has a skin type or a sex"
            if labels
            else "The model predicts no classes"
        )
        print_line(f"Fairness: not measured. {why}.")
        return
    rows = [
        (
            COLUMN_NAMES.get(comparison.column, comparison.column),
            comparison.worst or "-",
            interval(comparison.gap),
            _chance(comparison.chance, comparison.chance_high),
            interval(comparison.equalised_odds),
            _chance(comparison.equalised_odds_chance, comparison.equalised_odds_chance_high),
        )
        for comparison in comparisons
    ]
    columns = ("fairness", "worst group", "gap (95 % interval)", CHANCE, "equalised odds", CHANCE)
    table(columns, rows)
    for comparison in comparisons:
        result, *limits = summarize(comparison, labels)
        print_line(result)
        for limit in limits:
            print_line(f"  {limit}")


def _chance(median: float | None, high: float | None) -> str:
    return "-" if median is None or high is None else f"{median:.3f} ({high:.3f})"
