"""`dermedge parity debug`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    json_option,
    print_line,
    table,
)

if TYPE_CHECKING:
    from dermedge_export.debug import DebugReport, NodeDrift


@click.group("parity")
def command() -> None:
    """Find the layers in which an artifact drifts from its student."""


@command.command("debug", short_help="Show the nodes at which an artifact drifts from its student.")
@bundle_argument
@click.option(
    "--against",
    "student",
    required=True,
    type=click.Path(path_type=Path),
    help="Model folder that BUNDLE was exported from, or the output folder of `dermedge run`.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of nodes to show, the noisiest first.",
)
@click.option(
    "--threshold",
    type=float,
    default=20.0,
    show_default=True,
    help="Signal-to-noise ratio in dB below which a node has drifted.",
)
@json_option
def debug_command(bundle: Path, student: Path, nodes: int, threshold: float, as_json: bool) -> None:
    """Show the node where BUNDLE first drifts from its student, and the noisiest nodes.

    Ten synthetic lesions run through both graphs. Every tensor that both graphs hold is
    compared.
    """
    from dermedge.workflows.debug_parity import debug_parity

    emit(debug_parity(bundle, student, nodes=nodes, threshold=threshold), as_json, show)


def show(report: "DebugReport") -> None:
    """Print the first drifted node, the worst nodes, and the ratios of the outputs."""
    if report.first is None:
        print_line(f"no node falls below {report.threshold_db:g} dB")
    else:
        first = report.first
        print_line(
            f"first drift at {first.node} ({first.op}): {first.snr_db:.1f} dB, "
            f"below {report.threshold_db:g}; its worst input has {first.inherited_db:.1f} dB"
        )
    if report.worst:
        columns = (
            "node",
            "op",
            "precision",
            "SNR dB",
            "input dB",
            "own dB",
            "weights dB",
            "max abs",
        )
        table(columns, [_row(drift) for drift in report.worst], "nodes that add the most noise")
    outputs = ", ".join(f"{name} {ratio:.1f} dB" for name, ratio in report.outputs.items())
    print_line(
        f"outputs: {outputs}; {report.compared} tensors on {report.images} images, "
        f"{report.precision}"
    )


def _row(drift: "NodeDrift") -> tuple[str, ...]:
    ratios = (drift.snr_db, drift.inherited_db, drift.own_db, drift.weights_db)
    return (
        drift.node,
        drift.op,
        "8 bits" if drift.quantized else "kept",
        *("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios),
        "not finite" if drift.max_abs is None else f"{drift.max_abs:.3g}",
    )
