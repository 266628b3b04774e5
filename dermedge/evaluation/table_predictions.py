"""Run a model over a table of images, and collect their labels and subgroups."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermedge.data.masks import output_grid, read_mask
from dermedge.data.subgroups import subgroup_columns
from dermedge.data.table import Table, groups
from dermedge.data.taxonomy import project
from dermedge_export.evaluation.predictions import Predictions, Run, predict_table
from dermedge_runtime.errors import DataError, EngineError, ImageError
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Preprocess, Spec

# Decoded images that may wait for the engine: enough to keep it busy, few enough for
# memory.
AHEAD = 16
WORKERS = 2


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
    """Run a model over every image of a table.

    Args:
        table: The images and their labels.
        spec: The model's tasks, labels and preprocessing.
        run: The model, from uint8 [N, S, S, 3] to outputs [N, ...] by task.
        batch: Number of images per call of `run`.
        images: Result of `preprocess_table` for this table, if it is at hand.
        outlines: Result of `lesion_masks` for this table, if it is at hand.
        progress: Called with the number of images done.

    Raises:
        DataError: An image or a mask is missing or unreadable.

    Examples:
        >>> import dermedge
        >>> from dermedge.data.table import read_table
        >>> from dermedge.evaluation.table_predictions import table_predictions
        >>> with dermedge.load("toy.dermedge") as model:
        ...     predictions = table_predictions(
        ...         read_table("lesions"), model.bundle.spec, model.run
        ...     )
        >>> predictions.outputs["diagnosis"].shape
        (80, 3)
    """
    pixels = preprocess_table(table, spec.preprocess) if images is None else images
    outputs = predict_table(run, _count_progress(pixels, len(table), progress), batch=batch)
    return Predictions(
        image_ids=tuple(table.frame["image_id"]),
        outputs=outputs,
        labels=diagnosis_labels(table.frame, spec),
        malignant=table.frame["malignant"].to_numpy(np.float64),
        groups=groups(table.frame).to_numpy(str),
        subgroups=subgroup_columns(table.frame),
        levels=severity_levels(table.frame, spec),
        masks=lesion_masks(table, spec) if outlines is None else outlines,
    )


def check_finite(predictions: Predictions) -> None:
    """Check that no output is NaN or infinite.

    Args:
        predictions: Outputs of a model on a table of images.

    Raises:
        EngineError: An output is NaN or infinite.

    Examples:
        >>> import dermedge
        >>> from dermedge.data.table import read_table
        >>> with dermedge.load("toy.dermedge") as model:
        ...     spec, table = model.bundle.spec, read_table("lesions")
        ...     check_finite(table_predictions(table, spec, model.run))
    """
    for name, output in predictions.outputs.items():
        # NaN compares as false, so it would count as a wrong prediction and hide a
        # broken artifact behind a low accuracy.
        bad = ~np.isfinite(output.reshape(len(output), -1)).all(axis=1)
        if bad.any():
            example = predictions.image_ids[int(bad.argmax())]
            raise EngineError(
                f"Output {name!r} is NaN or infinite for {int(bad.sum())} images, first for "
                f"{example!r}. Run `dermedge verify` on the bundle."
            )


def diagnosis_labels(frame: pd.DataFrame, spec: Spec) -> NDArray[np.int64]:
    """Return the diagnosis label [N] of every row, by index.

    A label covers its own diagnosis and narrower ones. The index is -1 if the diagnosis
    is unknown or no label covers it.

    Examples:
        >>> import pandas as pd
        >>> from dermedge import Bundle
        >>> frame = pd.DataFrame({"dx": ["nodular_melanoma", "nv", "psoriasis", ""]})
        >>> diagnosis_labels(frame, Bundle.open("toy.dermedge").spec).tolist()
        [1, 0, -1, -1]
    """
    ids = [label.id for label in spec.diagnosis.labels] if spec.diagnosis is not None else []
    # `project` walks up the taxonomy, so it runs once per diagnosis and not per row.
    covering = {dx: project(dx, ids) for dx in frame["dx"].unique() if dx}
    index = {dx: ids.index(label) for dx, label in covering.items() if label is not None}
    return np.array([index.get(dx, -1) for dx in frame["dx"]], np.int64)


def severity_levels(frame: pd.DataFrame, spec: Spec) -> NDArray[np.int64] | None:
    """Return the severity level [N] of every row.

    The level is an index into the ordinal task's labels, -1 if the level is unknown or
    not among the labels.

    Returns:
        The levels, None for a model without an ordinal task.

    Examples:
        >>> import pandas as pd
        >>> from dermedge import Label, Preprocess, Spec, Task
        >>> labels = (Label("0", "none"), Label("1", "mild"))
        >>> levels = Task("severity", "ordinal", labels=labels)
        >>> spec = Spec("grader", "1", (levels,), Preprocess(32))
        >>> frame = pd.DataFrame({"severity": [1.0, float("nan")]})
        >>> severity_levels(frame, spec).tolist()
        [1, -1]
    """
    task = next((task for task in spec.tasks if task.kind == "ordinal"), None)
    if task is None:
        return None
    # Levels are read as floats, because a column with empty cells is a float column.
    index = {label.id: k for k, label in enumerate(task.labels)}
    return np.array([index.get(f"{level:.0f}", -1) for level in frame["severity"]], np.int64)


def lesion_masks(table: Table, spec: Spec) -> NDArray[np.int8] | None:
    """Read the mask of every row on the grid of the model's output, [N, S/4, S/4].

    A cell is 1 inside the lesion and 0 outside. All cells are -1 if the mask is
    unknown.

    Returns:
        The masks, None for a model without a `segment` task or a table without masks.

    Raises:
        DataError: A mask cannot be used; see `masks.decode_mask`.

    Examples:
        >>> from dermedge import Preprocess, Spec, Task
        >>> from dermedge.data.table import read_table
        >>> spec = Spec("segmenter", "1", (Task("lesion", "segment"),), Preprocess(32))
        >>> lesion_masks(read_table("lesions"), spec).shape
        (80, 8, 8)
    """
    if not any(task.kind == "segment" for task in spec.tasks) or (table.frame["mask"] == "").all():
        return None
    grid = output_grid(spec.preprocess)
    unknown = np.full((grid.size, grid.size), -1, np.int8)
    masks = [
        read_mask(table.path(mask), grid, table.path(image)).astype(np.int8) if mask else unknown
        for mask, image in zip(table.frame["mask"], table.frame["image"], strict=True)
    ]
    return np.stack(masks)


def count_unmapped(frame: pd.DataFrame, spec: Spec) -> dict[str, int]:
    """Count the rows whose diagnosis no label of the model covers, by diagnosis.

    Examples:
        >>> import pandas as pd
        >>> from dermedge import Bundle
        >>> frame = pd.DataFrame({"dx": ["psoriasis", "nv", "psoriasis", ""]})
        >>> count_unmapped(frame, Bundle.open("toy.dermedge").spec)
        {'psoriasis': 2}
    """
    if spec.diagnosis is None:
        return {}
    unmapped = frame["dx"][diagnosis_labels(frame, spec) < 0]
    return dict(sorted(Counter(dx for dx in unmapped if dx).items()))


def preprocess_table(table: Table, spec: Preprocess) -> Iterator[NDArray[np.uint8]]:
    """Yield the network's input uint8 [S, S, 3] for every image of a table, in order.

    Threads decode the images ahead of the reader, at most 16 of them. Images are
    decoded at full scale, as in the conformance cases.

    Args:
        table: The images.
        spec: The model's preprocessing.

    Raises:
        DataError: An image is missing or unreadable.

    Examples:
        >>> from dermedge import Preprocess
        >>> from dermedge.data.table import read_table
        >>> next(preprocess_table(read_table("lesions"), Preprocess(64))).shape
        (64, 64, 3)
    """
    return map_images(table, lambda path, _: preprocess(path, spec, exact=True))


def map_images(
    table: Table, convert: Callable[[Path, str], NDArray[np.uint8]]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the result of a function for every image of a table, in order.

    Threads call the function ahead of the reader, for at most 16 images.

    Args:
        table: The images.
        convert: Function of an image's path and its `image_id`.

    Raises:
        DataError: An image is missing or unreadable.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> sizes = map_images(read_table("lesions"), lambda path, _: path.stat().st_size)
        >>> next(sizes) > 0
        True
    """

    def load(row: tuple[str, str]) -> NDArray[np.uint8]:
        try:
            return convert(table.path(row[0]), row[1])
        except ImageError as error:
            raise DataError(
                f"{error} Run `dermedge data check {table.root}` to list all such images."
            ) from error

    rows = list(zip(table.frame["image"], table.frame["image_id"], strict=True))
    return prefetch(load, rows, workers=min(WORKERS, usable_cpus()), ahead=AHEAD)


def _count_progress(
    images: Iterable[NDArray[np.uint8]], total: int, progress: Progress | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield images and report after each that the consumer has taken it."""
    for done, image in enumerate(images, start=1):
        yield image
        if progress is not None:
            progress(done, total, "images")
