"""`dermedge data add|sets|check|split|caption`: options and printing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dermedge.cli.console import (
    emit,
    json_option,
    key_values,
    out_option,
    overwrite_option,
    pairs,
    print_line,
    progress,
    table,
)

if TYPE_CHECKING:
    from dermedge.captions.table import CaptionTableReport
    from dermedge.data.check import CheckReport
    from dermedge.data.importing.add import AddReport, DataSetInfo
    from dermedge.data.split import SplitReport

SHOWN = 5  # Examples that are printed for a finding.


@click.group("data")
def command() -> None:
    """Add, check, split or caption a data set, or list the public ones.

    A data set is a folder with images and a table, metadata.csv.
    """


@command.command("add", short_help="Import a public data set as it is published.")
@click.argument("layout")
@click.argument("source", type=click.Path(path_type=Path))
@out_option("Folder to write.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="OURS=THEIRS",
    callback=key_values,
    help="Column of the data set that fills a column of the table.",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="THEIRS=ID",
    callback=key_values,
    help="Diagnosis for a label that the taxonomy does not know, or knows as another diagnosis.",
)
@click.option("--link", is_flag=True, help="Hard-link images instead of copying them.")
@overwrite_option
@json_option
def add_command(
    layout: str,
    source: Path,
    out: Path,
    columns: dict[str, object],
    labels: dict[str, object],
    link: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Import a public data set, or a table of your own.

    LAYOUT is the name of the data set. `dermedge data sets` lists the names, and the
    layout csv reads a table of your own, a folder per diagnosis, or Parquet files with
    images. SOURCE is the folder of the unpacked download, or the file.

    Most layouts are unverified: they follow published descriptions and were never run
    on the real download. Compare the printed counts with those of the paper.

    Some data sets have several labels. `--column dx=nine_partition_label` reads the
    nine-way labels of Fitzpatrick17k, and three_partition_label the three-way ones.
    """
    from dermedge.data.importing.add import add_data

    with progress(f"add {layout}") as report_progress:
        report = add_data(
            layout,
            source,
            out,
            columns={name: str(value) for name, value in columns.items()} or None,
            labels={name: str(value) for name, value in labels.items()} or None,
            link=link,
            overwrite=overwrite,
            progress=report_progress,
        )
    emit(report, as_json, show_added)


@command.command("sets", short_help="List the public data sets that can be added.")
@json_option
def sets_command(as_json: bool) -> None:
    """List the public data sets that `dermedge data add` can import.

    The list gives their contents and licences. A verified layout was run on the real
    download.
    """
    from dermedge.data.importing.add import list_data_sets

    emit(list_data_sets(), as_json, show_sets)


@command.command("check", short_help="Find faults of a data set before training or evaluation.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Model folder. Warn about images and data sets that this model was trained on.",
)
@json_option
def check_command(data: Path, teacher: Path | None, as_json: bool) -> int:
    """Check DATA for faults that would spoil a model or its evaluation.

    The exit code is 1 if there are errors.
    """
    from dermedge.data.check import check_data

    with progress("check") as report_progress:
        report = check_data(data, teacher=teacher, progress=report_progress)
    emit(report, as_json, show_checked)
    return 1 if report.status == "error" else 0


@command.command("split", short_help="Assign rows to train, val and test by lesion and patient.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Table to write, in the same folder. Default: DATA itself.",
)
@click.option(
    "--fractions",
    nargs=3,
    type=float,
    default=(0.7, 0.15, 0.15),
    show_default=True,
    help="Shares of train, val and test.",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed of the order in which groups are assigned.",
)
@click.option("--redo", is_flag=True, help="Reassign rows that already have a split.")
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
    """Assign every row of DATA to train, val or test.

    No lesion and no patient is in two splits. A diagnosis with at least three lesions
    or patients is in all of them.
    """
    from dermedge.data.split import split_data

    report = split_data(data, out, fractions=fractions, seed=seed, redo=redo, overwrite=overwrite)
    emit(report, as_json, show_split)


@command.command("caption", short_help="Write captions from the columns and masks of a table.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Table to write, in the same folder. Default: DATA itself.",
)
@overwrite_option
@json_option
def caption_command(data: Path, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write a caption into every row of DATA that has none.

    A caption repeats diagnosis, site, age and sex of its row, and the colours, border
    and size that are measured by its mask. The test split gets other phrasings than
    train and val. These captions test the machinery; they are no clinical language.
    """
    from dermedge.captions.table import caption_data

    with progress("captions") as report_progress:
        report = caption_data(data, out, overwrite=overwrite, progress=report_progress)
    emit(report, as_json, show_captions)


def show_captions(report: "CaptionTableReport") -> None:
    """Print an example of each split, the counts and the purpose of the captions."""
    for split, caption in report.examples.items():
        print_line(f"{split}: {caption or '(no caption)'}")
    print_line(
        f"{report.written} captions written and {report.kept} kept in {report.out}; "
        f"{report.measured} lesions measured"
    )
    print_line(report.purpose, fg="yellow")


def show_added(report: "AddReport") -> None:
    """Print the counts of imported images and of those that were left out."""
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
    if report.rows_without_image + report.images_without_row:
        print_line(
            f"left out: {report.rows_without_image} rows without an image, "
            f"{report.images_without_row} images without a row",
            fg="yellow",
        )
    for note in report.notes:
        print_line(note)


def show_sets(report: "tuple[DataSetInfo, ...]") -> None:
    """Print one line per data set."""
    rows = [
        (
            info.name,
            info.title,
            ", ".join(info.tells) or "-",
            info.expected or "-",
            info.licence or "-",
            "verified" if info.verified else "unverified",
        )
        for info in report
    ]
    table(("name", "set", "contents", "images", "licence", "layout"), rows)


def show_checked(report: "CheckReport") -> None:
    """Print the findings, errors first, then the counts."""
    for finding in report.findings:
        colour = {"error": "red", "warning": "yellow"}.get(finding.level)
        print_line(f"{finding.level}: {finding.message}", fg=colour)
        shown = [example for example in finding.examples[:SHOWN] if example not in finding.message]
        if shown:
            print_line(f"    {'; '.join(shown)}{' ...' if finding.count > len(shown) else ''}")
    splits = [name for name in ("train", "val", "test", "") if name in report.splits]
    rows = [
        (label or "(none)", count, *(report.splits[name].get(label, 0) for name in splits))
        for label, count in report.classes.items()
    ]
    table(("diagnosis", "images", *(name or "(no split)" for name in splits)), rows)
    print_line(
        f"{report.data}: {report.images} images of {report.groups} lesions or patients, "
        f"{report.status}"
    )


def show_split(report: "SplitReport") -> None:
    """Print warnings, then the number of images per diagnosis and split."""
    for warning in report.warnings:
        click.secho(f"Warning: {warning}", fg="yellow", err=True)
    labels = sorted({label for counts in report.counts.values() for label in counts})
    splits = [name for name in ("train", "val", "test") if name in report.counts]
    rows = [
        (label or "(none)", *(report.counts[split].get(label, 0) for split in splits))
        for label in labels
    ]
    table(("diagnosis", *splits), rows)
    print_line(
        f"{report.images} images of {report.groups} groups in {report.out}; "
        f"{report.kept} kept their split"
    )
