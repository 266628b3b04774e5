"""`dermedge inspect`."""

from pathlib import Path

import click

from dermedge.cli.console import bundle_argument, emit, file_size, json_option, pairs, table
from dermedge_runtime.bundle import Bundle, artifact_files


@click.command("inspect")
@bundle_argument
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE is: its model, tasks, preprocessing, artifact, parity and files. Checks every file on the
    way.
    """
    emit(Bundle.open(bundle), as_json, show)


def show(bundle: Bundle) -> None:
    """Print the bundle as a person reads it."""
    spec, artifact = bundle.spec, bundle.artifact
    details = ", ".join(f"{name} {value}" for name, value in artifact.details.items())
    size = sum(len(bundle.read(name)) for name in artifact_files(bundle))
    pairs(
        {
            "model": f"{spec.name} {spec.version}",
            "bundle id": bundle.id,
            "for": f"{artifact.target}, {artifact.format} {artifact.precision} ({details})",
            "artifact": f"{artifact.path}, {file_size(size)}",
            "needs": ", ".join(artifact.requires) or "-",
            "built with": ", ".join(f"{name} {version}" for name, version in artifact.toolchain.items()),
            "input": f"RGB, {spec.preprocess.fit} to {spec.preprocess.size} x {spec.preprocess.size}",
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
        rows.append((task.name, task.kind, labels, temperature, threshold))
    table(("task", "kind", "labels", "temperature", "threshold"), rows)
    sides = [(side, bundle.parity[side]) for side in ("host", "device")]
    table(
        ("parity", "status", "on", "engine", "hardware"),
        [(side, p["status"], p.get("basis", "-"), p.get("engine", "-"), p.get("hardware", "-")) for side, p in sides],
    )
    click.echo(f"{len(bundle.files)} files, all of them intact")
