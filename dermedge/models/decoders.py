"""Decode a frozen backbone's feature maps to segmentation masks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermedge.models.network import Network, feature_map
from dermedge_runtime.errors import UsageError

DROPOUT = 0.1
CHANNELS = 128
POOLS = (1, 2, 3, 6)
LEVELS = 4
# Scale factors that make a pyramid of a transformer's blocks, whose maps have one size.
PYRAMID = (4.0, 2.0, 1.0, 0.5)


class LinearDecoder(nn.Module):
    """A linear classifier of each grid cell: batch norm, dropout, 1x1 convolution.

    Args:
        width: Channels of the last map.
        classes: Number of outputs K.

    Example:
        >>> LinearDecoder(8, 1)([torch.zeros(2, 8, 7, 7)]).shape
        torch.Size([2, 1, 7, 7])
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(width), nn.Dropout2d(DROPOUT), nn.Conv2d(width, classes, 1)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [N, K, h, w] on the grid of the last of `maps`."""
        logits: Tensor = self.layers(maps[-1])
        return logits


class UPerNet(nn.Module):
    """Pyramid pooling over the coarsest map, and a feature pyramid over all maps.

    All levels are fused on the finest grid.

    Source: Xiao et al., "Unified perceptual parsing for scene understanding", ECCV
    2018. Theirs has 512 channels; the released DermINO code has 768.

    Args:
        widths: Channels of the maps, from fine to coarse.
        classes: Number of outputs K.
        scales: Bilinear scale factor of each map. Empty means 1 for all. The blocks of
            a plain vision transformer have one grid, so scaling makes the pyramid.
        channels: Channels of each level.
        dropout: Share of channels that are dropped before the classifier.

    Example:
        >>> maps = [torch.zeros(2, 8, 8, 8), torch.zeros(2, 16, 4, 4)]
        >>> UPerNet((8, 16), 1, channels=8)(maps).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        *,
        scales: Sequence[float] = (),
        channels: int = CHANNELS,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.scales = tuple(scales) or (1.0,) * len(widths)
        top = widths[-1]
        self.laterals = nn.ModuleList(_convolution(width, channels, 1) for width in widths[:-1])
        self.pooled = nn.ModuleList(_convolution(top, channels, 1) for _ in POOLS)
        self.top = _convolution(top + len(POOLS) * channels, channels, 3)
        self.smooth = nn.ModuleList(_convolution(channels, channels, 3) for _ in widths[:-1])
        self.fuse = _convolution(len(widths) * channels, channels, 3)
        self.classify = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels, classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [N, K, h, w] on the grid of the first of `maps`.

        Args:
            maps: Feature maps from fine to coarse, with the channels `widths`.
        """
        top = _scale(maps[-1], self.scales[-1])
        pooled = [
            _resize(layer(F.adaptive_avg_pool2d(top, side)), top)
            for layer, side in zip(self.pooled, POOLS, strict=True)
        ]
        levels = [self.top(torch.cat([top, *pooled], 1))]
        finer = zip(self.laterals, self.smooth, maps[:-1], self.scales[:-1], strict=True)
        merged = levels[0]
        for lateral, smooth, features, scale in reversed(list(finer)):
            # The 1x1 convolution comes before the scaling, where it is cheaper.
            own = _scale(lateral(features), scale)
            merged = own + _resize(merged, own)
            levels.insert(0, smooth(merged))
        fused = self.fuse(torch.cat([_resize(level, levels[0]) for level in levels], 1))
        logits: Tensor = self.classify(fused)
        return logits


def decoder_levels(
    network: Network, stages: int | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the stages of a backbone that `UPerNet` reads, and the scale of each map.

    These are the last four stages. For a plain vision transformer, they are the last
    block of each quarter of its depth, scaled by 4, 2, 1 and 1/2. With twelve blocks
    these are blocks 2, 5, 8 and 11, counted from 0.

    Args:
        network: The network with the backbone.
        stages: Number of stages that were kept; None for all.

    Returns:
        Indices of stages from fine to coarse, and one scale factor for each.

    Raises:
        UsageError: timm gives no maps of this family's stages, or there are fewer than
            two.
    """
    backbone = network.backbone
    info = list(getattr(backbone, "feature_info", ()))[:stages]
    if len(info) < 2 or not hasattr(backbone, "forward_intermediates"):
        raise UsageError(
            f"{type(backbone).__name__} gives the feature maps of {len(info)} stages, and UPerNet "
            "needs two or more. Use the linear head only, or another backbone."
        )
    depth, count = len(info), min(LEVELS, len(info))
    if len({stage["reduction"] for stage in info}) > 1:
        return tuple(range(depth - count, depth)), (1.0,) * count
    return tuple((k + 1) * depth // count - 1 for k in range(count)), PYRAMID[-count:]


def frozen_maps(
    network: Network, image: Tensor, levels: Sequence[int], *, normalised: bool = False
) -> list[Tensor]:
    """Return feature maps [N, C, h, w] of the stages `levels`, then the last map.

    Args:
        network: The network with the backbone.
        image: uint8 [N, S, S, 3].
        levels: Indices of stages; empty returns the last map only.
        normalised: Apply the backbone's last norm to the maps of its stages, if they
            have the width of that norm.

    Raises:
        UsageError: The backbone has no feature map.
    """
    backbone = network.backbone
    pixels = network.normalised(image)
    if not levels:
        return [feature_map(backbone, backbone.forward_features(pixels))]
    last, maps = backbone.forward_intermediates(
        pixels, indices=list(levels), output_fmt="NCHW", norm=normalised
    )
    return [*maps, feature_map(backbone, last)]


def _convolution(width: int, channels: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _resize(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _scale(features: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return features
    size = [max(1, round(side * scale)) for side in features.shape[-2:]]
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
