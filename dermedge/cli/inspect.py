"""`dermedge inspect`: options and printing."""

from pathlib import Path

import click

from dermedge.cli.candidates import show_candidates
from dermedge.cli.console import (
    bundle_argument,
    emit,
    file_size,
    json_option,
    overwrite_option,
    pairs,
    print_line,
    table,
)
from dermedge_export.model_card import (
    abstention_values,
    calibrated_on,
    gpu_hazards,
    kept_fp32,
    other_details,
)
from dermedge_runtime.bundle import Bundle, artifact_files

NAMES_SHOWN = 5


@click.command("inspect")
@bundle_argument
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="Also write all contents of the bundle as one page: parity by subgroup and class, and "
    "the reason why this candidate was selected.",
)
@overwrite_option
@json_option
def command(bundle: Path, html: Path | None, overwrite: bool, as_json: bool) -> None:
    """Check every file of BUNDLE, and show its content.

    The content is the model, its tasks and preprocessing, the artifact, its parity and
    its candidates.
    """
    from dermedge.workflows.inspect import inspect

    emit(inspect(bundle, html=html, overwrite=overwrite), as_json, show)


def show(bundle: Bundle) -> None:
    """Print the model, the artifact, the tasks, the parity and the candidates."""
    spec, artifact = bundle.spec, bundle.artifact
    size = spec.preprocess.size
    file_bytes = sum(len(bundle.read(name)) for name in artifact_files(bundle))
    pairs(
        {
            "model": f"{spec.name} {spec.version}",
            "bundle id": bundle.id,
            "for": f"{artifact.target}, {artifact.format} {artifact.precision} "
            f"({other_details(artifact)})",
            "artifact": f"{artifact.path}, {file_size(file_bytes)}",
            "calibration": calibrated_on(artifact),
            "kept in fp32": _first_names(kept_fp32(artifact)),
            "fp16 GPU": _first_names(gpu_hazards(artifact)),
            "needs": ", ".join(artifact.requires) or "-",
            "built with": ", ".join(
                f"{name} {version}" for name, version in artifact.toolchain.items()
            ),
            "input": f"RGB, {spec.preprocess.fit} to {size} x {size}",
            "use": spec.intended_use or "-",
        }
    )
    rows = []
    for task in spec.tasks:
        fitted = bundle.postprocessing[task.name]
        labels = ", ".join(label.id for label in task.labels) or "-"
        temperature = "not fitted" if fitted.temperature is None else f"{fitted.temperature:.3f}"
        threshold = "not fitted" if task is spec.malignancy or task.kind == "segment" else "-"
        if fitted.threshold is not None:
            threshold = f"{fitted.threshold:.4f}"
        abstention = ", ".join(abstention_values(fitted)) or "-"
        rows.append((task.name, task.kind, labels, temperature, threshold, abstention))
    table(("task", "kind", "labels", "temperature", "threshold", "abstention"), rows)
    sides = [(side, bundle.parity[side]) for side in ("host", "device")]
    table(
        ("parity", "status", "on", "engine", "hardware"),
        [
            (side, p["status"], p.get("basis", "-"), p.get("engine", "-"), p.get("hardware", "-"))
            for side, p in sides
        ],
    )
    show_candidates(bundle)
    if todo := bundle.parity["device"].get("todo"):
        print_line(f"to do {todo}")
    print_line(f"{len(bundle.files)} files, all intact")


def _first_names(names: tuple[str, ...]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return (", ".join(names[:NAMES_SHOWN]) or "-") + (f" and {more} more" if more > 0 else "")
