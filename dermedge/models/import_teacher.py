"""`import_teacher`: convert a published checkpoint to a teacher folder."""

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
from dermedge.models.network import Network, TimmModel, count_parameters, create_backbone
from dermedge.models.new_spec import check_input, make_preprocess, make_spec
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import atomic_folder, check_free, sha256_file
from dermedge_runtime.printable import printable
from dermedge_runtime.spec import Task

T = TypeVar("T")
MARKER = "teacher.json"  # A folder with this file may be overwritten.
SHOWN = 3  # Names of tensors in a message.
TASKS = (Task("features", "embed"),)


@dataclass(frozen=True)
class Resize:
    """A method to resize a position embedding to another grid.

    Attributes:
        interpolation: Mode of `torch.nn.functional.interpolate`.
        antialias: Apply a low-pass filter when the grid shrinks.
        offset: Patches that are added to the new side before the scale factor is
            computed.

    Example:
        >>> positions = torch.rand(1, 1 + 16 * 16, 384)
        >>> resize_positions(positions, 16, 20, Resize(offset=0.1)).shape
        torch.Size([1, 401, 384])
    """

    interpolation: str = "bicubic"
    antialias: bool = False
    offset: float = 0.0


# The first is the method of timm, and of DINOv2's code with registers. The last is the
# method of DermNIO's code, and of DINOv2's code without registers.
RESIZES: Mapping[str, Resize] = MappingProxyType(
    {
        "bicubic-antialias": Resize(antialias=True),
        "bicubic": Resize(),
        "bicubic-offset": Resize(offset=0.1),
    }
)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `import_teacher`.

    Attributes:
        backbone: timm name. None derives it from the shapes of the tensors.
        backbone_args: Arguments of `timm.create_model`. The number of attention heads
            is one of them, because no tensor's shape shows it.
        size: Side of the network's square input in pixels. None is the size that its
            positions were trained for.
        fit: Conversion of a rectangle to a square: `crop`, `pad` or `stretch`.
        pos_embed: Resizing of the positions for another size: `bicubic-antialias`,
            `bicubic` or `bicubic-offset`. None is the method of the code that trained
            the weights: `bicubic-offset` for `dermnio` and for `dinov2` without
            registers, otherwise `bicubic-antialias`.
        name: Name of the model. None derives it from the backbone's.
        licence: Licence of the weights. None is the published one of the format, if it
            is known.

    Example:
        >>> ImportOptions(backbone="vit_small_patch14_dinov2", size=224).fit
        'crop'
    """

    backbone: str | None = None
    backbone_args: Mapping[str, Any] | None = None
    size: int | None = None
    fit: str = "crop"
    pos_embed: str | None = None
    name: str | None = None
    licence: str | None = None


def import_teacher(
    file: Path | str,
    out: Path | str,
    format: str,
    options: ImportOptions | None = None,
    *,
    overwrite: bool = False,
) -> TrainedModel:
    """Convert a published checkpoint to a teacher folder with one `embed` task.

    Every tensor of the backbone must be in the file. Only heads and the tensors that
    the format lists may be left over. The file is read as tensors only, and a file that
    would run code is refused. The lineage records the digest of the file,
    the chosen network, the dropped tensors, both grids and the resizing of positions.

    Args:
        file: A `.safetensors` file, or a file of `torch.save`.
        out: Folder for the teacher.
        format: `dermnio`, `dinov2`, `panderm`, or `timm` for a state dict of timm.
        options: Backbone, input size and record of the model.
        overwrite: Replace another teacher in `out`.

    Raises:
        DataError: The file is not a checkpoint, contains code, or lacks tensors of the
            backbone, or holds others.
        UsageError: The format, backbone, size or output cannot be used, or the width
            differs from the backbone's and `num_heads` is not given.

    Example:
        >>> import timm, torch
        >>> weights = timm.create_model("test_vit", num_classes=0).state_dict()
        >>> torch.save(weights, "vit.pth")
        >>> teacher = import_teacher(
        ...     "vit.pth", "imported", "timm", ImportOptions(backbone="test_vit")
        ... )
        >>> teacher.spec.preprocess.size
        160
    """
    file, out = Path(file), Path(out)
    options = options or ImportOptions()
    layout = _look_up(FORMATS, format, "format")
    if options.pos_embed is not None:
        _look_up(RESIZES, options.pos_embed, "resizing of positions")
    # Everything is checked before anything is written, because a checkpoint may be
    # large.
    check_free(out, overwrite=overwrite, marker=MARKER)
    requested = _request_backbone(file, layout, options)
    anchor = layout.anchor or next(iter(_make_skeleton(requested).state_dict()))
    branch, weights, dropped = pick(read_tensors(file), layout.branches, anchor, file)
    weights = layout.translate(weights)
    chosen = _choose_backbone(file, layout, requested, weights)
    check_heads(chosen)
    skeleton = _make_skeleton(chosen)
    weights, heads = drop_heads(weights, skeleton, layout)
    check_shape(weights, skeleton, chosen.name, file)
    native = native_grid(weights, skeleton, file)
    size, grid = _choose_size(options.size, native, weights, skeleton)
    preprocess = make_preprocess(size, options.fit)
    method = options.pos_embed or layout.resize_method(weights)
    if native is not None and grid is not None and native != grid:
        positions = resize_positions(weights["pos_embed"], native, grid, RESIZES[method])
        weights["pos_embed"] = positions
    # A transformer is created for one input size, which is an argument of timm's.
    if hasattr(skeleton, "set_input_size"):
        chosen = replace(chosen, args={**chosen.args, "img_size": size})
    lineage = _make_lineage(file, layout, options.licence) | {
        "backbone": f"timm {chosen.name}",
        "branch": branch,
        "dropped": dict(sorted((dropped + heads).items())),
        "native_grid": native,
        "grid": grid,
        "pos_embed": {"method": method, **asdict(RESIZES[method])} if native != grid else None,
    }
    name = options.name or f"{chosen.name}-teacher"
    spec = make_spec(name, TASKS, preprocess, {"teacher": lineage})
    network = make_network(chosen, weights, size, file)
    metrics = {"parameters": count_parameters(network)}
    teacher = TrainedModel(network, spec, chosen, "teacher", metrics)
    with atomic_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        save_model_folder(teacher, folder)
    return teacher


def drop_heads(
    weights: Weights, skeleton: TimmModel, layout: Format
) -> tuple[Weights, Counter[str]]:
    """Remove classifiers and the tensors that the format lists.

    Returns:
        The other weights, and the number of removed tensors by name.
    """
    classifier = skeleton.default_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    pattern = "|".join((layout.dropped, *(rf"^{re.escape(head)}\." for head in heads)))
    own = skeleton.state_dict()
    matches = {name: re.search(pattern, name) for name in weights if name not in own}
    dropped = Counter(match.group().strip(".") for match in matches.values() if match)
    return {name: tensor for name, tensor in weights.items() if not matches.get(name)}, dropped


def check_heads(backbone: Backbone) -> None:
    """Check that a changed width comes with a number of attention heads.

    The shapes of the weights do not depend on the number of heads. With a wrong number
    the weights load, and the features are wrong.

    Raises:
        UsageError: `embed_dim` differs from the backbone's, and there is no
            `num_heads`.
    """
    args = dict(backbone.args)
    width = args.pop("embed_dim", None)
    if width is None or "num_heads" in args:
        return
    default = measure(_make_skeleton(replace(backbone, args=args)).state_dict())
    if default is not None and default.width != width:
        raise UsageError(
            f"embed_dim is {width}, but {backbone.name!r} has width {default.width}, and the "
            "weights do not show their number of attention heads. Give it with --backbone-arg "
            "num_heads=N."
        )


def check_shape(weights: Weights, skeleton: TimmModel, name: str, file: Path) -> None:
    """Check that weights and model agree in width, depth, patch and registers.

    Raises:
        DataError: One of them differs, or only one of the two is a transformer.
    """
    actual, expected = measure(weights), measure(skeleton.state_dict())
    if actual == expected:
        return
    wider = actual is not None and expected is not None and actual.width != expected.width
    heads = " Another width also needs --backbone-arg num_heads=N." if wider else ""
    raise DataError(
        f"{file} holds a network of {actual or 'another kind'}, but {name!r} is one of "
        f"{expected or 'another kind'}. Choose another --backbone, or change it with "
        f"--backbone-arg.{heads}"
    )


def native_grid(weights: Weights, skeleton: TimmModel, file: Path) -> int | None:
    """Return the side of the grid that the positions were trained for, in patches.

    None means that the network has no absolute positions.

    Raises:
        DataError: The grid is not square.
    """
    positions = weights.get("pos_embed")
    prefix = getattr(skeleton, "num_prefix_tokens", None)
    if positions is None or positions.ndim != 3 or prefix is None:
        return None
    patches = positions.shape[1] - (0 if getattr(skeleton, "no_embed_class", False) else prefix)
    side = isqrt(max(patches, 0))
    if patches < 1 or side**2 != patches:
        raise DataError(
            f"{file} has positions of {patches} patches, which is not a square grid. Check "
            "--backbone."
        )
    return side


def resize_positions(positions: Tensor, native: int, grid: int, resize: Resize) -> Tensor:
    """Resize a position embedding to another grid, except its prefix tokens.

    Args:
        positions: Positions of P prefix tokens and the patches, [1, P + native^2, D].
        native: Side of their grid in patches.
        grid: Side of the new grid in patches.
        resize: Interpolation, antialiasing and offset.

    Returns:
        Positions [1, P + grid^2, D], float32.

    Example:
        >>> resize_positions(torch.zeros(1, 17, 8), 4, 3, Resize()).shape
        torch.Size([1, 10, 8])
    """
    prefix = positions.shape[1] - native**2
    plane = positions[:, prefix:].float().reshape(1, native, native, -1).permute(0, 3, 1, 2)
    target: dict[str, Any] = {"size": (grid, grid)}
    if resize.offset:
        # DINOv2 passes a scale factor instead of a size, so the offset moves the
        # sampling points.
        target = {"scale_factor": (grid + resize.offset) / native}
    plane = F.interpolate(plane, mode=resize.interpolation, antialias=resize.antialias, **target)
    return torch.cat((positions[:, :prefix].float(), plane.flatten(2).transpose(1, 2)), dim=1)


def make_network(backbone: Backbone, weights: Weights, size: int, file: Path) -> Network:
    """Create the network with these weights and run it on one image.

    Raises:
        DataError: Weights are missing, left over, of another shape, or not finite.
        UsageError: The network does not take images of that size.
    """
    own = _make_skeleton(backbone).state_dict()
    problems = {
        "missing": [name for name in own if name not in weights],
        "left over": [name for name in weights if name not in own],
        "of another shape": [
            name for name in own if name in weights and weights[name].shape != own[name].shape
        ],
        "not finite": [
            name for name, tensor in weights.items() if not torch.isfinite(tensor).all()
        ],
    }
    summary = "; ".join(
        f"{_list_some(names)} {problem}" for problem, names in problems.items() if names
    )
    if summary:
        raise DataError(
            f"{file} does not fit {backbone.name!r}: {summary}. Check --format, --backbone and "
            "--size."
        )
    network = Network(backbone, TASKS)
    network.backbone.load_state_dict(weights)
    check_input(network, backbone.name, size)
    return network


def _list_some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _look_up(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise UsageError(f"Unknown {what} {name!r}. Choose one of {', '.join(table)}.")
    return table[name]


def _request_backbone(file: Path, layout: Format, options: ImportOptions) -> Backbone:
    """Return the backbone that options or file name, else one without a name."""
    name, args = options.backbone, options.backbone_args or {}
    if "img_size" in args:
        raise UsageError("img_size is not an argument of the backbone here. Give it as --size.")
    if layout.anchor is not None:
        return Backbone(name or "", args, layout.mean, layout.std)
    named = with_hub_normalization(Backbone(name, args)) if name else None
    if file.suffix == SAFETENSORS:
        return read_backbone(file, named)
    if named is None:
        raise UsageError(f"{file} does not name its timm model. Name it with --backbone.")
    return named


def _choose_backbone(file: Path, layout: Format, requested: Backbone, weights: Weights) -> Backbone:
    """Return the requested backbone, or the known one of the weights' shape."""
    shape = measure(weights)
    name = requested.name or (layout.backbones.get(shape) if shape else None)
    if not name:
        raise UsageError(
            f"{file} holds a network of {shape or 'unknown shape'}, which is no known "
            f"{layout.name} model. Name the most similar timm model with --backbone, and the "
            "differences with --backbone-arg."
        )
    return replace(requested, name=name, args={**layout.arguments(weights), **requested.args})


def _make_skeleton(backbone: Backbone) -> TimmModel:
    """Create the timm model on the meta device, without memory for its weights."""
    with torch.device("meta"):
        return create_backbone(backbone)


def _make_lineage(file: Path, layout: Format, licence: str | None) -> dict[str, Any]:
    """Return the origin of the weights; unknown training data is left out."""
    data = {"pretrained_on": list(layout.pretrained_on)} if layout.pretrained_on else {}
    return {
        "licence": licence or layout.licence,
        "file": printable(file.name),
        "sha256": sha256_file(file),
        "format": layout.name,
        **data,
    }


def _choose_size(
    size: int | None, native: int | None, weights: Weights, skeleton: TimmModel
) -> tuple[int, int | None]:
    """Return the input's side in pixels, and in patches if there is a square grid."""
    shape = measure(weights)
    if native is None or shape is None:
        return skeleton.default_cfg["input_size"][-1] if size is None else size, native
    size = native * shape.patch if size is None else size
    if size % shape.patch:
        nearest = max(1, round(size / shape.patch)) * shape.patch
        raise UsageError(
            f"Size {size} is not a multiple of the patch of {shape.patch} pixels. Give {nearest}, "
            "for example."
        )
    return size, size // shape.patch
