"""A student as its user holds it before any deployment: a torch module on normalised pixels."""

from pathlib import Path
from typing import Any

import torch

from dermedge.models import load_model_folder


class Plain(torch.nn.Module):
    """Backbone and heads, from float32 [N, 3, S, S] to one tensor of logits per task."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.heads = network.backbone, network.heads

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = self.backbone(pixels)
        if pooled.ndim == 4:  # a truncated backbone has lost its pooling with its head
            pooled = pooled.mean((2, 3))
        elif pooled.ndim == 3:
            pooled = pooled.mean(1)
        return tuple(head(pooled) for head in self.heads.values())


def plain(student: Path) -> Plain:
    """The network of a student's folder, in eval mode, its training-time branches as they are."""
    return Plain(load_model_folder(student).module).eval()
