"""`dermedge predict`."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import click

from dermedge.cli.console import bundle_argument, engine_option, progress, table, threads_option
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import ImageError, UsageError
from dermedge_runtime.model import load
from dermedge_runtime.progress import no_progress
from dermedge_runtime.spec import Task

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".heic", ".heif")
)


@click.command("predict")
@bundle_argument
@click.argument("images", nargs=-1, required=True)
@engine_option
@threads_option
@click.option(
    "--exact", is_flag=True, help="Decode large JPEGs at full scale: slower, bit-exact everywhere."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image and line.")
def command(
    bundle: Path,
    images: tuple[str, ...],
    engine: str | None,
    threads: int | None,
    exact: bool,
    as_json: bool,
) -> int:
    """Ask BUNDLE about IMAGES: files, folders (every image below them), or - for standard input.

    A bad image is reported and the others are still predicted; the exit code is 1 then.
    """
    sources = list(_sources(images))
    rows: list[dict[str, str]] = []
    failed = 0
    # JSON lines on a terminal are their own progress.
    shown = nullcontext(no_progress) if as_json and sys.stdout.isatty() else progress("predict")
    with load(bundle, engine=engine, threads=threads) as model, shown as tell:
        answers = model.stream((source for _, source in sources), on_error="return", exact=exact)
        for done, ((name, _), answer) in enumerate(zip(sources, answers, strict=True), start=1):
            tell(done, len(sources), "images")
            if isinstance(answer, ImageError):
                failed += 1
                print(
                    f"Error: {answer}", file=sys.stderr
                )  # not click.echo, which writes across the bar
                if as_json:
                    click.echo(
                        json.dumps({"image": name, "error": str(answer)}, ensure_ascii=False)
                    )
            elif as_json:
                click.echo(json.dumps({"image": name, **answer.to_json()}, ensure_ascii=False))
            else:
                rows.append({"image": name, **_cells(answer, model.bundle.spec.tasks)})
    if rows:
        table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    return 1 if failed else 0


def _sources(images: tuple[str, ...]) -> Iterator[tuple[str, bytes | Path]]:
    """Name and source of every image that was asked for."""
    for image in images:
        path = Path(image)
        if image == "-":
            yield "-", sys.stdin.buffer.read()
        elif path.is_dir():
            found = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
            )
            if not found:
                raise UsageError(
                    f"{path} holds no image: give a folder with some ({', '.join(sorted(SUFFIXES))})."
                )
            yield from ((str(p), p) for p in found)
        else:
            yield image, path


def _cells(answer: Prediction, tasks: Sequence[Task]) -> dict[str, str]:
    """What there is to say, by column: those of the model's tasks."""
    kinds = {task.kind: task for task in tasks}
    top = answer.labels[0] if answer.labels else None
    others = ", ".join(f"{label.id} {label.probability:.2f}" for label in answer.labels[1:3])
    cells = {}
    if "classify" in kinds:
        cells["diagnosis"] = top.name if top else "-"
        cells["probability"] = f"{top.probability:.3f}" if top else "-"
        cells["next"] = others or "-"
    if {"classify", "binary"} & kinds.keys():
        cells["malignancy"] = "-" if answer.malignancy is None else f"{answer.malignancy:.3f}"
        cells["decision"] = answer.decision or "-"
    if "ordinal" in kinds:
        cells["severity"] = (
            "-" if answer.severity is None else kinds["ordinal"].labels[answer.severity].name
        )
    if "segment" in kinds:
        cells["lesion covers"] = "-" if answer.mask is None else f"{answer.mask.mean():.1%}"
    if "embed" in kinds:
        cells["embedding"] = "-" if answer.embedding is None else f"{len(answer.embedding)} values"
    return cells
