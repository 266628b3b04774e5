"""Describe the layouts of published checkpoints in timm's names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from dermedge.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from dermedge_runtime.errors import DataError

Weights = dict[str, Tensor]
PATCHES = "patch_embed.proj.weight"


class Shape(NamedTuple):
    """The size of a vision transformer, read from the shapes of its tensors.

    The number of attention heads is missing, because it changes no shape.

    Attributes:
        width: Size of a token.
        depth: Number of blocks.
        patch: Side of a patch in pixels.
        registers: Number of register tokens.

    Example:
        >>> print(Shape(768, 12, 14, 4))
        width 768, 12 blocks, patches of 14 pixels and 4 registers
    """

    width: int
    depth: int
    patch: int
    registers: int

    def __str__(self) -> str:
        registers = f" and {self.registers} registers" if self.registers else ""
        return f"width {self.width}, {self.depth} blocks, patches of {self.patch} pixels{registers}"


def measure(weights: Mapping[str, Tensor]) -> Shape | None:
    """Return the shape of a transformer from its weights, or None for another network.

    Args:
        weights: Tensors under timm's names.
    """
    kernel = weights.get(PATCHES)
    if kernel is None or kernel.ndim != 4:
        return None
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    return Shape(kernel.shape[0], len(blocks), kernel.shape[-1], registers)


def keep_weights(weights: Weights) -> Weights:
    """Return the weights unchanged, for formats that need renaming only."""
    return weights


def no_arguments(weights: Weights) -> dict[str, Any]:
    """Return no arguments, for formats whose models differ by timm name only."""
    return {}


@dataclass(frozen=True)
class Format:
    """The layout of one family of published checkpoints.

    Attributes:
        name: Value of `--format`.
        branches: Words in a tensor's path that name a network in the file, the
            preferred first; "" means none of them.
        anchor: Name of a tensor that each network of the family has. None means that it
            depends on the timm model, which the user must name.
        renames: Pairs of a pattern of original names and timm's replacement.
        convert: Function that changes the renamed weights further.
        dropped: Pattern of names that the features do not need.
        backbones: timm name by shape.
        arguments: Function that reads arguments of `timm.create_model` from the
            weights.
        mean: Mean of the original normalization, per RGB channel.
        std: Standard deviation of the original normalization.
        licence: Published licence of the weights.
        pretrained_on: Published names of the data sets that the weights were trained
            on.
        resize: Resizing of positions in the original code, for a model without
            registers.
        resize_registers: The same for a model with registers.

    Example:
        >>> import torch
        >>> list(DINOV2.translate({"blocks.1.7.norm1.bias": torch.zeros(384)}))
        ['blocks.7.norm1.bias']
    """

    name: str
    branches: tuple[str, ...]
    anchor: str | None = PATCHES
    renames: tuple[tuple[str, str], ...] = ()
    convert: Callable[[Weights], Weights] = keep_weights
    dropped: str = r"relative_position_index$"
    backbones: Mapping[Shape, str] = field(default_factory=dict)
    arguments: Callable[[Weights], dict[str, Any]] = no_arguments
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    licence: str = "not stated"
    pretrained_on: tuple[str, ...] = ()
    resize: str = "bicubic-antialias"
    resize_registers: str = "bicubic-antialias"

    def resize_method(self, weights: Weights) -> str:
        """Return the method by which the original code resizes these positions."""
        return self.resize_registers if "reg_token" in weights else self.resize

    def translate(self, weights: Weights) -> Weights:
        """Return the weights under timm's names.

        Raises:
            DataError: Two tensors would get the same name.
        """
        translated: Weights = {}
        for original, tensor in weights.items():
            name = original
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name in translated:
                raise DataError(
                    f"Two tensors would be named {name!r}, one of them {original!r}. Save one "
                    "network alone."
                )
            translated[name] = tensor
        return self.convert(translated)


def join_registers(weights: Weights) -> Weights:
    """Add the class token's position to the class token.

    DINOv2 adds a position to the class token and none to its registers. timm's models
    with registers have positions for patches only.
    """
    if "reg_token" not in weights:
        return weights
    positions = weights["pos_embed"]
    return weights | {
        "cls_token": weights["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


# Checkpoints of DINOv2's code base. Blocks that were wrapped in chunks are named
# `blocks.CHUNK.INDEX`, where the index counts through all chunks. The giant has a
# SwiGLU of w12 and w3. Sources: Oquab et al., 2023; registers: Darcet et al., 2023.
# Tested on synthetic files of these layouts, against a forward pass written from the
# architecture. Without registers, DINOv2 resizes positions with an offset of 0.1. With
# registers, it resizes with antialiasing. Its vision transformer has the arguments
# `interpolate_offset` and `interpolate_antialias` for this:
# https://github.com/facebookresearch/dinov2
DINOV2 = Format(
    name="dinov2",
    branches=("teacher", "teacher_ema", "model_ema", "ema", "", "student"),
    renames=(
        (r"^blocks\.\d+\.(?=\d+\.)", "blocks."),
        (r"\.mlp\.w12\.", ".mlp.fc1."),
        (r"\.mlp\.w3\.", ".mlp.fc2."),
        (r"^register_tokens$", "reg_token"),
    ),
    convert=join_registers,
    dropped=r"^(mask_token|dino_head|ibot_head)",
    resize="bicubic-offset",
    backbones={
        Shape(width, depth, 14, registers): f"vit_{size}_patch14{suffix}_dinov2"
        for size, width, depth in (
            ("small", 384, 12),
            ("base", 768, 12),
            ("large", 1024, 24),
            ("giant", 1536, 40),
        )
        for registers, suffix in ((0, ""), (4, "_reg4"))
    },
)

DERMNIO_PRETRAINED_ON: tuple[str, ...] = (
    "isic*",
    "ham10000",
    "pad_ufes_20",
    "scin",
    "sd198",
    "dermnet",
)
"""Public data sets of the released DermNIO, by the README of zxq-kd/DermINO.

Its code also has label masks for DDI, Fitzpatrick17k, Derm7pt, PH2, ACNE04 and
MED-NODE. It does not show whether their images, or only those of their training splits,
were used.
"""

# DermNIO is DINOv2's ViT-B/14, trained further with that code base (Xu et al.,
# arXiv:2508.12190). It keeps DINOv2's offset of 0.1. With `bicubic-offset`, features at
# 280 pixels agree with the released code to 1.1e-6; with `bicubic-antialias` they
# differ by 2.3e-4. Tested on synthetic files of this layout only.
DERMNIO = replace(
    DINOV2,
    name="dermnio",
    pretrained_on=DERMNIO_PRETRAINED_ON,
    resize_registers="bicubic-offset",
)


def panderm_arguments(weights: Weights) -> dict[str, Any]:
    """Return the arguments of timm's BEiT that differ in a PanDerm encoder.

    Raises:
        DataError: The file holds no positions at all, so its features would be wrong.
    """
    own = any(
        name.startswith("blocks.") and name.endswith("relative_position_bias_table")
        for name in weights
    )
    shared = "rel_pos_bias.relative_position_bias_table" in weights
    if not (own or shared or "pos_embed" in weights):
        raise DataError(
            "The file holds neither pos_embed nor a relative position bias. Save them with the "
            "weights."
        )
    return {
        "use_abs_pos_emb": "pos_embed" in weights,
        "use_rel_pos_bias": own,
        "use_shared_rel_pos_bias": shared,
        "init_values": 0.1 if "blocks.0.gamma_1" in weights else None,
        "global_pool": "avg" if "fc_norm.weight" in weights else "token",
    }


# PanDerm: a BEiT-like encoder pretrained with CAE v2 (Yan et al., Nature Medicine,
# 2025), ViT-B/16 and ViT-L/16 at 224 pixels. Query and value have separate biases;
# there is layer scale; sine positions are stored as `pos_embed`.
# Three layouts are read:
# 1. The released base model has plain tensors, or `encoder.`, `decoder.` and
#    `teacher.`. The last is CAE's target network, not an average of the encoder.
# 2. A fine-tuned model has a mean-pooled `fc_norm`.
# 3. Relative position biases are read at their own grid.
# Attentive probes are refused, because their tensors are left over. The evaluation code
# of PanDerm normalizes red with a std of 0.228. Layout and constants are those of its
# published code. Tested on synthetic files only.
PANDERM = Format(
    name="panderm",
    branches=("model_ema", "encoder", "", "student", "teacher"),
    dropped=r"relative_position_index$|^mask_token$",
    backbones={
        Shape(768, 12, 16, 0): "beit_base_patch16_224",
        Shape(1024, 24, 16, 0): "beit_large_patch16_224",
    },
    arguments=panderm_arguments,
    std=(0.228, 0.224, 0.225),
    licence="CC-BY-NC-ND-4.0, non-commercial academic research only (PanDerm's README)",
)

# State dicts of timm models, and checkpoints of trainings that kept timm's names.
TIMM = Format(
    name="timm",
    branches=("state_dict_ema", "model_ema", "ema", "teacher", "", "student"),
    anchor=None,
)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {f.name: f for f in (DERMNIO, DINOV2, PANDERM, TIMM)}
)
