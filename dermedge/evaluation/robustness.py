"""Measure how a model's accuracy changes on corrupted photographs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.table import Table
from dermedge.evaluation.corruptions import MOVING, SEVERITIES, corrupt
from dermedge.evaluation.report import CorruptionScores, Robustness
from dermedge.evaluation.scores import make_measures
from dermedge.evaluation.table_predictions import (
    check_finite,
    lesion_masks,
    map_images,
    table_predictions,
)
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Statistic
from dermedge_export.evaluation.predictions import Decoded, Predictions, decode_table
from dermedge_runtime.decode import decode
from dermedge_runtime.model import Model
from dermedge_runtime.preprocess import decode_image, preprocess
from dermedge_runtime.progress import Progress
from dermedge_runtime.quality import describe_quality, measure_quality
from dermedge_runtime.spec import Preprocess

Variant = tuple[str, int]
CLEAN: Variant = ("", 0)


def measure_robustness(
    model: Model,
    table: Table,
    names: Sequence[str],
    *,
    replicates: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """Measure a model on corrupted photographs, relative to the same photographs.

    Args:
        model: The model.
        table: Labelled images.
        names: Names of corruptions, as in `corruptions.CORRUPTIONS`.
        replicates: Bootstrap replicates over lesions or patients.
        seed: Random seed of the bootstrap.
        progress: Called with the number of corrupted images done.

    Raises:
        DataError: An image is missing or unreadable.
        EngineError: The engine failed.

    Example:
        >>> import dermedge
        >>> from dermedge.data.table import read_table
        >>> with dermedge.load("toy.dermedge") as model:
        ...     found = measure_robustness(
        ...         model, read_table("lesions"), ["jpeg"], replicates=10
        ...     )
        >>> [(entry.corruption, entry.severity) for entry in found.corruptions]
        [('jpeg', 1), ('jpeg', 2), ('jpeg', 3)]
    """
    variants = [CLEAN, *((name, severity) for name in names for severity in SEVERITIES)]
    outlines = lesion_masks(table, model.bundle.spec)
    measures: dict[tuple[Variant, str], Statistic] = {}
    flagged: dict[Variant, float | None] = {}
    for done, variant in enumerate(variants):
        report = _shift(progress, done * len(table), len(variants) * len(table))
        predictions, flagged[variant] = _predict(model, table, variant, outlines, report)
        decoded = decode_table(predictions, model.bundle.spec, model.bundle.postprocessing)
        for name, measure in _measures(decoded, predictions.malignant, variant).items():
            measures[variant, name] = measure
    drawn = metrics.bootstrap(predictions.groups, measures, replicates=replicates, seed=seed)
    point = {key: float(measure(np.ones(len(table)))) for key, measure in measures.items()}

    def score(variant: Variant) -> CorruptionScores:
        keys = [(variant, name) for one, name in measures if one == variant]
        clean = {(variant, name): (CLEAN, name) for _, name in keys}
        return CorruptionScores(
            *variant,
            metrics={key[1]: metrics.interval(point[key], drawn[key]) for key in keys},
            # All variants see the same replicates, so the differences are paired.
            change={
                key[1]: metrics.interval(
                    point[key] - point[clean[key]], drawn[key] - drawn[clean[key]]
                )
                for key in keys
                if clean[key] in measures
            },
            flagged=flagged[variant],
        )

    clean, *corrupted = map(score, variants)
    return Robustness(
        images=len(table),
        clean=clean.metrics,
        clean_flagged=clean.flagged,
        corruptions=tuple(corrupted),
    )


def corrupted_images(
    table: Table, spec: Preprocess, name: str, severity: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield the network's input for every image of a table after a corruption.

    A large photograph is first reduced by a whole factor; its short side stays at
    least twice S.

    Args:
        table: The images.
        spec: The model's preprocessing.
        name: Name of the corruption; "" corrupts nothing.
        severity: 1 to 3.

    Raises:
        DataError: An image is missing or unreadable.

    Example:
        >>> from dermedge.data.table import read_table
        >>> table = read_table("lesions")
        >>> next(corrupted_images(table, Preprocess(size=64), "hair", 2)).shape
        (64, 64, 3)
    """

    def convert(path: Path, image_id: str) -> NDArray[np.uint8]:
        picture = Image.fromarray(decode_image(path, spec))
        if (factor := min(picture.size) // (2 * spec.size)) > 1:
            picture = picture.reduce(factor)
        if name:
            picture = corrupt(picture, name, severity, image_id)
        return preprocess(picture, spec, exact=True)

    return map_images(table, convert)


def _predict(
    model: Model,
    table: Table,
    variant: Variant,
    outlines: NDArray[np.int8] | None,
    progress: Progress | None,
) -> tuple[Predictions, float | None]:
    """Return the predictions for one corruption, and the share of flagged images."""
    spec, fitted, limits = model.bundle.spec, model.bundle.postprocessing, model.bundle.quality
    flags: list[bool] = []

    def judged() -> Iterator[NDArray[np.uint8]]:
        for pixels in corrupted_images(table, spec.preprocess, *variant):
            if limits is not None:
                flags.append(bool(describe_quality(measure_quality(pixels), limits)))
            yield pixels

    predictions = table_predictions(
        table, spec, model.run, images=judged(), outlines=outlines, progress=progress
    )
    check_finite(predictions)
    if limits is None:
        return predictions, None
    for row in range(len(flags)):
        # The size of the lesion is known only after the engine.
        outputs = {name: values[row] for name, values in predictions.outputs.items()}
        flags[row] |= bool(decode(outputs, spec, fitted, limits=limits).quality)
    return predictions, float(np.mean(flags))


def _measures(
    decoded: Decoded, malignant: metrics.Floats, variant: Variant
) -> dict[str, Statistic]:
    """Return the metrics that the data can measure, as functions of weights."""
    everything = np.ones(len(malignant), bool)
    measures = make_measures(decoded, malignant, everything)
    if variant[0] in MOVING:
        measures.pop("dice", None)
    ones = np.ones(len(malignant))
    return {name: each for name, each in measures.items() if np.isfinite(each(ones))}


def _shift(progress: Progress | None, done: int, total: int) -> Progress | None:
    """Return a callback that counts the images of one variant among those of all."""
    if progress is None:
        return None
    return lambda now, _, unit: progress(done + now, total, unit)
