"""Score how far an image is from a model's training images, inside the network."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from dermedge_runtime.spec import Spec, Task

OOD = Task("ood", "ood")
"""The task of the score. Its output is [N, 1]; larger is more foreign."""
AXES = 64
"""Principal axes of the train features with a variance of their own."""
IMAGES_PER_AXIS = 8
"""Fewest train images per axis: the variance along an axis is estimated from them."""
LEAST_VARIANCE = 1e-3
"""Smallest variance of a direction, as a share of the mean over all directions."""
SMALLEST_VARIANCE = 1e-12
"""Keeps the distance finite where all features are equal, as with a single image."""


def without_untrained(spec: Spec) -> Spec:
    """Return a spec without tasks of the kinds `ood` and `cam`, which no loss trains.

    A student inherits its teacher's tasks, but never the statistics of its features. Class
    activation maps have the weights of the diagnosis.
    """
    return replace(
        spec, tasks=tuple(task for task in spec.tasks if task.kind not in ("ood", "cam"))
    )


class FeatureDistance(nn.Module):
    """Head of the `ood` task: distance of the pooled features from the train features.

    It is the Mahalanobis distance under probabilistic PCA: the first principal axes of
    the train features have their own variances, and all other directions share one. The
    square is divided by the number of features, so that an image like the training
    images scores about 1. `fit_distance` sets the buffers; there is nothing to train.

    The projection is written as a product and a sum, because quantizers convert linear
    layers to int8, but not these.

    Source: Tipping and Bishop, "Probabilistic principal component analysis", Journal of
    the Royal Statistical Society B 61(3), 1999.

    Example:
        >>> head = FeatureDistance(width=8)
        >>> tuple(head(torch.zeros(2, 8)).shape)
        (2, 1)
    """

    centre: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, width: int, axes: int = AXES) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        # Row k is axis k, times the square root of 1 - shared variance / own variance.
        self.register_buffer("axes", torch.zeros(min(axes, width), width))
        # Inverse square root of the shared variance and of the number of features.
        self.register_buffer("scale", torch.ones(1))

    def forward(self, pooled: Tensor) -> Tensor:
        """Return distances [N, 1] of features [N, D]."""
        # Scaled first, so that no square leaves fp16 where an engine computes in it.
        offset = (pooled.float() - self.centre) * self.scale
        along = (offset.unsqueeze(1) * self.axes).sum(2)
        squares = offset.square().sum(1, keepdim=True) - along.square().sum(1, keepdim=True)
        # Rounding makes the difference negative at the centre itself. Quantizers convert
        # a clamp to int8, but not an absolute value.
        return squares.abs().sqrt()


@torch.no_grad()
def fit_distance(features: Tensor, axes: int = AXES) -> FeatureDistance:
    """Return a head that measures the distance from some features.

    The same features give the same head.

    Args:
        features: Pooled features of the train images, [N, D].
        axes: Most principal axes with a variance of their own, at most `AXES` in a model.

    Example:
        >>> features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        >>> head = fit_distance(features)
        >>> bool(head(features).mean() < 1.1), bool((head(features + 20) > 5).all())
        (True, True)
    """
    count, width = features.shape
    head = FeatureDistance(width, axes)
    centre = features.double().mean(0)
    offsets = features.double() - centre
    variances, directions = torch.linalg.eigh(offsets.T @ offsets / max(1, count - 1))
    variances, directions = variances.flip(0).clamp_min(0), directions.flip(1)
    kept = min(len(head.axes), count // IMAGES_PER_AXIS)
    least = (LEAST_VARIANCE * variances.mean()).clamp_min(SMALLEST_VARIANCE)
    shared = torch.maximum(variances[kept:].mean(), least) if kept < width else least
    own = torch.maximum(variances[:kept], shared)
    head.centre.copy_(centre)
    head.scale.copy_((shared * width).rsqrt())
    head.axes[:kept] = ((1 - shared / own).sqrt() * directions[:, :kept]).T.float()
    return head
