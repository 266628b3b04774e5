"""`dermedge finetune`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import emit, fit_option, pairs, progress, size_option, training_options

if TYPE_CHECKING:
    from dermedge.models import TrainedModel

SCHEDULE_OPTIONS = ("epochs", "batch_size", "lr", "patience", "precision")


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
    help="Task to learn; repeat for several. By default the diagnosis and the malignancy, if the "
    "table has them, and otherwise the severity.",
)
@click.option("--backbone", help="timm name; may be omitted if --init names it.")
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
    help="Role of the model; it names the JSON file of the model folder.",
)
@training_options
def command(data: Path, out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Train a backbone with a head for each task that the table has labels for.

    Training stops early on val: on the balanced accuracy of the diagnosis. Without a
    diagnosis, it stops on that of the malignancy, the quadratic weighted kappa of the
    severity, or the Dice coefficient of the segmentation.

    A killed run continues. A finished run with the same settings is not repeated.
    """
    from dermedge.train.finetune import FinetuneOptions, finetune

    tasks = options.pop("tasks") or None
    training = FinetuneOptions(tasks=tasks, **gather_schedule(options))
    with progress("finetune") as report_progress:
        model = finetune(data, out, training, overwrite=overwrite, progress=report_progress)
    emit(summarize(model, out), as_json, pairs)


def gather_schedule(options: dict[str, Any]) -> dict[str, Any]:
    """Replace the schedule's options of a command line by one `Schedule`."""
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
