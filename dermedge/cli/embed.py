"""`dermedge embed`: options and printing."""

from pathlib import Path
from typing import Literal

import click

from dermedge.cli.console import (
    bundle_argument,
    emit,
    json_option,
    out_option,
    overwrite_option,
    pairs,
    print_line,
)
from dermedge.workflows.embed import PLATFORMS, Embedded, embed


@click.command("embed")
@bundle_argument
@click.option(
    "--platform",
    required=True,
    type=click.Choice(list(PLATFORMS)),
    help="Kind of app to lay the bundle out for.",
)
@out_option("Folder to write.")
@overwrite_option
@json_option
def command(
    bundle: Path,
    platform: Literal["android", "ios", "web"],
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Lay BUNDLE out for apps of a platform, with a snippet that opens it.

    android: one file among the assets, and Kotlin. ios: a folder to add to the app, and
    Swift. web: static files, and TypeScript. The copy keeps the bundle's id, so
    `dermedge verify` checks it. EMBED.md in the folder lists the next steps.
    """
    emit(embed(bundle, platform=platform, out=out, overwrite=overwrite), as_json, show)


def show(embedded: Embedded) -> None:
    """Print what was written and the next step."""
    pairs(
        {
            "bundle": embedded.bundle,
            "bundle id": embedded.id,
            "snippet": embedded.snippet,
            "steps": embedded.guide,
        }
    )
    if embedded.target.partition("-")[0] != embedded.platform:
        print_line(
            f"The bundle was exported for {embedded.target!r}. "
            f"Run its golden cases on {PLATFORMS[embedded.platform].title} before you ship it."
        )
