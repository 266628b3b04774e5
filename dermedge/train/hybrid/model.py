"""The student and its moving-average teacher: a timm backbone with the heads that the losses ask for."""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.heads import DINOProjectionHead
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dermedge.models.backbone import Backbone
from dermedge.models.network import create_backbone
from dermedge.train.hybrid.recipe import HybridRecipe


class Tokens(NamedTuple):
    """What a trunk makes of images: the class token (or pooled feature) [N, D], and patch tokens [N, P, D] or None."""

    pooled: Tensor
    patches: Tensor | None


class VitTrunk(nn.Module):
    """A timm vision transformer that can replace patches by a mask token (lightly's wrapper), at any image size."""

    def __init__(self, backbone: Backbone, drop_path: float, masking: bool) -> None:
        super().__init__()
        args = {**backbone.args, "dynamic_img_size": True, "drop_path_rate": drop_path}
        self.masked = MaskedVisionTransformerTIMM(
            create_backbone(Backbone(backbone.name, args)),
            weight_initialization="skip",
            pos_embed_initialization="skip",
        )
        self.masked.mask_token.requires_grad_(masking)
        self.grid: tuple[int, int] | None = self.timm.patch_embed.grid_size

    @property
    def timm(self) -> Any:
        """The timm model."""
        return self.masked.vit

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens of `image`, float [N, 3, S, S]; `mask`, bool [N, P], names the patches to hide."""
        prefix = self.timm.num_prefix_tokens
        tokens = self.masked.encode(image, mask=None if mask is None else F.pad(mask, (prefix, 0)))
        return Tokens(self.timm.forward_head(tokens, pre_logits=True), tokens[:, prefix:])


class PooledTrunk(nn.Module):
    """Any other timm backbone, by its pooled features; it has no patches to hide."""

    def __init__(self, backbone: Backbone, drop_path: float) -> None:
        super().__init__()
        self.timm = create_backbone(
            Backbone(backbone.name, {**backbone.args, "drop_path_rate": drop_path})
        )
        self.grid: tuple[int, int] | None = None

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Features of `image`, float [N, 3, S, S]."""
        pooled: Tensor = self.timm(image.contiguous(memory_format=torch.channels_last))
        return Tokens(pooled, None)


def has_patches(backbone: Backbone) -> bool:
    """Whether a backbone is a vision transformer, whose patches can be hidden."""
    with torch.device("meta"):
        return isinstance(create_backbone(backbone), VisionTransformer)


class Branch(nn.Module):
    """What the student and the teacher both have: a trunk, and heads over class tokens and over patches."""

    def __init__(self, backbone: Backbone, recipe: HybridRecipe, drop_path: float) -> None:
        super().__init__()
        masking, patches = recipe.ibot > 0, has_patches(backbone)
        self.trunk: Any = (
            VitTrunk(backbone, drop_path, masking) if patches else PooledTrunk(backbone, drop_path)
        )
        width = self.trunk.timm.num_features_out
        self.dino = make_head(width, recipe) if recipe.dino else None
        self.ibot = make_head(width, recipe) if masking and patches else None

    @property
    def heads(self) -> list[Any]:
        """The heads that there are."""
        return [head for head in (self.dino, self.ibot) if head is not None]


def make_head(width: int, recipe: HybridRecipe) -> Any:
    """A three-layer head that ends in L2-normalised prototypes (Caron et al., DINO, ICCV 2021)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # lightly uses torch's older weight_norm
        return DINOProjectionHead(
            width,
            recipe.hidden,
            recipe.bottleneck,
            recipe.outputs,
            freeze_last_layer=recipe.freeze_last_layer,
            norm_last_layer=True,
        )


class LabelHead(nn.Module):
    """Logits of every diagnosis, the inner products with its prototype."""

    start: Tensor

    def __init__(self, prototypes: Tensor, recipe: HybridRecipe) -> None:
        super().__init__()
        self.mode, self.weight = recipe.prototype_mode, nn.Parameter(prototypes.clone())
        self.bias = nn.Parameter(torch.zeros(len(prototypes)))
        self.register_buffer("start", prototypes.clone())
        if self.mode == "frozen":
            self.requires_grad_(False)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits [N, C] of features [N, D]."""
        return F.linear(pooled, self.weight, self.bias)

    def pull(self) -> Tensor:
        """Mean squared distance of the rows to where they started."""
        return (self.weight - self.start).square().sum(1).mean()


class HybridOutputs(NamedTuple):
    """What the student makes of one part of a batch of N images; None where no loss asks for it.

    `pooled` [2N, D] and `dino_global` [2N, K] of the global crops, crop by crop; `dino_local` [L, N, K]; `ibot` [M, K]
    of the masked patches; `labels` [2N, C]; `pull`, how far the prototypes have moved.
    """

    pooled: Tensor
    dino_global: Tensor | None = None
    dino_local: Tensor | None = None
    ibot: Tensor | None = None
    labels: Tensor | None = None
    pull: Tensor | None = None


class HybridStudent(nn.Module):
    """The student's branch and the label head; one call computes all that the losses need, as DDP wants it."""

    def __init__(self, branch: Branch, labels: LabelHead | None) -> None:
        super().__init__()
        self.branch, self.labels = branch, labels

    def forward(
        self, global_crops: Tensor, local_crops: Tensor, mask: Tensor | None
    ) -> HybridOutputs:
        """Outputs of global crops [2N, 3, S, S], local crops [L N, 3, s, s] and `mask`, bool [2N, P]."""
        branch, found = self.branch, {}
        pooled, patches = branch.trunk(global_crops, mask if branch.ibot else None)
        if branch.dino is not None:
            found["dino_global"] = branch.dino(pooled)
            if len(local_crops):
                samples = len(global_crops) // 2
                found["dino_local"] = branch.dino(branch.trunk(local_crops).pooled).unflatten(
                    0, (-1, samples)
                )
        if branch.ibot is not None:
            found["ibot"] = branch.ibot(patches[mask])
        if self.labels is not None:
            found["labels"] = self.labels(pooled)
            if self.labels.mode == "pulled":
                found["pull"] = self.labels.pull()
        return HybridOutputs(pooled, **found)
