"""`dermedge pretrain`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    F,
    backbone_arg_option,
    emit,
    json_option,
    overwrite_option,
    pairs,
    progress,
)
from dermedge_runtime.canonical_json import read_json
from dermedge_runtime.errors import DataError

if TYPE_CHECKING:
    from dermedge.models import TrainedModel
    from dermedge.train.hybrid import HybridRecipe

PRESETS = ("dermnio-base", "small", "tiny", "mobile")
MODES = ("frozen", "learnable", "pulled")
POSITIVE = click.IntRange(min=1)


def weight_option(name: str, what: str) -> Callable[[F], F]:
    """The option of a loss's weight."""
    return click.option(
        f"--{name}", type=click.FloatRange(min=0), help=f"Weight of {what}; 0 leaves it out."
    )


@click.command("pretrain")
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Folder or file of a table; may be given often, each is a source with classes of its own.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the teacher."
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="dermnio-base",
    show_default=True,
    help="Settings to start from: the published ViT-B/14, a ViT-S/14, and for a CPU a ViT-Tiny or, for ImageNet "
    "weights, a MobileNetV2. What follows changes them.",
)
@click.option(
    "--backbone", help="timm name; a backbone that is no ViT trains without the masked-patch term."
)
@backbone_arg_option
@click.option(
    "--init",
    default="none",
    show_default=True,
    help="Initial weights: none, hub (timm's, downloaded), a safetensors file, or a teacher's folder.",
)
@click.option(
    "--size",
    type=click.IntRange(16, 4096),
    help="Side of the global crops, and of the teacher's input.",
)
@click.option("--local-size", type=click.IntRange(16, 4096), help="Side of the local crops.")
@click.option("--local-crops", type=click.IntRange(min=0), help="Local crops per image.")
@weight_option("dino", "the loss between crops")
@weight_option("ibot", "the masked-patch loss")
@weight_option("koleo", "the entropy regulariser")
@weight_option("label", "the label loss")
@click.option(
    "--prototypes",
    help="Where the label head's rows start: taxonomy, random, a .safetensors or .npz file with a vector per "
    "diagnosis, or the name or folder of a Hugging Face text encoder.",
)
@click.option(
    "--prototype-mode",
    type=click.Choice(MODES),
    help="What becomes of these rows; frozen as published.",
)
@click.option("--epochs", type=POSITIVE, help="How many.")
@click.option("--steps", type=POSITIVE, help="Optimiser steps per epoch.")
@click.option(
    "--batch-size", type=click.IntRange(min=2), help="Images per step, over all processes."
)
@click.option(
    "--accumulate", type=POSITIVE, help="Parts that a step is worked off in, to save memory."
)
@click.option(
    "--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate at a batch of 1024."
)
@click.option(
    "--temperature",
    nargs=2,
    type=click.FloatRange(min=0, min_open=True),
    help="Of the teacher's assignments, at first and later on; small batches want it low.",
)
@click.option("--warmup", type=click.FloatRange(min=0), help="Epochs of rising learning rate.")
@click.option(
    "--drop-path", type=click.FloatRange(0, 1, max_open=True), help="Rate of stochastic depth."
)
@click.option("--precision", help="Fabric's precision: 32-true or bf16-mixed, for example.")
@click.option(
    "--checkpoint-activations",
    is_flag=True,
    default=None,
    help="Recompute activations backwards, to save memory.",
)
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that make crops, for each that trains."
)
@click.option(
    "--strategy",
    type=click.Choice(["auto", "ddp", "fsdp"]),
    default="auto",
    show_default=True,
    help="How many processes share the model.",
)
@click.option("--accelerator", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of order, crops, masks and initial weights.",
)
@click.option("--name", help="Name of the teacher; by default its backbone's.")
@overwrite_option
@json_option
def command(data: tuple[Path, ...], out: Path, preset: str, as_json: bool, **options: Any) -> None:
    """Pretrain a teacher on tables with labels, with some or with none: DINO, iBOT and KoLeo on all images, a label
    loss where there are labels, over one space of diagnoses whose prototypes know the tree of diseases.

    Several processes: torchrun --nproc-per-node N -m dermedge pretrain ...

    A killed run continues where it was; a finished one with the same settings is not done again.
    """
    from dermedge.train.hybrid import pretrain

    run = {
        name: options.pop(name)
        for name in ("init", "workers", "strategy", "accelerator", "seed", "name")
    }
    overwrite = options.pop("overwrite")
    recipe = chosen(preset, options)
    with progress("pretrain") as tell:
        teacher = pretrain(data, out, recipe=recipe, overwrite=overwrite, progress=tell, **run)
    if is_first():
        for warning in read_json(out / "run.json", DataError).get("warnings", ()):
            click.secho(f"Warning: {warning}", fg="yellow", err=True)
        emit(summary(teacher, out), as_json, pairs)


def chosen(preset: str, options: dict[str, Any]) -> "HybridRecipe":
    """The preset with what the command line says otherwise."""
    from dataclasses import replace

    from dermedge.train.hybrid import PRESETS

    given = {name: value for name, value in options.items() if value not in (None, {})}
    if "backbone" in given:
        given.setdefault("backbone_args", {})
    elif "backbone_args" in given:
        given["backbone_args"] = {**PRESETS[preset].backbone_args, **given["backbone_args"]}
    return replace(PRESETS[preset], **given)


def is_first() -> bool:
    """Whether this is the process that speaks."""
    from dermedge.train.hybrid.distributed import rank

    return rank() == 0


def summary(teacher: "TrainedModel", out: Path) -> dict[str, Any]:
    """What pretraining left behind, for a person or as JSON."""
    images = teacher.spec.lineage["data"]["images"]
    return {
        "teacher": teacher.spec.name,
        "folder": str(out),
        "parameters": teacher.metrics["parameters"],
        "sources": ", ".join(teacher.spec.lineage["teacher"]["pretrained_on"]),
        "train images": images["train"],
    }
