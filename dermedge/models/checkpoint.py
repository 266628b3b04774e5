"""Read the tensors of a checkpoint without running code, and pick one network."""

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dermedge.models.formats import Weights
from dermedge_runtime.errors import DataError

SAFETENSORS = ".safetensors"
# Words in a tensor's path that come from the way of saving, not from the network.
WRAPPERS = frozenset(("model", "module", "state_dict", "backbone", "_orig_mod"))


def read_tensors(path: Path) -> Weights:
    """Read all tensors of a file by their dotted path in its dictionaries.

    Raises:
        DataError: The file does not exist, is not a checkpoint, or loading it would run
            code.

    Example:
        >>> torch.save({"model": {"head.weight": torch.ones(2)}}, "model.pth")
        >>> list(read_tensors(Path("model.pth")))
        ['model.head.weight']
    """
    if not path.is_file():
        raise DataError(
            f"{path} is not a file. Give a checkpoint: one .pth, .pt or .safetensors file."
        )
    content = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_pickle(path)
    tensors = dict(_flatten(content, ""))
    if not tensors:
        raise DataError(
            f"{path} holds {type(content).__name__} but no named tensors. Save the model's "
            "state_dict()."
        )
    return tensors


def _read_safetensors(path: Path) -> Weights:
    try:
        weights: Weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is not a safetensors file ({error}). Download it again."
        ) from error
    return weights


def _read_pickle(path: Path) -> object:
    try:
        # torch warns about how a file was pickled, which the user cannot change.
        with warnings.catch_warnings(action="ignore"):
            content: object = torch.load(path, map_location="cpu", weights_only=True)
            return content
    except Exception as error:  # a damaged file can raise any error
        # torch's message names the global that it refuses to import. A pickle of
        # torch.save has no other way to run code.
        refused = (
            re.search(r"GLOBAL (\S+)", str(error))
            if isinstance(error, pickle.UnpicklingError)
            else None
        )
        if refused:
            raise DataError(
                f"{path} holds more than tensors: loading it would run {refused[1]}, so it is not "
                "loaded. Get the weights as safetensors, or have their author save the "
                "state_dict() alone."
            ) from error
        raise DataError(
            f"{path} is not a checkpoint that can be read without running code "
            f"({_first_sentence(error)}). Download it again, or get the weights as safetensors."
        ) from error


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _flatten(content: object, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield path.removeprefix("."), content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flatten(value, f"{path}.{key}")


def pick(
    tensors: Weights, branches: tuple[str, ...], anchor: str, path: Path
) -> tuple[str, Weights, Counter[str]]:
    """Pick the weights of one network from a file with a teacher, a student and heads.

    Every occurrence of `anchor` marks a network. The one whose path has the most
    preferred word of `branches` is picked.

    Args:
        tensors: All tensors of the file.
        branches: Words in a network's path, the preferred first. "" means none of them.
        anchor: Name of a tensor that each network has.
        path: The file, for messages.

    Returns:
        The network's path, its weights by their names below that path, and the number
        of tensors elsewhere by the first two words of their paths.

    Raises:
        DataError: There is no network, or two are equally good by `branches`.

    Example:
        >>> tensors = {"teacher.head": torch.ones(1), "student.head": torch.ones(1)}
        >>> pick(tensors, ("teacher", "student"), "head", Path("model.pth"))[0]
        'teacher'
    """
    prefixes = [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]
    # A convolution inside a network may have a name that ends like the anchor. A prefix
    # that starts with another prefix is therefore a part of that network, not a
    # network.
    roots = [
        root
        for root in prefixes
        if not any(other != root and root.startswith(other) for other in prefixes)
    ]
    if not roots:
        shown = ", ".join(list(tensors)[:3])
        raise DataError(
            f"{path} holds no {anchor}, but {shown} and so on. It has another format or needs "
            "another --backbone."
        )
    ranks = {root: _rank_branch(root, branches) for root in roots}
    best = [root for root in roots if ranks[root] == min(ranks.values())]
    if len(best) > 1:
        names = ", ".join(repr(root.rstrip(".")) for root in best)
        raise DataError(
            f"{path} holds several networks, {names}. Save the state_dict() of one of them alone."
        )
    root = best[0]
    elsewhere = Counter(
        ".".join(name.split(".")[:2]) for name in tensors if not name.startswith(root)
    )
    weights = {
        name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)
    }
    return root.rstrip("."), weights, elsewhere


def _rank_branch(root: str, branches: tuple[str, ...]) -> int:
    words = [word for word in root.split(".") if word and word not in WRAPPERS]
    ranks = [branches.index(word) for word in words if word in branches]
    return min(ranks, default=branches.index("") if not words else len(branches))
