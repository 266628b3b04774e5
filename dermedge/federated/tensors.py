"""Select the tensors that travel, and write them as safetensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dermedge.federated.options import FederatedOptions
from dermedge_runtime.errors import DataError

Arrays = Mapping[str, NDArray[Any]]


class Heads(nn.Module):
    """The heads of a network, applied to stored features.

    Args:
        heads: The heads by task, shared with the network.

    Example:
        >>> import torch
        >>> heads = Heads(nn.ModuleDict({"malignancy": nn.Linear(8, 1)}))
        >>> heads(torch.zeros(3, 8))["malignancy"].shape
        torch.Size([3, 1])
    """

    def __init__(self, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the outputs of every task from pooled features [N, D]."""
        return {name: head(features) for name, head in self.heads.items()}


def travelling(module: nn.Module, options: FederatedOptions) -> list[str]:
    """Return the names of the tensors that a client sends and receives.

    Counters are left out, because an average of them means nothing. FedBN leaves out
    BatchNorm too.

    Example:
        >>> travelling(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), FederatedOptions())
        ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var']
    """
    kept = set(norm_names(module)) if options.fedbn else set()
    return [
        name
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point() and name not in kept
    ]


def norm_names(module: nn.Module) -> list[str]:
    """Return the names of all tensors of BatchNorm layers.

    Source: Li et al., "FedBN: federated learning on non-IID features via local batch
    normalization", ICLR 2021.
    """
    norms = tuple(
        f"{name}." for name, part in module.named_modules() if isinstance(part, _BatchNorm)
    )
    return [name for name in module.state_dict() if norms and name.startswith(norms)]


def read_arrays(module: nn.Module, names: list[str]) -> dict[str, NDArray[Any]]:
    """Return tensors of a module as arrays, by name."""
    state = module.state_dict()
    return {name: state[name].detach().cpu().numpy() for name in names}


def write_arrays(module: nn.Module, arrays: Arrays) -> None:
    """Set tensors of a module.

    Raises:
        DataError: A name is unknown, a shape differs, or a value is not finite.
    """
    import torch

    state = module.state_dict()
    check_arrays(arrays, {name: state[name].numpy() for name in arrays if name in state})
    for name, array in arrays.items():
        state[name].copy_(torch.from_numpy(np.array(array)))


def check_arrays(arrays: Arrays, expected: Arrays) -> None:
    """Check that arrays have the expected names and shapes and are finite.

    Raises:
        DataError: They do not.

    Example:
        >>> check_arrays({"w": np.array([np.nan])}, {"w": np.zeros(1)})
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.DataError: The weights hold values in 'w' that are not finite...
    """
    for name in dict.fromkeys((*expected, *arrays)):
        here, there = arrays.get(name), expected.get(name)
        if here is None or there is None or here.shape != there.shape:
            raise DataError(
                f"The weights do not fit the model: {name!r} is missing or of another shape. Use "
                "the same version of dermedge and the same options at all clients."
            )
        if not np.isfinite(here).all():
            raise DataError(
                f"The weights hold values in {name!r} that are not finite. Lower --lr, or check "
                "the images."
            )


def to_bytes(arrays: Arrays) -> bytes:
    """Return arrays as a safetensors file."""
    data: bytes = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return data


def from_bytes(data: bytes) -> dict[str, NDArray[Any]]:
    """Read arrays from the bytes of a safetensors file.

    Raises:
        DataError: The bytes are no such file.

    Example:
        >>> from_bytes(to_bytes({"w": np.ones(2)}))["w"].tolist()
        [1.0, 1.0]
    """
    try:
        arrays: dict[str, NDArray[Any]] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(
            f"The received weights are no safetensors file ({error}). Use the same version of "
            "dermedge at all clients."
        ) from error
    return arrays
