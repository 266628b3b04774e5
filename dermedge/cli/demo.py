"""`dermedge demo`: options and printing."""

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
    help="Folder for all results.",
)
@overwrite_option
@json_option
def command(out: Path, overwrite: bool, as_json: bool) -> None:
    """Draw synthetic lesions, and run every stage on them.

    The demo needs no data set and no download. It takes a few minutes on two cores.
    """
    from dermedge.workflows.run import demo

    emit(demo(out, overwrite=overwrite, show=stage), as_json, show)
