"""`import_teacher`: a published checkpoint becomes a teacher's folder, or one clear error."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import isqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dermedge.models.backbone import Backbone, read_backbone, with_hub_normalization
from dermedge.models.checkpoint import SAFETENSORS, pick, read_tensors
from dermedge.models.formats import FORMATS, Format, Weights, measure
from dermedge.models.model_folder import TrainedModel, save_model_folder
from dermedge.models.network import Network, count_parameters, create_backbone
from dermedge.models.new_spec import check_input, make_preprocess, make_spec
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_folder, check_free, sha256_file
from dermedge_runtime.spec import Task

T = TypeVar("T")
MARKER = "teacher.json"
SHOWN = 3
TASKS = (Task("features", "embed"),)


@dataclass(frozen=True)
class Resize:
    """How a position embedding is brought to another grid: `interpolation` and `antialias` are those of
    `torch.nn.functional.interpolate`; a positive `offset` lengthens the new side before the scale is taken.
    """

    interpolation: str = "bicubic"
    antialias: bool = False
    offset: float = 0.0


# The first is what timm does, and DINOv2's code with registers; the last is DINOv2's code without them.
RESIZES: Mapping[str, Resize] = MappingProxyType(
    {
        "bicubic-antialias": Resize(antialias=True),
        "bicubic": Resize(),
        "bicubic-offset": Resize(offset=0.1),
    }
)


def import_teacher(
    file: Path | str,
    out: Path | str,
    *,
    format: str,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    size: int | None = None,
    fit: str = "crop",
    pos_embed: str = "bicubic-antialias",
    name: str | None = None,
    licence: str | None = None,
    overwrite: bool = False,
) -> TrainedModel:
    """Turn a published checkpoint into a teacher's folder: its features, without heads, as an `embed` task.

    Every tensor of the backbone must be there, and none may be left over but heads and what the format says. A file is
    read as tensors only (`weights_only=True`): what would run code is refused. The lineage records the file's digest,
    whose weights were taken, what was dropped, both grids, and how positions were resized.

    Args:
        file: a `.safetensors` file, or one that `torch.save` wrote.
        out: folder for the teacher.
        format: `dermnio`, `dinov2`, `panderm`, or `timm` for a state dict of timm's own.
        backbone: timm name; by default the one that the tensors' shapes tell.
        backbone_args: arguments of `timm.create_model`, such as the number of heads, which no shape tells.
        size: side of the network's square input in pixels; by default the one that its positions were trained for.
        fit: `crop`, `pad` or `stretch`.
        pos_embed: how positions are resized for another size: `bicubic-antialias` (timm; DINOv2 with registers),
            `bicubic`, or `bicubic-offset` (DINOv2 without registers).
        name: of the model; by default the backbone's.
        licence: of the weights; by default the one that the format was published under, where that is known.
        overwrite: replace another teacher in `out`.

    Raises:
        DataError: the file is no checkpoint, holds code, or its tensors are not those of the backbone.
        UsageError: a format, a backbone, a size or an output that makes no sense.
    """
    file, out = Path(file), Path(out)
    kind = _known(FORMATS, format, "format")
    resize = _known(RESIZES, pos_embed, "resizing of positions")
    check_free(out, overwrite=overwrite, marker=MARKER)
    given = _given(file, kind, backbone, backbone_args or {})
    anchor = kind.anchor or next(iter(_skeleton(given).state_dict()))
    branch, weights, dropped = pick(read_tensors(file), kind.branches, anchor, file)
    weights = kind.translate(weights)
    chosen = _chosen(file, kind, given, weights)
    skeleton = _skeleton(chosen)
    weights, heads = without_heads(weights, skeleton, kind)
    compare(weights, skeleton, chosen.name, file)
    native = native_grid(weights, skeleton, file)
    size, grid = _size(size, native, weights, skeleton)
    preprocess = make_preprocess(size, fit)
    if native is not None and grid is not None and native != grid:
        weights["pos_embed"] = resize_positions(weights["pos_embed"], native, grid, resize)
    if hasattr(skeleton, "set_input_size"):
        chosen = replace(chosen, args={**chosen.args, "img_size": size})
    lineage = _origin(file, kind, licence) | {
        "backbone": f"timm {chosen.name}",
        "branch": branch,
        "dropped": dict(sorted((dropped + heads).items())),
        "native_grid": native,
        "grid": grid,
        "pos_embed": {"method": pos_embed, **asdict(resize)} if native != grid else None,
    }
    spec = make_spec(name or f"{chosen.name}-teacher", TASKS, preprocess, {"teacher": lineage})
    network = filled(chosen, weights, size, file)
    teacher = TrainedModel(
        network, spec, chosen, "teacher", {"parameters": count_parameters(network)}
    )
    with atomic_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        save_model_folder(teacher, folder)
    return teacher


def without_heads(weights: Weights, skeleton: Any, kind: Format) -> tuple[Weights, Counter[str]]:
    """The weights without classifiers and what else the format drops, and how many tensors that were, by name."""
    classifier = skeleton.default_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    pattern = "|".join((kind.dropped, *(rf"^{re.escape(head)}\." for head in heads)))
    own = skeleton.state_dict()
    found = {name: re.search(pattern, name) for name in weights if name not in own}
    dropped = Counter(match.group().strip(".") for match in found.values() if match)
    return {name: tensor for name, tensor in weights.items() if not found.get(name)}, dropped


def compare(weights: Weights, skeleton: Any, name: str, file: Path) -> None:
    """Raise DataError unless both are transformers of one width, depth, patch and number of registers, or neither is
    one.
    """
    held, wanted = measure(weights), measure(skeleton.state_dict())
    if held != wanted:
        raise DataError(
            f"{file} holds a network of {held or 'another kind'}, {name!r} is one of {wanted or 'another kind'}: "
            "choose another --backbone, or change it with --backbone-arg."
        )


def native_grid(weights: Weights, skeleton: Any, file: Path) -> int | None:
    """Patches on a side of the square grid that the position embedding was trained for; None where there is none.

    Raises:
        DataError: the grid is not square.
    """
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3 or not hasattr(skeleton, "num_prefix_tokens"):
        return None
    patches = positions.shape[1] - (
        0 if getattr(skeleton, "no_embed_class", False) else skeleton.num_prefix_tokens
    )
    side = isqrt(max(patches, 0))
    if patches < 1 or side**2 != patches:
        raise DataError(
            f"{file} has positions of {patches} patches, not of a square grid: check --backbone."
        )
    return side


def resize_positions(positions: Tensor, native: int, grid: int, resize: Resize) -> Tensor:
    """A position embedding [1, P + native^2, D] at another grid, [1, P + grid^2, D]; its prefix of P stays."""
    prefix = positions.shape[1] - native**2
    plane = positions[:, prefix:].float().reshape(1, native, native, -1).permute(0, 3, 1, 2)
    to: dict[str, Any] = {"size": (grid, grid)}
    if resize.offset:
        to = {"scale_factor": (grid + resize.offset) / native}
    plane = F.interpolate(plane, mode=resize.interpolation, antialias=resize.antialias, **to)
    return torch.cat((positions[:, :prefix].float(), plane.flatten(2).transpose(1, 2)), dim=1)


def filled(backbone: Backbone, weights: Weights, size: int, file: Path) -> Network:
    """The network with these weights, tried on an image.

    Raises:
        DataError: weights are missing, left over, of another shape, or not finite.
        UsageError: the network does not take images of that size.
    """
    own = _skeleton(backbone).state_dict()
    wrong = {
        "missing": [name for name in own if name not in weights],
        "left over": [name for name in weights if name not in own],
        "of another shape": [
            name for name in own if name in weights and weights[name].shape != own[name].shape
        ],
        "not finite": [
            name for name, tensor in weights.items() if not torch.isfinite(tensor).all()
        ],
    }
    said = "; ".join(f"{_few(names)} {what}" for what, names in wrong.items() if names)
    if said:
        raise DataError(
            f"{file} does not fit {backbone.name!r}: {said}. Check --format, --backbone and --size."
        )
    network = Network(backbone, TASKS)
    network.backbone.load_state_dict(weights)
    check_input(network, backbone.name, size)
    return network


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _known(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise UsageError(f"There is no {what} {name!r}: choose one of {', '.join(table)}.")
    return table[name]


def _given(file: Path, kind: Format, backbone: str | None, args: Mapping[str, Any]) -> Backbone:
    """The backbone as far as it is known before its tensors are, nameless where they will tell."""
    if "img_size" in args:
        raise UsageError(
            "img_size is not an argument of the backbone here: give the size as --size."
        )
    if kind.anchor is not None:
        return Backbone(backbone or "", args, kind.mean, kind.std)
    named = with_hub_normalization(Backbone(backbone, args)) if backbone else None
    if file.suffix == SAFETENSORS:
        return read_backbone(file, named)
    if named is None:
        raise UsageError(f"{file} does not say which timm model it is: name it with --backbone.")
    return named


def _chosen(file: Path, kind: Format, given: Backbone, weights: Weights) -> Backbone:
    shape = measure(weights)
    name = given.name or (kind.backbones.get(shape) if shape else None)
    if not name:
        raise UsageError(
            f"{file} holds a network of {shape or 'unknown shape'}, which is no {kind.name} model known here: name the "
            "timm model nearest to it with --backbone, and what differs with --backbone-arg."
        )
    return replace(given, name=name, args={**kind.arguments(weights), **given.args})


def _skeleton(backbone: Backbone) -> Any:
    """The timm model without memory for its weights."""
    with torch.device("meta"):
        return create_backbone(backbone)


def _origin(file: Path, kind: Format, licence: str | None) -> dict[str, Any]:
    """Where the weights come from, for the lineage; what they have seen is left out where it is not known."""
    seen = {"pretrained_on": list(kind.pretrained_on)} if kind.pretrained_on else {}
    digest = sha256_file(file)
    return {
        "licence": licence or kind.licence,
        "file": file.name,
        "sha256": digest,
        "format": kind.name,
        **seen,
    }


def _size(
    size: int | None, native: int | None, weights: Weights, skeleton: Any
) -> tuple[int, int | None]:
    """The input's side in pixels and in patches; None patches where the network has no square grid of its own."""
    shape = measure(weights)
    if native is None or shape is None:
        return skeleton.default_cfg["input_size"][-1] if size is None else size, native
    size = native * shape.patch if size is None else size
    if size % shape.patch:
        near = max(1, round(size / shape.patch)) * shape.patch
        raise UsageError(
            f"Size {size} is not a multiple of the patch of {shape.patch} pixels: give {near}, for example."
        )
    return size, size // shape.patch
