"""Train the linear layer and LoRA of a captioner on stored features."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from dermedge.captions.model import Captioner, pad_captions
from dermedge.captions.options import CaptionOptions
from dermedge.train.distributed import make_fabric, rank, wait_for_ranks, world_size, world_sum
from dermedge.train.finite import check_loss
from dermedge.train.loop import CHECKPOINT, Checkpoint
from dermedge_runtime.progress import Progress

CHECKPOINT_SECONDS = 60.0
EVALUATION_BATCH = 8
REMEDY = "Lower --lr or --lora-lr, and train again into another folder or with --overwrite."


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """Features [N, D] of images, and the token ids of their captions.

    Example:
        >>> len(CaptionSet(np.zeros((1, 4), np.float32), ((5, 6, 2),)))
        1
    """

    features: NDArray[np.float32]
    captions: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.captions)

    def rows(self, chosen: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the features and padded token ids of some rows."""
        tokens = pad_captions([self.captions[row] for row in chosen])
        return torch.from_numpy(self.features[list(chosen)]).to(device), tokens.to(device)


@dataclass(frozen=True)
class CaptionFit:
    """The outcome of a training: the best epoch, and the losses of all epochs.

    Attributes:
        best_epoch: Index of the epoch with the lowest val loss, whose weights are kept.
        metrics: Losses per token of that epoch.
        history: Losses per token of each epoch.
        resumed_from: Number of steps that a checkpoint held, or None.

    Example:
        >>> CaptionFit(0, {"val_loss": 1.5}, ({"val_loss": 1.5},), None).best_epoch
        0
    """

    best_epoch: int
    metrics: dict[str, float]
    history: tuple[dict[str, float], ...]
    resumed_from: int | None


class _Trained:
    """The trained parameters of a captioner, as a part of a checkpoint."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner

    def state_dict(self) -> dict[str, Any]:
        return copy_trained(self._captioner)

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self._captioner.load_trained(state_dict)


def copy_trained(captioner: Captioner) -> dict[str, Tensor]:
    """Return a copy of the trained parameters on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in captioner.trained().items()}


def fit_captioner(
    captioner: Captioner,
    train: CaptionSet,
    val: CaptionSet,
    options: CaptionOptions,
    *,
    folder: Path,
    fingerprint: str,
    progress: Progress | None = None,
) -> CaptionFit:
    """Train a captioner in place, and give it the weights of the best epoch on val.

    The loss is the mean negative log-likelihood per caption token of a step. The number
    of parts and of processes does not change it. A checkpoint is written after each
    epoch and each minute; a run that was killed continues from it to the same weights.

    Args:
        captioner: The model on the CPU.
        train: Train features and captions.
        val: Val features and captions.
        options: Schedule.
        folder: Folder of the checkpoint.
        fingerprint: Digest of settings and data.
        progress: Called after every step.

    Raises:
        DataError: The loss is not finite, or the checkpoint belongs to another run.
    """
    fabric = make_fabric("bf16-mixed" if options.bf16 else "32-true")
    fabric.launch()
    lora = [p for name, p in captioner.trained().items() if not name.startswith("projection.")]
    adamw = torch.optim.AdamW(
        [
            {"params": list(captioner.projection.parameters()), "lr": options.lr},
            {"params": lora, "lr": options.lora_lr},
        ],
        weight_decay=options.weight_decay,
    )
    captioner.to(fabric.device)
    model, optimizer = fabric.setup(captioner, adamw)
    parts = {"trained": _Trained(captioner), "optimizer": optimizer}
    checkpoint = Checkpoint(folder / CHECKPOINT, fingerprint, parts)
    state = checkpoint.read()
    resumed = None if state is None else int(state["step"])
    if state is None:
        state = {"step": 0, "sum": 0.0, "best": math.inf, "best_epoch": -1, "history": []}
        state["weights"] = copy_trained(captioner)
    steps = math.ceil(len(train) / options.batch_size)
    written = time.monotonic()
    for step in range(state["step"], options.epochs * steps):
        epoch = step // steps
        rows = _rows_of_step(len(train), step, steps, options)
        state["sum"] += _take_step(fabric, model, optimizer, train, rows, step, options)
        state["step"] = step + 1
        if (step + 1) % steps == 0:
            _close_epoch(fabric, captioner, val, state, epoch, steps)
        if (step + 1) % steps == 0 or time.monotonic() - written > CHECKPOINT_SECONDS:
            checkpoint.write(state)
            written = time.monotonic()
        if progress:
            note = f"epoch {epoch + 1}/{options.epochs}"
            progress(step + 1, options.epochs * steps, note)
    wait_for_ranks()
    captioner.load_trained({name: w.to(fabric.device) for name, w in state["weights"].items()})
    captioner.eval()
    best, history = state["best_epoch"], tuple(state["history"])
    return CaptionFit(best, history[best], history, resumed)


def _rows_of_step(count: int, step: int, steps: int, options: CaptionOptions) -> list[int]:
    """Return the train rows of a step. An epoch takes each row once, in random order."""
    order = np.random.default_rng([options.seed, step // steps]).permutation(count)
    first = step % steps * options.batch_size
    return list(map(int, order[first : first + options.batch_size]))


def _take_step(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    train: CaptionSet,
    rows: list[int],
    step: int,
    options: CaptionOptions,
) -> float:
    """Take one step of the optimizer; return the loss per token over all processes."""
    # Dropout depends on the step and the process only, so that a resumed run repeats it.
    torch.manual_seed((options.seed * 1_000_003 + step) * world_size() + rank())
    tokens = sum(len(train.captions[row]) for row in rows)
    model.train()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    shares = list(_shares(rows, options.accumulate))
    for part, (share, weight) in enumerate(shares):
        with fabric.no_backward_sync(model, enabled=part < len(shares) - 1):
            loss = model(*train.rows(share, fabric.device)).sum() * weight / tokens
            # Gradients are averaged over the processes, and the loss is a sum.
            fabric.backward(loss * world_size())
        total += loss.item()
    if world_size() > 1:
        total = float(world_sum(torch.tensor(total, device=fabric.device)))
    check_loss(torch.tensor(total), {}, f"in step {step + 1}", REMEDY)
    optimizer.step()
    return total


def _shares(rows: list[int], parts: int) -> Iterator[tuple[list[int], int]]:
    """Yield this process's rows of each part of a step, and their weight.

    Every process must compute each part, so one without rows gets the first row with
    the weight 0.
    """
    for part in range(parts):
        share = rows[part * world_size() + rank() :: parts * world_size()]
        yield (share, 1) if share else (rows[:1], 0)


def _close_epoch(
    fabric: Fabric,
    captioner: Captioner,
    val: CaptionSet,
    state: dict[str, Any],
    epoch: int,
    steps: int,
) -> None:
    """Record the losses of an epoch, and keep its weights if they are the best on val."""
    own = list(range(rank(), len(val), world_size()))
    nll = negative_log_likelihood(captioner, val, own, fabric.device, fabric.autocast)
    loss = float(world_sum(torch.tensor(nll.sum(), device=fabric.device)))
    loss /= sum(map(len, val.captions))
    check_loss(torch.tensor(loss), {}, f"on val after epoch {epoch + 1}", REMEDY)
    state["history"].append({"loss": state["sum"] / steps, "val_loss": loss})
    state["sum"] = 0.0
    if loss < state["best"]:
        state.update(best=loss, best_epoch=epoch, weights=copy_trained(captioner))


@torch.no_grad()
def negative_log_likelihood(
    captioner: Captioner,
    data: CaptionSet,
    rows: Sequence[int],
    device: torch.device,
    autocast: Callable[[], Any],
) -> NDArray[np.float64]:
    """Return the negative log-likelihood [n] of the captions of some rows, in nats."""
    captioner.eval()
    found = []
    for first in range(0, len(rows), EVALUATION_BATCH):
        with autocast():
            batch = data.rows(rows[first : first + EVALUATION_BATCH], device)
            found.append(captioner(*batch).double().cpu().numpy())
    return np.concatenate(found) if found else np.zeros(0)
