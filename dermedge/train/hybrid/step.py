"""Compute one optimizer step: teacher's targets, student's losses, moving average."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightly.models.utils import update_momentum
from lightning_fabric import Fabric
from torch import Tensor, nn

from dermedge.train.distributed import world_sum
from dermedge.train.hybrid.crops import CropBatch
from dermedge.train.hybrid.loss_log import LOSSES, StepLosses, loss_weights
from dermedge.train.hybrid.losses import (
    dino_loss,
    ibot_loss,
    koleo_loss,
    label_loss,
    sinkhorn_knopp,
)
from dermedge.train.hybrid.model import Branch, HybridStudent
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge.train.hybrid.schedule import Rates, apply_rates, parameter_groups
from dermedge.train.hybrid.sources import Sources
from dermedge.train.whole_batch import synchronize_norms

if TYPE_CHECKING:
    from lightning_fabric.wrappers import _FabricOptimizer

BETAS = (0.9, 0.999)

Assignments = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Learner:
    """The modules, optimizer and label tables of one process, on its device.

    `model` is Fabric's wrapper of `student`. `true` and `known` are bool [codes, C],
    and `codes` [N] holds the label code of every training row, on the CPU.

    Example:
        >>> from dermedge.models.backbone import Backbone
        >>> from dermedge.train.hybrid.prepare import make_branches, starting_network
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> from dermedge.train.hybrid.sources import read_sources
        >>> recipe, backbone = PRESETS["mobile"], Backbone("test_efficientnet")
        >>> sources = read_sources(["lesions"])
        >>> network = starting_network(backbone, recipe, sources, init="none", seed=0)
        >>> branches = make_branches(network, backbone, recipe, seed=0)
        >>> learner = make_learner(Fabric(), recipe, sources, *branches)
        >>> sorted(export_teacher(learner)) == sorted(network.backbone.state_dict())
        True
    """

    fabric: Fabric
    recipe: HybridRecipe
    student: HybridStudent
    teacher: Branch
    model: nn.Module
    optimizer: "_FabricOptimizer"
    true: Tensor
    known: Tensor
    codes: Tensor

    @property
    def sharded(self) -> bool:
        """True if each process holds a part of every gradient (FSDP)."""
        return type(self.fabric.strategy).__name__ == "FSDPStrategy"


def make_learner(
    fabric: Fabric, recipe: HybridRecipe, sources: Sources, student: HybridStudent, teacher: Branch
) -> Learner:
    """Create the optimizer and move everything to the device."""
    student = synchronize_norms(student, fabric.device)
    groups = [dict(group) for group in parameter_groups(student, recipe)]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=BETAS)
    model, wrapped = fabric.setup(student, optimizer)
    sharded = type(fabric.strategy).__name__ == "FSDPStrategy"
    return Learner(
        fabric=fabric,
        recipe=recipe,
        student=student,
        teacher=fabric.setup_module(teacher) if sharded else fabric.to_device(teacher),
        model=model,
        optimizer=wrapped,
        true=fabric.to_device(torch.from_numpy(sources.true)),
        known=fabric.to_device(torch.from_numpy(sources.known)),
        codes=torch.from_numpy(sources.codes),
    )


def train_step(learner: Learner, parts: Sequence[CropBatch], step: int, now: Rates) -> StepLosses:
    """Take one optimizer step, and update the teacher.

    Args:
        learner: Modules and optimizer.
        parts: The images of the step, one batch per accumulation part.
        step: Number of the step, from 0.
        now: Rates of the step.

    Returns:
        Losses of the step, averaged over parts and processes, on the CPU.
    """
    fabric, recipe = learner.fabric, learner.recipe
    apply_rates(learner.optimizer, now)
    moved: list[CropBatch] = [fabric.to_device(part) for part in parts]
    targets = assign_targets(learner, moved, now.temperature)
    codes = [fabric.to_device(learner.codes[part.rows].repeat(2)) for part in parts]
    # Parts hold unequal numbers of labelled crops. Dividing each by the mean count of a
    # part lets the parts add up to the loss of the whole step.
    counts = torch.stack([(code > 0).sum() for code in codes])
    labelled = world_sum(counts.sum().float()) / len(parts)
    sums = StepLosses.zeros(fabric.device)
    # DDP averages gradients in the backward pass of the last part only.
    for index, (part, code, target) in enumerate(zip(moved, codes, targets, strict=True)):
        with fabric.no_backward_sync(learner.model, enabled=index + 1 < len(parts)):
            losses = compute_losses(learner, learner.model, part, code, target, labelled)
            total = add_up(losses, recipe)
            fabric.backward(total / len(parts))
        sums += StepLosses.of(losses, total, part.mask) / len(parts)
    clip_gradients(learner)
    # After clipping, as in the released code: the gradient of the frozen layer counts
    # in the norm.
    for head in learner.student.branch.heads:
        head.cancel_last_layer_gradients(step // recipe.steps)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    update_teacher(learner.student.branch, learner.teacher, now.momentum)
    return sums.mean_over_processes(fabric.world_size)


@torch.no_grad()
def assign_targets(
    learner: Learner, parts: Sequence[CropBatch], temperature: float
) -> list[Assignments]:
    """Return the teacher's assignments for every part of a step.

    All tokens of the step, of all parts and processes, are assigned together.

    Returns:
        Per part, assignments of class tokens [2, N, K] and of masked patches [M, K];
        None without the head.
    """
    if not learner.recipe.self_supervised:
        return [(None, None)] * len(parts)
    teacher = learner.teacher
    dino: list[Tensor] = []
    ibot: list[Tensor] = []
    with learner.fabric.autocast():
        for part in parts:
            pooled, patches = teacher.trunk(part.global_crops)
            if teacher.dino is not None:
                dino.append(teacher.dino(pooled))
            if teacher.ibot is not None:
                ibot.append(teacher.ibot(patches[part.mask]))
    classes: list[Tensor | None] = [None] * len(parts)
    masked: list[Tensor | None] = [None] * len(parts)
    # One part alone has too few rows to balance the prototypes.
    if dino:
        rows = sinkhorn_knopp(torch.cat(dino), temperature)
        pieces = torch.split(rows, [len(part) for part in dino])
        classes = [torch.stack(piece.chunk(2)) for piece in pieces]
    if ibot:
        rows = sinkhorn_knopp(torch.cat(ibot), temperature)
        masked = list(torch.split(rows, [len(part) for part in ibot]))
    return list(zip(classes, masked, strict=True))


def compute_losses(
    learner: Learner,
    model: nn.Module,
    part: CropBatch,
    code: Tensor,
    target: Assignments,
    labelled: Tensor,
) -> dict[str, Tensor]:
    """Return the losses of one part by name, without their weights.

    Args:
        learner: Modules and optimizer.
        model: The student, or Fabric's wrapper of it.
        part: Crops of N images.
        code: Label codes of the global crops, [2N].
        target: The teacher's assignments.
        labelled: Labelled crops of all parts and processes, over the number of parts.
    """
    recipe = learner.recipe
    dino, ibot = target
    out = model(part.global_crops, part.local_crops, part.mask)
    losses: dict[str, Tensor] = {}
    if dino is not None:
        pairs = out.dino_global.unflatten(0, (2, -1))
        local = pairs[:0] if out.dino_local is None else out.dino_local
        losses["dino"] = dino_loss(pairs, local, dino, recipe.student_temperature)
    if ibot is not None:
        share = 1 / part.mask.sum(1, keepdim=True).clamp_min(1)
        weight = share.expand_as(part.mask)[part.mask]
        losses["ibot"] = ibot_loss(
            out.ibot, ibot, weight, len(part.mask), recipe.student_temperature
        )
    if recipe.koleo and recipe.self_supervised:
        # Computed per crop, because the two crops of one image should be close.
        first, second = (koleo_loss(crop) for crop in out.pooled.chunk(2))
        losses["koleo"] = first + second
    if out.labels is not None:
        losses["label"] = label_loss(out.labels, learner.true[code], learner.known[code], labelled)
    if out.pull is not None:
        losses["pull"] = out.pull
    return losses


def add_up(losses: dict[str, Tensor], recipe: HybridRecipe) -> Tensor:
    """Return the weighted sum of losses."""
    weights = loss_weights(recipe)
    total = torch.zeros((), device=next(iter(losses.values())).device)
    for name in LOSSES:
        if name in losses:
            total = total + weights[name] * losses[name]
    return total


def clip_gradients(learner: Learner) -> None:
    """Limit the norm of the gradients, per module or of the whole model.

    The released code of DermINO clips the backbone and each head separately. With one
    norm over all of them, a large gradient of a head shrinks the backbone's.
    """
    fabric, recipe = learner.fabric, learner.recipe
    if not recipe.clip:
        return
    if recipe.clip_per == "model":
        fabric.clip_gradients(
            learner.model, learner.optimizer, max_norm=recipe.clip, error_if_nonfinite=False
        )
        return
    # Only fp16 scales its loss. Fabric unscales in clip_gradients, once per step, so it
    # cannot be called per module.
    fabric.strategy.precision.unscale_gradients(learner.optimizer.optimizer)
    for part in learner.student.parts():
        clip_norm(part.parameters(), recipe.clip, learner.sharded)


def clip_norm(parameters: Iterable[nn.Parameter], limit: float, sharded: bool) -> None:
    """Scale gradients so that their L2 norm is at most `limit`.

    Args:
        parameters: Parameters of one module.
        limit: Largest norm.
        sharded: True if each process holds a part of every gradient. The norm is then
            computed over all processes.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    grads = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not grads and not sharded:
        return
    norm = torch.nn.utils.get_total_norm(grads)
    if sharded:
        norm = world_sum(norm.square()).sqrt()
    torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)


@torch.no_grad()
def update_teacher(student: Branch, teacher: Branch, momentum: float) -> None:
    """Move the teacher towards the student, BatchNorm statistics included."""
    update_momentum(student, teacher, momentum)
    for own, other in zip(teacher.buffers(), student.buffers(), strict=True):
        if own.is_floating_point():
            own.lerp_(other, 1 - momentum)


def export_teacher(learner: Learner) -> dict[str, Tensor]:
    """Return the teacher's backbone weights on the CPU; empty on ranks other than 0."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(learner.teacher, options=options)
    prefix = "trunk.masked.vit." if learner.teacher.trunk.grid else "trunk.timm."
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        if key.startswith(prefix) and isinstance(value, Tensor)
    }
