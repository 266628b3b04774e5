"""`dermedge export`: options and printing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dermedge.cli.candidates import show_candidates
from dermedge.cli.console import (
    emit,
    json_option,
    known_target,
    overwrite_option,
    pairs,
    print_line,
    progress,
)
from dermedge_export.model_card import GPU_ADVICE, gpu_hazards
from dermedge_runtime.bundle import Bundle

ALL = "all"


def target_or_all(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return the value of --target; refuse an unknown target before any slow import."""
    return value if value == ALL else known_target(ctx, parameter, value)


@click.command("export")
@click.argument("student", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    callback=target_or_all,
    help="Target to export for, or all (one of each family). `dermedge targets` lists them.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data set. Its train split calibrates quantization, val fits postprocessing and selects "
    "the candidate, test measures the accuracy of the selected one.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write NAME-TARGET.dermedge into. Default: the folder that contains the "
    "model folder.",
)
@click.option(
    "--precision",
    help="One of the target's precisions, or auto: build all candidates, drop those that lose "
    "accuracy, time the others, and keep the best. Default: the target's precisions are tried "
    "in order, and the first that passes is written.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="Task to export. Can be repeated. Default: all tasks of the student.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Add class activation maps: where in the image the model saw each diagnosis.",
)
@click.option("--engine", help="Build only artifacts for this engine.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="MINUTES",
    help="Start no further candidate after this time.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="Model folder that quantization-aware training learns from, besides the model itself. "
    "It trains only if no other int8 candidate keeps the accuracy at 1.3 times the speed of fp32.",
)
@click.option(
    "--sensitivity",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Share of malignant val images that the threshold keeps from being called benign.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Share of the val images of each label whose conformal set holds that label.",
)
@click.option("--dynamic-batch", is_flag=True, help="Leave the batch size open instead of 1.")
@click.option(
    "--allow-parity-failure",
    is_flag=True,
    help="Write the bundle even if the gate fails. The manifest records the failure.",
)
@overwrite_option
@json_option
def command(
    student: Path,
    target: str,
    out: Path | None,
    data: Path | None,
    teacher: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Export STUDENT as a bundle for a target.

    STUDENT is a model folder, or the output folder of `dermedge run`. The artifact is
    compared with the model before the bundle is written. If it loses more accuracy than
    the target allows, no bundle is written, and the exit code is 3. Without --data,
    only agreement with the model on synthetic lesions is measured, and no
    postprocessing is fitted.
    """
    from dermedge.workflows.export import export, export_all
    from dermedge_export.options import ExportOptions

    options = ExportOptions(**settings)
    with progress("export") as report_progress:
        if target != ALL:
            bundle = export(
                student,
                target,
                out,
                data=data,
                teacher=teacher,
                options=options,
                progress=report_progress,
            )
        else:
            summary = export_all(
                student,
                None,
                out,
                data=data,
                teacher=teacher,
                options=options,
                progress=report_progress,
            )
    # Reports are printed after the progress bar is gone.
    if target != ALL:
        emit(bundle, as_json, show)
        return
    emit(list(summary.bundles), as_json, show_all)
    for name, error in summary.errors.items():
        print_line(f"{name}: {error}", err=True)
    summary.check()


def show(bundle: Bundle) -> None:
    """Print the candidates, the bundle, and the next command."""
    from dermedge.workflows.export import next_command
    from dermedge_export.evaluation.conformal import describe_unfitted

    command = next_command(bundle)
    show_candidates(bundle)
    pairs(
        {
            "wrote": bundle.path,
            "precision": f"{bundle.artifact.precision}, {bundle.artifact.format}",
            "host": _parity(bundle.parity["host"], command),
            "device": _parity(bundle.parity["device"], command),
            "next": command,
        }
    )
    for warning in describe_unfitted(bundle.spec, bundle.postprocessing):
        print_line(f"warning: {warning}")
    if hazards := gpu_hazards(bundle.artifact):
        print_line(f"warning: {hazards[0]}. {GPU_ADVICE} The model card lists all of them.")


def show_all(bundles: list[Bundle]) -> None:
    """Print several bundles, one after the other."""
    for bundle in bundles:
        show(bundle)


def _parity(side: Mapping[str, Any], command: str) -> str:
    """Return the status of one side, with its basis or its command in parentheses.

    A command that is printed as `next` is left out.
    """
    note = side.get("basis") or side.get("todo")
    return side["status"] if note in (None, "", command) else f"{side['status']} ({note})"
