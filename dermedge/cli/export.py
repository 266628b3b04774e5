"""`dermedge export`."""

from pathlib import Path
from typing import Any

import click

from dermedge.cli.console import (
    emit,
    json_option,
    known_target,
    overwrite_option,
    pairs,
    progress,
    table,
)
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.report import CANDIDATES_REPORT, read_report


def target_or_all(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """The value of --target, refused where there is no such target, before anything slow is imported."""
    return value if value == "all" else known_target(ctx, parameter, value)


@click.command("export")
@click.argument("student", type=click.Path(path_type=Path))
@click.option(
    "--target",
    required=True,
    callback=target_or_all,
    help="What to export for, or all; `dermedge targets` lists them.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Table: train calibrates, val fits and chooses, test is what the gate judges the winner on.",
)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write NAME-TARGET.dermedge into.",
)
@click.option(
    "--precision",
    help="One that the target has, or auto: build all candidates, drop those that lose accuracy, time the rest. "
    "Without it the target's precisions are tried in their order, and the first that passes is written.",
)
@click.option("--engine", help="Only artifacts for this engine, where the target has several.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="MINUTES",
    help="After that no further candidate is begun.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    help="Model that quantization-aware training learns from too, where nothing else keeps the accuracy.",
)
@click.option(
    "--dynamic-batch", is_flag=True, help="Leave the batch size open; it is 1 by default."
)
@click.option(
    "--allow-parity-failure",
    is_flag=True,
    help="Write the bundle although the gate failed, and record that.",
)
@overwrite_option
@json_option
def command(student: Path, target: str, out: Path, as_json: bool, **options: Any) -> None:
    """Turn STUDENT, a folder that training wrote, into a bundle, compared with the student before it is written.

    Exit code 3, and no bundle, if it lost more accuracy than the target allows. Without --data only agreement with
    the student on procedural lesions is judged, and nothing is fitted.
    """
    from dermedge.workflows.export import export_all, targets_of

    wanted = targets_of(target)
    made: list[Bundle] = []
    errors: dict[str, DermedgeError] = {}
    with progress("export") as tell:
        for name, result in export_all(student, wanted, out, progress=tell, **options):
            if isinstance(result, Bundle):
                made.append(result)
            elif len(wanted) == 1:
                raise result
            else:
                errors[name] = result
    emit(made if len(wanted) > 1 else made[0], as_json, show)
    for name, error in errors.items():
        click.echo(f"{name}: {error}", err=True)
    if errors:
        gravest = max(errors.values(), key=lambda error: error.exit_code)
        said = f"{len(errors)} of {len(wanted)} targets were not written: {', '.join(errors)}; see above."
        raise _Failed(said, gravest.exit_code)


class _Failed(DermedgeError):
    """Some of several targets failed; the exit code is that of the gravest."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def show(made: Bundle | list[Bundle]) -> None:
    """Print what was tried and why the winner won, then a line per bundle."""
    bundles = made if isinstance(made, list) else [made]
    for bundle in bundles:
        if candidates := read_report(bundle, CANDIDATES_REPORT):
            show_candidates(candidates["candidates"])
        pairs(
            {
                "wrote": bundle.path,
                "precision": f"{bundle.artifact.precision}, {bundle.artifact.format}",
                "host": _parity(bundle.parity["host"]),
                "device": _parity(bundle.parity["device"]),
            }
        )


def show_candidates(candidates: list[dict[str, Any]]) -> None:
    """Print a line per candidate: what it is, how large and fast, and why it won or lost."""
    rows = [
        (
            entry["name"],
            entry["status"],
            _cell(entry.get("size_bytes"), 1e6, 2),
            _cell(entry.get("latency_ms"), 1, 2),
            _cell(entry.get("top1"), 1, 4),
            entry["reason"],
        )
        for entry in candidates
        if len(candidates) > 1
    ]
    if rows:
        table(("candidate", "status", "MB", "ms", "top-1", "why"), rows)


def _cell(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def _parity(side: dict[str, Any]) -> str:
    said = side.get("basis") or side.get("todo") or ""
    return f"{side['status']}{f' ({said})' if said else ''}"
