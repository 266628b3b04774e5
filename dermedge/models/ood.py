"""Score how far an image is from a model's training images, inside the network."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dermedge_runtime.spec import Spec, Task

OOD = Task("ood", "ood")
"""The task of the score. Its output is [N, 1]; larger is more foreign."""
AXES = 64
"""Principal axes of the train features with a variance of their own."""
FOREIGN_AXES = 256
"""Principal axes that the classifier of foreign images reads."""
INVERSE_PENALTY = 1e-3
"""Inverse weight of the classifier's squared coefficients, as in scikit-learn."""
UNUSUAL = 0.975
"""Quantile of the val images that scales each part of the score."""
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

    `fit_foreign` adds a linear classifier of known foreign images. Its output, if it is
    positive, is added to the distance, so unknown foreign images keep at least theirs.

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
    foreign: Tensor
    bias: Tensor

    def __init__(self, width: int, axes: int = AXES) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        # Row k is axis k, times the square root of 1 - shared variance / own variance.
        self.register_buffer("axes", torch.zeros(min(axes, width), width))
        # Inverse square root of the shared variance and of the number of features.
        self.register_buffer("scale", torch.ones(1))
        # The classifier of foreign images. Zeros add nothing.
        self.register_buffer("foreign", torch.zeros(width))
        self.register_buffer("bias", torch.zeros(1))

    def forward(self, pooled: Tensor) -> Tensor:
        """Return scores [N, 1] of features [N, D]."""
        # Scaled first, so that no square leaves fp16 where an engine computes in it.
        offset = (pooled.float() - self.centre) * self.scale
        along = (offset.unsqueeze(1) * self.axes).sum(2)
        squares = offset.square().sum(1, keepdim=True) - along.square().sum(1, keepdim=True)
        # Rounding makes the difference negative at the centre itself. Quantizers convert
        # a clamp to int8, but not an absolute value.
        distance = squares.abs().sqrt()
        known = (offset * self.foreign).sum(1, keepdim=True) + self.bias
        return distance + (known + known.abs()) * 0.5

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Model folders from before the classifier have no weights for it.
        for name in ("foreign", "bias"):
            state_dict.setdefault(prefix + name, torch.zeros_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


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
    centre, variances, directions = _principal_axes(features)
    kept = min(len(head.axes), count // IMAGES_PER_AXIS)
    least = _least_variance(variances)
    shared = torch.maximum(variances[kept:].mean(), least) if kept < width else least
    own = torch.maximum(variances[:kept], shared)
    head.centre.copy_(centre)
    head.scale.copy_((shared * width).rsqrt())
    head.axes[:kept] = ((1 - shared / own).sqrt() * directions[:, :kept]).T.float()
    return head


@torch.no_grad()
def fit_foreign(head: FeatureDistance, train: Tensor, val: Tensor, foreign: Tensor) -> None:
    """Fit a head's classifier of known foreign images, in place.

    It is a logistic regression on whitened principal axes of the train features, which
    separates them from the foreign images. Its output is shifted and scaled so that, on
    val, it varies as much as the distance.

    Source: Hendrycks, Mazeika and Dietterich, "Deep anomaly detection with outlier
    exposure", ICLR 2019. There, the whole network is trained with the foreign images.

    Args:
        head: A head of `fit_distance`.
        train: Pooled features of the train images, [N, D].
        val: Pooled features of the val images, [M, D].
        foreign: Pooled features of the foreign images, [F, D].

    Example:
        >>> features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        >>> head = fit_distance(features)
        >>> moved = features + torch.tensor([1.5] + 7 * [0.0])
        >>> before = head(moved).mean()
        >>> fit_foreign(head, features, features, moved)
        >>> bool(head(moved).mean() > before + 0.2)
        True
    """
    from sklearn.linear_model import LogisticRegression

    head.foreign.zero_()
    head.bias.zero_()
    kept = min(FOREIGN_AXES, train.shape[1], len(train) // IMAGES_PER_AXIS)
    if kept == 0:
        return
    spread = _spread(head(val)[:, 0].double())[1]
    centre, variances, directions = _principal_axes(train)
    deviations = (variances[:kept] + _least_variance(variances)).sqrt()
    whitening = directions[:, :kept] / deviations
    both = (torch.cat([train, foreign]).double() - centre) @ whitening
    labels = torch.cat([torch.zeros(len(train)), torch.ones(len(foreign))])
    classifier = LogisticRegression(C=INVERSE_PENALTY, class_weight="balanced", max_iter=300)
    classifier.fit(both.numpy(), labels.numpy())
    weights = whitening @ torch.from_numpy(classifier.coef_[0])
    middle, width = _spread((val.double() - centre) @ weights)
    head.foreign.copy_(weights * spread / width / head.scale)
    head.bias.copy_(-middle * spread / width)


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean [D], variances [D], largest first, and their directions in columns."""
    centre = features.double().mean(0)
    offsets = features.double() - centre
    variances, directions = torch.linalg.eigh(offsets.T @ offsets / max(1, len(features) - 1))
    return centre, variances.flip(0).clamp_min(0), directions.flip(1)


def _least_variance(variances: Tensor) -> Tensor:
    return (LEAST_VARIANCE * variances.mean()).clamp_min(SMALLEST_VARIANCE)


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median of some values, and how far above it unusual ones are."""
    middle = values.quantile(0.5)
    return middle, (values.quantile(UNUSUAL) - middle).clamp_min(SMALLEST_VARIANCE)
