"""A table of images through a model: what it answered, beside what the table knows of each image."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermedge.data.masks import output_grid, read_mask
from dermedge.data.subgroups import subgroup_columns
from dermedge.data.table import Table, groups
from dermedge.data.taxonomy import project
from dermedge_export.evaluation.predictions import Predictions, Run, predict_table
from dermedge_runtime.errors import DataError, ImageError
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Preprocess, Spec

AHEAD = 16


def table_predictions(
    table: Table,
    spec: Spec,
    run: Run,
    *,
    batch: int = 32,
    images: Iterable[NDArray[np.uint8]] | None = None,
    outlines: NDArray[np.int8] | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Runs a model over every image of a table.

    Args:
        table: the images, and what is known of them.
        spec: the model's tasks, labels and preprocessing.
        run: the model, from uint8 [N, S, S, 3] to outputs [N, ...] by task.
        batch: how many images go through it at once.
        images: what `preprocessed` gave for this table, where it is at hand.
        outlines: what `masks` gave, likewise.
        progress: told how far it is.

    Raises:
        DataError: an image, or a mask that the model's answer is compared with, is missing or unreadable.
    """
    pixels = preprocessed(table, spec.preprocess) if images is None else images
    outputs = predict_table(run, _told(pixels, len(table), progress), batch=batch)
    return Predictions(
        image_ids=tuple(table.frame["image_id"]),
        outputs=outputs,
        labels=labels(table.frame, spec),
        malignant=table.frame["malignant"].to_numpy(np.float64),
        groups=groups(table.frame).to_numpy(str),
        subgroups=subgroup_columns(table.frame),
        levels=levels(table.frame, spec),
        masks=masks(table, spec) if outlines is None else outlines,
    )


def labels(frame: pd.DataFrame, spec: Spec) -> NDArray[np.int64]:
    """The diagnosis label [N] of every row, -1 where it is unknown or the model has no label that covers it."""
    ids = [label.id for label in spec.diagnosis.labels] if spec.diagnosis is not None else []
    covering = {dx: project(dx, ids) for dx in frame["dx"].unique() if dx}
    index = {dx: ids.index(label) for dx, label in covering.items() if label is not None}
    return np.array([index.get(dx, -1) for dx in frame["dx"]], np.int64)


def levels(frame: pd.DataFrame, spec: Spec) -> NDArray[np.int64] | None:
    """The level of severity [N] of every row, an index of the ordinal task's labels, -1 where it is unknown or none of
    them; None for a model without such a task.
    """
    task = next((task for task in spec.tasks if task.kind == "ordinal"), None)
    if task is None:
        return None
    index = {label.id: k for k, label in enumerate(task.labels)}
    return np.array([index.get(f"{level:.0f}", -1) for level in frame["severity"]], np.int64)


def masks(table: Table, spec: Spec) -> NDArray[np.int8] | None:
    """The mask of every row on the grid of the model's output, [N, S/4, S/4]: 1 inside the lesion, 0 outside, -1
    throughout where it is unknown; None for a model that segments nothing, and for a table without masks.

    Raises:
        DataError: a mask is missing or unreadable.
    """
    if not any(task.kind == "segment" for task in spec.tasks) or (table.frame["mask"] == "").all():
        return None
    grid = output_grid(spec.preprocess)
    unknown = np.full((grid.size, grid.size), -1, np.int8)
    found = [
        read_mask(table.path(mask), grid).astype(np.int8) if mask else unknown
        for mask in table.frame["mask"]
    ]
    return np.stack(found)


def unmapped(frame: pd.DataFrame, spec: Spec) -> dict[str, int]:
    """How many rows have a diagnosis that no label of the model covers, by diagnosis."""
    if spec.diagnosis is None:
        return {}
    foreign = frame["dx"][labels(frame, spec) < 0]
    return dict(sorted(Counter(dx for dx in foreign if dx).items()))


def preprocessed(
    table: Table, spec: Preprocess, *, workers: int = 2
) -> Iterator[NDArray[np.uint8]]:
    """The network's input [S, S, 3] for every image of a table, in order; never more than AHEAD of them wait.

    Images are decoded at full scale, as they are for the conformance cases, by threads that work ahead of the reader.

    Args:
        table: the images.
        spec: the model's preprocessing.
        workers: threads that decode.

    Raises:
        DataError: an image is missing or unreadable.
    """

    def load(path: Path) -> NDArray[np.uint8]:
        try:
            return preprocess(path, spec, exact=True)
        except ImageError as error:
            raise DataError(
                f"{error} `dermedge data check {table.root}` lists every such image."
            ) from error

    paths = [table.path(image) for image in table.frame["image"]]
    return prefetch(load, paths, workers=workers, ahead=AHEAD)


def _told(
    images: Iterable[NDArray[np.uint8]], total: int, progress: Progress | None
) -> Iterator[NDArray[np.uint8]]:
    for done, image in enumerate(images, start=1):
        yield image
        if progress is not None:
            progress(done, total, "images")
