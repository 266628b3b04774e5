"""Load a student as a plain torch module on normalised pixels."""

from pathlib import Path
from typing import Any

import torch

from dermedge.models import load_model_folder


class Plain(torch.nn.Module):
    """A backbone with heads, from float32 [N, 3, S, S] to one tensor of logits per task."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone, self.heads = network.backbone, network.heads

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pooled = self.backbone(pixels)
        if pooled.ndim == 4:  # a backbone without its last stages has no pooling
            pooled = pooled.mean((2, 3))
        elif pooled.ndim == 3:
            pooled = pooled.mean(1)
        return tuple(head(pooled) for head in self.heads.values())


def plain(student: Path) -> Plain:
    """Load the network of a model folder in eval mode, with its training-time branches."""
    return Plain(load_model_folder(student).module).eval()
