"""`dermedge distill`."""

from pathlib import Path
from typing import Any

import click

from dermedge.cli.console import emit, pairs, progress, training_options, views_option
from dermedge.cli.finetune import summary, training_arguments


@click.command("distill")
@click.argument("teacher", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder or file of a table."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the student."
)
@click.option("--backbone", help="timm name of the student; may be left out where --init names it.")
@click.option(
    "--init",
    default="auto",
    show_default=True,
    help="Initial weights: auto (pruned from the teacher if of its family, else none), none, hub, a safetensors file, "
    "or a model's folder.",
)
@click.option(
    "--unlabelled",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A further table, used without its labels; may be given often.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Softens the logits of both.",
)
@click.option(
    "--soft-weight",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Share of the distillation loss.",
)
@views_option
@training_options
def command(teacher: Path, data: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Train a compact student from TEACHER's softened logits and the labels.

    A killed run continues where it was; a finished one with the same settings is not done again.
    """
    from dermedge.train import distill

    arguments = training_arguments(options)
    with progress("distill") as tell:
        student = distill(teacher, data, out, progress=tell, **arguments)
    emit(summary(student, out), as_json, pairs)
