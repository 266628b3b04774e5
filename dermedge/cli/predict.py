"""`dermedge predict`: options and printing."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import click

from dermedge.cli.console import (
    bundle_argument,
    engine_option,
    progress,
    show_skipped,
    table,
    threads_option,
    to_json_text,
)
from dermedge.cli.errors import print_error
from dermedge.cli.explanation import Explanation
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import ImageError
from dermedge_runtime.find_images import Skipped
from dermedge_runtime.predict import predict
from dermedge_runtime.printable import printable_path
from dermedge_runtime.progress import no_progress
from dermedge_runtime.spec import Task


@click.command("predict")
@bundle_argument
@click.argument("images", nargs=-1, required=True)
@engine_option
@threads_option
@click.option(
    "--exact", is_flag=True, help="Decode large JPEGs at full scale: slower, bit-exact everywhere."
)
@click.option(
    "--explain",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Write a picture of where the model saw the diagnosis: OUT.png, or a folder OUT for "
    "several images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image and line.")
def command(
    bundle: Path,
    images: tuple[str, ...],
    engine: str | None,
    threads: int | None,
    exact: bool,
    explain: Path | None,
    as_json: bool,
) -> int:
    """Run BUNDLE on IMAGES: files, folders (with all sub-folders), or - (stdin).

    The images of a folder are found by their content. A bad image is reported, the
    others are predicted, and the exit code is 1. It is also 1 if a part of a folder
    cannot be read.
    """
    opened = Bundle.open(bundle)
    sources = [sys.stdin.buffer.read() if image == "-" else image for image in images]
    pictures = None
    if explain is not None:
        stdin = next((source for source in sources if isinstance(source, bytes)), b"")
        pictures = Explanation(explain, exact, stdin)
        pictures.check(opened, sources)
    rows: list[dict[str, str]] = []
    failed = 0
    skipped = Skipped()
    # On a terminal the JSON lines show the progress, and a bar would cut into them.
    bar = nullcontext(no_progress) if as_json and sys.stdout.isatty() else progress("predict")
    with bar as report_progress:
        for name, result in predict(
            opened,
            sources,
            engine=engine,
            threads=threads,
            exact=exact,
            progress=report_progress,
            skipped=skipped,
        ):
            if isinstance(result, ImageError):
                failed += 1
                print_error(result)
            elif pictures is not None:
                pictures.add(name, opened, result)
            if as_json:
                _print_line(name, result)
            elif isinstance(result, Prediction):
                cells = _cells(result, opened.spec.tasks)
                note = " ".join(result.quality)
                rows.append({"image": printable_path(name), **cells, "image quality": note})
    if rows:
        columns = [column for column in rows[0] if any(row[column] for row in rows)]
        table(columns, [[row[column] for column in columns] for row in rows])
    if pictures is not None:
        pictures.show(err=as_json)
    if as_json and skipped:
        click.echo(to_json_text({"skipped": skipped}))
    show_skipped(skipped)
    return 1 if failed or skipped.unreadable else 0


def _print_line(name: str, result: Prediction | ImageError) -> None:
    content = {"error": str(result)} if isinstance(result, ImageError) else result.to_json()
    click.echo(to_json_text({"image": name, **content}))


def _describe_decision(prediction: Prediction) -> str:
    reason = {
        "ood": "refer: unlike the training images",
        "uncertain": "refer: neither clearly benign nor clearly malignant",
    }
    if prediction.refer_reason is not None:
        return reason[prediction.refer_reason]
    return prediction.decision or "-"


def _cells(prediction: Prediction, tasks: Sequence[Task]) -> dict[str, str]:
    """Return the cells of a table row; the model's tasks decide the columns."""
    kinds = {task.kind: task for task in tasks}
    top = prediction.labels[0] if prediction.labels else None
    others = ", ".join(f"{label.id} {label.probability:.2f}" for label in prediction.labels[1:3])
    cells = {}
    if "classify" in kinds:
        cells["diagnosis"] = top.name if top else "-"
        cells["probability"] = f"{top.probability:.3f}" if top else "-"
        cells["next"] = others or "-"
    if {"classify", "binary"} & kinds.keys():
        score = prediction.malignancy
        cells["malignancy"] = "-" if score is None else f"{score:.3f}"
        cells["decision"] = _describe_decision(prediction)
    if "classify" in kinds:
        members = prediction.conformal_set
        cells["could be"] = "" if members is None else ", ".join(members) or "no label fits"
    if "ood" in kinds:
        cells["like the training images"] = {None: "-", True: "no", False: "yes"}[prediction.ood]
    if "ordinal" in kinds:
        level = prediction.severity
        cells["severity"] = "-" if level is None else kinds["ordinal"].labels[level].name
    if "segment" in kinds:
        mask = prediction.mask
        cells["lesion covers"] = "-" if mask is None else f"{mask.mean():.1%}"
    if "embed" in kinds:
        vector = prediction.embedding
        cells["embedding"] = "-" if vector is None else f"{len(vector)} values"
    return cells
