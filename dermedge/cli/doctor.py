"""`dermedge doctor`."""

import click

from dermedge.cli.console import emit, json_option, pairs, table
from dermedge.workflows.doctor import DoctorReport, doctor


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine can do with dermedge, and what to install for the rest."""
    emit(doctor(), as_json, show)


def show(report: DoctorReport) -> None:
    """Print the machine, then a line per extra with what to type."""
    pairs({"dermedge": report.dermedge, **report.device})
    rows = [
        (
            extra.name,
            extra.status,
            extra.enables,
            ", ".join(f"{name} {found}" for name, found in extra.versions.items()) or "-",
            f"pip install 'dermedge[{extra.name}]'" if extra.missing else "",
        )
        for extra in report.extras
    ]
    table(("extra", "status", "for", "installed", "to do"), rows)
