"""`dermedge run`: options and printing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    data_option,
    emit,
    fit_option,
    interval,
    json_option,
    known_target,
    overwrite_option,
    pairs,
    print_line,
    progress,
    seed_option,
    size_option,
    views_option,
)
from dermedge_runtime.progress import Progress

if TYPE_CHECKING:
    from dermedge.workflows.run import RunReport


@click.command("run")
@data_option
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    callback=known_target,
    help="Target to export for; `dermedge targets` lists them.",
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for all results.",
)
@click.option(
    "--backbone",
    help="timm name of the teacher. Default: the backbone of --init, else tf_efficientnet_lite0.",
)
@click.option(
    "--init",
    default="none",
    show_default=True,
    help="Initial weights of the teacher: none, hub, a safetensors file or a model folder.",
)
@click.option(
    "--student",
    help="timm name or preset of the student. Default: the target's; `dermedge students` lists "
    "the presets.",
)
@click.option(
    "--student-stages",
    type=click.IntRange(min=1),
    help="Number of the student's first stages to keep.",
)
@click.option(
    "--student-init",
    default="auto",
    show_default=True,
    help="Initial weights of the student: auto (pruned from the teacher), none, hub, a file "
    "or a folder.",
)
@click.option(
    "--pretrain-epochs",
    type=click.IntRange(min=0),
    help="Epochs of 50 steps that the teacher is pretrained for first, with the preset mobile "
    "of `pretrain`; 0 skips it. Default: 6 if --init is hub or a file and the backbone is no "
    "transformer, else 0.",
)
@click.option(
    "--pretrain-on",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Further data set for pretraining: its folder or table file. Can be repeated.",
)
@size_option
@fit_option
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Epochs of the teacher.",
)
@click.option(
    "--student-epochs",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Epochs of the student.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Images per step.",
)
@views_option
@seed_option
@click.option("--name", help="Name of the student. Default: the name of its backbone.")
@click.option(
    "--images/--no-images",
    default=True,
    help="Show example images in the report, or leave them out.",
)
@overwrite_option
@json_option
def command(
    data: Path,
    out: Path,
    target: str,
    images: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train on a data set, export, verify, evaluate, time and report in one command.

    The stages are: check the data, train a teacher, distil a student, export it,
    verify the bundle, evaluate it, time it, write report.html.

    A training or an export whose result is already in OUT is skipped. A killed training
    continues.
    """
    from dermedge.workflows.run import RunOptions, run

    report = run(
        data,
        out,
        target=target,
        options=RunOptions(**options),
        images=images,
        overwrite=overwrite,
        show=stage,
    )
    emit(report, as_json, show)


@contextlib.contextmanager
def stage(title: str) -> Iterator[Progress]:
    """Show the progress of a stage, and print its time when it ends."""
    started = perf_counter()
    with progress(title) as report_progress:
        yield report_progress
    print_line(f"{title:<24} {perf_counter() - started:6.1f} s", err=True)


def show(report: "RunReport") -> None:
    """Print the measurements and the paths of the bundle and the report."""
    metrics = report.evaluation.overall.metrics
    for warning in report.evaluation.warnings:
        print_line(f"Warning: {warning}", fg="yellow", err=True)
    if report.skipped:
        print_line(f"skipped, already done: {', '.join(report.skipped)}")
    pairs(
        {
            "balanced accuracy": interval(metrics.get("balanced_accuracy")),
            "malignant AUROC": interval(metrics.get("malignant_auroc")),
            "images": f"{report.evaluation.overall.cases} of the {report.evaluation.split} split",
            "parity gate": report.parity,
            "verify": report.verified,
            "end to end": f"{report.latency.end_to_end.p50:.1f} ms for a 12 MP JPEG, "
            f"of which the engine takes {report.latency.engine_only.p50:.1f} ms",
            "bundle": report.bundle,
            "report": report.report,
        }
    )
