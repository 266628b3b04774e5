"""How published checkpoints name what they hold, one value per family, and what timm calls it."""

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
    """What the tensors of a vision transformer tell about it. The number of attention heads is not among it."""

    width: int
    depth: int
    patch: int
    registers: int

    def __str__(self) -> str:
        registers = f" and {self.registers} registers" if self.registers else ""
        return f"width {self.width}, {self.depth} blocks, patches of {self.patch} pixels{registers}"


def measure(weights: Mapping[str, Tensor]) -> Shape | None:
    """The shape of a transformer from its weights, named as timm names them; None for another network."""
    kernel = weights.get(PATCHES)
    if kernel is None or kernel.ndim != 4:
        return None
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    return Shape(kernel.shape[0], len(blocks), kernel.shape[-1], registers)


def as_they_are(weights: Weights) -> Weights:
    """Weights whose renaming was all they needed."""
    return weights


def no_arguments(weights: Weights) -> dict[str, Any]:
    """For a family whose models are told apart by timm's name alone."""
    return {}


@dataclass(frozen=True)
class Format:
    """One family of checkpoints.

    `branches` are words in a tensor's path that tell whose weights these are, the best first, "" standing for none of
    them. `anchor` is a tensor that every network of the family has; None where that depends on the timm model, which
    then must be named and brings its own mean and std. `renames` are patterns of original names and what timm has
    instead; `convert` does what no renaming can. `dropped` matches names that the features do not need. `backbones`
    says which timm model a shape is, `arguments` what else the weights tell of it. `mean` and `std` are the original's.
    """

    name: str
    branches: tuple[str, ...]
    anchor: str | None = PATCHES
    renames: tuple[tuple[str, str], ...] = ()
    convert: Callable[[Weights], Weights] = as_they_are
    dropped: str = r"relative_position_index$"
    backbones: Mapping[Shape, str] = field(default_factory=dict)
    arguments: Callable[[Weights], dict[str, Any]] = no_arguments
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    licence: str = "not stated"
    pretrained_on: tuple[str, ...] = ()

    def translate(self, weights: Weights) -> Weights:
        """The weights under timm's names.

        Raises:
            DataError: two tensors would get one name.
        """
        translated: Weights = {}
        for original, tensor in weights.items():
            name = original
            for pattern, replacement in self.renames:
                name = re.sub(pattern, replacement, name)
            if name in translated:
                raise DataError(
                    f"Two tensors would be {name!r}, one of them {original!r}: save one network alone."
                )
            translated[name] = tensor
        return self.convert(translated)


def join_registers(weights: Weights) -> Weights:
    """DINOv2 adds a position to the class token and none to its registers; timm keeps positions of patches only."""
    if "reg_token" not in weights:
        return weights
    positions = weights["pos_embed"]
    return weights | {
        "cls_token": weights["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


# DINOv2's code base: `blocks.CHUNK.INDEX` where its blocks were wrapped in chunks, the index counting through; a SwiGLU
# of w12 and w3 in the giant. Source: Oquab et al., 2023; registers: Darcet et al., 2023. Held against a forward pass
# written from the architecture, on made-up files of these layouts.
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
"""What the released DermNIO has seen, by the README of its repository (zxq-kd/DermINO), besides sets nobody can have.

Its code also has label masks for DDI, Fitzpatrick17k, Derm7pt, PH2, ACNE04 and MED-NODE; whether their images, or only
those of their training splits, were used cannot be seen.
"""

# DermNIO is DINOv2's ViT-B/14 trained on with its code base (Xu et al., arXiv:2508.12190). Only made-up files of that
# layout were tried.
DERMNIO = replace(DINOV2, name="dermnio", pretrained_on=DERMNIO_PRETRAINED_ON)


def panderm_arguments(weights: Weights) -> dict[str, Any]:
    """What distinguishes PanDerm's encoders from BEiT's, as far as a file has it.

    Raises:
        DataError: the file holds no positions at all, so its features would be wrong.
    """
    own = any(
        name.startswith("blocks.") and name.endswith("relative_position_bias_table")
        for name in weights
    )
    shared = "rel_pos_bias.relative_position_bias_table" in weights
    if not (own or shared or "pos_embed" in weights):
        raise DataError(
            "The file holds neither pos_embed nor a relative position bias: save them with the weights."
        )
    return {
        "use_abs_pos_emb": "pos_embed" in weights,
        "use_rel_pos_bias": own,
        "use_shared_rel_pos_bias": shared,
        "init_values": 0.1 if "blocks.0.gamma_1" in weights else None,
        "global_pool": "avg" if "fc_norm.weight" in weights else "token",
    }


# PanDerm: a BEiT-like encoder pretrained with CAE v2 (Yan et al., Nature Medicine, 2025), ViT-B/16 and ViT-L/16 at
# 224 pixels; separate biases of query and value, layer scale, sine positions stored as `pos_embed`. Understood are the
# plain tensors of the released base model, `encoder.` beside `decoder.` and `teacher.` (CAE's target network, not an
# average of the encoder), a fine-tuned one with a mean-pooled `fc_norm`, and relative position biases at their own
# grid; attentive probes are refused for their surplus tensors. Its evaluation normalises with a std of 0.228 in red.
# Layout and constants are those of its published code; only made-up files of it were tried.
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

# What timm.create_model(...).state_dict() gave, or the checkpoint of a training that kept these names.
TIMM = Format(
    name="timm",
    branches=("state_dict_ema", "model_ema", "ema", "teacher", "", "student"),
    anchor=None,
)

FORMATS: Mapping[str, Format] = MappingProxyType(
    {f.name: f for f in (DERMNIO, DINOV2, PANDERM, TIMM)}
)
