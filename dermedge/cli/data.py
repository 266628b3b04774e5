"""`dermedge data add|sets|check|split`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    emit,
    json_option,
    key_values,
    overwrite_option,
    pairs,
    progress,
    table,
)

if TYPE_CHECKING:
    from dermedge.data import AddReport, CheckReport, DataSetInfo, SplitReport

SHOWN = 5


@click.group("data")
def command() -> None:
    """Add, check or split a data set, or list the public ones: a folder with images and one table, metadata.csv."""


@command.command("add", short_help="Import a public data set as it is published.")
@click.argument("layout")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    callback=key_values,
    help="A column's name there, where it is not the usual one.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="THEIRS=ID",
    callback=key_values,
    help="A label's id here, where the taxonomy knows another or none.",
)
@click.option("--link", is_flag=True, help="Hard-link images instead of copying them.")
@overwrite_option
@json_option
def add_command(
    layout: str,
    source: Path,
    out: Path,
    columns: dict[str, Any],
    labels: dict[str, Any],
    link: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Import SOURCE, the folder that a public set was unpacked into; LAYOUT is its name.

    `dermedge data sets` lists the names; csv is a table of your own. Most layouts are unverified: made from what is
    written about a set, and never run on the real download. Compare the counts that are printed with the paper's.

    A set may have several labels: `--column dx=nine_partition_label` takes Fitzpatrick17k's nine-way ones, and
    three_partition_label its three-way ones.
    """
    from dermedge.data import add_data

    with progress(f"add {layout}") as tell:
        report = add_data(
            layout,
            source,
            out,
            columns={name: str(value) for name, value in columns.items()} or None,
            labels={name: str(value) for name, value in labels.items()} or None,
            link=link,
            overwrite=overwrite,
            progress=tell,
        )
    emit(report, as_json, show_added)


@command.command("sets", short_help="List the public data sets that can be added.")
@json_option
def sets_command(as_json: bool) -> None:
    """List the public data sets that `data add` knows: what they tell, their licence, and whether their layout was
    verified, that is, run on the real download.
    """
    from dermedge.data import list_data_sets

    emit(list_data_sets(), as_json, show_sets)


@command.command("check", short_help="Look for what would spoil a model or its measurement.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A teacher's or student's folder: warn of images and sets that it was trained on.",
)
@json_option
def check_command(data: Path, teacher: Path | None, as_json: bool) -> int:
    """Look for what would spoil a model made from DATA, or its measurement. Exit code 1 if there are errors."""
    from dermedge.data import check_data

    with progress("check") as tell:
        report = check_data(data, teacher=teacher, progress=tell)
    emit(report, as_json, show_checked)
    return 1 if report.status == "error" else 0


@command.command(
    "split", short_help="Deal rows out into train, val and test by lesion and patient."
)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Table to write beside this one; by default this one.",
)
@click.option(
    "--fractions",
    nargs=3,
    type=float,
    default=(0.7, 0.15, 0.15),
    show_default=True,
    help="Train, val and test.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the order in which groups are dealt out.",
)
@click.option("--redo", is_flag=True, help="Deal out rows anew that have a split.")
@overwrite_option
@json_option
def split_command(
    data: Path,
    out: Path | None,
    fractions: tuple[float, float, float],
    seed: int,
    redo: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Deal DATA out into train, val and test, no lesion and no patient on two sides, every diagnosis on each."""
    from dermedge.data import split_data

    report = split_data(data, out, fractions=fractions, seed=seed, redo=redo, overwrite=overwrite)
    emit(report, as_json, show_split)


def show_added(report: "AddReport") -> None:
    """Print what was imported, and what was left out."""
    pairs(
        {
            "layout": report.layout,
            "folder": report.out,
            "images": report.images,
            "licence": report.licence or "-",
        }
    )
    table(
        ("label", "images"), [(label or "(none)", count) for label, count in report.labels.items()]
    )
    left_out = report.rows_without_image + report.images_without_row
    if left_out:
        click.secho(
            f"left out: {report.rows_without_image} rows without an image, "
            f"{report.images_without_row} images without a row",
            fg="yellow",
        )
    for note in report.notes:
        click.echo(note)


def show_sets(report: "tuple[DataSetInfo, ...]") -> None:
    """Print one line per set."""
    rows = [
        (
            one.name,
            one.title,
            ", ".join(one.tells) or "-",
            one.expected or "-",
            one.licence or "-",
            "verified" if one.verified else "unverified",
        )
        for one in report
    ]
    table(("name", "set", "tells", "images", "licence", "layout"), rows)


def show_checked(report: "CheckReport") -> None:
    """Print the findings, errors first, then the counts."""
    for finding in report.findings:
        colour = {"error": "red", "warning": "yellow"}.get(finding.level)
        click.secho(f"{finding.level}: {finding.message}", fg=colour)
        shown = [example for example in finding.examples[:SHOWN] if example not in finding.message]
        if shown:
            click.echo(f"    {'; '.join(shown)}{' ...' if finding.count > len(shown) else ''}")
    splits = [name for name in ("train", "val", "test", "") if name in report.splits]
    rows = [
        (label or "(none)", count, *(report.splits[name].get(label, 0) for name in splits))
        for label, count in report.classes.items()
    ]
    table(("diagnosis", "images", *(name or "(no split)" for name in splits)), rows)
    click.echo(
        f"{report.data}: {report.images} images of {report.groups} lesions or patients, {report.status}"
    )


def show_split(report: "SplitReport") -> None:
    """Print images per diagnosis and split."""
    names = sorted({label for counts in report.counts.values() for label in counts})
    splits = [name for name in ("train", "val", "test") if name in report.counts]
    rows = [
        (name or "(none)", *(report.counts[split_data].get(name, 0) for split_data in splits))
        for name in names
    ]
    table(("diagnosis", *splits), rows)
    click.echo(
        f"{report.images} images of {report.groups} groups in {report.out}; {report.kept} kept their split"
    )
