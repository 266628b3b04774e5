"""Add the `ood` task to a trained model: a head that is fitted, not trained."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermedge.models.model_folder import TrainedModel
from dermedge.models.network import Network
from dermedge.models.ood import OOD, fit_distance, fit_foreign
from dermedge.train.options import TrainingOptions
from dermedge.train.samples import RowIndices, Samples, read_samples
from dermedge.train.training_data import EVALUATION_BATCH, TrainingData
from dermedge.train.views import Frames
from dermedge_export.synthetic.foreign import KINDS, draw_foreign
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.printable import printable
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Preprocess

LOGGER = logging.getLogger(__name__)
LARGEST = 20_000
"""Most images of one kind that the head is fitted on: 100 MB of features of width 1280."""
DRAWN = range(10_000, 10_000 + 50 * len(KINDS))
"""Seeds of the drawn images that a head without tables is fitted on. The gate draws others."""


def read_foreign(options: TrainingOptions, samples: Samples, *, fits: bool) -> list[Samples]:
    """Return the tables of foreign images, and warn where clinical ones are missing.

    Args:
        options: The options, with the tables.
        samples: The data that the model is trained on.
        fits: Whether the model gets the task `ood`.

    Raises:
        DataError: A table cannot be read, has no train rows, or shares images with the
            training data.
        UsageError: There are tables, but the model does not get the task.
    """
    if options.foreign and not fits:
        raise UsageError(
            "Foreign images are given, but only a student with the task ood is fitted to them. "
            "Train a student with the task, or omit --foreign."
        )
    tables = [read_samples(table, ())[0] for table in options.foreign]
    used = set(samples.digests)
    for table in tables:
        if not len(table.rows("train")):
            raise DataError(
                f"{table.name} has no train rows to fit the OOD score on. Give its rows the split "
                "train, or omit the column."
            )
        if shared := used & set(table.digests):
            raise DataError(
                f"{len(shared)} images of {table.name} are also in the training data. Remove them "
                "from one of the two tables."
            )
    modalities = set(samples.modalities[samples.rows("train")].tolist())
    if fits and not tables and modalities == {"dermoscopic"}:
        LOGGER.warning(
            "Warning: all train images are dermoscopic, so the OOD score will not flag most "
            "clinical photographs. Give a table of clinical photographs with --foreign."
        )
    return tables


def check_foreign(tables: Sequence[Samples], preprocess: Preprocess) -> None:
    """Decode the train images of the tables once, because training takes hours.

    Args:
        tables: Tables of `read_foreign`.
        preprocess: Preprocessing of the model.

    Raises:
        DataError: An image cannot be decoded.
    """
    for table in tables:
        frames = Frames(table.paths, preprocess)
        for row in table.rows("train"):
            frames.centred(int(row))


def with_ood(
    model: TrainedModel,
    data: TrainingData,
    foreign: Sequence[Samples] = (),
    progress: Progress | None = None,
) -> TrainedModel:
    """Return a model with the task `ood`, whose head is fitted on the train split.

    The model's lineage gets the entry `ood`: what the head was fitted on.

    Args:
        model: Trained model on the CPU. Its network gets the head.
        data: The data that it was trained on.
        foreign: Tables of images that the score must flag. Their train rows are used.
            Without a table, drawn images are used.
        progress: Called after every batch.
    """
    preprocess = model.spec.preprocess

    def features(load: Callable[[RowIndices], Tensor], rows: RowIndices, name: str) -> Tensor:
        if len(rows) > LARGEST:
            rows = np.sort(np.random.default_rng(data.seed).choice(rows, LARGEST, replace=False))
        return _features(model.module, load, rows, progress, f"{name} features for the task ood")

    def draw(seeds: RowIndices) -> Tensor:
        drawn = [draw_foreign(int(seed), preprocess.size) for seed in seeds]
        return torch.from_numpy(np.stack(drawn))

    def of_table(table: Samples) -> Tensor:
        frames = Frames(table.paths, preprocess)
        return features(
            lambda rows: torch.from_numpy(np.stack([frames.centred(int(row)) for row in rows])),
            table.rows("train"),
            table.name,
        )

    train, val = (features(data.images, getattr(data, name), name) for name in ("train", "val"))
    if foreign:
        known = torch.cat([of_table(table) for table in foreign])
    else:
        known = features(draw, np.array(DRAWN), "drawn")
    head = fit_distance(train)
    fit_foreign(head, train, val, known)
    model.module.heads[OOD.name] = head
    model.module.eval()
    lineage = {**model.spec.lineage, "ood": _describe(foreign)}
    return replace(model, spec=replace(model.spec, tasks=(*model.spec.tasks, OOD), lineage=lineage))


def _describe(foreign: Sequence[Samples]) -> dict[str, Any]:
    """Return the entry in the lineage: the foreign images that a head was fitted on."""
    tables = [
        {
            "name": printable(table.name),
            "digest": table.table_digest,
            "licences": list(table.licences) or ["not stated in the table"],
            "images": len(table.rows("train")),
            "modalities": dict(
                sorted(Counter(table.modalities[table.rows("train")].tolist()).items())
            ),
        }
        for table in foreign
    ]
    return {"drawn": 0 if foreign else len(DRAWN), "tables": tables}


@torch.no_grad()
def _features(
    network: Network,
    load: Callable[[RowIndices], Tensor],
    rows: RowIndices,
    progress: Progress | None,
    text: str,
) -> Tensor:
    """Return pooled features [N, D] of some rows, without augmentation."""
    network.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    chunks = [rows[at : at + EVALUATION_BATCH] for at in range(0, len(rows), EVALUATION_BATCH)]
    parts = []
    for done, pixels in enumerate(prefetch(load, chunks), 1):
        parts.append(network.features(pixels.to(device)).float().cpu())
        if progress:
            progress(done, len(chunks), text)
    network.to("cpu")
    return torch.cat(parts)
