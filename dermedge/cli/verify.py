"""`dermedge verify`."""

from pathlib import Path

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    engine_option,
    json_option,
    status,
    table,
    threads_option,
)
from dermedge_runtime.errors import BundleError, ElsewhereError
from dermedge_runtime.report import VerifyReport
from dermedge_runtime.verify import verify

EXIT_CODES = {"passed": 0, "not_run": ElsewhereError.exit_code}


@click.command("verify")
@bundle_argument
@engine_option
@threads_option
@json_option
def command(bundle: Path, engine: str | None, threads: int | None, as_json: bool) -> int:
    """Check that BUNDLE is intact, preprocesses exactly, and computes on this machine's engine what it must.

    Needs neither torch nor data nor a network. Exit code 5 if it does not verify, 4 if this machine cannot have the
    engine, so that only the rest was checked.
    """
    report = verify(bundle, engine=engine, threads=threads)
    emit(report, as_json, show)
    return EXIT_CODES.get(report.status, BundleError.exit_code)


def show(report: VerifyReport) -> None:
    """Print the questions and their answers."""
    from rich.console import Console

    table(
        ("check", "status", "what was found"),
        [(check.name, check.status, check.detail) for check in report.checks],
    )
    Console().print(f"bundle {report.bundle[:16]} on {report.engine}:", status(report.status))
    if report.status == "not_run":
        click.echo(
            "This machine cannot have its engine: whether the bundle verifies is known once that engine was asked."
        )
