"""`dermedge doctor`: options and printing."""

import click

from dermedge.cli.console import (
    emit,
    json_option,
    pairs,
    print_line,
    table,
)
from dermedge.workflows.doctor import DoctorReport, doctor


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show this machine, the installed extras, and how to install the others."""
    emit(doctor(), as_json, show)


def show(report: DoctorReport) -> None:
    """Print the machine, then one line per extra with the command that installs it."""
    pairs({"dermedge": report.dermedge, **report.device})
    rows = [
        (
            extra.name,
            extra.status,
            extra.enables,
            ", ".join(extra.missing) or "-",
            f"pip install 'dermedge[{extra.name}]'" if extra.missing else "",
        )
        for extra in report.extras
    ]
    table(("extra", "status", "for", "missing", "to do"), rows)
    installed = {name: found for extra in report.extras for name, found in extra.versions.items()}
    packages = [f"{name} {found}" for name, found in sorted(installed.items())]
    print_line(f"installed: {', '.join(packages) or 'no package of any extra'}")
