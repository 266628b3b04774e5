"""`dermedge distill`: options and printing."""

from pathlib import Path
from typing import Any

import click

from dermedge.cli.console import (
    data_option,
    emit,
    out_option,
    pairs,
    progress,
    task_option,
    training_options,
    views_option,
)
from dermedge.cli.finetune import gather_schedule, summarize
from dermedge.train.distill_recipe import DEFAULT_RECIPE, RECIPES


@click.command("distill")
@click.argument(
    "teachers", metavar="TEACHER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@data_option
@out_option("Folder for the student.")
@task_option("the tasks and labels of the teacher")
@click.option(
    "--size",
    type=click.IntRange(16, 4096),
    help="Side of the student's square input in pixels. Default: the teacher's.",
)
@click.option(
    "--embedding-width",
    type=click.IntRange(min=1),
    help="Width of the embedding, as a trained linear map. Default: the width of the backbone's "
    "features.",
)
@click.option(
    "--backbone",
    help="timm name or preset of the student; `dermedge students` "
    "lists the presets. May be omitted if --init names it.",
)
@click.option(
    "--init",
    default="auto",
    show_default=True,
    help="Initial weights: auto (pruned from the teacher if of its family, otherwise none), none, "
    "hub, a safetensors file, or a model folder.",
)
@click.option(
    "--unlabelled",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Further data set, used without its labels: its folder or table file. Can be repeated.",
)
@click.option(
    "--recipe",
    default=DEFAULT_RECIPE,
    show_default=True,
    help=f"Losses and their weights: {', '.join(RECIPES)}, or a .toml or .json file.",
)
@views_option
@click.option(
    "--teacher-cache",
    type=click.Path(path_type=Path),
    help="Folder for the stored views and the teacher's outputs, which several runs can share. "
    "Default: in the run's folder, and deleted at the end.",
)
@training_options
def command(
    teachers: tuple[Path, ...],
    data: Path,
    out: Path,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a compact student from TEACHER's outputs and the labels.

    Several teachers are averaged: each is calibrated on val, and the student learns from
    the mean of their probabilities. TEACHER may also be a folder that `dermedge teacher
    ensemble` wrote.

    The teacher runs once on every stored view. The epochs run the student only.

    With several processes: torchrun --nproc-per-node N -m dermedge distill ...

    A killed run continues. A finished run with the same settings is not repeated.
    """
    from dermedge.train.distill import DistillOptions, distill

    tasks = options.pop("tasks") or None
    training = DistillOptions(tasks=tasks, **gather_schedule(options))
    with progress("distill") as report_progress:
        student = distill(
            teachers, data, out, training, overwrite=overwrite, progress=report_progress
        )
    emit(summarize(student, out), as_json, pairs)
