"""`dermedge verify`: options and printing."""

from pathlib import Path

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    engine_option,
    json_option,
    print_line,
    print_status,
    table,
    threads_option,
)
from dermedge_runtime.errors import BundleError, ElsewhereError
from dermedge_runtime.report import VerifyReport
from dermedge_runtime.verify import verify

# Any other status is a failed check.
EXIT_CODES = {"passed": 0, "not_run": ElsewhereError.exit_code}


@click.command("verify")
@bundle_argument
@engine_option
@threads_option
@json_option
def command(bundle: Path, engine: str | None, threads: int | None, as_json: bool) -> int:
    """Verify that BUNDLE computes here what it computed when it was exported.

    The command checks the files, preprocessing, the engine's outputs and decoding. It
    needs no torch, no data and no network. The exit code is 5 if a check fails, and 4
    if this machine cannot have the engine, so that only the other checks run.
    """
    report = verify(bundle, engine=engine, threads=threads)
    emit(report, as_json, show)
    return EXIT_CODES.get(report.status, BundleError.exit_code)


def show(report: VerifyReport) -> None:
    """Print the checks and their results."""
    table(
        ("check", "status", "detail"),
        [(check.name, check.status, check.detail) for check in report.checks],
    )
    print_status(f"bundle {report.bundle[:16]} on {report.engine}:", report.status)
    if report.status == "not_run":
        print_line(
            "This machine cannot run the bundle's engine; "
            "run `dermedge verify` on the target device."
        )
