"""Describe backbones by timm name, arguments and normalization, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dermedge_runtime.errors import DataError, UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A timm model by name, its arguments, and the normalization of its training.

    Attributes:
        name: timm name.
        args: Arguments of `timm.create_model`.
        mean: Mean per channel of RGB scaled to [0, 1].
        std: Standard deviation per channel, on the same scale.
        stages: Number of stages to keep, counted from the input (blocks, for a
            transformer). None keeps all.

    Example:
        >>> Backbone("mobilenetv2_100", stages=4).mean
        (0.485, 0.456, 0.406)
    """

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stages: int | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Backbone:
        """Create a backbone from the JSON form in a model folder.

        Raises:
            KeyError: A field is missing.
        """
        return cls(
            data["name"],
            data["args"],
            _rgb(*data["mean"]),
            _rgb(*data["std"]),
            data.get("stages"),
        )


def read_backbone(path: Path, requested: Backbone | None) -> Backbone:
    """Read the backbone of a safetensors file from the file's metadata.

    The metadata keys are `architecture`, `mean`, `std` and `pad_type`, as timm writes
    them.

    Args:
        path: The weights file.
        requested: Name and arguments that override the metadata.

    Raises:
        DataError: The file cannot be read.
        UsageError: Neither the file nor `requested` names an architecture.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} is not a safetensors file ({error}). Give the weights in that format."
        ) from error
    name = requested.name if requested else metadata.get("architecture", "").removeprefix("timm ")
    if not name:
        raise UsageError(f"{path} does not name its timm model. Name it with --backbone.")
    args = {"pad_type": metadata["pad_type"]} if "pad_type" in metadata else {}
    backbone = replace(
        requested or Backbone(name), args={**args, **(requested.args if requested else {})}
    )
    if "mean" in metadata and "std" in metadata:
        mean, std = (
            _rgb(*(float(value) for value in metadata[key].split(","))) for key in ("mean", "std")
        )
        backbone = replace(backbone, mean=mean, std=std)
    return backbone


def with_hub_normalization(backbone: Backbone) -> Backbone:
    """Return the backbone with the mean and std of timm's published weights."""
    import timm

    config = timm.get_pretrained_cfg(backbone.name)
    return replace(backbone, mean=_rgb(*config.mean), std=_rgb(*config.std)) if config else backbone


def _rgb(red: float, green: float, blue: float) -> tuple[float, float, float]:
    return red, green, blue
