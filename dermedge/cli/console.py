"""What every command shares: options, progress, tables, JSON, and errors as one line."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dermedge_runtime.errors import DermedgeError, MissingExtraError
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import to_json

F = TypeVar("F", bound=Callable[..., Any])

# Which extra a command needs; one that is not here needs none, or says so itself.
EXTRAS = {
    "evaluate": "evaluate",
    "data": "data",
    "export": "export",
    "build": "evaluate",
    "parity": "export",
    "pretrain": "pretrain",
    "teacher": "export",
    "probe": "train",
    "finetune": "train",
    "distill": "train",
    "run": "pretrain",
    "demo": "train",
}
# What those extras bring, by the name that is imported.
PACKAGES = frozenset(
    [
        "albumentations",
        "coremltools",
        "cv2",
        "imagehash",
        "jinja2",
        "lightly",
        "lightning_fabric",
        "markupsafe",
        "nncf",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "openvino",
        "pandas",
        "pyarrow",
        "safetensors",
        "scipy",
        "sklearn",
        "timm",
        "torch",
        "torch_pruning",
        "torchvision",
    ]
)
COLOURS = {
    "passed": "green",
    "ok": "green",
    "warn": "yellow",
    "warning": "yellow",
    "failed": "red",
    "error": "red",
}
PLAIN_SECONDS = 10
UNWRAPPED = 10_000

json_option = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of the engine; it decides by default."
)
engine_option = click.option(
    "--engine", help="Name of the engine; by default the one for the bundle's format."
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace what stands at the output."
)
size_option = click.option(
    "--size",
    type=click.IntRange(16, 4096),
    default=160,
    show_default=True,
    help="Side of the input in pixels.",
)
fit_option = click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "stretch"]),
    default="crop",
    show_default=True,
    help="How a rectangle becomes a square.",
)
views_option = click.option(
    "--views",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Views of each image that the teacher looks at.",
)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))


def explain(error: Exception, args: Sequence[str] = ()) -> DermedgeError | None:
    """The error of a command line as one of ours; None for one that is a defect and deserves its traceback."""
    if isinstance(error, DermedgeError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        verb = next((arg for arg in args if arg in EXTRAS), None)
        if package in PACKAGES and verb is not None:
            return MissingExtraError(package, EXTRAS[verb], f"`dermedge {verb}`")
    if isinstance(error, OSError) and error.filename is not None:
        return DermedgeError(
            f"{error.filename}: {error.strerror}; check the path, its permissions and the free space."
        )
    return None


def emit(report: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a report as JSON, or the way a person reads it."""
    if as_json:
        data = report.to_json() if hasattr(report, "to_json") else to_json(report)
        click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=os.fspath))
    else:
        show(report)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print a table; the first column is text, numbers are right-aligned. In a pipe a row is a line, however long."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        word = max(map(len, column.split()))
        numeric = index > 0 and all(
            isinstance(row[index], (int, float)) or _numeric(row[index]) for row in rows
        )
        grid.add_column(
            column, justify="right" if numeric else "left", overflow="fold", min_width=word
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
    """Print names and values, one pair a line, the values aligned."""
    width = max((len(name) for name in rows), default=0)
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")


def status(cell: Any) -> Any:
    """A status word in its colour; of the gate's words only `passed` is green."""
    from rich.markup import escape
    from rich.text import Text

    text = str(cell)
    colour = COLOURS.get(text)
    return Text(text, style=colour) if colour else escape(text)


def file_size(size: int) -> str:
    """`23 kB`, `3.85 MB`."""
    return f"{size / 1e6:.2f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def interval(value: Any) -> str:
    """`0.712 (0.655-0.768)`."""
    if value is None or value.value is None:
        return "-"
    if value.low is None or value.high is None:
        return f"{value.value:.3f}"
    return f"{value.value:.3f} ({value.low:.3f}-{value.high:.3f})"


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line now and then. Always on standard error, so that output stays clean."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title)
        return
    layout = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    # Standard output stays the caller's: it may be a file while the bar is on a terminal.
    with Bar(*layout, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None, note="")

        def tell(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield tell


def _lines(title: str) -> Progress:
    said = time.monotonic()

    def tell(done: int, total: int, note: str = "") -> None:
        nonlocal said
        if time.monotonic() - said >= PLAIN_SECONDS:
            said = time.monotonic()
            click.echo(f"{title}: {done}/{total} {note}".rstrip(), err=True)

    return tell


def known_target(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    """The value of --target, refused where there is no such target, before anything slow is imported."""
    from dermedge_export.target import find_target

    return find_target(value).name


def _numeric(cell: Any) -> bool:
    return bool(str(cell).strip()[:1].isdigit()) or str(cell) in ("", "-")


def key_values(
    ctx: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Any]:
    """`KEY=VALUE` options as a mapping; a value that reads as JSON becomes that, another stays text."""
    found: dict[str, Any] = {}
    for value in values:
        key, separator, text = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"{value!r} is not of the form KEY=VALUE.", ctx, parameter)
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


backbone_arg_option = click.option(
    "--backbone-arg",
    "backbone_args",
    multiple=True,
    metavar="KEY=VALUE",
    callback=key_values,
    help="Argument of timm.create_model, such as img_size; may be given often.",
)


def training_options(command: F) -> F:
    """The options of every command that trains."""
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
            help="Epochs without a better val score.",
        ),
        click.option(
            "--precision",
            default="32-true",
            show_default=True,
            help="Fabric's precision, bf16-mixed on a GPU for example.",
        ),
        click.option(
            "--seed",
            type=int,
            default=0,
            show_default=True,
            help="Of order, augmentation and initial weights.",
        ),
        click.option(
            "--no-balance", is_flag=True, help="Aim at accuracy, not at balanced accuracy."
        ),
        click.option("--name", help="Name of the model; by default its backbone's."),
        backbone_arg_option,
        click.option(
            "--stages",
            type=click.IntRange(min=1),
            help="Keep only so many of the backbone's stages, the first ones.",
        ),
        overwrite_option,
        json_option,
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)
