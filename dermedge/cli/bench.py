"""`dermedge bench`: options and printing."""

from collections.abc import Mapping
from pathlib import Path

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    engine_option,
    json_option,
    pairs,
    print_line,
    progress,
    table,
    threads_option,
)
from dermedge_runtime.bench import bench
from dermedge_runtime.report import LatencyReport


@click.command("bench")
@bundle_argument
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    help="Image to time. Default: a 12 MP JPEG of a synthetic lesion.",
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=100, show_default=True, help="Timed predictions."
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Predictions before timing starts.",
)
@click.option(
    "--sustained",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Also predict without a pause for this time, to show throttling. 0 skips it.",
)
@engine_option
@threads_option
@json_option
def command(
    bundle: Path,
    image: Path | None,
    runs: int,
    warmup: int,
    sustained: float,
    engine: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE on this machine: latency, cold start and resident memory.

    Latency is measured end to end (from encoded bytes to a prediction), for
    preprocessing alone, and for the engine alone.
    """
    with progress("bench") as report_progress:
        report = bench(
            bundle,
            image=image,
            engine=engine,
            threads=threads,
            runs=runs,
            warmup=warmup,
            sustained=sustained,
            progress=report_progress,
        )
    emit(report, as_json, show)


def show(report: LatencyReport) -> None:
    """Print the times, then the machine on which they were measured."""
    rows = [
        (name, f"{part.p50:.2f}", f"{part.p90:.2f}", f"{part.p99:.2f}", part.count)
        for name, part in (
            ("end to end", report.end_to_end),
            ("preprocessing", report.preprocess),
            ("engine", report.engine_only),
        )
    ]
    table(("ms", "p50", "p90", "p99", "runs"), rows)
    memory = (
        "-"
        if report.resident_bytes is None
        else f"{report.resident_bytes / 2**20:.0f} MiB resident"
    )
    pairs(
        {
            "cold start": f"{report.cold_start_ms:.0f} ms from process start to first prediction",
            "memory": memory,
            "image": report.image,
            "engine": f"{report.engine} {report.engine_version}, "
            f"threads {report.threads or 'chosen by the engine'}",
            "device": "; ".join(_describe_device(report.device)),
            "usable CPUs": str(report.cpus),
        }
    )
    if report.sustained:
        print_line(
            "sustained   "
            + " ".join(f"{ms:.1f}" for ms in report.sustained)
            + " ms, median of each tenth"
        )


def _describe_device(device: Mapping[str, str]) -> list[str]:
    """Return a device's description in parts, with the CPU flags if it has any."""
    processor = f"{device['cpu']} ({device['flags']})" if device["flags"] else device["cpu"]
    system = f"{device['system']} {device['machine']}"
    return [f"{processor}, {device['cores']} cores", system, f"Python {device['python']}"]
