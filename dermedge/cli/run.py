"""`dermedge run`."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from dermedge.cli.console import (
    emit,
    fit_option,
    interval,
    json_option,
    known_target,
    overwrite_option,
    pairs,
    progress,
    size_option,
    views_option,
)
from dermedge_runtime.errors import UsageError
from dermedge_runtime.progress import Progress

if TYPE_CHECKING:
    from dermedge.workflows.run import RunReport


@click.command("run")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder or file of a table."
)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    callback=known_target,
    help="What to export for; `dermedge targets` lists them.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for everything."
)
@click.option(
    "--backbone",
    help="timm name of the teacher; by default what --init names, else mobilenetv2_100.",
)
@click.option(
    "--init",
    default="none",
    show_default=True,
    help="The teacher's initial weights: none, hub, a safetensors file or a model's folder.",
)
@click.option(
    "--student",
    help="timm name of the student; by default mobilenetv2_100, cut to its first 4 stages.",
)
@click.option(
    "--student-stages",
    type=click.IntRange(min=1),
    help="Keep only so many of the student's stages, the first ones.",
)
@click.option(
    "--student-init",
    default="auto",
    show_default=True,
    help="The student's: auto (pruned from the teacher), none, hub, a file or a folder.",
)
@click.option(
    "--pretrain-epochs",
    type=click.IntRange(min=0),
    help="Pretrain the teacher first, by `pretrain`'s preset mobile, for so many epochs of 50 steps; 0 does not. By "
    "default 6 from hub or a file, where the backbone is no transformer; else 0.",
)
@click.option(
    "--pretrain-on",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder or file of a further table for that; may be given often.",
)
@size_option
@fit_option
@click.option(
    "--epochs", type=click.IntRange(min=1), default=12, show_default=True, help="Of the teacher."
)
@click.option(
    "--student-epochs",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    help="Of the student.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    default=64,
    show_default=True,
    help="Images per step.",
)
@views_option
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of order, augmentation and initial weights.",
)
@click.option("--name", help="Name of the student; by default its backbone's.")
@click.option("--no-images", is_flag=True, help="Leave example images out of the report.")
@overwrite_option
@json_option
def command(
    data: Path,
    target: str,
    out: Path,
    backbone: str | None,
    init: str,
    student: str | None,
    student_stages: int | None,
    student_init: str,
    pretrain_epochs: int | None,
    pretrain_on: tuple[Path, ...],
    size: int,
    fit: str,
    epochs: int,
    student_epochs: int,
    batch_size: int,
    views: int,
    seed: int,
    name: str | None,
    no_images: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Go the whole way: check DATA, train a teacher, distil a student, export, verify, evaluate, time, write
    report.html.

    A stage that was done in OUT with the same inputs is skipped; a killed training continues.
    """
    from dermedge.train import Schedule
    from dermedge.workflows.run import RunOptions, default_pretrain_epochs, run

    if pretrain_epochs is None:
        pretrain_epochs = default_pretrain_epochs(backbone, init)
    pretraining = None
    if pretrain_epochs:
        from dermedge.train.hybrid import PRESETS

        pretraining = replace(PRESETS["mobile"], epochs=pretrain_epochs)
    elif pretrain_on:
        raise UsageError("--pretrain-on names tables to pretrain on: give --pretrain-epochs too.")
    recipe = RunOptions(
        backbone=backbone,
        teacher_init=init,
        student=student or RunOptions.student,
        student_stages=student_stages if student or student_stages else RunOptions.student_stages,
        student_init=student_init,
        size=size,
        fit=fit,
        name=name,
        views=views,
        teacher_schedule=Schedule(epochs=epochs, batch_size=batch_size),
        student_schedule=Schedule(epochs=student_epochs, batch_size=batch_size),
        pretraining=pretraining,
        pretrain_on=pretrain_on,
        seed=seed,
    )
    report = run(
        data,
        out,
        target=target,
        recipe=recipe,
        images=not no_images,
        overwrite=overwrite,
        show=stage,
    )
    emit(report, as_json, show)


@contextlib.contextmanager
def stage(title: str) -> Iterator[Progress]:
    """Show a stage while it runs, and a line with its time when it is done."""
    started = perf_counter()
    with progress(title) as tell:
        yield tell
    click.echo(f"{title:<24} {perf_counter() - started:6.1f} s", err=True)


def show(report: "RunReport") -> None:
    """Print what was made and how good it is."""
    metrics = report.evaluation.overall.metrics
    for warning in report.evaluation.warnings:
        click.secho(f"Warning: {warning}", fg="yellow", err=True)
    if report.skipped:
        click.echo(f"done before: {', '.join(report.skipped)}")
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
