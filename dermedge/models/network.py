"""The network: normalisation, a timm backbone, one light head per task."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Spec, Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A timm model by name, the arguments it is created with, and the normalisation it was trained with.

    `mean` and `std` are per channel, of RGB scaled to [0, 1]. `stages` keeps only that many of its stages, the first
    ones (blocks, for a transformer); None keeps all.
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stages: int | None = None


class Network(nn.Module):
    """A backbone with a head per task, from uint8 pixels to float32 outputs named after the tasks.

    A `segment` head reads the backbone's last feature map, every other one its pooled features; both come from one pass
    through the backbone.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone)
        self.heads = nn.ModuleDict({task.name: make_head(task, self.backbone) for task in tasks})
        self.segments = frozenset(task.name for task in tasks if task.kind == "segment")
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        self.register_buffer("mean", (255 * mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)

    def normalised(self, image: Tensor) -> Tensor:
        """`image`, uint8 [N, S, S, 3], as the backbone takes it: float [N, 3, S, S]."""
        pixels = image.permute(0, 3, 1, 2).to(self.mean.dtype)
        return (pixels - self.mean) * self.scale

    def features(self, image: Tensor) -> Tensor:
        """Pooled features [N, D] of `image`, uint8 [N, S, S, 3]."""
        return self.pooled(self.backbone(self.normalised(image)))

    def pooled(self, features: Tensor) -> Tensor:
        """What the backbone gives, as [N, D]: a truncated one has lost its pooling with its head."""
        if features.ndim == 4:
            return feature_map(self.backbone, features).mean((2, 3))
        return features.mean(1) if features.ndim == 3 else features

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Outputs of every task from `image`, uint8 [N, S, S, 3]; shapes as in `Task`.

        Raises:
            UsageError: there is a `segment` task, and S is not divisible by 4 or the backbone has no feature map.
        """
        if not self.segments:
            pooled = self.features(image)
            return {name: head(pooled) for name, head in self.heads.items()}
        size = image.shape[1]
        if size % 4:
            raise UsageError(
                f"A model that segments takes images whose side is divisible by 4, not {size}: change it."
            )
        last = self.backbone.forward_features(self.normalised(image))
        # This is how timm's models make their forward of the two halves.
        pooled = self.pooled(self.backbone.forward_head(last))
        spatial = feature_map(self.backbone, last)
        return {
            name: enlarged(head(spatial), size // 4) if name in self.segments else head(pooled)
            for name, head in self.heads.items()
        }


def feature_map(backbone: Any, features: Any) -> Tensor:
    """A timm backbone's `forward_features` as [N, C, h, w]: a map in either layout, or the tokens of a square of
    patches, class and register tokens left out.

    Raises:
        UsageError: they are neither.
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
        f"{type(backbone).__name__} gives no square feature map to segment on: choose another backbone, or leave the "
        "segmentation out."
    )


def enlarged(logits: Tensor, side: int) -> Tensor:
    """`logits` [N, 1, h, w], bilinearly resized to [N, 1, side, side]."""
    return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)


def create_backbone(backbone: Backbone) -> Any:
    """The timm model without its classifier, randomly initialised; `num_features_out` is the width of its output,
    `num_features_map` that of its last feature map.

    Raises:
        UsageError: timm knows no model of that name, or refuses the arguments.
    """
    if not timm.is_model(backbone.name):
        near = timm.list_models(f"*{backbone.name.split('_')[0]}*")[:8]
        raise UsageError(
            f"timm knows no model {backbone.name!r}; near it: {', '.join(near) or 'nothing'}. Choose one."
        )
    try:
        model = timm.create_model(backbone.name, pretrained=False, num_classes=0, **backbone.args)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise UsageError(
            f"timm refuses {backbone.name!r} with {dict(backbone.args)}: {error}. Change the arguments."
        ) from error
    # Some families widen the features after pooling (conv_head), and timm names that width apart.
    model.num_features_map = model.num_features
    model.num_features_out = getattr(model, "head_hidden_size", None) or model.num_features
    if backbone.stages is not None:
        truncate(model, backbone.stages, backbone.name)
    return model


def truncate(model: Any, stages: int, name: str) -> None:
    """Cut a backbone off behind its first `stages` stages, in place.

    Raises:
        UsageError: it has fewer, or timm cannot cut this family.
    """
    widths = (
        [stage["num_chs"] for stage in model.feature_info]
        if hasattr(model, "prune_intermediate_layers")
        else []
    )
    if not 1 <= stages <= len(widths):
        raise UsageError(
            f"{name!r} has {len(widths)} stages to keep, not {stages}: give fewer, or none."
        )
    model.prune_intermediate_layers(indices=[stages - 1], prune_norm=True, prune_head=True)
    model.num_features_out = model.num_features_map = widths[stages - 1]


class Embed(nn.Module):
    """The pooled features themselves, L2-normalised: the head of an `embed` task."""

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(pooled, dim=1)


class Coral(nn.Module):
    """The head of an `ordinal` task with K levels: one score for all of them, and a bias for each of the K-1 questions
    whether an image is above a level. With one shared score the answers keep their order.

    Cao, Mirjalili and Raschka, "Rank consistent ordinal regression for neural networks with application to age
    estimation", Pattern Recognition Letters 140, 2020.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.biases = nn.Parameter(
            torch.arange(levels - 1, 0, -1, dtype=torch.float32) / (levels - 1)
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits [N, K-1] of P(y > k)."""
        score: Tensor = self.score(pooled)
        return score + self.biases


def make_head(task: Task, backbone: Any) -> nn.Module:
    """The head of a task on what `create_backbone` made: on its pooled features, for `segment` on its feature map."""
    width = backbone.num_features_out
    if task.kind == "classify":
        return nn.Linear(width, len(task.labels))
    if task.kind == "binary":
        return nn.Linear(width, 1)
    if task.kind == "ordinal":
        return Coral(width, len(task.labels))
    if task.kind == "segment":
        return nn.Conv2d(backbone.num_features_map, 1, 1)
    return Embed()


def count_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, spec: Spec) -> int:
    """Multiply-accumulates of one image, counted by torch's own flop counter (convolutions and matrix products)."""
    from torch.utils.flop_counter import FlopCounterMode

    size = spec.preprocess.size
    counter = FlopCounterMode(display=False)
    was_training = network.training
    network.eval()
    with torch.no_grad(), counter:
        network(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    network.train(was_training)
    return int(counter.get_total_flops() // 2)
