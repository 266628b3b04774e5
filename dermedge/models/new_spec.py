"""The contract of a new model, and whether a network can keep it."""

from collections.abc import Mapping
from typing import Any

import torch

from dermedge.models.network import Network
from dermedge_runtime.errors import BundleError, UsageError
from dermedge_runtime.spec import IDENTIFIER, Preprocess, Spec, Task

INTENDED_USE = (
    "Decision support for trained users who look at images of single skin lesions like those that the model was "
    "trained on. Not a diagnosis, and not a replacement for one."
)


def make_spec(
    name: str, tasks: tuple[Task, ...], preprocess: Preprocess, lineage: Mapping[str, Any]
) -> Spec:
    """The contract of a new model. Raises UsageError for a name that no file can have."""
    if not IDENTIFIER.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a model: pass --name with letters, digits, '.', '_' and '-' only."
        )
    return Spec(name, "1", tasks, preprocess, INTENDED_USE, lineage)


def make_preprocess(size: int, fit: str) -> Preprocess:
    """The preprocessing of a new model. Raises UsageError where there is no such one."""
    try:
        return Preprocess.from_json(
            {"size": size, "fit": fit, "kernel": "triangle", "background": [255, 255, 255]}
        )
    except BundleError as error:
        raise UsageError(
            f"Size {size!r} with fit {fit!r} is no preprocessing: give a side of 16 to 4096 pixels and crop, pad or "
            "stretch."
        ) from error


def check_input(network: Network, name: str, size: int) -> None:
    """Raise UsageError if the network cannot take images of that size, as a transformer made for another one cannot."""
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{name!r} does not take images of {size} x {size} pixels ({error}): choose another --size or --backbone, "
            f"or make it for them with --backbone-arg img_size={size}."
        ) from error
