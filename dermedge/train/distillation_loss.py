"""The loss of a distillation: the weighted terms of a recipe, from one pass of the student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermedge.models.network import LAST_MAP, POOLED, Network
from dermedge.train.distill_recipe import DistillRecipe, Term
from dermedge.train.distillation_losses import (
    OrthogonalProjector,
    cosine_distance,
    decoupled_divergence,
    map_distance,
    mask_divergence,
    relational_angle,
    relational_distance,
    standardised_divergence,
)
from dermedge.train.losses import distillation_loss, widen, zero_of
from dermedge.train.supervision import labelled_losses
from dermedge.train.training_loss import TaskWeights, TrainingLoss
from dermedge_runtime.spec import Task

# Output of the teacher in a batch -> output of the student's network.
EXTRA = {"embedding": POOLED, "map": LAST_MAP}


@dataclass(frozen=True)
class DistillationBatch:
    """One batch of a distillation, by name.

    Attributes:
        image: Images [N, S, S, 3].
        targets: A target per task, in the form of `labelled_losses`.
        soft: The teacher's output by task. A row is NaN where the teacher has none.
        features: The teacher's `embedding` [N, E] and `map` [N, C, h, w], where the
            recipe needs them.

    Example:
        >>> tasks = (Task("malignancy", "binary"),)
        >>> parts = torch.zeros(2, 8, 8, 3), torch.ones(2), torch.zeros(2, 1)
        >>> list(DistillationBatch.read(parts, tasks, ()).soft)
        ['malignancy']
    """

    image: Tensor
    targets: tuple[Tensor, ...]
    soft: Mapping[str, Tensor]
    features: Mapping[str, Tensor]

    @classmethod
    def read(
        cls, parts: Sequence[Tensor], tasks: Sequence[Task], needs: Sequence[str]
    ) -> "DistillationBatch":
        """Read a tuple of images, targets, teacher outputs, embedding and map."""
        image, *rest = parts
        count = len(tasks)
        names = [task.name for task in tasks]
        return cls(
            image,
            tuple(rest[:count]),
            dict(zip(names, rest[count : 2 * count], strict=True)),
            dict(zip(needs, rest[2 * count :], strict=True)),
        )

    def mix(self, tasks: Sequence[Task], partner: Tensor, share: float) -> "DistillationBatch":
        """Return images and teacher outputs, each mixed with a partner's.

        The targets stay those of the first image; `DistillationLoss` weighs the losses of
        both partners.

        Args:
            tasks: Tasks of the model.
            partner: Index of each image's partner, [N].
            share: Share of the first image.
        """
        image = self.image.float()
        return DistillationBatch(
            torch.lerp(image[partner], image, share),
            self.targets,
            {t.name: mix_logits(t, self.soft[t.name], partner, share) for t in tasks},
            {name: torch.lerp(f[partner], f, share) for name, f in self.features.items()},
        )


def mix_logits(task: Task, logits: Tensor, partner: Tensor, share: float) -> Tensor:
    """Return logits of the mean of two images' probabilities; embeddings mix directly.

    Args:
        task: The task.
        logits: The teacher's outputs, [N, ...].
        partner: Index of each image's partner, [N].
        share: Share of the first image, above 0 and below 1.

    Example:
        >>> task, logits = Task("malignancy", "binary"), torch.tensor([[2.0], [-2.0]])
        >>> mix_logits(task, logits, torch.tensor([1, 0]), 0.5).abs().max().item() < 1e-6
        True
    """
    logits = widen(logits)
    if task.kind == "embed":
        return F.normalize(torch.lerp(logits[partner], logits, share), dim=1)

    def mean(logs: Tensor) -> Tensor:
        shares = logs.new_tensor([share, 1 - share]).log()
        return torch.logaddexp(logs + shares[0], logs[partner] + shares[1])

    if task.kind == "classify":
        return mean(logits.log_softmax(1))
    return mean(F.logsigmoid(logits)) - mean(F.logsigmoid(-logits))


class DistillationLoss(TrainingLoss):
    """The weighted terms of a recipe.

    Its projectors are trained with the student and kept in the checkpoint. They are not
    part of the student.

    Args:
        tasks: Tasks of the student.
        recipe: Terms and weights.
        log_prior: Log frequencies of the diagnoses [K].
        widths: Width of the teacher's `embedding` and channels of its `map`, where the
            recipe needs them.

    Example:
        >>> from dermedge.models.backbone import Backbone
        >>> from dermedge.train.distill_recipe import read_recipe
        >>> tasks = (Task("malignancy", "binary"),)
        >>> network = Network(Backbone("test_efficientnet"), tasks)
        >>> loss = DistillationLoss(
        ...     tasks, read_recipe("features"), torch.zeros(0), {"embedding": 8}
        ... )
        >>> loss.start(network)
        >>> images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
        >>> soft, embedding = torch.zeros(4, 1), torch.rand(4, 8)
        >>> value = loss(network, (images, torch.ones(4), soft, embedding))
        >>> list(loss.parts)
        ['labels', 'standardised', 'embedding']
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        recipe: DistillRecipe,
        log_prior: Tensor,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.tasks, self.recipe, self.widths = tuple(tasks), recipe, dict(widths or {})
        self.needs = [name for name in EXTRA if name in recipe.needs]
        self.register_buffer("log_prior", log_prior, persistent=False)
        self.weights = TaskWeights([task.name for task in tasks], recipe.task_weights)
        self.projectors = nn.ModuleDict()
        self.embedding = POOLED

    def start(self, network: nn.Module) -> None:
        """Create a projector from the student's width to the teacher's, where needed."""
        assert isinstance(network, Network)
        width = network.embedding_width
        if width is not None:  # Otherwise nothing would train the map of the embedding.
            self.embedding = next(task.name for task in self.tasks if task.kind == "embed")
        own = {
            "embedding": width or network.backbone.num_features_out,
            "map": network.backbone.num_features_map,
        }
        for term in self.recipe.active:
            if term.loss in own:
                projector = OrthogonalProjector(own[term.loss], self.widths[term.loss])
                self.projectors[term.loss] = projector

    def forward(self, network: nn.Module, parts: Sequence[Tensor]) -> Tensor:
        """Return the loss of a batch, and set `parts`.

        Args:
            network: The student, which may be wrapped by Fabric.
            parts: Images, a target per task, a teacher output per task, then `embedding`
                and `map` if the recipe needs them.
        """
        batch = DistillationBatch.read(parts, self.tasks, self.needs)
        partner, share = None, 1.0
        if self.recipe.mixup:
            partner, share = self._draw_mix(len(batch.image))
            batch = batch.mix(self.tasks, partner.to(batch.image.device), share)
        outputs = network(batch.image, [EXTRA[name] for name in self.needs])
        outputs = {name: widen(output) for name, output in outputs.items()}
        self.parts = {}
        by_task = {task.name: zero_of(outputs[task.name]) for task in self.tasks}
        features = torch.zeros((), device=batch.image.device)
        for term in self.recipe.active:
            if term.loss in ("embedding", "distances", "angles", "map"):
                value = self._compare_features(term, outputs, batch)
                features = features + term.weight * value
                self.parts[term.loss] = value.detach()
                continue
            if term.loss == "labels":
                values = self._compare_labels(outputs, batch.targets, partner, share)
            else:
                values = self._compare_logits(term, outputs, batch)
            for name, value in values.items():
                by_task[name] = by_task[name] + term.weight * value
            self.parts[term.loss] = torch.stack(list(values.values())).sum().detach()
        total: Tensor = self.weights(by_task) + features
        return total

    def metrics(self) -> dict[str, float]:
        """Return the weights of the tasks, if they are learned."""
        return self.weights.metrics()

    def _draw_mix(self, count: int) -> tuple[Tensor, float]:
        """Return a partner of each image, and the share of the image itself.

        Torch's generator on the CPU is seeded per epoch, so a resumed run repeats it.
        """
        alpha = torch.tensor(self.recipe.mixup)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        # The larger share is the image's own: its label is the target class of `dkd`. A
        # share of exactly 1 has no logarithm of its rest.
        return torch.randperm(count), min(max(share, 1 - share), 1 - 1e-6)

    def _compare_labels(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Tensor],
        partner: Tensor | None,
        share: float,
    ) -> dict[str, Tensor]:
        """Return the labelled loss by task; of mixed images, for both labels."""
        log_prior = self.get_buffer("log_prior")
        own = labelled_losses(self.tasks, outputs, targets, log_prior)
        if partner is None:
            return own
        others = [target[partner.to(target.device)] for target in targets]
        other = labelled_losses(self.tasks, outputs, others, log_prior)
        return {name: torch.lerp(other[name], own[name], share) for name in own}

    def _compare_logits(
        self, term: Term, outputs: Mapping[str, Tensor], batch: DistillationBatch
    ) -> dict[str, Tensor]:
        """Return the loss by task over the rows that the teacher has an output for."""
        values = {}
        for task, target in zip(self.tasks, batch.targets, strict=True):
            if term.loss == "mask" and task.kind != "segment":
                continue
            own, teacher = outputs[task.name], batch.soft[task.name]
            known = ~teacher.flatten(1).isnan().any(1)
            values[task.name] = (
                compare_outputs(term, task, own[known], teacher[known], target[known])
                if known.any()
                else zero_of(own)
            )
        return values or {task.name: zero_of(outputs[task.name]) for task in self.tasks}

    def _compare_features(
        self, term: Term, outputs: Mapping[str, Tensor], batch: DistillationBatch
    ) -> Tensor:
        if term.loss == "map":
            own = outputs[LAST_MAP].movedim(1, -1)
            return map_distance(self.projectors["map"](own).movedim(-1, 1), batch.features["map"])
        own, teacher = outputs[self.embedding], batch.features["embedding"]
        if term.loss == "embedding":
            return cosine_distance(self.projectors["embedding"](own), teacher)
        compare = relational_distance if term.loss == "distances" else relational_angle
        return compare(own, teacher)


def compare_outputs(
    term: Term, task: Task, outputs: Tensor, teacher: Tensor, labels: Tensor
) -> Tensor:
    """Return one term of logits for one task.

    `standardised` and `dkd` differ from `kl` for tasks with classes only.

    Args:
        term: A term of logits.
        task: The task.
        outputs: The student's outputs [N, ...].
        teacher: The teacher's.
        labels: Class indices [N] of a `classify` task.

    Example:
        >>> task, logits = Task("malignancy", "binary"), torch.zeros(2, 1)
        >>> round(compare_outputs(Term("kl"), task, logits, logits, torch.ones(2)).item(), 3)
        0.693
    """
    if term.loss == "mask":
        return mask_divergence(outputs, teacher)
    temperature = term.option("temperature")
    if task.kind != "classify" or term.loss == "kl":
        return distillation_loss(task.kind, outputs, teacher, temperature)
    if term.loss == "standardised":
        return standardised_divergence(outputs, teacher, temperature)
    # A task without a column has NaN for labels.
    classes = labels.nan_to_num(-1).long()
    alpha, beta = term.option("alpha"), term.option("beta")
    return decoupled_divergence(outputs, teacher, classes, temperature, alpha=alpha, beta=beta)
