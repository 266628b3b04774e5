"""Decoders that segment on a frozen backbone's feature maps, and the maps that they read."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermedge.models.network import Network, feature_map
from dermedge_runtime.errors import UsageError

DROPOUT = 0.1
CHANNELS = 128
POOLS = (1, 2, 3, 6)
LEVELS = 4


class LinearDecoder(nn.Module):
    """A linear classifier of every place of the last feature map: batch norm, dropout, 1x1 convolution."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width), nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes, 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [N, K, h, w] on the grid of the last of `maps`."""
        logits: Tensor = self.layers(maps[-1])
        return logits


class UPerNet(nn.Module):
    """Pyramid pooling over the top map and a feature pyramid below it, all levels fused on the finest grid.

    Xiao et al., "Unified perceptual parsing for scene understanding", ECCV 2018; with 128 channels instead of 512.
    `scales` enlarges (or shrinks) each level, bilinearly: the blocks of a plain vision transformer all have one grid,
    and a pyramid is made of them.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        *,
        scales: Sequence[float] = (),
        channels: int = CHANNELS,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales) or (1.0,) * len(widths)
        top = widths[-1]
        self.laterals = nn.ModuleList(_convolution(width, channels, 1) for width in widths[:-1])
        self.pooled = nn.ModuleList(_convolution(top, channels, 1) for _ in POOLS)
        self.top = _convolution(top + len(POOLS) * channels, channels, 3)
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3) for _ in widths[:-1])
        self.fuse = _convolution(len(widths) * channels, channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(DROPOUT), nn.Conv2d(channels, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [N, K, h, w] on the grid of the first of `maps`, which go from fine to coarse, as `widths` does."""
        top = _scaled(maps[-1], self.scales[-1])
        pooled = [
            _resized(layer(F.adaptive_avg_pool2d(top, side)), top)
            for layer, side in zip(self.pooled, POOLS, strict=True)
        ]
        levels = [self.top(torch.cat([top, *pooled], 1))]
        sides = zip(self.laterals, self.smooth, maps[:-1], self.scales[:-1], strict=True)
        merged = levels[0]
        for lateral, smooth, features, scale in reversed(list(sides)):
            # The 1x1 convolution comes before the enlarging, which is cheaper on its fewer channels.
            own = _scaled(lateral(features), scale)
            merged = own + _resized(merged, own)
            levels.insert(0, smooth(merged))
        fused = self.fuse(torch.cat([_resized(level, levels[0]) for level in levels], 1))
        logits: Tensor = self.classify(fused)
        return logits


def decoder_levels(
    network: Network, stages: int | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Which of a backbone's stages a `UPerNet` reads, from fine to coarse, and by how much each is to be enlarged.

    The last four; of a plain vision transformer, whose blocks all have one grid, the last block of each quarter of its
    depth (2, 5, 8 and 11 of twelve, counted from 0), enlarged 4, 2, 1 and 1/2 times.

    Args:
        network: whose backbone it is.
        stages: how many of its stages are left; None for all.

    Raises:
        UsageError: timm cannot give the maps of this family's stages, or there are fewer than two.
    """
    backbone = network.backbone
    info = list(getattr(backbone, "feature_info", ()))[:stages]
    if len(info) < 2 or not hasattr(backbone, "forward_intermediates"):
        raise UsageError(
            f"{type(backbone).__name__} gives the feature maps of {len(info)} stages, and UPerNet needs two or more: "
            "use the linear head only, or another backbone."
        )
    depth, count = len(info), min(LEVELS, len(info))
    if len({stage["reduction"] for stage in info}) > 1:
        return tuple(range(depth - count, depth)), (1.0,) * count
    return tuple((k + 1) * depth // count - 1 for k in range(count)), (4.0, 2.0, 1.0, 0.5)[-count:]


def frozen_maps(network: Network, image: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """Feature maps [N, C, h, w] of `image`, uint8 [N, S, S, 3]: those of the stages `levels`, then the last one.

    Raises:
        UsageError: the backbone has no feature map.
    """
    backbone: Any = network.backbone
    pixels = network.normalised(image)
    if not levels:
        return [feature_map(backbone, backbone.forward_features(pixels))]
    last, maps = backbone.forward_intermediates(pixels, indices=list(levels), output_fmt="NCHW")
    return [*maps, feature_map(backbone, last)]


def _convolution(width: int, channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _resized(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _scaled(features: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return features
    size = tuple(max(1, round(side * scale)) for side in features.shape[-2:])
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
