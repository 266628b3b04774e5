"""`dermedge probe`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    data_option,
    emit,
    interval,
    json_option,
    overwrite_option,
    print_line,
    progress,
    table,
)
from dermedge.cli.evaluate import show_fairness

if TYPE_CHECKING:
    from dermedge.probing.report import ProbeReport


@click.command("probe")
@click.argument("teacher", type=click.Path(path_type=Path))
@data_option
@click.option(
    "--task",
    type=click.Choice(["diagnosis", "malignancy", "severity", "segment"]),
    help="Task to probe. Default: diagnosis, or segment for the protocol segment.",
)
@click.option(
    "--protocol",
    type=click.Choice(["linear", "knn", "finetune", "segment", "fewshot", "paper"]),
    default="linear",
    show_default=True,
    help="A linear layer, nearest neighbours, training of the whole network, decoders for masks, "
    "a linear layer on few labels, or the measurements of the released DermINO code.",
)
@click.option(
    "--fraction",
    "fractions",
    type=click.FloatRange(0, 1, min_open=True),
    multiple=True,
    help="Fraction of the train labels for fewshot. Can be repeated. Default: 0.01, 0.05 and 0.1.",
)
@click.option(
    "--head",
    "heads",
    type=click.Choice(["linear", "upernet"]),
    multiple=True,
    help="Decoder for the task segment. Can be repeated. Default: both.",
)
@click.option(
    "--normalise",
    is_flag=True,
    help="Standardize each feature before a linear layer. Use it for features of small values.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Number of epochs. Default: 50, or 20 for segment.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    help="Images per batch. Default: 256, or 64 for segment.",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    help="Learning rate. Default: 5e-3 for batches of 256, or 1e-3 for segment.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed for initialization, shuffling, drawn labels and the bootstrap.",
)
@click.option(
    "--replicates",
    type=click.IntRange(min=10),
    default=1000,
    show_default=True,
    help="Bootstrap replicates.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder for the features, so that further probes run no network. Default: "
    "TEACHER.features.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File to write the report to, as JSON."
)
@overwrite_option
@json_option
def command(
    teacher: Path,
    data: Path,
    cache: Path | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluate the frozen features of TEACHER, a model folder of a teacher or student.

    The probe is fitted on train and measured on test. Val only chooses the decision
    threshold of malignancy. Metrics have 95 % intervals over lesions or patients, and
    skin types and sexes are compared.

    The settings are those of DermINO (arXiv:2508.12190). The preprocessing is that of
    the model. Features are cached by content, so that ten probes of the same images
    cost one pass through the network.
    """
    from dermedge.probing.options import ProbeOptions
    from dermedge.probing.probe import probe

    with progress("probe") as report_progress:
        report = probe(
            teacher,
            data,
            ProbeOptions(**options),
            cache=cache,
            out=out,
            overwrite=overwrite,
            progress=report_progress,
        )
    emit(report, as_json, show)


def show(report: "ProbeReport") -> None:
    """Print the warnings, the metrics, the classes and the comparison of subgroups."""
    for warning in report.warnings:
        print_line(f"Warning: {warning}", fg="yellow", err=True)
    results = report.results
    names = [result.name for result in results]
    fitted_on = (
        f"{result.train_images} images, {result.train_groups} groups" for result in results
    )
    table(
        ("metric (95 % interval)", *names),
        [
            ("fitted on", *fitted_on),
            *(
                (name, *(interval(result.metrics[name]) for result in results))
                for name in results[0].metrics
            ),
        ],
        f"{report.task} by {report.protocol}, {report.images['test']} test images of "
        f"{report.test_groups} groups",
    )
    thresholds = [
        f"{result.name} {result.threshold:.3g}"
        for result in results
        if result.threshold is not None
    ]
    if thresholds:
        click.echo(f"threshold of malignancy, chosen on val: {', '.join(thresholds)}\n")
    if report.support:
        _show_classes(report)


def _show_classes(report: "ProbeReport") -> None:
    """Print the recall of each class, and the comparison of subgroups."""
    results = report.results
    table(
        ("recall of class (95 % interval)", "images", *(result.name for result in results)),
        [
            (
                label,
                report.support[label],
                *(interval(result.recall[label]) for result in results),
            )
            for label in report.labels
        ],
    )
    for result in results:
        if len(results) > 1:
            click.echo(f"\n{result.name}:")
        show_fairness(result.fairness, report.labels)
