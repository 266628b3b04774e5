"""Options, progress and tables that the commands share."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dermedge.cli.streams import is_first_process
from dermedge_runtime.find_images import Skipped
from dermedge_runtime.printable import printable
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.spec import to_json

if TYPE_CHECKING:
    from rich.text import Text

F = TypeVar("F", bound=Callable[..., Any])

COLOURS = {
    "passed": "green",
    "ok": "green",
    "warn": "yellow",
    "warning": "yellow",
    "failed": "red",
    "error": "red",
}
PLAIN_SECONDS = 10  # Shortest time between two lines of progress in a log file.
UNWRAPPED = 10_000  # Columns in a pipe, so that scripts read one row per line.

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads of the engine. Default: the engine decides, within this process's CPUs.",
)
engine_option = click.option(
    "--engine", help="Name of the engine. Default: the engine of the bundle's format."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing output.")
size_option = click.option(
    "--size",
    type=click.IntRange(16, 4096),
    default=160,
    show_default=True,
    help="Side of the square input in pixels.",
)
fit_option = click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "stretch"]),
    default="crop",
    show_default=True,
    help="Method that makes a rectangular image square.",
)
views_option = click.option(
    "--views",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Stored views of each image that the teacher predicts.",
)
seed_option = click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Random seed for shuffling, augmentation and initialization.",
)
data_option = click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Data set: a folder with a table or with a folder per diagnosis, or a table file.",
)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


def emit(report: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a report as JSON, or call `show` with it; on rank 0 only."""
    if not is_first_process():
        return
    if as_json:
        data = report.to_json() if hasattr(report, "to_json") else report
        click.echo(to_json_text(data, indent=2))
    else:
        show(report)


def to_json_text(value: object, indent: int | None = None) -> str:
    r"""Return a report as JSON in ASCII, which every code page can carry.

    A byte of a file name that is not UTF-8 becomes a lone surrogate such as `\udcff`,
    from which `os.fsencode` restores the byte.
    """
    return json.dumps(to_json(value), indent=indent, default=os.fspath)


def print_line(text: object, *, fg: str | None = None, err: bool = False) -> None:
    """Print text on one line, whatever names it holds.

    Args:
        text: The text.
        fg: Colour of the text.
        err: Print to standard error.
    """
    click.secho(printable(text), fg=fg, err=err)


def show_skipped(skipped: Skipped) -> None:
    """Print one line to standard error about files that were not looked at, if any."""
    if skipped:
        print_line(skipped, err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print a table with right-aligned numbers; in a pipe, each row is one line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # rich reads brackets and colons of plain strings as markup, but not those of Text.
    grid = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        # rich may wrap a header between words, but must not break a word.
        longest_word = max(map(len, column.split()))
        numeric = index > 0 and all(
            isinstance(row[index], (int, float)) or _is_numeric(row[index]) for row in rows
        )
        grid.add_column(
            Text(printable(column)),
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=longest_word,
        )
    for row in rows:
        grid.add_row(*(status(cell) for cell in row))
    console = Console()
    if console.is_terminal:
        console.print(grid)
        return
    console = Console(width=UNWRAPPED)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def pairs(rows: Mapping[str, Any]) -> None:
    """Print names and values, one pair per line, with aligned values."""
    width = max((len(name) for name in rows), default=0)
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {printable(value)}")


def status(cell: Any) -> "Text":
    """Return a cell for rich on one line: a status in its colour, other text in none.

    Among the statuses of the gate only `passed` is green.
    """
    from rich.text import Text

    text = printable(cell)
    return Text(text, style=COLOURS.get(text, ""))


def print_status(text: str, result: str) -> None:
    """Print a text and a status in its colour, on one line."""
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(printable(text)), status(result), soft_wrap=True)


def file_size(size: int) -> str:
    """Format a size in bytes, such as `23 kB` or `3.85 MB`."""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def interval(value: Any) -> str:
    """Format a value with its 95 % interval, such as `0.712 (0.655-0.768)`."""
    if value is None or value.value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.value:.3f}"
    return f"{value.value:.3f} ({value.low:.3f}-{value.high:.3f})"


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Yield a progress callback that draws a bar, or prints lines outside a terminal.

    Progress goes to standard error, so that standard output holds only the report.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    if not is_first_process():
        yield no_progress
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_lines(title)
        return
    layout = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # Standard output may be a file while the bar is on a terminal, so rich must not
    # redirect it.
    with Bar(*layout, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None, note="")

        def report_progress(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=printable(note))

        yield report_progress


def _print_lines(title: str) -> Progress:
    """Return a progress callback that prints a line every ten seconds."""
    last = time.monotonic()

    def report_progress(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            click.echo(f"{title}: {done}/{total} {printable(note)}".rstrip(), err=True)

    return report_progress


def known_target(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return the name of a target; refuse an unknown one before any slow import."""
    from dermedge_export.target import find_target

    return find_target(value).name


def _is_numeric(cell: Any) -> bool:
    return bool(str(cell).strip()[:1].isdigit()) or str(cell) in ("", "-")


def key_values(
    ctx: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Any]:
    """Parse `KEY=VALUE` options. A value that is not valid JSON stays text."""
    values_by_key: dict[str, Any] = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{value!r} does not have the form KEY=VALUE.", ctx, parameter)
        try:
            values_by_key[key] = json.loads(text)
        except ValueError:
            values_by_key[key] = text
    return values_by_key


def out_option(text: str) -> Callable[[F], F]:
    """Return the option for the folder that a command writes.

    Args:
        text: Help.
    """
    return click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help=text)


def task_option(default: str) -> Callable[[F], F]:
    """Return the option for the tasks that a model learns.

    Args:
        default: The tasks without the option, for the help.
    """
    from dermedge.train.tasks import TASKS

    return click.option(
        "--task",
        "tasks",
        multiple=True,
        type=click.Choice(TASKS),
        help=f"Task to learn, with the labels of the table. Can be repeated. Default: {default}.",
    )


backbone_arg_option = click.option(
    "--backbone-arg",
    "backbone_args",
    multiple=True,
    metavar="KEY=VALUE",
    callback=key_values,
    help="Argument of timm.create_model, such as img_size=224. Can be repeated.",
)


def training_options(command: F) -> F:
    """Add the options that every training command has."""
    options = (
        click.option(
            "--epochs",
            type=click.IntRange(min=1),
            default=12,
            show_default=True,
            help="Passes over the train split.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=2),
            default=64,
            show_default=True,
            help="Images per step.",
        ),
        click.option(
            "--lr",
            type=click.FloatRange(min=0, min_open=True),
            default=1e-3,
            show_default=True,
            help="Peak learning rate.",
        ),
        click.option(
            "--patience",
            type=click.IntRange(min=1),
            default=6,
            show_default=True,
            help="Epochs without a better val score before training stops.",
        ),
        click.option(
            "--precision",
            default="32-true",
            show_default=True,
            help="Precision of Lightning Fabric, such as bf16-mixed on a GPU.",
        ),
        seed_option,
        click.option(
            "--balance/--no-balance",
            default=True,
            show_default=True,
            help="Optimise balanced accuracy, or accuracy.",
        ),
        click.option(
            "--ood/--no-ood",
            default=True,
            show_default=True,
            help="Give a student a score of how foreign an image is (task ood).",
        ),
        click.option(
            "--foreign",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Data set whose images the task ood must flag, such as clinical photographs for a "
            "model of dermoscopic images: its folder or table file. Can be repeated.",
        ),
        click.option("--name", help="Name of the model. Default: the name of its backbone."),
        backbone_arg_option,
        click.option(
            "--stages",
            type=click.IntRange(min=1),
            help="Number of the backbone's first stages to keep. Default: all.",
        ),
        overwrite_option,
        json_option,
    )
    # The last decorator comes first in --help, so they are applied in reverse.
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)
