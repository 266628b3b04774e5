"""`dermedge inspect`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    file_size,
    json_option,
    overwrite_option,
    pairs,
    table,
)
from dermedge_export.model_card import calibrated_on, kept_fp32, other_details
from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import MissingExtraError
from dermedge_runtime.files import check_free
from dermedge_runtime.report import CANDIDATES_REPORT, read_report

NAMES_SHOWN = 5


@click.command("inspect")
@bundle_argument
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    help="Also write all that the bundle carries as one page: parity by subgroup and class, how it was chosen.",
)
@overwrite_option
@json_option
def command(bundle: Path, html: Path | None, overwrite: bool, as_json: bool) -> None:
    """Show what BUNDLE is: its model, tasks, preprocessing, artifact, parity and files. Checks every file on the
    way.
    """
    opened = Bundle.open(bundle)
    if html is not None:
        write_page(opened, html, overwrite=overwrite)
    emit(opened, as_json, show)


def write_page(bundle: Bundle, out: Path, *, overwrite: bool = False) -> None:
    """Write the page of a bundle that nothing but itself is known of.

    Raises:
        UsageError: `out` exists and may not be replaced.
        MissingExtraError: what draws the page is not installed.
    """
    check_free(out, overwrite=overwrite)
    try:
        from dermedge.report import write_report
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            error.name or "jinja2", "report", "`dermedge inspect --html`"
        ) from error
    write_report(out, bundle=bundle)


def show(bundle: Bundle) -> None:
    """Print the bundle as a person reads it."""
    spec, artifact = bundle.spec, bundle.artifact
    size = sum(len(bundle.read(name)) for name in artifact_files(bundle))
    pairs(
        {
            "model": f"{spec.name} {spec.version}",
            "bundle id": bundle.id,
            "for": f"{artifact.target}, {artifact.format} {artifact.precision} ({other_details(artifact)})",
            "artifact": f"{artifact.path}, {file_size(size)}",
            "calibration": calibrated_on(artifact),
            "kept in fp32": _some(kept_fp32(artifact)),
            "needs": ", ".join(artifact.requires) or "-",
            "built with": ", ".join(
                f"{name} {version}" for name, version in artifact.toolchain.items()
            ),
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
        [
            (side, p["status"], p.get("basis", "-"), p.get("engine", "-"), p.get("hardware", "-"))
            for side, p in sides
        ],
    )
    if tried := list(_tried(read_report(bundle, CANDIDATES_REPORT))):
        table(("candidate", "outcome", "MB", "ms", "agrees", "KL", "why"), tried)
    if todo := bundle.parity["device"].get("todo"):
        click.echo(f"to do {todo}")
    click.echo(f"{len(bundle.files)} files, all of them intact")


def _tried(search: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A line per candidate that was considered."""
    for found in search.get("candidates") or ():
        size, top1 = found.get("size_bytes"), found.get("top1")
        latency, kl = found.get("latency_ms"), found.get("kl")
        yield (
            str(found.get("name")),
            str(found.get("status")),
            "-" if size is None else f"{size / 1e6:.2f}",
            "-" if latency is None else f"{latency:.2f}",
            "-" if top1 is None else f"{top1:.2%}",
            "-" if kl is None else f"{kl:.2g}",
            str(found.get("reason") or ""),
        )


def _some(names: tuple[str, ...]) -> str:
    more = len(names) - NAMES_SHOWN
    return (", ".join(names[:NAMES_SHOWN]) or "-") + (f" and {more} more" if more > 0 else "")
