"""The tensors of somebody else's checkpoint, read without running what is in it, and whose weights they are."""

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dermedge.models.formats import Weights
from dermedge_runtime.errors import DataError

SAFETENSORS = ".safetensors"
# Segments of a tensor's path that say how it was saved, not whose it is.
WRAPPERS = frozenset(("model", "module", "state_dict", "backbone", "_orig_mod"))


def read_tensors(path: Path) -> Weights:
    """Every tensor of a file by its path through the file's dictionaries, joined with dots.

    Raises:
        DataError: there is no such file, it is no checkpoint, or loading it would run code.
    """
    if not path.is_file():
        raise DataError(
            f"{path} is not a file: give a checkpoint, one .pth, .pt or .safetensors file."
        )
    content = _safetensors(path) if path.suffix == SAFETENSORS else _pickled(path)
    tensors = dict(_flat(content, ""))
    if not tensors:
        raise DataError(
            f"{path} holds {type(content).__name__} but no named tensors: save the model's state_dict()."
        )
    return tensors


def _safetensors(path: Path) -> Weights:
    try:
        weights: Weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is not a safetensors file ({error}): download it again."
        ) from error
    return weights


def _pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # about how a file was pickled, which nobody here can change
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        # torch names what it refuses to import; a pickle of torch.save has no other way to run code.
        found = (
            re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, pickle.UnpicklingError)
            else None
        )
        if found:
            raise DataError(
                f"{path} holds more than tensors: loading it would run {found[1]}, so it is not loaded. Get the "
                "weights as safetensors, or have their maker save the state_dict() alone."
            ) from error
        raise DataError(
            f"{path} is not a checkpoint that can be read without running code ({_first_sentence(error)}): download "
            "it again, or get the weights as safetensors."
        ) from error


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _flat(content: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield path.removeprefix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{path}.{key}")


def pick(
    tensors: Weights, branches: tuple[str, ...], anchor: str, path: Path
) -> tuple[str, Weights, Counter[str]]:
    """The weights of the best network in a file, of those that hold a tensor `anchor`.

    Returns:
        The path of that network, its weights by their names below it, and how many tensors lie elsewhere, by the first
        two segments of their paths.

    Raises:
        DataError: no network is there, or two of them are equally good by `branches`.
    """
    found = [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]
    # A convolution's name may end like the anchor's; what lies inside another network is a part of it.
    roots = [
        root
        for root in found
        if not any(other != root and root.startswith(other) for other in found)
    ]
    if not roots:
        shown = ", ".join(list(tensors)[:3])
        raise DataError(
            f"{path} holds no {anchor}, but {shown} and so on: it is of another format or another --backbone."
        )
    ranks = {root: _rank(root, branches) for root in roots}
    best = [root for root in roots if ranks[root] == min(ranks.values())]
    if len(best) > 1:
        names = ", ".join(repr(root.rstrip(".")) for root in best)
        raise DataError(
            f"{path} holds several networks, {names}: save the state_dict() of the one to take alone."
        )
    root = best[0]
    elsewhere = Counter(
        ".".join(name.split(".")[:2]) for name in tensors if not name.startswith(root)
    )
    weights = {
        name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)
    }
    return root.rstrip("."), weights, elsewhere


def _rank(root: str, branches: tuple[str, ...]) -> int:
    words = [word for word in root.split(".") if word and word not in WRAPPERS]
    ranked = [branches.index(word) for word in words if word in branches]
    return min(ranked, default=branches.index("") if not words else len(branches))
