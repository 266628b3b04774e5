"""Where weights come from: a safetensors file, timm's hub, or a wider model of the same family."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dermedge.models.model_folder import TrainedModel, load_model_folder
from dermedge.models.network import Backbone, Network, create_backbone, truncate
from dermedge_runtime.errors import DataError, UsageError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def backbone_of_file(path: Path, backbone: Backbone | None) -> Backbone:
    """The backbone that a safetensors file was made for, from its own metadata (`architecture`, `mean`, `std`,
    `pad_type`), completing what `backbone` leaves open.

    Raises:
        DataError: the file cannot be read.
        UsageError: neither the file nor the caller names an architecture.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is not a safetensors file ({error}): give the weights in that format."
        ) from error
    name = backbone.name if backbone else metadata.get("architecture", "").removeprefix("timm ")
    if not name:
        raise UsageError(f"{path} does not say which timm model it is: name it with --backbone.")
    args = {"pad_type": metadata["pad_type"]} if "pad_type" in metadata else {}
    known = replace(
        backbone or Backbone(name), args={**args, **(backbone.args if backbone else {})}
    )
    if "mean" in metadata and "std" in metadata:
        known = replace(known, mean=_rgb(metadata["mean"]), std=_rgb(metadata["std"]))
    return known


def hub_backbone(asked: Backbone) -> Backbone:
    """A backbone with the normalisation that timm's weights were trained with."""
    config = timm.get_pretrained_cfg(asked.name)
    return replace(asked, mean=tuple(config.mean), std=tuple(config.std)) if config else asked


def _rgb(text: str) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in text.split(","))
    return red, green, blue


def load_backbone(network: Network, path: Path) -> None:
    """Copy backbone weights from a safetensors file; a classifier in the file is left out.

    Raises:
        DataError: the file lacks weights of the backbone, or they have other shapes.
    """
    weights = load_file(path)
    if any(name.startswith("backbone.") for name in weights):
        weights = {
            name.removeprefix("backbone."): w
            for name, w in weights.items()
            if name.startswith("backbone.")
        }
    own = network.backbone.state_dict()
    wrong = [
        name
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    if wrong:
        raise DataError(
            f"{path} does not fit the backbone: {', '.join(wrong[:3])} missing or of another shape. Check --backbone."
        )
    network.backbone.load_state_dict({name: weights[name] for name in own})


def load_hub(network: Network, backbone: Backbone) -> None:
    """Copy timm's published weights, downloading them if they are not cached.

    Raises:
        DataError: timm has none, or they could not be downloaded.
    """
    try:
        source = timm.create_model(backbone.name, pretrained=True, num_classes=0, **backbone.args)
    except Exception as error:  # timm, the hub client and urllib share no base class
        raise DataError(
            f"timm's weights of {backbone.name!r} could not be loaded ({error}): give a file with --init."
        ) from error
    network.backbone.load_state_dict(source.state_dict())


def initialise(
    network: Network,
    backbone: Backbone,
    init: str,
    size: int,
    images: Callable[[], Iterable[Tensor]],
) -> None:
    """Give a network its initial weights; identity BatchNorms are given the statistics of `images`.

    Args:
        network: as created, with random weights.
        backbone: of the network.
        init: `none`, `hub`, a safetensors file, or a model's folder.
        size: side of the network's input in pixels.
        images: batches of preprocessed training images, uint8 [N, S, S, 3].

    Raises:
        DataError: the weights cannot be read, or do not fit.
        UsageError: the folder's model is of another family.
    """
    if init == "none":
        return
    if init == "hub":
        load_hub(network, backbone)
    elif Path(init).is_dir():
        narrow(load_model_folder(init), network, size, backbone.stages)
    else:
        load_backbone(network, Path(init))
    if has_identity_norms(network):
        recalibrate_norms(network, images())


def has_identity_norms(network: nn.Module) -> bool:
    """Whether every BatchNorm has a running mean of 0 and a weight of 1: folded ones, without real statistics."""
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    return bool(norms) and all(
        bool((norm.running_mean == 0).all()) and bool((norm.weight == 1).all())
        for norm in norms
        if norm.running_mean is not None
    )


@torch.no_grad()
def recalibrate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give BatchNorms the statistics of their inputs, without changing the function that they compute in eval mode.

    With m and v the mean and variance of a norm's input, and a the slope that it has had: running_mean = m,
    running_var = v, weight = a sqrt(v + eps), bias += a (m - old mean). One pass serves all layers, as the function
    stays the same. `batches` yields uint8 [N, S, S, 3].
    """
    sums: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().double().transpose(0, 1).flatten(1)
        total, squares, count = sums.get(norm, (torch.zeros(len(x)), torch.zeros(len(x)), 0))
        sums[norm] = (total + x.sum(1), squares + x.square().sum(1), count + x.shape[1])

    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    network.eval()
    for batch in batches:
        network(batch)
    for handle in handles:
        handle.remove()
    for norm, (total, squares, count) in sums.items():
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        bn: Any = norm
        slope = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        bn.weight.copy_(slope * (variance + bn.eps).sqrt())
        bn.bias.add_(slope * (mean - bn.running_mean.double()))
        bn.running_mean.copy_(mean)
        bn.running_var.copy_(variance)


def prunable(
    wide: Backbone, name: str | None, args: Mapping[str, Any], stages: int | None = None
) -> bool:
    """Whether the first `stages` of the timm model `name` have the layers of `wide`, so that `narrow` may start it."""
    if name is None or not timm.is_model(name):
        return False
    narrower = replace(wide, name=name, args={**wide.args, **args}, stages=stages or wide.stages)
    wide = replace(wide, stages=narrower.stages)
    try:
        with torch.device("meta"):
            own, others = (
                {layer for layer, _ in create_backbone(b).named_modules()} for b in (wide, narrower)
            )
    except UsageError:  # another family, which refuses the teacher's arguments
        return False
    return own == others


def narrow(teacher: TrainedModel, network: Network, size: int, stages: int | None = None) -> None:
    """Start a network of the same family from its teacher: a copy where they are alike, else by structured pruning.

    Where the network has fewer `stages`, the teacher's later ones are cut off. Heads of equal tasks come along.

    Raises:
        UsageError: `network` is not a narrower version of the teacher's architecture.
    """
    wide = copy.deepcopy(teacher.module).eval()
    if stages is not None and stages != teacher.backbone.stages:
        truncate(wide.backbone, stages, teacher.backbone.name)
    if {name for name, _ in wide.backbone.named_modules()} != {
        name for name, _ in network.backbone.named_modules()
    }:
        raise UsageError(
            f"{teacher.backbone.name!r} cannot be pruned to the student's backbone, they differ in more than width: "
            "choose a narrower model of the same family, or --init none."
        )
    if shapes(wide.backbone) != shapes(network.backbone):
        prune(wide.backbone, network.backbone, size)
    try:
        network.backbone.load_state_dict(wide.backbone.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"{teacher.backbone.name!r} could not be pruned to the student's widths ({str(error)[:200]}): "
            "use --init none."
        ) from error
    for name, head in wide.heads.items():
        if name in network.heads and shapes(network.heads[name]) == shapes(head):
            network.heads[name].load_state_dict(head.state_dict())


def prune(wide: nn.Module, narrower: nn.Module, size: int) -> None:
    """Remove output channels of `wide`, in place, until every convolution is as wide as that of `narrower`.

    Channels that depend on each other (residual sums, depthwise convolutions, BatchNorms) are removed together, the
    groups with the smallest L2 norm first. Source: Fang et al., "DepGraph", CVPR 2023.
    """
    import torch_pruning as tp

    target: dict[str, Any] = dict(narrower.named_modules())
    graph = tp.DependencyGraph().build_dependency(wide, torch.zeros(1, 3, size, size))
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    for name, module in list(wide.named_modules()):
        if not isinstance(module, nn.Conv2d) or module.groups > 1:
            continue
        surplus = module.out_channels - target[name].out_channels
        if surplus > 0:
            group = graph.get_pruning_group(
                module, tp.prune_conv_out_channels, list(range(module.out_channels))
            )
            scores = importance(group)
            losers = sorted(torch.argsort(scores)[:surplus].tolist())
            graph.get_pruning_group(module, tp.prune_conv_out_channels, losers).prune()


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """The shape of every tensor of a module's state."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
