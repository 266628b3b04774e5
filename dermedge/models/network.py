"""The network: normalization, a timm backbone, and one light head per task."""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermedge.models.backbone import Backbone
from dermedge.models.memory_format import guard_strided_pointwise
from dermedge.models.ood import FeatureDistance
from dermedge_export.class_map import CLASS_MAP
from dermedge_export.toolchain import limit_torch_threads
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Spec, Task

if TYPE_CHECKING:

    class TimmModel(nn.Module):
        """A timm model, as far as this package uses it (for the type checker)."""

        num_features: int
        num_features_out: int
        num_features_map: int
        default_cfg: dict[str, Any]
        feature_info: Sequence[dict[str, Any]]

        def forward_features(self, image: Tensor) -> Tensor: ...
        def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor: ...
        def forward_intermediates(
            self, image: Tensor, *, indices: list[int], output_fmt: str, norm: bool = False
        ) -> tuple[Tensor, list[Tensor]]: ...
        def set_input_size(self, img_size: int) -> None: ...
        def set_grad_checkpointing(self, enable: bool = True) -> None: ...
else:
    TimmModel = nn.Module


# Errors of timm's networks that refuse an argument or an input size.
REFUSALS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
# Further outputs of `Network.forward`. No task can have these names, because an identifier
# does not begin with a point.
POOLED, LAST_MAP = ".pooled", ".map"


class Network(nn.Module):
    """A backbone with a head per task: uint8 pixels in, float32 outputs by task out.

    A `segment` head reads the backbone's last feature map. The other heads read its
    pooled features. Both come from one pass through the backbone.

    Args:
        backbone: The backbone, which gets random weights.
        tasks: The outputs.
        embedding_width: Width of the `embed` tasks, as a linear map of the pooled
            features. None takes the pooled features themselves.

    Example:
        >>> tasks = (Task("malignancy", "binary"),)
        >>> network = Network(Backbone("test_efficientnet"), tasks)
        >>> output = network.eval()(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
        >>> tuple(output["malignancy"].shape)
        (2, 1)
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, backbone: Backbone, tasks: tuple[Task, ...], embedding_width: int | None = None
    ) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone)
        self.embedding_width = embedding_width
        self.heads = nn.ModuleDict(
            {task.name: make_head(task, self.backbone, embedding_width) for task in tasks}
        )
        self.diagnosis = next((task.name for task in tasks if task.kind == "classify"), None)
        self.segments = frozenset(task.name for task in tasks if task.kind == "segment")
        # The normalization is inside the network, so that exported graphs take uint8
        # pixels. Buffers are not persistent: they belong to the backbone's description,
        # not to its weights.
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        self.register_buffer("mean", (255 * mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)

    def normalised(self, image: Tensor) -> Tensor:
        """Return uint8 pixels [N, S, S, 3] as normalised floats [N, 3, S, S]."""
        pixels = image.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (pixels - self.mean) * self.scale

    def features(self, image: Tensor) -> Tensor:
        """Return pooled features [N, D] of `image`, uint8 [N, S, S, 3]."""
        return self.pooled(self.backbone(self.normalised(image)))

    def pooled(self, features: Tensor) -> Tensor:
        """Return the backbone's output as [N, D].

        A truncated backbone has lost its pooling layer with its head, so its maps or
        tokens are averaged here.
        """
        if features.ndim == 4:
            return feature_map(self.backbone, features).mean((2, 3))
        return features.mean(1) if features.ndim == 3 else features

    def forward(self, image: Tensor, extra: Collection[str] = ()) -> dict[str, Tensor]:
        """Return the outputs of every task, with the shapes that `Task` defines.

        Args:
            image: uint8 [N, S, S, 3].
            extra: Further outputs of the same pass: `POOLED` features [N, D],
                `LAST_MAP` [N, C, h, w], `CLASS_MAP` [N, K, h, w]: the head of the first
                `classify` task, applied at every place of the last map. Exported graphs
                have none but `CLASS_MAP`.

        Raises:
            UsageError: There is a `segment` task, `LAST_MAP` or `CLASS_MAP`, and the
                backbone has no feature map; or a `segment` task, and S is not divisible
                by 4; or `CLASS_MAP`, and there is no `classify` task.
        """
        if not self.segments and not extra:
            pooled = self.features(image)
            return {name: head(pooled) for name, head in self.heads.items()}
        size = image.shape[1]
        if self.segments and size % 4:
            raise UsageError(
                f"The side of a segmentation model's input must be divisible by 4, not {size}. "
                "Change --size."
            )
        pooled, last = self.encode(image)
        outputs = self.apply_heads(pooled, last, size)
        if POOLED in extra:
            outputs[POOLED] = pooled
        if LAST_MAP in extra:
            outputs[LAST_MAP] = feature_map(self.backbone, last)
        if CLASS_MAP in extra:
            outputs[CLASS_MAP] = self._class_map(last)
        return outputs

    def _class_map(self, last: Tensor) -> Tensor:
        """Return the head of the diagnosis at every place of the last map, [N, K, h, w]."""
        head = self.heads[self.diagnosis] if self.diagnosis is not None else None
        spatial = feature_map(self.backbone, last)
        # Layers between pooling and head, such as conv_head, change the width.
        if not isinstance(head, nn.Linear) or head.in_features != spatial.shape[1]:
            raise UsageError(
                "The diagnosis of this model is no linear layer on the last feature map. Choose "
                "another backbone."
            )
        return F.conv2d(spatial, head.weight[:, :, None, None], head.bias)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of one pass through the backbone.

        Args:
            image: uint8 [N, S, S, 3].

        Returns:
            Pooled features [N, D], and the backbone's last features as timm returns
            them, which `feature_map` converts to [N, C, h, w].
        """
        last = self.backbone.forward_features(self.normalised(image))
        # The forward of timm's models is `forward_features` and `forward_head`, so all
        # heads share one pass.
        return self.pooled(self.backbone.forward_head(last)), last

    def apply_heads(self, pooled: Tensor, last: Tensor, size: int) -> dict[str, Tensor]:
        """Return the outputs of every task from the result of `encode`.

        Args:
            pooled: Pooled features [N, D].
            last: The backbone's last features.
            size: Side S of the images in pixels.
        """
        spatial = feature_map(self.backbone, last) if self.segments else last
        return {
            name: resize_logits(head(spatial), size // 4) if name in self.segments else head(pooled)
            for name, head in self.heads.items()
        }


def feature_map(backbone: nn.Module, features: object) -> Tensor:
    """Return the output of a timm backbone's `forward_features` as [N, C, h, w].

    The output may be a map in NCHW or NHWC layout, or the tokens of a square of
    patches. Class and register tokens are removed.

    Raises:
        UsageError: The output has none of these layouts.
    """
    if isinstance(features, Tensor) and features.ndim == 4:
        return (
            features.permute(0, 3, 1, 2)
            if getattr(backbone, "output_fmt", "NCHW") == "NHWC"
            else features
        )
    if isinstance(features, Tensor) and features.ndim == 3:
        patches = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        side = math.isqrt(patches.shape[1])
        if side**2 == patches.shape[1]:
            return patches.transpose(1, 2).reshape(patches.shape[0], -1, side, side)
    raise UsageError(
        f"{type(backbone).__name__} gives no square feature map to segment on. Choose another "
        "backbone, or leave the segmentation out."
    )


def resize_logits(logits: Tensor, side: int) -> Tensor:
    """Resize logits [N, 1, h, w] bilinearly to [N, 1, side, side]."""
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)


def create_backbone(backbone: Backbone) -> TimmModel:
    """Create a timm model without its classifier, with random weights.

    The model gets two attributes: `num_features_out`, the width of its output, and
    `num_features_map`, the width of its last feature map.

    Raises:
        UsageError: timm has no model of that name, or refuses the arguments.
    """
    if not timm.is_model(backbone.name):
        near = timm.list_models(f"*{backbone.name.split('_')[0]}*")[:8]
        raise UsageError(
            f"timm has no model {backbone.name!r}. Similar names: {', '.join(near) or 'none'}."
        )
    # Everything that computes with torch starts here: training, probing, references.
    limit_torch_threads()
    try:
        model = timm.create_model(backbone.name, pretrained=False, num_classes=0, **backbone.args)
    except REFUSALS as error:
        raise UsageError(
            f"timm refuses {backbone.name!r} with {dict(backbone.args)}: {error}. "
            "Change the arguments."
        ) from error
    # Some families widen the features after pooling (conv_head). timm keeps that width
    # in head_hidden_size and the width of the last map in num_features.
    last_map = model.num_features
    out = getattr(model, "head_hidden_size", None) or last_map
    if backbone.stages is not None:
        out = last_map = truncate(model, backbone.stages, backbone.name)
    model.num_features_out, model.num_features_map = out, last_map
    guard_strided_pointwise(model)
    created: TimmModel = model
    return created


def truncate(model: TimmModel, stages: int, name: str) -> int:
    """Remove a backbone's stages after the first `stages`; return the width that is left.

    Raises:
        UsageError: The backbone has fewer stages, or timm cannot truncate its family.
    """
    prune = getattr(model, "prune_intermediate_layers", None)
    widths = [stage["num_chs"] for stage in getattr(model, "feature_info", ())] if prune else []
    if prune is None or not 1 <= stages <= len(widths):
        raise UsageError(
            f"{name!r} has {len(widths)} stages to keep, not {stages}. Give a smaller number, "
            "or omit --stages."
        )
    prune(indices=[stages - 1], prune_norm=True, prune_head=True)
    return int(widths[stages - 1])


class Embed(nn.Module):
    """Head of an `embed` task: the pooled features or a linear map of them, L2-normalised.

    Args:
        width: Width D of the features.
        out: Width E of the embedding. None leaves the map out.

    Example:
        >>> Embed(2)(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
        >>> tuple(Embed(width=8, out=3)(torch.rand(2, 8)).shape)
        (2, 3)
    """

    def __init__(self, width: int, out: int | None = None) -> None:
        super().__init__()
        self.map = nn.Identity() if out is None else nn.Linear(width, out, bias=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return unit vectors [N, E] of features [N, D]."""
        return F.normalize(self.map(pooled), dim=1)


class Coral(nn.Module):
    """Head of an `ordinal` task with K levels: one shared score and K-1 biases.

    Logit k is the score plus bias k and estimates P(y > k). The shared score keeps the
    logits in order.

    Source: Cao, Mirjalili and Raschka, "Rank consistent ordinal regression for neural
    networks with application to age estimation", Pattern Recognition Letters 140, 2020.

    Example:
        >>> head = Coral(width=8, levels=4)
        >>> logits = head(torch.rand(2, 8))
        >>> tuple(logits.shape), bool((logits.diff() < 0).all())
        ((2, 3), True)
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.biases = nn.Parameter(
            torch.arange(levels - 1, 0, -1, dtype=torch.float32) / (levels - 1)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits [N, K-1] of P(y > k) from features [N, D]."""
        score: Tensor = self.score(pooled)
        return score + self.biases


def make_head(task: Task, backbone: TimmModel, embedding_width: int | None = None) -> nn.Module:
    """Create the head of a task for a model of `create_backbone`.

    A `segment` head reads the last feature map; the others read pooled features.

    Args:
        task: The task.
        backbone: The backbone.
        embedding_width: Width of an `embed` task; see `Network`.
    """
    width = backbone.num_features_out
    if task.kind == "classify":
        return nn.Linear(width, len(task.labels))
    if task.kind == "binary":
        return nn.Linear(width, 1)
    if task.kind == "ordinal":
        return Coral(width, len(task.labels))
    if task.kind == "segment":
        return nn.Conv2d(backbone.num_features_map, 1, 1)
    if task.kind == "ood":
        return FeatureDistance(width)
    return Embed(width, embedding_width)


def count_parameters(network: nn.Module) -> int:
    """Count the parameters of a network.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, spec: Spec) -> int:
    """Count the multiply-accumulates of one image.

    torch's flop counter counts convolutions and matrix products only.
    """
    from torch.utils.flop_counter import FlopCounterMode

    size = spec.preprocess.size
    counter = FlopCounterMode(display=False)
    was_training = network.training
    network.eval()
    # The counter's hooks fail without gradients on parameters that are passed between
    # modules, such as the class token of CaiT (torch.utils.module_tracker).
    with torch.enable_grad(), counter:
        network(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    network.train(was_training)
    return int(counter.get_total_flops() // 2)
