"""`dermedge evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    engine_option,
    interval,
    json_option,
    progress,
    table,
    threads_option,
)

if TYPE_CHECKING:
    from dermedge.evaluation import EvaluationReport, Fairness


BY_GROUP = {
    "balanced_accuracy": "balanced accuracy",
    "malignant_auroc": "malignant AUROC",
    "sensitivity": "sensitivity",
    "severity_kappa": "severity kappa",
    "dice": "Dice",
}


@click.command("evaluate")
@bundle_argument
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder or file of a table."
)
@click.option("--split", default="test", show_default=True, help="train, val, test or all.")
@click.option(
    "--replicates",
    type=click.IntRange(min=10),
    default=1000,
    show_default=True,
    help="Bootstrap replicates.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@engine_option
@threads_option
@json_option
def command(
    bundle: Path,
    data: Path,
    split: str,
    replicates: int,
    seed: int,
    engine: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE on labelled images: metrics with 95 % intervals over lesions or patients, overall and per
    subgroup.

    Skin types (I-II, III-IV, V-VI) and sexes with at least 30 images are compared: the worst group, its gap to the best
    one, and the equalised-odds difference at the threshold. Beside each difference stands what groups dealt out at
    random show: the median, and what one in twenty exceeds. Only more than that is more than chance.
    """
    from dermedge.evaluation import evaluate

    with progress("evaluate") as tell:
        report = evaluate(
            bundle,
            data,
            split=split,
            engine=engine,
            threads=threads,
            replicates=replicates,
            seed=seed,
            progress=tell,
        )
    emit(report, as_json, show)


def show(report: "EvaluationReport") -> None:
    """Print warnings first, then the metrics, the classes, the subgroups and how they compare."""
    for warning in report.warnings:
        click.secho(f"Warning: {warning}", fg="yellow", err=True)
    scores = report.overall
    measured = [name for name, value in scores.metrics.items() if value.value is not None]
    rows = [(name, interval(scores.metrics[name])) for name in measured]
    table(
        ("metric", "value (95 % interval)"),
        rows,
        f"{scores.cases} images of {scores.groups} groups, split {report.split}",
    )
    if report.labels:
        table(
            ("class", "images", "recall (95 % interval)"),
            [
                (label, report.support.get(label, 0), interval(report.recall.get(label)))
                for label in report.labels
            ],
        )
    if report.subgroups:
        shown = {name: title for name, title in BY_GROUP.items() if name in measured}
        rows_by_group = [
            (
                f"{group.column} {group.value}",
                group.scores.cases,
                *(interval(group.scores.metrics.get(name)) for name in shown),
            )
            for group in report.subgroups
        ]
        table(("subgroup", "images", *shown.values()), rows_by_group)
    show_fairness(report.fairness, report.labels)


def show_fairness(found: "Sequence[Fairness]", labels: Sequence[str]) -> None:
    """Print what comparisons of groups found: their differences beside those by chance, then what that says."""
    from dermedge.evaluation.fairness_text import COLUMNS, summarize

    if not found:
        why = (
            "the images with a known answer tell neither skin type nor sex"
            if labels
            else "the model classifies nothing"
        )
        click.echo(f"Fairness: not measured, {why}.")
        return
    rows = [
        (
            COLUMNS.get(part.column, part.column),
            part.worst or "-",
            interval(part.gap),
            _chance(part.chance, part.chance_high),
            interval(part.equalised_odds),
            _chance(part.equalised_odds_chance, part.equalised_odds_chance_high),
        )
        for part in found
    ]
    columns = ("fairness", "worst group", "gap (95 % interval)", "by chance (1 in 20 above)")
    table((*columns, "equalised odds", "by chance (1 in 20 above)"), rows)
    for part in found:
        answer, *remarks = summarize(part, labels)
        click.echo(answer)
        for remark in remarks:
            click.echo(f"  {remark}")


def _chance(median: float | None, high: float | None) -> str:
    return "-" if median is None or high is None else f"{median:.3f} ({high:.3f})"
