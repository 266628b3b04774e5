"""Run the loop of hybrid pretraining: steps, checks, log, checkpoints."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from dermedge.train.distributed import world_max
from dermedge.train.finite import check_loss
from dermedge.train.hybrid.checkpoint import LOG, TrainingState, save_checkpoint
from dermedge.train.hybrid.crops import CropBatch
from dermedge.train.hybrid.loss_log import LOSSES, StepLosses, format_losses, format_speed
from dermedge.train.hybrid.schedule import rates
from dermedge.train.hybrid.sources import MAX_UNREADABLE, Sources
from dermedge.train.hybrid.step import Learner, train_step
from dermedge.train.run_record import RunRecord
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import append_line
from dermedge_runtime.progress import Progress

REMEDY = "Lower --lr or use another --precision, and train again."


def train(
    learner: Learner,
    run: RunRecord,
    state: TrainingState,
    sources: Sources,
    steps: Iterable[Sequence[CropBatch]],
    *,
    seed: int,
    checkpoint_seconds: float,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run all remaining steps, and keep `state` up to date.

    A checkpoint is written after every epoch and whenever `checkpoint_seconds` have
    passed since the last one.

    Args:
        learner: Modules and optimizer.
        run: Folder and record of the run.
        state: Position to start from.
        sources: Training rows.
        steps: Batches of every remaining step.
        seed: Seed of stochastic depth.
        checkpoint_seconds: Longest time between two checkpoints.
        progress: Called after every step, on rank 0.
        clock: Function that returns the time in seconds and never goes back.

    Raises:
        DataError: Over 1 % of the images cannot be decoded, or the loss is not finite.
    """
    recipe, first = learner.recipe, learner.fabric.is_global_zero
    learner.model.train()
    saved = clock()
    started = saved - state.seconds
    for parts in steps:
        # Reseeding each step makes a resumed run draw the same paths to drop.
        torch.manual_seed(seed * 100_003 + state.step)
        now = rates(recipe, state.step)
        losses = train_step(learner, parts, state.step, now)
        *each, total, _ = losses.values
        # The values are means over the processes, so all ranks stop together.
        check_loss(total, dict(zip(LOSSES, each, strict=True)), f"in step {state.step + 1}", REMEDY)
        moment = clock()
        state.finish_step(losses, moment - started)
        # Rank 0 decides for all ranks, whose clocks differ.
        due = first and moment - saved >= checkpoint_seconds
        bad_rows = [row for part in parts for row in part.unreadable]
        due = note_unreadable(learner, state, sources, bad_rows, due)
        if first:
            line = {"step": state.step, **losses.named(recipe), "lr": now.lr}
            append_line(run.folder / LOG, json.dumps({**line, "momentum": now.momentum}))
            if progress:
                progress(state.step, recipe.total, describe_step(learner, state, losses))
        if state.step % recipe.steps == 0:
            finish_epoch(learner, state)
            due = True
        if due:
            save_checkpoint(learner, run, state)
            # The time that a checkpoint takes does not count as training.
            saved = clock()
            started = saved - state.seconds


def finish_epoch(learner: Learner, state: TrainingState) -> None:
    """Add the epoch's mean losses and speed to the history; start the next epoch."""
    recipe = learner.recipe
    images = recipe.batch_size * recipe.steps
    speed = round(images / max(state.seconds, 1e-9), 2)
    means = (state.sums / recipe.steps).named(recipe)
    state.finish_epoch(means | {"images_per_second": speed})


def describe_step(learner: Learner, state: TrainingState, losses: StepLosses) -> str:
    """Return epoch, losses and speed as text."""
    recipe = learner.recipe
    done = 1 + (state.step - 1) % recipe.steps
    epoch = 1 + (state.step - 1) // recipe.steps
    speed = recipe.batch_size * done / max(state.seconds, 1e-9)
    named = format_losses(losses.named(recipe))
    return f"epoch {epoch}/{recipe.epochs}, {named}, {format_speed(speed)}"


def note_unreadable(
    learner: Learner, state: TrainingState, sources: Sources, rows: Sequence[int], due: bool
) -> bool:
    """Share the undecodable rows, and the decision of rank 0 to write a checkpoint.

    One small collective per step carries both.

    Args:
        learner: Modules and Fabric.
        state: Its `unreadable` rows are updated.
        sources: Training rows, for the message.
        rows: Rows of this process's batch that could not be decoded.
        due: True on rank 0 if a checkpoint is due.

    Returns:
        True on every rank if a checkpoint is due.

    Raises:
        DataError: Over 1 % of the images cannot be decoded; raised on every rank.
    """
    fabric = learner.fabric
    new = torch.zeros_like(state.unreadable)
    new[list(rows)] = True
    flags = world_max(fabric.to_device(torch.tensor([float(new.any()), float(due)]))).tolist()
    if flags[0]:
        everywhere = world_max(fabric.to_device(new.to(torch.uint8)))
        state.mark_unreadable(everywhere.cpu().bool())
        count, total = int(state.unreadable.sum()), len(state.unreadable)
        if count > max(1, math.floor(MAX_UNREADABLE * total)):
            raise DataError(
                f"{count} of {total} images cannot be decoded, among them "
                f"{unreadable_names(state, sources)[0]}. Run `dermedge data check` on the tables."
            )
    return bool(flags[1])


def unreadable_names(state: TrainingState, sources: Sources) -> tuple[str, ...]:
    """Return `table/image_id` of the rows that could not be decoded."""
    return tuple(sources.ids[row] for row in torch.nonzero(state.unreadable)[:, 0].tolist())
