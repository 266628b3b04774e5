"""What several processes must agree on: sums, maxima, gathered features. With one process each is the identity."""

import os
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dermedge_runtime.errors import DermedgeError

PATIENCE = timedelta(seconds=45)
ROLL_CALL_SECONDS = 8.0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_sum(value: Tensor) -> Tensor:
    """Sum over all processes, without a gradient."""
    return _reduced(value, dist.ReduceOp.SUM)


def world_max(value: Tensor) -> Tensor:
    """Element-wise maximum over all processes, without a gradient."""
    return _reduced(value, dist.ReduceOp.MAX)


def _reduced(value: Tensor, operation: Any) -> Tensor:
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value, operation)
    return value


def gather(rows: Tensor) -> Tensor:
    """Rows [n, D] of every process, [n * world, D], in the order of ranks; gradients flow back to whose rows they are.

    Every process must bring equally many.
    """
    return rows if world_size() == 1 else _Gathered.apply(rows)


class _Gathered(torch.autograd.Function):
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


def launched() -> tuple[int, int]:
    """Processes on this machine and machines, as `torchrun` announces them; (1, 1) without it."""
    if not dist.is_torchelastic_launched():
        return 1, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def roll_call(error: RuntimeError) -> DermedgeError:
    """What to say when a collective failed: which ranks no longer answer.

    Every living rank signs a list in the store of the process group, then looks who did not.
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
    except RuntimeError:  # rank 0 kept the store
        missing = [0]
    who = (
        f"rank {', '.join(map(str, missing))} no longer answers"
        if missing
        else "a collective failed on every rank"
    )
    return DermedgeError(
        f"Rank {own} stops, {who} ({str(error).strip().splitlines()[0][:200]}): look into that process's output, then "
        "start all ranks again with the same command; training continues from the last checkpoint."
    )
