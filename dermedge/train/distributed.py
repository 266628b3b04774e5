"""Start training processes, and exchange sums, maxima and features between them.

In a single process, the functions return their argument.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, FSDPStrategy
from numpy.typing import NDArray
from torch import Tensor

from dermedge_runtime.errors import DermedgeError, UsageError
from dermedge_runtime.progress import Progress

COLLECTIVE_TIMEOUT = timedelta(seconds=45)
# Collectives fail on the other ranks within seconds of each other, so a live rank sets
# its key in this time.
ROLL_CALL_SECONDS = 8.0
POLL_SECONDS = 0.05
REPORTED = "dermedge/reported"
# Numbers of the calls of `wait_for_ranks`, which are the same on all ranks.
_WAITS = itertools.count()


def make_fabric(precision: str, strategy: str = "ddp", accelerator: str = "auto") -> Fabric:
    """Return Fabric for the processes of `torchrun`, or for this one alone.

    Args:
        precision: Precision of Lightning Fabric, such as `bf16-mixed`.
        strategy: `fsdp` divides weights and optimizer among the processes. Other
            values keep them whole in each (DDP).
        accelerator: Accelerator of Lightning Fabric, such as `cpu`.
    """
    local, machines = torchrun_layout()
    chosen: str | DDPStrategy | FSDPStrategy = "auto"
    if local * machines > 1 and strategy == "fsdp":
        chosen = FSDPStrategy(state_dict_type="full", timeout=COLLECTIVE_TIMEOUT)
    elif local * machines > 1:
        chosen = DDPStrategy(timeout=COLLECTIVE_TIMEOUT)
    return Fabric(
        accelerator=accelerator,
        devices=local,
        num_nodes=machines,
        strategy=chosen,
        precision=precision,
    )


def start_processes(progress: Progress | None) -> Progress | None:
    """Connect the processes of `torchrun`, if any; return `progress` on rank 0 only.

    Example:
        >>> start_processes(print) is print
        True
    """
    if torchrun_layout() != (1, 1):
        make_fabric("32-true").launch()
    return progress if rank() == 0 else None


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among all processes, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_sum(value: Tensor) -> Tensor:
    """Return the sum over all processes, without a gradient."""
    return _reduce(value, dist.ReduceOp.SUM)


def world_max(value: Tensor) -> Tensor:
    """Return the element-wise maximum over all processes, without a gradient."""
    return _reduce(value, dist.ReduceOp.MAX)


def _reduce(value: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, operation)
    return value


def gather(rows: Tensor) -> Tensor:
    """Return the rows [n, D] of all processes, [n * world, D], in the order of ranks.

    Gradients flow back to the process that owns the rows. Every process must pass the
    same number of rows.
    """
    return rows if world_size() == 1 else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """All-gather whose backward pass sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        first = rank() * ctx.count
        return world_sum(gradient)[first : first + ctx.count]


def torchrun_layout() -> tuple[int, int]:
    """Return the processes per machine and the machines that `torchrun` set up.

    Without `torchrun` both are 1.
    """
    if not dist.is_torchelastic_launched():
        return 1, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def split_rows(count: int) -> slice:
    """Return the rows of this process among `count` rows of all, without a remainder.

    Raises:
        UsageError: The rows cannot be divided among the processes.
    """
    world = world_size()
    if count % world or not count:
        raise UsageError(
            f"A batch of {count} images cannot be divided among {world} processes. Choose a "
            f"--batch-size that is a multiple of {world}."
        )
    share = count // world
    return slice(rank() * share, (rank() + 1) * share)


def gather_arrays(
    arrays: Mapping[str, NDArray[np.float32]], count: int
) -> dict[str, NDArray[np.float32]]:
    """Return the first `count` rows of the arrays of all processes, in order of rank."""
    if world_size() == 1:
        return dict(arrays)
    parts: list[Mapping[str, NDArray[np.float32]]] = [{}] * world_size()
    dist.all_gather_object(parts, dict(arrays))
    return {name: np.concatenate([part[name] for part in parts])[:count] for name in arrays}


def wait_for_ranks() -> None:
    """Wait until every process has come to this line, however long it takes.

    A collective operation would fail after `COLLECTIVE_TIMEOUT`.

    Raises:
        DermedgeError: Another process stopped with an error.
    """
    if world_size() == 1:
        return
    name = f"dermedge/wait/{next(_WAITS)}"
    _post(f"{name}/came")
    _poll(f"{name}/came")
    _post(f"{name}/left")
    if rank() == 0:  # It may hold the store, so it leaves last.
        _poll(f"{name}/left")


def _post(key: str) -> None:
    _store().set(f"{key}/{rank()}", "1")


def _poll(key: str) -> None:
    """Wait until all ranks have posted the key."""
    store, keys = _store(), [f"{key}/{other}" for other in range(world_size())]
    while not store.check(keys):
        if store.check([REPORTED]):
            raise DermedgeError(f"Rank {rank()} stops. Read the output of the other ranks.")
        time.sleep(POLL_SECONDS)


def report_once(report: Callable[[], None]) -> None:
    """Call `report` on the first process that has an error to report, not on the others.

    When one rank fails, the others fail a moment later. One message is enough.
    """
    if world_size() == 1:
        report()
        return
    try:
        store = _store()
        if store.add(REPORTED, 1) == 1:
            report()
        # Rank 0 may hold the store, so it stays until the other ranks have asked.
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        while rank() == 0 and store.add(REPORTED, 0) < world_size():
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
    except RuntimeError:  # The store is gone with the process that held it.
        report()


@contextmanager
def explained_loss_of_ranks() -> Iterator[None]:
    """Convert the error of a collective operation to one that names the dead ranks."""
    try:
        yield
    except RuntimeError as error:
        # After a process died, the collectives of the others fail some time later.
        if isinstance(error, DermedgeError) or world_size() == 1:
            raise
        raise explain_lost_rank(error) from error


def explain_lost_rank(error: RuntimeError) -> DermedgeError:
    """Return an error that names the dead ranks, after a collective operation failed.

    Each live rank sets a key in the store of the process group. Missing keys belong to
    dead ranks.
    """
    world, own = world_size(), rank()
    missing: list[int] = []
    try:
        store = _store()
        store.set(f"alive/{own}", "1")
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        # A rank that reported an error has given the reason already.
        while time.monotonic() < deadline and not store.check([REPORTED]):
            missing = [other for other in range(world) if not store.check([f"alive/{other}"])]
            if not missing:
                break
            time.sleep(POLL_SECONDS)
    except RuntimeError:  # Rank 0 holds the store, so rank 0 died.
        missing = [0]
    reason = (
        f"rank {', '.join(map(str, missing))} no longer responds"
        if missing
        else "a collective failed on every rank"
    )
    return DermedgeError(
        f"Rank {own} stops, {reason} ({str(error).strip().splitlines()[0][:200]}). Read that "
        "process's output, then start all ranks again with the same command. Training "
        "continues from the last checkpoint."
    )


def _store() -> Any:
    """Return the key-value store that all processes share."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
