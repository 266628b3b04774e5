"""Exchange sums, maxima and features between training processes.

In a single process, the functions return their argument.
"""

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dermedge_runtime.errors import DermedgeError

COLLECTIVE_TIMEOUT = timedelta(seconds=45)
# Collectives fail on the other ranks within seconds of each other, so a live rank sets
# its key in this time.
ROLL_CALL_SECONDS = 8.0


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


def explain_lost_rank(error: RuntimeError) -> DermedgeError:
    """Return an error that names the dead ranks, after a collective operation failed.

    Each live rank sets a key in the store of the process group. Missing keys belong to
    dead ranks.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    world, own = world_size(), rank()
    missing: list[int] = []
    try:
        store = _get_default_store()
        store.set(f"alive/{own}", "1")
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        while time.monotonic() < deadline:
            missing = [other for other in range(world) if not store.check([f"alive/{other}"])]
            if not missing:
                break
            time.sleep(0.2)
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
