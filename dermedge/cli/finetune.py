"""`dermedge finetune`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    data_option,
    emit,
    fit_option,
    out_option,
    pairs,
    progress,
    size_option,
    task_option,
    training_options,
)

if TYPE_CHECKING:
    from dermedge.models import TrainedModel

SCHEDULE_OPTIONS = ("epochs", "batch_size", "lr", "patience", "precision")


@click.command("finetune")
@data_option
@out_option("Folder for the model.")
@task_option("the diagnosis and the malignancy, if the table has them, and otherwise the severity")
@click.option(
    "--backbone",
    help="timm name, or preset of `dermedge students`. May be omitted if --init names it.",
)
@click.option(
    "--init",
    default="none",
    show_default=True,
    help="Initial weights: none, hub (timm's, downloaded), a safetensors file, or a model folder "
    "(pruned if it is wider).",
)
@size_option
@fit_option
@click.option(
    "--role",
    type=click.Choice(["teacher", "student"]),
    default="teacher",
    show_default=True,
    help="Role of the model. It names the JSON file of the model folder.",
)
@click.option(
    "--task-weights",
    type=click.Choice(["uniform", "uncertainty"]),
    default="uniform",
    show_default=True,
    help="Weights of the tasks in the loss: equal, or learned from each task's uncertainty.",
)
@click.option(
    "--freeze",
    is_flag=True,
    help="Train only linear heads, on stored features of the frozen backbone. Epochs, batch size "
    "and learning rate are not used. Such a model is often the better teacher.",
)
@training_options
def command(data: Path, out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Train a backbone with a head for each task that the table has labels for.

    Training stops when a metric on val no longer improves. For a diagnosis, it is the
    balanced accuracy. Without a diagnosis it is the balanced accuracy of the
    malignancy, the quadratic weighted kappa of the severity, or the Dice coefficient.

    With several processes: torchrun --nproc-per-node N -m dermedge finetune ...

    A killed run continues. A finished run with the same settings is not repeated.
    """
    from dermedge.train.finetune import FinetuneOptions, finetune

    tasks = options.pop("tasks") or None
    training = FinetuneOptions(tasks=tasks, **gather_schedule(options))
    with progress("finetune") as report_progress:
        model = finetune(data, out, training, overwrite=overwrite, progress=report_progress)
    emit(summarize(model, out), as_json, pairs)


def gather_schedule(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a command with the fields of `Schedule` as one object."""
    from dermedge.train.loop import Schedule

    schedule = Schedule(**{name: options[name] for name in SCHEDULE_OPTIONS})
    rest = {name: value for name, value in options.items() if name not in SCHEDULE_OPTIONS}
    return {**rest, "schedule": schedule}


def summarize(model: "TrainedModel", out: Path) -> dict[str, Any]:
    """Return a trained model's name, folder, size and val metrics for printing."""
    val = model.metrics["val"]
    return {
        "model": model.spec.name,
        "folder": str(out),
        "parameters": model.metrics["parameters"],
        **{
            f"val {name}": round(value, 4)
            for name, value in val.items()
            if name not in ("score", "loss")
        },
    }
