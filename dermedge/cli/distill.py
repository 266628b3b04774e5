"""`dermedge distill`: options and printing."""

from pathlib import Path
from typing import Any

import click

from dermedge.cli.console import data_option, emit, pairs, progress, training_options, views_option
from dermedge.cli.finetune import gather_schedule, summarize


@click.command("distill")
@click.argument("teacher", type=click.Path(path_type=Path))
@data_option
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the student."
)
@click.option("--backbone", help="timm name of the student. May be omitted if --init names it.")
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
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Temperature that softens the logits of both models.",
)
@click.option(
    "--soft-weight",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Share of the distillation loss. The labelled loss has the rest.",
)
@views_option
@training_options
def command(
    teacher: Path, data: Path, out: Path, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Train a compact student from TEACHER's softened logits and the labels.

    A killed run continues. A finished run with the same settings is not repeated.
    """
    from dermedge.train.distill import DistillOptions, distill

    training = DistillOptions(**gather_schedule(options))
    with progress("distill") as report_progress:
        student = distill(
            teacher, data, out, training, overwrite=overwrite, progress=report_progress
        )
    emit(summarize(student, out), as_json, pairs)
