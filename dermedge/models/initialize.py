"""Set initial weights: from a safetensors file, timm's hub, or a model folder."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dermedge.models.backbone import Backbone, read_backbone, with_hub_normalization
from dermedge.models.folder_metadata import read_metadata
from dermedge.models.model_folder import TrainedModel, load_model_folder
from dermedge.models.network import Network, TimmModel, create_backbone, truncate
from dermedge.models.student_presets import resolve_preset
from dermedge_runtime.errors import DataError, UsageError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def choose_backbone(
    name: str | None, args: Mapping[str, Any], init: str, stages: int | None = None
) -> Backbone:
    """Combine a name, arguments and initial weights into one backbone.

    A model folder or a weights file can name the architecture. An explicit name and
    explicit arguments override theirs.

    Args:
        name: timm name or student preset. None takes the name that `init` holds.
        args: Arguments of `timm.create_model`.
        init: `none`, `hub`, a safetensors file, or a model folder.
        stages: Number of stages to keep. None keeps those of the preset, else of
            `init`.

    Raises:
        UsageError: Neither `name` nor `init` names an architecture, or `init` is not a
            keyword, a file or a folder.

    Example:
        >>> choose_backbone("mobilenetv2_050", {}, "none", stages=4).stages
        4
    """
    name, stages = resolve_preset(name, stages)
    requested = Backbone(name, dict(args), stages=stages) if name else None
    if init in ("none", "hub"):
        if requested is None:
            raise UsageError(
                "No backbone is named. Pass --backbone with a timm name, for example "
                "mobilenetv4_conv_small."
            )
        return requested if init == "none" else with_hub_normalization(requested)
    path = Path(init)
    if path.is_dir():
        source = read_metadata(path).backbone
        return replace(
            source,
            name=name or source.name,
            args={**source.args, **args},
            stages=stages or source.stages,
        )
    if path.is_file():
        return replace(read_backbone(path, requested), stages=stages)
    raise UsageError(
        f"--init {init!r} is neither 'none', 'hub', a safetensors file nor a model folder. "
        "Check the path."
    )


def initialise(
    network: Network,
    backbone: Backbone,
    init: str,
    size: int,
    images: Callable[[], Iterable[Tensor]],
) -> None:
    """Load the initial weights into a network.

    BatchNorms with identity statistics get the statistics of `images`.

    Args:
        network: A new network with random weights.
        backbone: The network's backbone.
        init: `none`, `hub`, a safetensors file, or a model folder.
        size: Side of the network's input in pixels.
        images: Function that returns batches of preprocessed training images, uint8
            [N, S, S, 3].

    Raises:
        DataError: The weights cannot be read, or do not fit.
        UsageError: The folder's model is of another family.
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


def load_backbone(network: Network, path: Path) -> None:
    """Copy backbone weights from a safetensors file, without its classifier.

    Raises:
        DataError: The file lacks weights of the backbone, or they have other shapes.
    """
    weights = load_file(path)
    if any(name.startswith("backbone.") for name in weights):
        weights = {
            name.removeprefix("backbone."): tensor
            for name, tensor in weights.items()
            if name.startswith("backbone.")
        }
    own = network.backbone.state_dict()
    unusable = [
        name
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ]
    if unusable:
        raise DataError(
            f"{path} does not fit the backbone: {', '.join(unusable[:3])} missing or of another "
            "shape. Check --backbone."
        )
    network.backbone.load_state_dict({name: weights[name] for name in own})


def load_hub(network: Network, backbone: Backbone) -> None:
    """Copy timm's published weights, and download them unless they are cached.

    Raises:
        DataError: timm has no weights of this model, or the download failed.
    """
    try:
        source = timm.create_model(backbone.name, pretrained=True, num_classes=0, **backbone.args)
    except Exception as error:  # timm, the hub client and urllib share no base class
        raise DataError(
            f"timm's weights of {backbone.name!r} could not be loaded ({error}). Give a file with "
            "--init."
        ) from error
    network.backbone.load_state_dict(source.state_dict())


def has_identity_norms(network: nn.Module) -> bool:
    """Return True if every BatchNorm has a running mean of 0 and a weight of 1.

    Such norms were folded into convolutions and have no real statistics.
    """
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    return bool(norms) and all(
        bool((norm.running_mean == 0).all()) and bool((norm.weight == 1).all())
        for norm in norms
        if norm.running_mean is not None
    )


@torch.no_grad()
def recalibrate_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the statistics of BatchNorms without changing the network's outputs.

    The outputs are those in eval mode. m and v are the mean and variance of a norm's
    input, and a is its previous slope. The new values are:

        running_mean = m
        running_var = v
        weight = a sqrt(v + eps)
        bias = old bias + a (m - old mean)

    Args:
        network: Changed in place, and put into eval mode.
        batches: Images, uint8 [N, S, S, 3].
    """
    sums: dict[nn.Module, tuple[Tensor, Tensor, int]] = {}

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().double().transpose(0, 1).flatten(1)
        total, squares, count = sums.get(norm, (torch.zeros(len(x)), torch.zeros(len(x)), 0))
        sums[norm] = (total + x.sum(1), squares + x.square().sum(1), count + x.shape[1])

    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    network.eval()
    # One pass is enough for all layers. The function of each layer stays the same, so
    # new statistics of one norm do not change the inputs of later norms.
    for batch in batches:
        network(batch)
    for handle in handles:
        handle.remove()
    for norm in norms:
        if norm not in sums or norm.running_mean is None or norm.running_var is None:
            continue
        total, squares, count = sums[norm]
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        norm.weight.copy_(slope * (variance + norm.eps).sqrt())
        norm.bias.add_(slope * (mean - norm.running_mean.double()))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def is_prunable(
    wide: Backbone, name: str | None, args: Mapping[str, object], stages: int | None = None
) -> bool:
    """Return True if `narrow` can start a narrower backbone from the model `wide`.

    Both must have layers of the same names in the first `stages` stages.

    Args:
        wide: The teacher's backbone.
        name: timm name or preset of the student; None returns False.
        args: Arguments of `timm.create_model` that differ from the teacher's.
        stages: Number of the student's stages; None keeps the teacher's.

    Example:
        >>> is_prunable(Backbone("mobilenetv2_100"), "mobilenetv2_050", {})
        True
    """
    name, stages = resolve_preset(name, stages)
    if name is None or not timm.is_model(name):
        return False
    narrower = replace(wide, name=name, args={**wide.args, **args}, stages=stages or wide.stages)
    wide = replace(wide, stages=narrower.stages)
    try:
        with torch.device("meta"):
            wide_layers, narrow_layers = (
                {layer for layer, _ in create_backbone(backbone).named_modules()}
                for backbone in (wide, narrower)
            )
    except UsageError:  # another family, which refuses the teacher's arguments
        return False
    return wide_layers == narrow_layers


def narrow(teacher: TrainedModel, network: Network, size: int, stages: int | None = None) -> None:
    """Start a network from a teacher of the same family.

    Equal backbones are copied; a wider teacher is pruned. A transformer's position
    embedding is resized to the network's input size, as timm resizes it. If the network
    has fewer `stages`, the teacher's later stages are removed. Heads of equal tasks are
    copied too.

    Args:
        teacher: Left unchanged.
        network: Changed in place.
        size: Side of the network's input in pixels.
        stages: Number of the network's stages. None means all.

    Raises:
        UsageError: `network` is not a narrower version of the teacher's architecture.
    """
    # Truncation, resizing and pruning change the module in place.
    wide = copy.deepcopy(teacher.module).eval()
    name = teacher.backbone.name
    if stages is not None and stages != teacher.backbone.stages:
        truncate(wide.backbone, stages, name)
    if {layer for layer, _ in wide.backbone.named_modules()} != {
        layer for layer, _ in network.backbone.named_modules()
    }:
        raise UsageError(
            f"{name!r} cannot be pruned to the student's backbone, because they differ in more "
            "than width. Choose a narrower model of the same family, or --init none."
        )
    _match_input_size(wide.backbone, network.backbone, size)
    if get_shapes(wide.backbone) != get_shapes(network.backbone):
        prune(wide.backbone, network.backbone, size)
    try:
        network.backbone.load_state_dict(wide.backbone.state_dict())
    except RuntimeError as error:
        raise UsageError(
            f"{name!r} could not be pruned to the student's widths ({str(error)[:200]}). "
            "Use --init none."
        ) from error
    for task, head in wide.heads.items():
        if task in network.heads and get_shapes(network.heads[task]) == get_shapes(head):
            network.heads[task].load_state_dict(head.state_dict())


def _match_input_size(wide: TimmModel, narrower: TimmModel, size: int) -> None:
    """Resize a teacher's positions if the other model has another number of them.

    timm's `set_input_size` resizes them bicubically, as for published weights.
    """
    positions, own = (getattr(backbone, "pos_embed", None) for backbone in (wide, narrower))
    if not (isinstance(positions, Tensor) and isinstance(own, Tensor)):
        return
    if positions.shape[1] != own.shape[1] and hasattr(wide, "set_input_size"):
        wide.set_input_size(img_size=size)


def prune(wide: nn.Module, narrower: nn.Module, size: int) -> None:
    """Remove output channels of `wide`, in place, until it is as narrow as `narrower`.

    Channels that depend on each other (residual sums, depthwise convolutions,
    BatchNorms) are removed together. The groups with the smallest L2 norm go first.

    Source: Fang et al., "DepGraph", CVPR 2023.

    Raises:
        UsageError: The dependencies between its layers cannot be traced.
    """
    import torch_pruning as tp

    target = dict(narrower.named_modules())
    try:
        with warnings.catch_warnings():
            # Torch-Pruning warns that it prunes the last dimension of parameters
            # outside of modules, such as a class token. That dimension is the width, so
            # this is right (https://github.com/VainF/Torch-Pruning,
            # `_detect_unwrapped_parameters`).
            warnings.filterwarnings("ignore", "Unwrapped parameters", UserWarning)
            graph = tp.DependencyGraph().build_dependency(wide, torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{type(wide).__name__} cannot be pruned at {size} x {size} pixels ({error}). Use its "
            "own input size, or --init none."
        ) from error
    # Layers are pruned in the order of the network. A group that an earlier layer has
    # narrowed has no surplus left.
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    for name, module in list(wide.named_modules()):
        goal = target[name]
        if not isinstance(module, nn.Conv2d) or not isinstance(goal, nn.Conv2d):
            continue
        surplus = module.out_channels - goal.out_channels
        # A depthwise convolution has no channels of its own: it follows its neighbours'
        # groups.
        if module.groups == 1 and surplus > 0:
            group = graph.get_pruning_group(
                module, tp.prune_conv_out_channels, list(range(module.out_channels))
            )
            removed = sorted(torch.argsort(importance(group))[:surplus].tolist())
            graph.get_pruning_group(module, tp.prune_conv_out_channels, removed).prune()


def get_shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a module's state, by name."""
    return {name: tensor.shape for name, tensor in module.state_dict().items()}
