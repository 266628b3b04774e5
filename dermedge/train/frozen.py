"""Train only the heads of a network, on stored features of its frozen backbone.

A frozen teacher with linear heads is often less accurate than a fine-tuned one, and
still a better teacher (Marrie et al., "On good practices for task-specific distillation
of large pretrained visual models", TMLR 2024).
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dermedge.models.model_folder import TrainedModel
from dermedge.models.network import POOLED, Coral
from dermedge.train.fill_teacher_cache import fill_teacher_cache
from dermedge.train.finite import check_loss
from dermedge.train.loop import FitResult
from dermedge.train.run_record import CACHE, RunRecord
from dermedge.train.supervision import (
    labelled_losses,
    supervised_tasks,
    training_target,
    val_metrics,
)
from dermedge.train.teacher_cache import TeacherCache
from dermedge.train.teacher_member import Member
from dermedge.train.teachers import Teacher
from dermedge.train.training_data import EVALUATION_BATCH, TrainingData
from dermedge_runtime.errors import UsageError
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Task

# Views of each train image. Each costs one pass of the backbone.
VIEWS = 4
# Weight decays, the largest first: each fit starts from the previous one. The val loss
# selects one for each task.
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
STEPS = 100
EPSILON = 1e-6
REMEDY = "Use another backbone or other initial weights."


def check_heads(tasks: tuple[Task, ...]) -> None:
    """Check that all tasks can be learned from pooled features.

    Raises:
        UsageError: There is a `segment` task.

    Example:
        >>> check_heads((Task("malignancy", "binary"),))
    """
    if any(task.kind == "segment" for task in tasks):
        raise UsageError(
            "A frozen backbone trains no segmentation here, because only pooled features are "
            "stored. Leave the task out, or train without --freeze."
        )


def fit_heads(
    model: TrainedModel,
    data: TrainingData,
    run: RunRecord,
    *,
    balance: bool,
    progress: Progress | None = None,
) -> FitResult:
    """Fit the heads of a model in place by L-BFGS, each on its own.

    The features of four views of each train image are stored in the run's folder, so a
    killed run continues. They are standardised for the fit only.

    Args:
        model: The model; its backbone stays as it is.
        data: Train and val rows.
        run: The open run.
        balance: Train for balanced accuracy, by logit adjustment.
        progress: Called after every batch of views.

    Returns:
        Metrics on val, and the selected weight decay of each task.

    Raises:
        DataError: An image cannot be read, or the features or a loss are not finite.
    """
    member = Member(model, run.folder, run.fingerprint)
    teacher = Teacher(model.spec, (member,))
    cache = TeacherCache.open(run.folder / CACHE, data.samples, teacher, views=VIEWS)
    fill_teacher_cache(cache, data.train, progress)
    features = np.concatenate([cache.read_embeddings(data.train, view) for view in range(VIEWS)])
    parts = np.array_split(data.val, -(-len(data.val) // EVALUATION_BATCH))
    val = torch.from_numpy(
        np.concatenate([member.run(data.images(rows).numpy())[POOLED] for rows in parts])
    )
    mean, scale = features.mean(0), features.std(0) + EPSILON
    train = torch.from_numpy((features - mean) / scale)
    center, width = torch.from_numpy(mean), torch.from_numpy(scale)
    network, log_prior = model.module.to("cpu"), data.log_prior(balance=balance)
    penalties: dict[str, float] = {}
    for task in supervised_tasks(data.spec.tasks).values():
        targets = [
            training_target(task, data.spec.tasks, data.samples, rows, None)
            for rows in (data.train, data.val)
        ]
        head, penalties[f"weight_decay_{task.name}"] = _fit_head(
            task,
            network.heads[task.name],
            (train, targets[0].repeat(VIEWS)),
            ((val - center) / width, targets[1]),
            log_prior,
        )
        _fold(*_linear_parts(head), center, width)
        network.heads[task.name].load_state_dict(head.state_dict())
    network.eval()
    with torch.no_grad():
        outputs = {name: head(val).numpy() for name, head in network.heads.items()}
    metrics = val_metrics(data.spec.tasks, outputs, data.samples, data.val, None)
    return FitResult(0, metrics, ({**metrics, **penalties},), None)


def _fit_head(
    task: Task,
    start: nn.Module,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    log_prior: Tensor,
) -> tuple[nn.Module, float]:
    """Return the head with the lowest val loss, and its weight decay."""
    head = copy.deepcopy(start)
    weights, _ = _linear_parts(head)
    # From zero weights, the convex problem has one solution, whatever the seed.
    nn.init.zeros_(weights)

    def loss(data: tuple[Tensor, Tensor]) -> Tensor:
        outputs: Mapping[str, Tensor] = {task.name: head(data[0])}
        return labelled_losses([task], outputs, [data[1]], log_prior)[task.name]

    found: list[tuple[float, float, dict[str, Tensor]]] = []
    for penalty in PENALTIES:
        optimizer: Any = torch.optim.LBFGS(
            head.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe"
        )

        def closure(penalty: float = penalty, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(train) + penalty / 2 * weights.square().sum()
            torch.autograd.backward(value)
            return value

        optimizer.step(closure)
        with torch.no_grad():
            value = loss(val)
        check_loss(value, {}, f"in the fit of {task.name} with weight decay {penalty:g}", REMEDY)
        found.append((value.item(), penalty, copy.deepcopy(head.state_dict())))
    _, penalty, state = min(found, key=lambda one: one[0])
    head.load_state_dict(state)
    return head, penalty


def _linear_parts(head: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weights [K, D] and biases of a head."""
    if isinstance(head, Coral):
        return head.score.weight, head.biases
    assert isinstance(head, nn.Linear)
    return head.weight, head.bias


@torch.no_grad()
def _fold(weights: Tensor, biases: Tensor, mean: Tensor, scale: Tensor) -> None:
    """Change a head of standardised features to one of plain features."""
    biases.sub_(weights @ (mean / scale))
    weights.div_(scale)
