"""`dermedge evaluate`."""

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
    from dermedge.evaluate import EvaluationReport


@click.command("evaluate")
@bundle_argument
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder or file of a table.")
@click.option("--split", default="test", show_default=True, help="train, val, test or all.")
@click.option(
    "--replicates", type=click.IntRange(min=10), default=1000, show_default=True, help="Bootstrap replicates."
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
    """
    from dermedge.evaluate import evaluate

    with progress("evaluate") as tell:
        report = evaluate(
            bundle, data, split=split, engine=engine, threads=threads, replicates=replicates, seed=seed, progress=tell
        )
    emit(report, as_json, show)


def show(report: "EvaluationReport") -> None:
    """Print warnings first, then the metrics, the classes and the subgroups."""
    for warning in report.warnings:
        click.secho(f"Warning: {warning}", fg="yellow", err=True)
    scores = report.overall
    rows = [(name, interval(value)) for name, value in scores.metrics.items()]
    table(
        ("metric", "value (95 % interval)"),
        rows,
        f"{scores.cases} images of {scores.groups} groups, split {report.split}",
    )
    table(
        ("class", "images", "recall (95 % interval)"),
        [(label, report.support.get(label, 0), interval(report.recall.get(label))) for label in report.labels],
    )
    if report.subgroups:
        rows_by_group = [
            (
                f"{group.column} {group.value}",
                group.scores.cases,
                interval(group.scores.metrics.get("balanced_accuracy")),
                interval(group.scores.metrics.get("malignant_auroc")),
                interval(group.scores.metrics.get("sensitivity")),
            )
            for group in report.subgroups
        ]
        table(("subgroup", "images", "balanced accuracy", "malignant AUROC", "sensitivity"), rows_by_group)
