"""`dermedge finetune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import emit, fit_option, pairs, progress, size_option, training_options

if TYPE_CHECKING:
    from dermedge.models import TrainedModel


@click.command("finetune")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder or file of a table."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the model."
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(["diagnosis", "malignancy", "severity", "segmentation"]),
    help="What to learn; may be given often. By default the diagnosis and the malignancy, whichever the table tells, "
    "or the severity where it tells neither.",
)
@click.option("--backbone", help="timm name; may be left out where --init names it.")
@click.option(
    "--init",
    default="none",
    show_default=True,
    help="Initial weights: none, hub (timm's, downloaded), a safetensors file, or a model's folder "
    "(pruned if it is wider).",
)
@size_option
@fit_option
@click.option(
    "--role",
    type=click.Choice(["teacher", "student"]),
    default="teacher",
    show_default=True,
    help="What the model is called.",
)
@training_options
def command(data: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Train a backbone with a head for each task that the table tells about.

    Stops early on val: on the balanced accuracy of the diagnosis, or without one on that of the malignancy, the
    quadratic weighted kappa of the severity, or the Dice coefficient of the segmentation.

    A killed run continues where it was; a finished one with the same settings is not done again.
    """
    from dermedge.train import finetune

    arguments = training_arguments({**options, "tasks": options["tasks"] or None})
    with progress("finetune") as tell:
        student = finetune(data, out, progress=tell, **arguments)
    emit(summary(student, out), as_json, pairs)


def training_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line as arguments of the function: the schedule's gathered, the rest as they are."""
    from dermedge.train import Schedule

    names = ("epochs", "batch_size", "lr", "patience", "precision")
    schedule = Schedule(**{name: options.pop(name) for name in names})
    return {**options, "schedule": schedule}


def summary(student: "TrainedModel", out: Path) -> dict[str, Any]:
    """What training left behind, for a person or as JSON."""
    val = student.metrics["val"]
    return {
        "model": student.spec.name,
        "folder": str(out),
        "parameters": student.metrics["parameters"],
        **{
            f"val {name}": round(value, 4)
            for name, value in val.items()
            if name not in ("score", "loss")
        },
    }
