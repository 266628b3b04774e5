"""Train a network with AdamW, a moving average, early stopping and checkpoints."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from dermedge.train.distributed import make_fabric, rank, world_size
from dermedge.train.finite import check_loss, check_weights
from dermedge.train.precisions import check_precision
from dermedge.train.training_loss import TrainingLoss
from dermedge.train.whole_batch import WholeBatch, gather_batch, synchronize_norms
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_file
from dermedge_runtime.progress import Progress

B = TypeVar("B")
CHECKPOINT = "checkpoint.ckpt"


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training run.

    Attributes:
        epochs: Passes over the train split.
        batch_size: Images per step.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup: Epochs of linear warm-up, before a cosine down to 1 % of `lr`.
        ema_decay: Decay per step of the weights' moving average. The average is scored
            and kept.
        patience: Epochs without a better val score before training stops.
        precision: Precision of Lightning Fabric, such as `bf16-mixed` on a GPU.

    Raises:
        UsageError: The precision is unknown, or no training step is possible.

    Example:
        >>> Schedule(epochs=3, batch_size=16).lr
        0.001
    """

    epochs: int = 12
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.02
    warmup: float = 1.0
    ema_decay: float = 0.998
    patience: int = 6
    precision: str = "32-true"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.epochs < 1 or self.batch_size < 2 or not self.lr > 0:
            raise UsageError(
                f"{self.epochs} epochs, batch size {self.batch_size} and learning rate {self.lr} "
                "allow no training. Give at least 1 epoch, 2 images per batch and a rate above 0."
            )


@dataclass(frozen=True)
class FitResult:
    """The outcome of `fit`: the best epoch and the scores of all epochs.

    Attributes:
        best_epoch: Index of the epoch whose moving average was kept; -1 for none.
        metrics: Loss and val metrics of that epoch.
        history: Loss and val metrics of each epoch.
        resumed_from: Number of epochs that a checkpoint held, or None.

    Example:
        >>> result = fit(
        ...     nn.Linear(2, 1), steps=1, batches=lambda epoch: [torch.ones(4, 2)],
        ...     loss=lambda network, batch: network(batch).square().mean(),
        ...     score=lambda network: {"score": 1.0}, schedule=Schedule(epochs=3),
        ...     seed=0, folder=Path(), fingerprint="example",
        ... )
        >>> result.best_epoch, len(result.history), result.resumed_from
        (0, 3, None)
    """

    best_epoch: int
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...]
    resumed_from: int | None


def fit(
    network: nn.Module,
    *,
    steps: int,
    batches: Callable[[int], Iterable[B]],
    loss: Callable[[nn.Module, B], Tensor],
    score: Callable[[nn.Module], Mapping[str, float]],
    schedule: Schedule,
    seed: int,
    folder: Path,
    fingerprint: str,
    progress: Progress | None = None,
) -> FitResult:
    """Train a network in place, and give it the moving average of the best epoch.

    A checkpoint is written after every epoch. A run that was killed continues from it
    to the same weights.

    Processes that `torchrun` started work on one batch together, and their number does
    not change the result.

    Args:
        network: A network on the CPU. It trains on the accelerator and is moved back.
        steps: Optimizer steps per epoch.
        batches: Function that returns the batches of an epoch, of several processes
            the part of this one. Its result must depend on epoch and rank only, so that
            a resumed run repeats it.
        loss: Function that returns the loss of one batch. It gets the batch of all
            processes. The parameters of a `TrainingLoss` are trained too, and are not
            kept.
        score: Function that returns metrics on val, the same on all processes. The
            metric `score` selects the epoch; more is better.
        schedule: Number of epochs, batch size and learning rate.
        seed: Random seed of dropout and stochastic depth.
        folder: Folder of the checkpoint.
        fingerprint: Digest of settings and data. A checkpoint with another one is
            refused.
        progress: Called after every step.

    Raises:
        DataError: The folder's checkpoint belongs to another run, or the loss or a
            weight is not finite. The checkpoint of the last complete epoch is kept.
    """
    fabric = make_fabric(schedule.precision)
    fabric.launch()
    own = loss if isinstance(loss, TrainingLoss) else TrainingLoss()
    own.start(network)
    adamw = torch.optim.AdamW(_parameter_groups(network, own, schedule.weight_decay), schedule.lr)
    network.to(fabric.device)
    own.to(fabric.device)
    ema = ModelEmaV3(network, decay=schedule.ema_decay, use_warmup=True)
    model, optimizer = fabric.setup(synchronize_norms(network, fabric.device), adamw)
    # The unwrapped modules go into the checkpoint, so that it does not depend on
    # Fabric's wrappers.
    parts = {
        "network": network,
        "ema": ema.module,
        "optimizer": optimizer,
        "loss": own,
        "precision": fabric.strategy.precision,  # the scale of the loss, for fp16
    }
    checkpoint = Checkpoint(folder / CHECKPOINT, fingerprint, parts)
    state = checkpoint.read()
    resumed = None if state is None else int(state["epoch"])
    if state is None:
        state = {"epoch": 0, "best": -math.inf, "best_epoch": -1, "history": []}
        state["weights"] = _copy(network)
    total, remedy = schedule.epochs * steps, _remedy(schedule)
    for epoch in range(state["epoch"], schedule.epochs):
        if epoch - state["best_epoch"] > schedule.patience and state["best_epoch"] >= 0:
            break
        # The seed depends on the epoch, so a resumed run repeats the same random
        # numbers.
        torch.manual_seed(seed * 100_003 + epoch)
        model.train()
        whole = WholeBatch(model, seed * 100_003 + epoch) if world_size() > 1 else model
        running = 0.0
        for step, batch in enumerate(batches(epoch), epoch * steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * _rate(step, steps, total, schedule.warmup)
            value = loss(whole, gather_batch(fabric.to_device(batch)))
            check_loss(value, own.parts, f"in epoch {epoch + 1}, step {step % steps + 1}", remedy)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(value)
            optimizer.step()
            ema.update(network, step=step)
            running += value.item()
            if progress:
                best = max(state["best"], 0)
                progress(step + 1, total, f"epoch {epoch + 1}/{schedule.epochs}, best {best:.3f}")
        # The average is scored and kept instead of the weights of the last step,
        # because the average is exported.
        for module in (network, own):
            check_weights(module, f"epoch {epoch + 1}", remedy)
        metrics = {"loss": running / steps, **own.metrics(), **score(ema.module)}
        state["history"].append(metrics)
        state["epoch"] = epoch + 1
        if metrics["score"] > state["best"]:
            state.update(best=metrics["score"], best_epoch=epoch, weights=_copy(ema.module))
        checkpoint.write(state)
    ema.module.to("cpu").load_state_dict(state["weights"])
    _give(network.to("cpu"), ema.module)
    network.eval()
    best_epoch, history = state["best_epoch"], tuple(state["history"])
    return FitResult(best_epoch, history[best_epoch] if best_epoch >= 0 else {}, history, resumed)


def _parameter_groups(
    network: nn.Module, loss: nn.Module, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the parameters to train. Those of the loss have no weight decay."""
    groups = [{"params": list(network.parameters()), "weight_decay": weight_decay}]
    extra = list(loss.parameters())
    return [*groups, {"params": extra, "weight_decay": 0.0}] if extra else groups


def _remedy(schedule: Schedule) -> str:
    other = "" if schedule.precision == "32-true" else " or use --precision 32-true"
    return f"Lower --lr{other}, and train again into another folder or with --overwrite."


class Stateful(Protocol):
    """A part of a run with a state, such as a module or an optimizer.

    Example:
        >>> part: Stateful = nn.Linear(2, 1)
        >>> sorted(part.state_dict())
        ['bias', 'weight']
    """

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


@dataclass(frozen=True)
class Checkpoint:
    """A run's state on disk: loop, and the state of its parts by name.

    Example:
        >>> checkpoint = Checkpoint(Path("run.ckpt"), "settings", {"network": nn.Linear(2, 1)})
        >>> checkpoint.write({"epoch": 3})
        >>> checkpoint.read()
        {'epoch': 3}
    """

    path: Path
    fingerprint: str
    parts: Mapping[str, "Stateful"]

    def write(self, state: Mapping[str, Any]) -> None:
        """Write everything that a resumed run needs, on rank 0."""
        if rank() != 0:
            return
        content = {
            "fingerprint": self.fingerprint,
            "state": dict(state),
            **{name: part.state_dict() for name, part in self.parts.items()},
        }
        with atomic_file(self.path) as stream:
            torch.save(content, stream)

    def read(self) -> dict[str, Any] | None:
        """Restore all parts; return the loop's state or None.

        Raises:
            DataError: The file is damaged, or belongs to another run.
        """
        if not self.path.is_file():
            return None
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises pickle, zip and runtime errors alike
            raise DataError(
                f"{self.path} is not a checkpoint of dermedge ({error}). Delete it, or train into "
                "another folder."
            ) from error
        if saved["fingerprint"] != self.fingerprint:
            raise DataError(
                f"{self.path} belongs to a run with other settings or data. Train into another "
                "folder, or pass --overwrite."
            )
        for name, part in self.parts.items():
            # The checkpoint of an earlier version lacks the newer parts.
            if name in saved:
                part.load_state_dict(saved[name])
        return dict(saved["state"])


def _rate(step: int, steps: int, total: int, warmup: float) -> float:
    """Return the share of the peak learning rate at a step.

    The rate rises linearly during warm-up, then falls along half a cosine to 1 %.
    """
    rise = warmup * steps
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _give(network: nn.Module, source: nn.Module) -> None:
    """Give a network the weights and buffers of its copy, in the precision of the copy.

    `bf16-true` converts the network, also the constants of its normalization, which are
    not in the state. The copy is as it was before, and its scores are recorded.
    """
    for own, other in zip(_tensors(network), _tensors(source), strict=True):
        own.data = other.data


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
