"""`dermedge build`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    json_option,
    pairs,
    print_line,
    print_status,
    progress,
    table,
)

if TYPE_CHECKING:
    from dermedge_export.build import DeviceReport


@click.command("build")
@bundle_argument
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Data set. The gate compares engine and student on its test images, as far as the "
    "bundle holds the student's predictions.",
)
@click.option(
    "--workspace",
    "workspace_mb",
    type=click.IntRange(min=1),
    help="Memory in MB that one layer may use. Default: all of the GPU's.",
)
@click.option("--rebuild", is_flag=True, help="Build the engine even if the cache holds it.")
@click.option(
    "--allow-parity-failure",
    is_flag=True,
    help="Use the engine even if the gate fails. The record keeps the failures.",
)
@json_option
def command(
    bundle: Path,
    data: Path | None,
    workspace_mb: int | None,
    rebuild: bool,
    allow_parity_failure: bool,
    as_json: bool,
) -> None:
    """Build the engine of BUNDLE on this device, and compare it with the student.

    BUNDLE is a bundle for a jetson target. It stays unchanged: the command writes
    NAME.device.json and NAME.cache next to it.

    The exit code is 3 if the engine loses more accuracy than the target allows, and 5
    if the engine does not verify. Such an engine is not used. Without --data only the
    golden cases are compared, which are too few for the gate.
    """
    from dermedge.workflows.build import build

    with progress("build") as report_progress:
        report = build(
            bundle,
            data=data,
            workspace_mb=workspace_mb,
            rebuild=rebuild,
            allow_parity_failure=allow_parity_failure,
            progress=report_progress,
        )
    emit(report, as_json, show)


def show(report: "DeviceReport") -> None:
    """Print the device, its engine, the checks and the limits of the gate."""
    precision, key, latency = report.precision, report.engine.key, report.latency
    counts = ", ".join(f"{count} in {width}" for width, count in precision.counts.items())
    pairs(
        {
            "device": f"{report.device['gpu']}, SM {key.sm}, CUDA {report.device['cuda']}",
            "engine": f"TensorRT {key.tensorrt}, {report.engine.sha256[:16]}",
            "layers": f"{counts} of the layers that multiply, {precision.layers} in all",
            "latency": f"{latency.p50:.2f} ms (p50 of {latency.count}), {latency.p99:.2f} ms (p99)",
        }
    )
    checks = [(check.name, check.status, check.detail) for check in report.verify.checks]
    limits = [
        (limit.metric, limit.status, _loss(limit.loss.value, limit.allowed))
        for limit in report.parity.limits
    ]
    table(("check", "status", "result"), [*checks, *limits])
    for reason in report.allowed_failures:
        print_line(f"Warning: allowed failure: {reason}", fg="yellow", err=True)
    print_status(f"{report.parity.basis} on {report.parity.hardware}:", report.status)


def _loss(loss: float | None, allowed: float | None) -> str:
    text = "not measured" if loss is None else f"loss {loss:.4g}"
    return f"{text}, allowed {allowed:.4g}" if allowed is not None else text
