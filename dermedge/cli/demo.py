"""`dermedge demo`."""

from pathlib import Path

import click

from dermedge.cli.console import emit, json_option, overwrite_option
from dermedge.cli.run import show, stage


@click.command("demo")
@click.option(
    "-o",
    "--out",
    default="runs/demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for everything.",
)
@overwrite_option
@json_option
def command(out: Path, overwrite: bool, as_json: bool) -> None:
    """Run the whole way on procedural lesions, to see it work: no data set, no download, some minutes on two cores."""
    from dermedge.workflows.run import demo

    report = demo(out, overwrite=overwrite, show=stage)
    emit(report, as_json, show)
