"""Map the columns of a table to training targets, losses and val metrics of tasks."""

from collections.abc import Mapping, Sequence

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
from dermedge.train.samples import RowIndices, Samples
from dermedge.train.views import Coverage
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.predictions import ordinal_levels
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Task

Floats = NDArray[np.float32]
ValMetrics = dict[str, float]
SUPERVISED_KINDS = ("classify", "binary", "ordinal", "segment")


def supervised_tasks(tasks: Sequence[Task]) -> dict[str, Task]:
    """Return the tasks that a table has labels for, by kind.

    The first of them selects the best epoch. `malignancy` is the only binary task that
    has a column.

    Example:
        >>> tasks = [Task("features", "embed"), Task("lesion", "segment")]
        >>> list(supervised_tasks(tasks))
        ['segment']
    """
    supervised = {}
    for kind in SUPERVISED_KINDS:
        of_kind = [
            task
            for task in tasks
            if task.kind == kind and (kind != "binary" or task.name == "malignancy")
        ]
        if of_kind:
            supervised[kind] = of_kind[0]
    return supervised


def training_target(
    task: Task,
    tasks: Sequence[Task],
    samples: Samples,
    rows: RowIndices,
    masks: Coverage | None,
) -> Tensor:
    """Return the target of some rows for one task, in the form of `labelled_losses`.

    Args:
        task: One of `tasks`. A task without a column gets NaN.
        tasks: All tasks of the model.
        samples: The table.
        rows: Row indices, [N].
        masks: Masks of these rows, [N, S/4, S/4], or None without a segmentation.

    Returns:
        Class or level indices int64 [N], malignancy float32 [N], or masks float32
        [N, S/4, S/4].
    """
    if supervised_tasks(tasks).get(task.kind) is task:
        if task.kind == "segment" and masks is not None:
            return torch.from_numpy(masks)
        if task.kind == "classify":
            return torch.from_numpy(samples.labels[rows])
        if task.kind == "binary":
            return torch.from_numpy(samples.malignant[rows])
        if task.kind == "ordinal":
            return torch.from_numpy(samples.severity[rows])
    return torch.full((len(rows),), float("nan"))


def labelled_losses(
    tasks: Sequence[Task],
    outputs: Mapping[str, Tensor],
    targets: Sequence[Tensor],
    log_prior: Tensor,
) -> dict[str, Tensor]:
    """Return the loss of each task that a table has labels for, by name.

    Without a label in the batch it is exactly 0.

    Args:
        tasks: Tasks of the model.
        outputs: The network's outputs by task.
        targets: One target per task, in the order of `tasks`.
        log_prior: Log frequencies of the diagnoses [K], as in `adjusted_cross_entropy`.
    """
    supervised = supervised_tasks(tasks).values()
    losses = {}
    for task, target in zip(tasks, targets, strict=True):
        if task not in supervised:
            continue
        logits = outputs[task.name]
        if task.kind == "classify":
            losses[task.name] = adjusted_cross_entropy(logits, target, log_prior.to(target.device))
        elif task.kind == "binary":
            losses[task.name] = masked_binary_cross_entropy(logits, target)
        elif task.kind == "ordinal":
            losses[task.name] = cumulative_cross_entropy(logits, target)
        else:
            losses[task.name] = dice_cross_entropy(logits, target)
    return losses


def check_val(tasks: Sequence[Task], samples: Samples, rows: RowIndices) -> None:
    """Check that the val rows can rank epochs by the first supervised task.

    Raises:
        DataError: No task has a column, or the val rows lack the labels that its score
            needs.
    """
    supervised = supervised_tasks(tasks)
    if not supervised:
        names = ", ".join(task.name for task in tasks)
        raise DataError(
            f"A table has no column for the model's tasks ({names}). Fine-tune the model on "
            "labels first."
        )
    kind = next(iter(supervised))
    if kind == "classify" and not (samples.labels[rows] >= 0).any():
        raise DataError(
            "No val row has a diagnosis of the model's labels. Fill the table's dx column."
        )
    if kind == "binary" and not {0, 1} <= set(samples.malignant[rows].tolist()):
        raise DataError(
            "The val rows do not hold both malignant and benign lesions. Fill the malignant column."
        )
    if kind == "ordinal" and len(set(samples.severity[rows].tolist()) - {-1}) < 2:
        raise DataError(
            "The val rows hold fewer than two of the model's levels. Fill the table's "
            "severity column."
        )
    if kind == "segment" and not any(samples.masks[row] is not None for row in rows):
        raise DataError("No val row has a mask. Fill the table's mask column.")


def val_metrics(
    tasks: Sequence[Task],
    outputs: Mapping[str, Floats],
    samples: Samples,
    rows: RowIndices,
    masks: Coverage | None,
) -> ValMetrics:
    """Return metrics on val rows that `check_val` has accepted.

    The metric `score` is the first of these that the model has:

    - balanced accuracy of the diagnosis,
    - balanced accuracy of the malignancy,
    - quadratic weighted kappa of the severity,
    - mean Dice coefficient of the masks that have a lesion.

    `mask_false_alarms` is the share of empty masks for which a lesion is predicted.
    Metrics that are undefined on these rows are left out.

    Args:
        tasks: Tasks of the model.
        outputs: Outputs [N, ...] by task.
        samples: The table.
        rows: Row indices, [N].
        masks: Masks of these rows, [N, S/4, S/4], or None without a segmentation.
    """
    supervised = supervised_tasks(tasks)
    values: ValMetrics = {}
    if "classify" in supervised:
        values |= _diagnosis_metrics(outputs[supervised["classify"].name], samples.labels[rows])
    if "binary" in supervised:
        logits = outputs[supervised["binary"].name]
        values |= _malignancy_metrics(logits, samples.malignant[rows], first=not values)
    if "ordinal" in supervised:
        logits = outputs[supervised["ordinal"].name]
        values |= _severity_metrics(logits, samples.severity[rows], first=not values)
    if "segment" in supervised and masks is not None:
        logits = outputs[supervised["segment"].name]
        values |= _segmentation_metrics(logits, masks, first=not values)
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _diagnosis_metrics(logits: Floats, labels: NDArray[np.int64]) -> ValMetrics:
    known, predicted = labels >= 0, logits.argmax(1)
    balanced = float(metrics.balanced_accuracy(labels[known], predicted[known], logits.shape[1]))
    accuracy = float(metrics.accuracy(labels[known], predicted[known]))
    return {"score": balanced, "balanced_accuracy": balanced, "accuracy": accuracy}


def _malignancy_metrics(logits: Floats, malignant: Floats, *, first: bool) -> ValMetrics:
    known = ~np.isnan(malignant)
    truth, scores = malignant[known].astype(np.int64), logits[known, 0]
    values = {"malignant_auroc": float(metrics.auroc(truth == 1, scores))}
    if not first:
        return values
    balanced = float(metrics.balanced_accuracy(truth, (scores >= 0).astype(np.int64), 2))
    return {"score": balanced, "balanced_accuracy": balanced, **values}


def _severity_metrics(logits: Floats, levels: NDArray[np.int64], *, first: bool) -> ValMetrics:
    known = levels >= 0
    truth, predicted = levels[known], ordinal_levels(logits[known])
    kappa = float(metrics.quadratic_weighted_kappa(truth, predicted))
    values = {
        "severity_kappa": kappa,
        "severity_mae": float(metrics.mean_absolute_error(truth, predicted)),
    }
    return {"score": kappa, **values} if first else values


def _segmentation_metrics(logits: Floats, masks: Coverage, *, first: bool) -> ValMetrics:
    known = ~np.isnan(masks).any(axis=(1, 2))
    truth, predicted = masks[known] >= 0.5, logits[known, 0] >= 0
    lesion = truth.any(axis=(1, 2))
    overlap = float(metrics.weighted_mean(metrics.dice(truth[lesion], predicted[lesion])))
    values = {"score": overlap} if first else {}
    if not lesion.all():
        values["mask_false_alarms"] = float(np.mean(predicted[~lesion].any(axis=(1, 2))))
    return values | {"dice": overlap}
