"""Add the `ood` task to a trained model: a head that is fitted, not trained."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dermedge.models.model_folder import TrainedModel
from dermedge.models.network import Network
from dermedge.models.ood import OOD, fit_distance
from dermedge.train.samples import RowIndices
from dermedge.train.training_data import EVALUATION_BATCH, TrainingData
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress

LARGEST = 20_000
"""Most train images that the head is fitted on: 100 MB of features of width 1280."""


def with_ood(
    model: TrainedModel, data: TrainingData, progress: Progress | None = None
) -> TrainedModel:
    """Return a model with the task `ood`, whose head is fitted on the train split.

    Args:
        model: Trained model on the CPU. Its network gets the head.
        data: The data that it was trained on.
        progress: Called after every batch.
    """
    rows = data.train
    if len(rows) > LARGEST:
        rows = np.sort(np.random.default_rng(data.seed).choice(rows, LARGEST, replace=False))
    features = _train_features(model.module, data, rows, progress)
    model.module.heads[OOD.name] = fit_distance(features)
    model.module.eval()
    return replace(model, spec=replace(model.spec, tasks=(*model.spec.tasks, OOD)))


@torch.no_grad()
def _train_features(
    network: Network, data: TrainingData, rows: RowIndices, progress: Progress | None
) -> Tensor:
    """Return pooled features [N, D] of some rows, without augmentation."""
    network.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    chunks = [rows[at : at + EVALUATION_BATCH] for at in range(0, len(rows), EVALUATION_BATCH)]
    parts = []
    for done, pixels in enumerate(prefetch(data.images, chunks), 1):
        parts.append(network.features(pixels.to(device)).float().cpu())
        if progress:
            progress(done, len(chunks), "train features for the task ood")
    network.to("cpu")
    return torch.cat(parts)
