"""`dermedge teacher import`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    backbone_arg_option,
    emit,
    fit_option,
    json_option,
    overwrite_option,
    pairs,
)

if TYPE_CHECKING:
    from dermedge.models import TrainedModel


@click.group("teacher")
def command() -> None:
    """Make a teacher of what others have published."""


@command.command("import", short_help="Turn a published checkpoint into a teacher's folder.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the teacher."
)
@click.option(
    "--format",
    required=True,
    type=click.Choice(["dermnio", "dinov2", "panderm", "timm"]),
    help="Whose layout the file has; timm for a state dict of timm's own.",
)
@click.option(
    "--backbone", help="timm name; by default the one that the shapes of the tensors tell."
)
@backbone_arg_option
@click.option(
    "--size",
    type=click.IntRange(16, 4096),
    help="Side of the input in pixels; by default the one that the positions were trained for.",
)
@fit_option
@click.option(
    "--pos-embed",
    type=click.Choice(["bicubic-antialias", "bicubic", "bicubic-offset"]),
    default="bicubic-antialias",
    show_default=True,
    help="How positions are resized for another size: as timm and DINOv2 with registers do, without antialiasing, or "
    "as DINOv2 without registers does.",
)
@click.option("--name", help="Name of the model; by default its backbone's.")
@click.option(
    "--licence",
    help="Licence of the weights, to be recorded; by default what is known of the format.",
)
@overwrite_option
@json_option
def import_command(file: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Turn FILE, a published checkpoint, into a teacher's folder, from which `finetune --init` can start.

    Where FILE holds an averaged teacher and its student, the teacher is taken. Heads are dropped; any other tensor that
    is missing or left over is an error, and nothing is written. FILE is read as tensors only: a checkpoint that would
    run code is refused.
    """
    from dermedge.models.import_teacher import import_teacher

    teacher = import_teacher(file, out, **options)
    emit(summary(teacher, out), as_json, pairs)


def summary(teacher: "TrainedModel", out: Path) -> dict[str, Any]:
    """What was imported, for a person or as JSON."""
    lineage = teacher.spec.lineage["teacher"]
    size = teacher.spec.preprocess.size
    dropped = ", ".join(f"{count} of {name}" for name, count in lineage["dropped"].items())
    return {
        "model": teacher.spec.name,
        "folder": str(out),
        "backbone": teacher.backbone.name,
        "parameters": teacher.metrics["parameters"],
        "input": f"{size} x {size} pixels",
        "weights of": lineage["branch"] or "the file itself",
        "dropped tensors": dropped or "none",
        "positions": f"resized ({lineage['pos_embed']['method']})"
        if lineage["pos_embed"]
        else "as they were",
        "licence": lineage["licence"],
    }
