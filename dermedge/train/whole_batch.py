"""Train one network on a batch that several processes share.

Each process runs the network on its part of the images. The outputs of all processes
are gathered before the loss, so every process computes the loss of the whole batch.
Means over labelled rows, similarities between images and mixup are then those of a
single process, and no loss needs code for several processes.
"""

import itertools
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from dermedge.models.initialize import BATCH_NORMS
from dermedge.train.distributed import gather, rank, split_rows, world_size

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


class WholeBatch(nn.Module):
    """A network that is called with the batch of all processes, in each of them.

    Args:
        network: Fabric's wrapper of the network.
        seed: Random seed of dropout and stochastic depth, which differ by rank.

    Example:
        >>> network = WholeBatch(nn.Linear(3, 1), seed=0)
        >>> tuple(network(torch.zeros(4, 3)).shape)
        (4, 1)
    """

    def __init__(self, network: nn.Module, seed: int) -> None:
        super().__init__()
        self.network, self.seed = network, seed
        self._calls = itertools.count()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return the outputs of the whole batch, whose gradients flow to every process."""
        own = apply_to_collection(inputs, Tensor, lambda rows: rows[split_rows(len(rows))])
        # The loss may draw random numbers, which must stay equal on all ranks.
        with torch.random.fork_rng(devices=_used_gpus()):
            torch.manual_seed(self.seed + world_size() * next(self._calls) + rank())
            outputs = self.network(*own, **options)
        tensors: list[Tensor] = []
        apply_to_collection(outputs, Tensor, tensors.append)
        # One function for all outputs: an output that the loss does not use gets a
        # gradient of zero, and DDP waits for the gradients of all weights.
        gathered = iter(_GatherOutputs.apply(*tensors))
        return apply_to_collection(outputs, Tensor, lambda _: next(gathered))


def _used_gpus() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_available() else []


class _GatherOutputs(torch.autograd.Function):
    """All-gather of several tensors [n, ...] before a loss that all processes compute."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(_all_gather, tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        # DDP and FSDP average the gradients of the processes. The factor makes their
        # mean the sum over the parts of the batch.
        return tuple(gradient[split_rows(len(gradient))] * world_size() for gradient in gradients)


def gather_batch(batch: T) -> T:
    """Return a batch with the rows of all processes, in order of rank, without gradients."""
    whole: T = apply_to_collection(batch, Tensor, _all_gather)
    return whole


def _all_gather(rows: Tensor) -> Tensor:
    if world_size() == 1:
        return rows
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def synchronize_norms(network: M, device: torch.device) -> M:
    """Let the BatchNorms of a network train on the batch of all processes.

    PyTorch has synchronized BatchNorms for GPUs only. On a CPU, each process normalizes
    the whole batch and keeps its own rows. This is exact, and costs the time of
    gathering.

    Args:
        network: The network, before Fabric wraps it.
        device: Device that it trains on.

    Returns:
        The network. On a GPU, its BatchNorms are replaced.
    """
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    if world_size() == 1 or not norms:
        return network
    if device.type == "cuda":
        # PyTorch's own conversion loses the activation in timm's norm layers
        # (huggingface/pytorch-image-models#1254).
        synchronized: M = convert_sync_batchnorm(network)
        return synchronized
    for norm in norms:
        norm.register_forward_pre_hook(_gather_input)
        norm.register_forward_hook(_keep_own_rows)
    return network


def _gather_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (gather(inputs[0]),) if module.training else inputs


def _keep_own_rows(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output[split_rows(len(output))] if module.training else output
