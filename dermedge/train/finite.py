"""Stop a training whose loss, weights or outputs are not finite."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermedge_runtime.errors import DataError


def check_loss(loss: Tensor, parts: Mapping[str, Tensor], when: str, remedy: str) -> None:
    """Check that a loss is finite.

    Args:
        loss: The loss.
        parts: Its parts by name, so that the message can name those that are not finite.
        when: Step of the training, such as `in step 3`, for the message.
        remedy: What to do, as a sentence.

    Raises:
        DataError: The loss is NaN or infinite.

    Example:
        >>> check_loss(torch.tensor(torch.inf), {}, "in step 3", "Lower --lr.")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.DataError: The loss became inf in step 3. Lower --lr.
    """
    if torch.isfinite(loss):
        return
    names = [name for name, value in parts.items() if not torch.isfinite(value)]
    which = f" of {', '.join(names)}" if names else ""
    raise DataError(f"The loss{which} became {loss.item()} {when}. {remedy}")


def check_weights(module: nn.Module, when: str, remedy: str) -> None:
    """Check that all trained weights are finite.

    Args:
        module: The network, or a loss with parameters.
        when: Part of the training, for the message.
        remedy: What to do, as a sentence.

    Raises:
        DataError: A weight is NaN or infinite.

    Example:
        >>> check_weights(nn.Linear(2, 1), "epoch 1", "Lower --lr.")
    """
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            raise DataError(f"The weight {name} is not finite at the end of {when}. {remedy}")


def check_outputs(outputs: Mapping[str, NDArray[Any]], where: str, remedy: str) -> None:
    """Check that the outputs of a network are finite.

    Args:
        outputs: Arrays by name.
        where: Network and images, for the message.
        remedy: What to do, as a sentence.

    Raises:
        DataError: An output is NaN or infinite.

    Example:
        >>> check_outputs({"malignancy": np.zeros((2, 1))}, "the model on val", "Lower --lr.")
    """
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise DataError(f"The output {name} of {where} is NaN or infinite. {remedy}")
