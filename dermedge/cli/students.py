"""`dermedge students`: options and printing."""

from collections.abc import Iterable

import click

from dermedge.cli.console import emit, json_option, known_target, print_line, table
from dermedge.workflows.students import StudentsReport, StudentState, students


def _target(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else known_target(ctx, parameter, value)


@click.command("students")
@click.option(
    "--target",
    callback=_target,
    help="List only the presets that this target does not refuse.",
)
@json_option
def command(target: str | None, as_json: bool) -> None:
    """List the student presets: backbones of 0.4 to 5 million parameters.

    Give a name to --backbone of finetune and distill, or to --student of run. Sizes
    are those of the backbone without heads. Latencies are medians for one image.
    """
    emit(students(target), as_json, show)


def show(report: StudentsReport) -> None:
    """Print the presets, the default of each target, and where latencies come from."""
    timed = sorted(
        {
            f"{target} {precision}"
            for state in report.students
            for target, latency in state.latency_ms.items()
            if not isinstance(latency, str)
            for precision in latency
        }
    )
    columns = ("preset", "pixels", "M parameters", "M MACs", *(f"{each} ms" for each in timed))
    table(
        (*columns, "exports to", "default for"),
        [_describe(state, timed) for state in report.students],
    )
    print_line(f"measured {report.date} on {report.machine}: {report.clock}, load {report.load:g}")
    print_line("An export or a latency that is not shown is `not_run`.")


def _describe(state: StudentState, timed: list[str]) -> tuple[str, ...]:
    """Return the cells of a preset."""
    times = []
    for name in timed:
        target, precision = name.split()
        latency = state.latency_ms.get(target)
        times.append(f"{latency[precision]:.2f}" if isinstance(latency, dict) else "-")
    return (
        state.preset.name,
        str(state.preset.size),
        f"{state.parameters / 1e6:.2f}",
        f"{state.macs / 1e6:.0f}",
        *times,
        _join(target for target, export in state.exports.items() if export == "ok"),
        _join(state.default_for),
    )


def _join(names: Iterable[str]) -> str:
    return ", ".join(names) or "-"
