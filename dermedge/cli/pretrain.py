"""`dermedge pretrain`: options, progress and summary."""

import json
import shlex
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dermedge.cli.console import (
    F,
    backbone_arg_option,
    emit,
    json_option,
    out_option,
    overwrite_option,
    pairs,
    print_line,
    progress,
)
from dermedge.train.hybrid.recipe import (
    LIMITS,
    PRESETS,
    STRATEGIES,
    ExecutionOptions,
    HybridRecipe,
    Limits,
    make_recipe,
    option_name,
)
from dermedge.train.precisions import PRECISIONS
from dermedge_runtime.canonical_json import read_json
from dermedge_runtime.errors import DataError

if TYPE_CHECKING:
    from dermedge.models import TrainedModel

INTERRUPTED = 130


def recipe_options(command: F) -> F:
    """Add one option per field of `HybridRecipe`; the defaults are the preset's."""
    kinds = typing.get_type_hints(HybridRecipe)
    for item in reversed(fields(HybridRecipe)):
        if item.name == "backbone_args":
            command = backbone_arg_option(command)
        else:
            command = recipe_option(item.name, kinds[item.name])(command)
    return command


def recipe_option(name: str, kind: object) -> Callable[[F], F]:
    """Return the click option of a recipe field, by the field's type."""
    limits, flag = LIMITS[name], option_name(name)
    if kind is bool:
        both = f"{flag}/--no-{flag.removeprefix('--')}"
        return click.option(both, default=None, help=limits.help)
    if name == "precision":
        return click.option(flag, type=click.Choice(PRECISIONS), help=limits.help)
    if typing.get_origin(kind) is Literal:
        return click.option(flag, type=click.Choice(typing.get_args(kind)), help=limits.help)
    count, number = 1, kind
    if typing.get_origin(kind) is tuple:
        count, number = len(typing.get_args(kind)), typing.get_args(kind)[0]
    return click.option(flag, nargs=count, type=number_type(number, limits), help=limits.help)


def number_type(kind: object, limits: Limits) -> "click.ParamType[Any]":
    """Return the click type of a number in its range; text for any other type."""
    low = limits.low if limits.above is None else limits.above
    strict = limits.above is not None
    if kind is int:
        top = limits.high
        return click.IntRange(None if low is None else int(low), None if top is None else int(top))
    return click.FloatRange(low, limits.high, min_open=strict) if kind is float else click.STRING


@click.command("pretrain")
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Data set: its folder or its table file. Can be repeated for several sources, each with "
    "classes of its own.",
)
@out_option("Folder for the teacher.")
@click.option(
    "--preset",
    type=click.Choice(tuple(PRESETS)),
    default="dermnio-base",
    show_default=True,
    help="Settings to start from: the published ViT-B/14, a ViT-S/14, or for CPUs a ViT-Tiny or a "
    "MobileNetV2 with ImageNet weights. The options below change single settings.",
)
@recipe_options
@click.option(
    "--init",
    default="none",
    show_default=True,
    help="Initial weights: none, hub (timm's, downloaded), a safetensors file, or a model folder.",
)
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that cut crops, per training process."
)
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default="auto",
    show_default=True,
    help="Strategy by which several processes share the model.",
)
@click.option("--accelerator", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Longest time between two checkpoints. One is also written after each epoch.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed of order, crops, masks and initial weights.",
)
@click.option("--name", help="Name of the teacher. Default: the name of its backbone.")
@overwrite_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data: tuple[Path, ...],
    out: Path,
    preset: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Pretrain a teacher on images with and without labels.

    The losses DINO, iBOT and KoLeo train on all images. A label loss trains on the
    labelled ones, over the diagnoses of all data sets together. Its prototypes follow
    the taxonomy.

    With several processes: torchrun --nproc-per-node N -m dermedge pretrain ...

    A killed run continues with the same command. A finished run is not repeated.
    """
    # Loading takes seconds, so the first line of output comes before it.
    report(f"Loading PyTorch to pretrain on {', '.join(map(str, data))}.")
    from dermedge.train.distributed import rank, torchrun_layout
    from dermedge.train.hybrid.pretrain import pretrain

    recipe = make_recipe(preset, **take(options, HybridRecipe))
    execution = ExecutionOptions(**take(options, ExecutionOptions))
    try:
        with progress("pretrain") as report_progress:
            teacher = pretrain(
                data,
                out,
                recipe=recipe,
                options=execution,
                progress=report_progress,
                report=report,
                **options,
            )
    except KeyboardInterrupt:
        if rank() == 0:
            # torchrun's own options are not visible from here.
            alone = torchrun_layout() == (1, 1)
            report(explain_interrupt(out))
            report(f"    {repeat_command(ctx) if alone else 'the same torchrun'}")
        ctx.exit(INTERRUPTED)
    if rank() == 0:
        run = read_json(out / "run.json", DataError)
        for warning in run.get("warnings", ()):
            print_line(f"Warning: {warning}", fg="yellow", err=True)
        emit(summarize(teacher, out, data[0], run), as_json, pairs)


def report(line: str) -> None:
    """Print a line on standard error, warnings in yellow."""
    print_line(line, fg="yellow" if line.startswith("Warning: ") else None, err=True)


def take(options: dict[str, Any], kind: type[HybridRecipe | ExecutionOptions]) -> dict[str, Any]:
    """Remove a dataclass's fields from the options, and return the given ones."""
    taken = {item.name: options.pop(item.name) for item in fields(kind)}
    return {name: value for name, value in taken.items() if value not in (None, {})}


def repeat_command(ctx: click.Context) -> str:
    """Return the typed command line, rebuilt from the given options."""
    words = ["dermedge", "pretrain"]
    for parameter in ctx.command.params:
        name = parameter.name or ""
        given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        # --overwrite would delete the checkpoint.
        if not given or name == "overwrite":
            continue
        value = ctx.params[name]
        if isinstance(value, bool):
            flags = parameter.opts if value else parameter.secondary_opts
            words.append(flags[0])
        elif isinstance(value, Mapping):
            for key, item in value.items():
                text = item if isinstance(item, str) else json.dumps(item, separators=(",", ":"))
                words += [parameter.opts[0], f"{key}={text}"]
        elif parameter.name == "data":
            for item in value:
                words += [parameter.opts[0], str(item)]
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [parameter.opts[0], *map(str, values)]
    return shlex.join(words)


def explain_interrupt(out: Path) -> str:
    """Return the step that is kept in `out`; the command that continues comes after it."""
    path = out / "run.json"
    step = read_json(path, DataError).get("step") if path.is_file() else None
    kept = (
        f"The checkpoint of step {step} is kept in {out}"
        if step
        else "No checkpoint was written yet, so the run starts again from step 1"
    )
    return f"Interrupted. {kept}. Continue with:"


def summarize(
    teacher: "TrainedModel", out: Path, data: Path, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the results of a run, for printing or as JSON."""
    from dermedge.train.hybrid.loss_log import format_losses

    history = run.get("history") or [{}]
    return {
        "teacher": teacher.spec.name,
        "folder": str(out),
        "parameters": teacher.metrics["parameters"],
        "sources": ", ".join(teacher.spec.lineage["teacher"]["pretrained_on"]),
        "train images": teacher.spec.lineage["data"]["images"]["train"],
        "losses": f"{format_losses(history[-1])} (mean of the last of {len(history)} epochs)",
        "log": f"{out / 'log.jsonl'} (every step), {out / 'run.json'} (settings, epochs)",
        "next": shlex.join(
            ["dermedge", "probe", str(out), "--data", str(data), "--task", "diagnosis"]
        ),
    }
