"""`dermedge teacher import` and `teacher ensemble`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    backbone_arg_option,
    data_option,
    emit,
    fit_option,
    json_option,
    out_option,
    overwrite_option,
    pairs,
    progress,
)

if TYPE_CHECKING:
    from dermedge.models import TrainedModel


@click.group("teacher")
def command() -> None:
    """Import published checkpoints as teachers, and combine teachers."""


@command.command("import", short_help="Convert a published checkpoint to a teacher folder.")
@click.argument("file", type=click.Path(path_type=Path))
@out_option("Folder for the teacher.")
@click.option(
    "--format",
    required=True,
    type=click.Choice(["dermnio", "dinov2", "panderm", "timm"]),
    help="Layout of the file; timm for a state dict of a timm model.",
)
@click.option("--backbone", help="timm name. Default: derived from the shapes of the tensors.")
@backbone_arg_option
@click.option(
    "--size",
    type=click.IntRange(16, 4096),
    help="Side of the input in pixels. Default: the size that the positions were trained for.",
)
@fit_option
@click.option(
    "--pos-embed",
    type=click.Choice(["bicubic-antialias", "bicubic", "bicubic-offset"]),
    help="Resizing of positions for another size. Default: as the original code does, which is "
    "bicubic-offset for dermnio and for dinov2 without registers, and otherwise "
    "bicubic-antialias.",
)
@click.option("--name", help="Name of the model. Default: derived from the name of its backbone.")
@click.option(
    "--licence",
    help="Licence of the weights, for the record. Default: the published one of the format.",
)
@overwrite_option
@json_option
def import_command(
    file: Path, out: Path, format: str, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Convert FILE, a published checkpoint, to a teacher folder for `finetune --init`.

    If FILE holds an averaged teacher and its student, the teacher is imported. Heads
    are dropped. Any other tensor that is missing or left over is an error, and nothing
    is written. FILE is read as tensors only. A checkpoint that would run code is
    refused.
    """
    from dermedge.models.import_teacher import ImportOptions, import_teacher

    teacher = import_teacher(file, out, format, ImportOptions(**options), overwrite=overwrite)
    emit(summarize(teacher, out), as_json, pairs)


@command.command("ensemble", short_help="Calibrate several teachers, and name them in one folder.")
@click.argument(
    "teachers", metavar="TEACHER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@data_option
@out_option("Folder of the ensemble.")
@overwrite_option
@json_option
def ensemble_command(
    teachers: tuple[Path, ...], data: Path, out: Path, overwrite: bool, as_json: bool
) -> None:
    """Calibrate each TEACHER on val, and write a folder that names them all.

    `dermedge distill` takes the folder as one teacher, whose probabilities are the mean
    of the calibrated ones. The models stay where they are.
    """
    from dermedge.train.ensemble import make_ensemble

    with progress("ensemble") as report_progress:
        ensemble = make_ensemble(teachers, data, out, overwrite=overwrite, progress=report_progress)
    members = {
        f"temperatures of {member.model.spec.name}": dict(member.temperatures)
        for member in ensemble.members
    }
    scores = {f"val {name}": round(value, 4) for name, value in ensemble.metrics.items()}
    emit({"folder": str(out), **members, **scores}, as_json, pairs)


def summarize(teacher: "TrainedModel", out: Path) -> dict[str, Any]:
    """Return the properties of an imported teacher for printing."""
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
