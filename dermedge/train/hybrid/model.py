"""Build the student and its moving-average teacher: a timm backbone with heads."""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.modules.heads import DINOProjectionHead
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dermedge.models.backbone import Backbone
from dermedge.models.network import create_backbone
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge_runtime.errors import UsageError

Grid = tuple[int, int]


class Tokens(NamedTuple):
    """Class token or pooled feature [N, D], and patch tokens [N, P, D] or None.

    Example:
        >>> trunk = VitTrunk(Backbone("test_vit"), drop_path=0.0, masking=False)
        >>> pooled, patches = trunk(torch.zeros(2, 3, 160, 160))
        >>> tuple(pooled.shape), tuple(patches.shape)
        ((2, 64), (2, 100, 64))
    """

    pooled: Tensor
    patches: Tensor | None


class VitTrunk(nn.Module):
    """A timm vision transformer that can mask patches, at any image size.

    The masking is that of lightly's wrapper.

    Example:
        >>> trunk = VitTrunk(Backbone("test_vit"), drop_path=0.0, masking=True).eval()
        >>> image, mask = torch.rand(1, 3, 96, 96), torch.zeros(1, 36, dtype=torch.bool)
        >>> other = image.clone()
        >>> other[:, :, :16, :16], mask[:, 0] = 0.0, True
        >>> torch.equal(trunk(image, mask).pooled, trunk(other, mask).pooled)
        True
    """

    def __init__(self, backbone: Backbone, drop_path: float, masking: bool) -> None:
        """Create the transformer with random weights."""
        super().__init__()
        args = {**backbone.args, "dynamic_img_size": True, "drop_path_rate": drop_path}
        self.masked = MaskedVisionTransformerTIMM(
            create_backbone(Backbone(backbone.name, args)),
            weight_initialization="skip",
            pos_embed_initialization="skip",
        )
        self.masked.mask_token.requires_grad_(masking)
        self.grid: Grid | None = self.timm.patch_embed.grid_size

    @property
    def timm(self) -> VisionTransformer:
        """The timm model."""
        return self.masked.vit

    def checkpoint_activations(self) -> None:
        """Recompute the activations of every block in the backward pass."""
        # lightly's wrapper runs the blocks itself and has its own flag, so the flag of
        # the timm model has no effect: github.com/lightly-ai/lightly/issues/2054.
        self.masked.set_grad_checkpointing(True)

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Return the tokens of an image.

        Args:
            image: Normalised pixels, float [N, 3, S, S].
            mask: Patches to hide, bool [N, P]. None hides none.
        """
        prefix = self.timm.num_prefix_tokens
        tokens = self.masked.encode(image, mask=None if mask is None else F.pad(mask, (prefix, 0)))
        return Tokens(self.timm.forward_head(tokens, pre_logits=True), tokens[:, prefix:])


class PooledTrunk(nn.Module):
    """Any other timm backbone, with pooled features and no patches to mask.

    Example:
        >>> trunk = PooledTrunk(Backbone("test_efficientnet"), drop_path=0.0)
        >>> pooled, patches = trunk(torch.zeros(2, 3, 64, 64))
        >>> tuple(pooled.shape), patches
        ((2, 256), None)
    """

    def __init__(self, backbone: Backbone, drop_path: float) -> None:
        """Create the backbone with random weights."""
        super().__init__()
        self.timm = create_backbone(
            Backbone(backbone.name, {**backbone.args, "drop_path_rate": drop_path})
        )
        self.grid: Grid | None = None

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass.

        Raises:
            UsageError: timm cannot do this with the backbone.
        """
        try:
            self.timm.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UsageError(
                f"{type(self.timm).__name__} cannot recompute activations ({error}). Leave "
                "--checkpoint-activations out, or raise --accumulate."
            ) from error

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tokens:
        """Return the features of normalised pixels, float [N, 3, S, S]."""
        pooled: Tensor = self.timm(image.contiguous(memory_format=torch.channels_last))
        return Tokens(pooled, None)


Trunk = VitTrunk | PooledTrunk


def patch_size(backbone: Backbone) -> tuple[int, int] | None:
    """Return the patch size of a vision transformer in pixels, or None."""
    with torch.device("meta"):
        network = create_backbone(backbone)
    if not isinstance(network, VisionTransformer):
        return None
    high, wide = network.patch_embed.patch_size
    return int(high), int(wide)


def has_patches(backbone: Backbone) -> bool:
    """Return True for a vision transformer, whose patches can be masked."""
    return patch_size(backbone) is not None


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Give every residual branch the same rate of stochastic depth, in place.

    In timm the rate rises from 0 in the first block to its full value in the last, so
    its mean is half of that. The released code of DermINO has the full rate in every
    block.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            # A branch with rate 0, such as the first block's, holds an Identity.
            if name.startswith("drop_path") and isinstance(child, (DropPath, nn.Identity)):
                setattr(parent, name, DropPath(rate))


class Branch(nn.Module):
    """The student or the teacher: a trunk with heads over class and patch tokens.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> branch = Branch(Backbone("test_vit"), PRESETS["tiny"], drop_path=0.0)
        >>> pooled, patches = branch.trunk(torch.zeros(2, 3, 160, 160))
        >>> tuple(branch.dino(pooled).shape), tuple(branch.ibot(patches).shape)
        ((2, 2048), (2, 100, 2048))
    """

    def __init__(self, backbone: Backbone, recipe: HybridRecipe, drop_path: float) -> None:
        """Create trunk and heads with random weights."""
        super().__init__()
        masking, patches = recipe.ibot > 0, has_patches(backbone)
        self.trunk: Trunk = (
            VitTrunk(backbone, drop_path, masking) if patches else PooledTrunk(backbone, drop_path)
        )
        if drop_path and recipe.drop_path_mode == "uniform":
            set_drop_path(self.trunk.timm, drop_path)
        self.dino = make_projection_head(self.width, recipe) if recipe.dino else None
        self.ibot = make_projection_head(self.width, recipe) if masking and patches else None

    @property
    def width(self) -> int:
        """Width D of the pooled features."""
        return int(self.trunk.timm.num_features_out)

    @property
    def heads(self) -> list[DINOProjectionHead]:
        """The heads that this branch has."""
        return [head for head in (self.dino, self.ibot) if head is not None]


def make_projection_head(width: int, recipe: HybridRecipe) -> DINOProjectionHead:
    """Return a three-layer head that ends in L2-normalized prototypes.

    The norm of the prototypes is fixed at 1. The released code of DermINO trains it.

    Source: Caron et al., DINO, ICCV 2021.
    """
    with warnings.catch_warnings():
        # lightly uses torch's deprecated weight_norm; lightly-train removed it in
        # github.com/lightly-ai/lightly-train/pull/146. Once lightly does, delete this
        # filter and the name `weight_g` in schedule.py.
        warnings.simplefilter("ignore", FutureWarning)
        return DINOProjectionHead(
            width,
            recipe.hidden,
            recipe.bottleneck,
            recipe.outputs,
            freeze_last_layer=recipe.freeze_last_layer,
            norm_last_layer=True,
        )


class LabelHead(nn.Module):
    """A linear layer whose rows are the prototypes of all diagnoses.

    Example:
        >>> from dermedge.train.hybrid.recipe import make_recipe
        >>> recipe = make_recipe("mobile", prototype_mode="pulled")
        >>> head = LabelHead(torch.eye(3), recipe)
        >>> tuple(head(torch.rand(2, 3)).shape), head.pull().item()
        ((2, 3), 0.0)
    """

    start: Tensor

    def __init__(self, prototypes: Tensor, recipe: HybridRecipe) -> None:
        """Start from `prototypes` [C, D], with biases of 0."""
        super().__init__()
        self.mode, self.weight = recipe.prototype_mode, nn.Parameter(prototypes.clone())
        self.bias = nn.Parameter(torch.zeros(len(prototypes)))
        self.register_buffer("start", prototypes.clone())
        if self.mode == "frozen":
            self.requires_grad_(False)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits [N, C] of features [N, D]."""
        return F.linear(pooled, self.weight, self.bias)

    def pull(self) -> Tensor:
        """Return the mean squared distance of the rows to their start."""
        return (self.weight - self.start).square().sum(1).mean()


class HybridOutputs(NamedTuple):
    """The student's outputs for N images.

    An output is None if its loss is not computed.

    Attributes:
        pooled: Features of the global crops, [2N, D].
        dino_global: DINO logits of the global crops, [2N, K].
        dino_local: DINO logits of the local crops, [L, N, K].
        ibot: iBOT logits of the M masked patches, [M, K].
        labels: Logits of the diagnoses for the global crops, [2N, C].
        pull: Mean squared distance of the prototypes to their initial values.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> branch = Branch(Backbone("test_efficientnet"), PRESETS["mobile"], 0.0)
        >>> crops = torch.zeros(4, 3, 64, 64), torch.zeros(4, 3, 32, 32)
        >>> outputs = HybridStudent(branch, None)(*crops, mask=None)
        >>> tuple(outputs.dino_local.shape), outputs.ibot
        ((2, 2, 256), None)
    """

    pooled: Tensor
    dino_global: Tensor | None = None
    dino_local: Tensor | None = None
    ibot: Tensor | None = None
    labels: Tensor | None = None
    pull: Tensor | None = None


class HybridStudent(nn.Module):
    """The student: its branch and the label head.

    One call computes all outputs, because DDP allows one forward pass per step.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> recipe = PRESETS["mobile"]
        >>> branch = Branch(Backbone("test_efficientnet"), recipe, drop_path=0.0)
        >>> labels = LabelHead(torch.rand(5, branch.width), recipe)
        >>> student = HybridStudent(branch, labels)
        >>> [type(part).__name__ for part in student.parts()]
        ['PooledTrunk', 'DINOProjectionHead', 'LabelHead']
    """

    def __init__(self, branch: Branch, labels: LabelHead | None) -> None:
        """Combine a branch and a label head. None means that there is no label loss."""
        super().__init__()
        self.branch, self.labels = branch, labels

    def parts(self) -> Iterator[nn.Module]:
        """Yield backbone and heads, whose gradients are clipped separately."""
        candidates = (self.branch.trunk, self.branch.dino, self.branch.ibot, self.labels)
        yield from (part for part in candidates if part is not None)

    def forward(
        self, global_crops: Tensor, local_crops: Tensor, mask: Tensor | None
    ) -> HybridOutputs:
        """Return the outputs of one part of a batch.

        Args:
            global_crops: Float [2N, 3, S, S], crop by crop.
            local_crops: Float [L N, 3, s, s], crop by crop.
            mask: Patches to hide in the global crops, bool [2N, P].
        """
        branch, outputs = self.branch, {}
        pooled, patches = branch.trunk(global_crops, mask if branch.ibot else None)
        if branch.dino is not None:
            outputs["dino_global"] = branch.dino(pooled)
            if len(local_crops):
                samples = len(global_crops) // 2
                logits = branch.dino(branch.trunk(local_crops).pooled)
                outputs["dino_local"] = logits.unflatten(0, (-1, samples))
        if branch.ibot is not None:
            outputs["ibot"] = branch.ibot(patches[mask])
        if self.labels is not None:
            outputs["labels"] = self.labels(pooled)
            if self.labels.mode == "pulled":
                outputs["pull"] = self.labels.pull()
        return HybridOutputs(pooled, **outputs)
