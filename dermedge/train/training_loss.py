"""Losses of a batch that know their parts and may have parameters of their own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dermedge.train.distill_recipe import Weighting, check_weighting
from dermedge.train.supervision import labelled_losses, supervised_tasks
from dermedge_runtime.spec import Task

# A task that is learned completely would otherwise get a weight without limit: exp(3) is 20.
LOG_VARIANCE_LIMIT = 3.0


class TrainingLoss(nn.Module):
    """A loss of a batch, called with the network and the batch.

    Its parameters are trained with the network's and stored in the checkpoint. They are
    not part of the model.

    Attributes:
        parts: Value of each part in the last call, without its graph, so that a NaN
            can be named.

    Example:
        >>> TrainingLoss().metrics()
        {}
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Tensor] = {}

    def start(self, network: nn.Module) -> None:
        """Create the parameters that depend on the network, before the first step."""

    def metrics(self) -> dict[str, float]:
        """Return values that are recorded after each epoch, such as task weights."""
        return {}


class TaskWeights(nn.Module):
    """The sum of the tasks' losses, plain or weighted by learned uncertainty.

    `uncertainty` minimizes `exp(-s) * loss + s / 2` over s for each task, so a task with
    a large loss counts less. A task without a label in the batch does not change its s.

    Source: Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh
    losses", CVPR 2018.

    Args:
        tasks: Names of the tasks.
        weighting: `uniform` or `uncertainty`.

    Raises:
        UsageError: The weighting is unknown.

    Example:
        >>> weights = TaskWeights(["diagnosis", "lesion"], "uncertainty")
        >>> losses = {"diagnosis": torch.tensor(2.0), "lesion": torch.tensor(0.5)}
        >>> weights(losses).item(), weights.metrics()
        (2.5, {'weight_diagnosis': 1.0, 'weight_lesion': 1.0})
    """

    def __init__(self, tasks: Sequence[str], weighting: Weighting = "uniform") -> None:
        super().__init__()
        check_weighting(weighting)
        self.tasks = tuple(tasks)
        learned = weighting == "uncertainty"
        self.log_variances = nn.Parameter(torch.zeros(len(self.tasks))) if learned else None

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the losses by task."""
        if self.log_variances is None:
            plain = list(losses.values())
            return sum(plain[1:], plain[0])
        values = torch.stack([losses[name] for name in self.tasks])
        bounded = self.log_variances.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        # A loss of exactly 0 means that no image of the batch has a label of the task.
        known = (values.detach() != 0).to(values.dtype)
        return (torch.exp(-bounded) * values + known * bounded / 2).sum()

    def metrics(self) -> dict[str, float]:
        """Return the factor of each task, empty for `uniform`."""
        if self.log_variances is None:
            return {}
        limited = self.log_variances.detach().clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        factors = torch.exp(-limited).tolist()
        return {f"weight_{name}": f for name, f in zip(self.tasks, factors, strict=True)}


class LabelledLoss(TrainingLoss):
    """The loss of a labelled batch: images and one target per task.

    Args:
        tasks: Tasks of the model.
        log_prior: Log frequencies of the diagnoses [K].
        weighting: Weighting of the tasks.

    Example:
        >>> tasks = (Task("malignancy", "binary"),)
        >>> loss = LabelledLoss(tasks, torch.zeros(0))
        >>> outputs = {"malignancy": torch.zeros(2, 1)}
        >>> batch = torch.zeros(2, 8, 8, 3), torch.tensor([1.0, torch.nan])
        >>> value = loss(lambda image: outputs, batch)
        >>> round(value.item(), 3), list(loss.parts)
        (0.693, ['malignancy'])
    """

    def __init__(
        self, tasks: Sequence[Task], log_prior: Tensor, weighting: Weighting = "uniform"
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.register_buffer("log_prior", log_prior, persistent=False)
        names = [task.name for task in supervised_tasks(tasks).values()]
        self.weights = TaskWeights(names, weighting)

    def forward(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of a batch."""
        image, *targets = batch
        log_prior = self.get_buffer("log_prior")
        losses = labelled_losses(self.tasks, network(image), targets, log_prior)
        self.parts = {name: value.detach() for name, value in losses.items()}
        total: Tensor = self.weights(losses)
        return total

    def metrics(self) -> dict[str, float]:
        """Return the weights of the tasks, if they are learned."""
        return self.weights.metrics()
