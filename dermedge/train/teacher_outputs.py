"""Average the outputs of several models: probabilities, masks, embeddings and maps."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dermedge.models.network import POOLED
from dermedge_runtime.spec import Task

Array = NDArray[np.float32]
Outputs = Mapping[str, Array]


def concatenate_embeddings(parts: Sequence[Outputs]) -> Array:
    """Return the features of all members side by side, float32 [N, D].

    Example:
        >>> part = {POOLED: np.ones((2, 3), np.float16)}
        >>> concatenate_embeddings([part, part]).shape
        (2, 6)
    """
    return np.concatenate([part[POOLED] for part in parts], axis=1).astype(np.float32)


def resize_maps(maps: Array, side: int) -> Array:
    """Resize maps [N, C, h, w] bilinearly to [N, C, side, side].

    Example:
        >>> resize_maps(np.ones((1, 2, 4, 4), np.float32), 8).shape
        (1, 2, 8, 8)
    """
    if maps.shape[2:] == (side, side):
        return maps
    resized = F.interpolate(
        torch.from_numpy(maps), size=(side, side), mode="bilinear", align_corners=False
    )
    return resized.numpy()


def average_outputs(
    task: Task, logits: Sequence[Array], maps: Sequence[NDArray[np.intp] | None]
) -> Array:
    """Return the logits of the models' average for one task, [N, ...].

    Of a `classify` task these are the logarithms of the mean probabilities. Of an
    `embed` task they are the vectors side by side, with length 1.

    Args:
        task: The task of the student.
        logits: Calibrated logits of each model.
        maps: Index of the student's label for each label of each model, or None for
            equal labels.

    Example:
        >>> task, zeros = Task("malignancy", "binary"), np.zeros((2, 1), np.float32)
        >>> average_outputs(task, [zeros, zeros], [None, None]).tolist()
        [[0.0], [0.0]]
    """
    if task.kind == "embed":
        # The product of two such vectors is the mean cosine of the models.
        return np.concatenate(logits, axis=1) / np.float32(np.sqrt(len(logits)))
    if task.kind == "classify":
        classes = len(task.labels)
        pairs = zip(logits, maps, strict=True)
        return _log_mean([_map_classes(own, where, classes) for own, where in pairs])
    # log p and log (1 - p) of logits, without overflow.
    positive = _log_mean([-np.logaddexp(0, -own) for own in logits])
    negative = _log_mean([-np.logaddexp(0, own) for own in logits])
    return positive - negative


def _map_classes(logits: Array, where: NDArray[np.intp] | None, classes: int) -> Array:
    """Return the log probabilities [N, classes]; those of one label are summed."""
    logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    if where is None:
        return logs
    columns = [np.logaddexp.reduce(logs[:, where == k], axis=1) for k in range(classes)]
    return np.stack(columns, axis=1)


def _log_mean(logs: Sequence[Array]) -> Array:
    """Return the logarithm of the mean of numbers that are given as logarithms."""
    mean = np.logaddexp.reduce(np.stack(logs), axis=0) - np.log(len(logs))
    return np.asarray(mean, np.float32)
