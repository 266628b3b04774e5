"""The network: normalisation, a timm backbone, one linear head per task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
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
    """A backbone with a linear head per task, from uint8 pixels to float32 outputs named after the tasks."""

    mean: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone, tasks: tuple[Task, ...]) -> None:
        super().__init__()
        self.backbone = create_backbone(backbone)
        self.heads = nn.ModuleDict(
            {task.name: nn.Linear(self.backbone.num_features_out, output_width(task)) for task in tasks}
        )
        mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
        self.register_buffer("mean", (255 * mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1), persistent=False)

    def features(self, image: Tensor) -> Tensor:
        """Pooled features [N, D] of `image`, uint8 [N, S, S, 3]."""
        pixels = image.permute(0, 3, 1, 2).to(self.mean.dtype)
        pooled: Tensor = self.backbone((pixels - self.mean) * self.scale)
        if pooled.ndim == 4:  # a truncated backbone has lost its pooling with its head
            return pooled.mean((2, 3))
        return pooled.mean(1) if pooled.ndim == 3 else pooled

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Logits of every task from `image`, uint8 [N, S, S, 3]."""
        pooled = self.features(image)
        return {name: head(pooled) for name, head in self.heads.items()}


def create_backbone(backbone: Backbone) -> Any:
    """The timm model without its classifier, randomly initialised; `num_features_out` is the width of its output.

    Raises:
        UsageError: timm knows no model of that name, or refuses the arguments.
    """
    if not timm.is_model(backbone.name):
        near = timm.list_models(f"*{backbone.name.split('_')[0]}*")[:8]
        raise UsageError(f"timm knows no model {backbone.name!r}; near it: {', '.join(near) or 'nothing'}. Choose one.")
    try:
        model = timm.create_model(backbone.name, pretrained=False, num_classes=0, **backbone.args)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise UsageError(
            f"timm refuses {backbone.name!r} with {dict(backbone.args)}: {error}. Change the arguments."
        ) from error
    # Some families widen the features after pooling (conv_head), and timm names that width apart.
    model.num_features_out = getattr(model, "head_hidden_size", None) or model.num_features
    if backbone.stages is not None:
        truncate(model, backbone.stages, backbone.name)
    return model


def truncate(model: Any, stages: int, name: str) -> None:
    """Cut a backbone off behind its first `stages` stages, in place.

    Raises:
        UsageError: it has fewer, or timm cannot cut this family.
    """
    widths = [stage["num_chs"] for stage in model.feature_info] if hasattr(model, "prune_intermediate_layers") else []
    if not 1 <= stages <= len(widths):
        raise UsageError(f"{name!r} has {len(widths)} stages to keep, not {stages}: give fewer, or none.")
    model.prune_intermediate_layers(indices=[stages - 1], prune_norm=True, prune_head=True)
    model.num_features_out = widths[stages - 1]


def output_width(task: Task) -> int:
    """Length of the last axis of a task's output tensor.

    Raises:
        UsageError: the task's kind has no linear head.
    """
    if task.kind == "classify":
        return len(task.labels)
    if task.kind == "binary":
        return 1
    raise UsageError(f"A {task.kind!r} task has no linear head: use 'classify' or 'binary' for {task.name!r}.")


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
