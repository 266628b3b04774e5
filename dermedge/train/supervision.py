"""What a table knows about a model's tasks: targets to learn from, their loss, and scores on val."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dermedge.train.losses import (
    adjusted_cross_entropy,
    cumulative_cross_entropy,
    dice_cross_entropy,
    masked_binary_cross_entropy,
)
from dermedge.train.samples import Samples
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.predictions import ordinal_levels
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Task

Rows = NDArray[np.intp]
Truth = NDArray[Any]
ValScores = dict[str, float]


def supervised_tasks(tasks: Sequence[Task]) -> dict[str, Task]:
    """Kind -> the task of that kind that a table tells about, in the order in which they score a model."""
    found = {}
    for kind in ("classify", "binary", "ordinal", "segment"):
        of_kind = [
            task
            for task in tasks
            if task.kind == kind and (kind != "binary" or task.name == "malignancy")
        ]
        if of_kind:
            found[kind] = of_kind[0]
    return found


def training_target(
    task: Task, tasks: Sequence[Task], samples: Samples, rows: Rows, masks: Truth | None
) -> Tensor:
    """The target of some rows for one task, as `learned_loss` takes it; `masks` [N, S/4, S/4] are theirs.

    A task that no column tells about gets NaN.
    """
    if supervised_tasks(tasks).get(task.kind) is task:
        if task.kind == "segment" and masks is not None:
            return torch.from_numpy(masks)
        if task.kind != "segment":
            columns: dict[str, Truth] = {"classify": samples.labels, "binary": samples.malignant}
            return torch.from_numpy(columns.get(task.kind, samples.severity)[rows])
    return torch.full((len(rows),), float("nan"))


def learned_loss(
    tasks: Sequence[Task],
    outputs: Mapping[str, Tensor],
    targets: Sequence[Tensor],
    log_prior: Tensor,
) -> Tensor:
    """The labelled losses of all tasks that a table tells about, summed; `targets` are in the order of `tasks`.

    `log_prior` [K] shifts the diagnosis, as in `adjusted_cross_entropy`.
    """
    known = supervised_tasks(tasks).values()
    losses = []
    for task, truth in zip(tasks, targets, strict=True):
        if task not in known:
            continue
        logits = outputs[task.name]
        if task.kind == "classify":
            losses.append(adjusted_cross_entropy(logits, truth, log_prior.to(truth.device)))
        elif task.kind == "binary":
            losses.append(masked_binary_cross_entropy(logits, truth))
        elif task.kind == "ordinal":
            losses.append(cumulative_cross_entropy(logits, truth))
        else:
            losses.append(dice_cross_entropy(logits, truth))
    return sum(losses[1:], losses[0])


def check_val(tasks: Sequence[Task], samples: Samples, rows: Rows) -> None:
    """Raise DataError if the rows cannot tell a better model from a worse one by the task that scores it."""
    known = supervised_tasks(tasks)
    if not known:
        names = ", ".join(task.name for task in tasks)
        raise DataError(
            f"No column of a table tells about the model's tasks ({names}): fine-tune it on labels first."
        )
    kind = next(iter(known))
    if kind == "classify" and not (samples.labels[rows] >= 0).any():
        raise DataError(
            "No val row has a diagnosis that the model knows: fill the table's dx column."
        )
    if kind == "binary" and not {0, 1} <= set(samples.malignant[rows].tolist()):
        raise DataError(
            "The val rows do not hold both malignant and benign lesions: fill the malignant column."
        )
    if kind == "ordinal" and len(set(samples.severity[rows].tolist()) - {-1}) < 2:
        raise DataError(
            "The val rows hold fewer than two of the model's levels: fill the table's severity column."
        )
    if kind == "segment" and not any(samples.masks[row] is not None for row in rows):
        raise DataError("No val row has a mask: fill the table's mask column.")


def val_scores(
    tasks: Sequence[Task],
    outputs: Mapping[str, Any],
    samples: Samples,
    rows: Rows,
    masks: Truth | None,
) -> ValScores:
    """Metrics of `outputs` [N, ...] by task, on rows that `check_val` has passed; what these do not tell is left out.

    `score` is the balanced accuracy of the diagnosis; else that of the malignancy, the quadratic weighted kappa of the
    severity, or the mean Dice coefficient, whichever is the first that there is.
    """
    known = supervised_tasks(tasks)
    found: ValScores = {}
    if "classify" in known:
        found |= _diagnosis(outputs[known["classify"].name], samples.labels[rows])
    if "binary" in known:
        found |= _malignancy(
            outputs[known["binary"].name], samples.malignant[rows], first=not found
        )
    if "ordinal" in known:
        found |= _severity(outputs[known["ordinal"].name], samples.severity[rows], first=not found)
    if "segment" in known and masks is not None:
        found |= _segmentation(outputs[known["segment"].name], masks, first=not found)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _diagnosis(logits: Truth, labels: Truth) -> ValScores:
    known, predicted = labels >= 0, logits.argmax(1)
    balanced = float(metrics.balanced_accuracy(labels[known], predicted[known], logits.shape[1]))
    share = float(metrics.accuracy(labels[known], predicted[known]))
    return {"score": balanced, "balanced_accuracy": balanced, "accuracy": share}


def _malignancy(logits: Truth, malignant: Truth, *, first: bool) -> ValScores:
    known = ~np.isnan(malignant)
    truth, scores = malignant[known].astype(np.int64), logits[known, 0]
    found = {"malignant_auroc": float(metrics.auroc(truth == 1, scores))}
    if not first:
        return found
    balanced = float(metrics.balanced_accuracy(truth, (scores >= 0).astype(np.int64), 2))
    return {"score": balanced, "balanced_accuracy": balanced, **found}


def _severity(logits: Truth, levels: Truth, *, first: bool) -> ValScores:
    known = levels >= 0
    truth, predicted = levels[known], ordinal_levels(logits[known])
    kappa = float(metrics.quadratic_weighted_kappa(truth, predicted))
    found = {
        "severity_kappa": kappa,
        "severity_mae": float(metrics.mean_absolute_error(truth, predicted)),
    }
    return {"score": kappa, **found} if first else found


def _segmentation(logits: Truth, masks: Truth, *, first: bool) -> ValScores:
    known = ~np.isnan(masks).any(axis=(1, 2))
    overlap = float(metrics.weighted_mean(metrics.dice(masks[known] >= 0.5, logits[known, 0] >= 0)))
    return {"score": overlap, "dice": overlap} if first else {"dice": overlap}
