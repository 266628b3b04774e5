"""Fit and apply the linear probe: one linear layer on frozen features."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge.probing.features import Features
from dermedge.probing.task import Labels
from dermedge_runtime.activations import sigmoid, softmax
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Kind

if TYPE_CHECKING:
    from torch import Tensor, nn

Probabilities = NDArray[np.float64]
FittedClassifier = Callable[[Features], Probabilities]
BASE_BATCH = 256
EPSILON = 1e-6
REMEDY = "Lower --lr, or scale the features with --normalise."


@dataclass(frozen=True)
class LinearRecipe:
    """Length and learning rate of a training with Adam.

    Attributes:
        epochs: Number of epochs.
        batch_size: Images per batch.
        lr: Learning rate. For a linear probe it is the rate for batches of 256; the
            rate of smaller batches is proportionally smaller.
        half_period: Steps in which the rate falls to 0 by a cosine; it rises again in
            as many. 0 keeps the rate constant.

    Raises:
        UsageError: Nothing can be trained with these values.

    Examples:
        >>> LinearRecipe(epochs=50, batch_size=256, lr=5e-3).epochs
        50
    """

    epochs: int
    batch_size: int
    lr: float
    half_period: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.lr > 0:
            raise UsageError(
                f"{self.epochs} epochs of batches of {self.batch_size} at a learning rate of "
                f"{self.lr} train nothing. Use at least 1 epoch, 2 images per batch and a rate "
                "above 0."
            )

    def rate(self, step: int) -> float:
        """Return the factor of the learning rate at a step, from 0.

        Examples:
            >>> [LinearRecipe(1, 2, 1e-3, half_period=2).rate(step) for step in range(4)]
            [1.0, 0.5, 0.0, 0.5]
        """
        if not self.half_period:
            return 1.0
        return round((1 + math.cos(math.pi * step / self.half_period)) / 2, 12)


LINEAR_RECIPE = LinearRecipe(epochs=50, batch_size=256, lr=5e-3)


def fit_linear(
    kind: Kind,
    classes: int,
    features: Features,
    labels: Labels,
    *,
    recipe: LinearRecipe = LINEAR_RECIPE,
    normalise: bool = False,
    seed: int = 0,
) -> FittedClassifier:
    """Fit a linear layer to features by Adam at a constant rate.

    Nothing is selected, so no validation data are needed. Weights start from a normal
    distribution with standard deviation 0.01, biases at 0. The layer is always trained
    on the CPU, so the same arguments give the same layer.

    Args:
        kind: `classify` (cross entropy), `binary` (binary cross entropy) or `ordinal`
            (CORAL: one score, and a bias per level).
        classes: Number of classes K.
        features: Features [N, D].
        labels: Class index [N], 0 to K-1.
        recipe: Length and learning rate. Batches have equal size, as near as possible,
            so that no small last batch remains. The rate is `lr` times the images
            of a batch over 256.
        normalise: Standardize each feature by its mean and standard deviation over the
            train images, like a batch norm without weights (He et al., MAE, CVPR 2022).
            The published protocol does not. Its rate suits a vision transformer, whose
            last norm scales the features to about 1. Features of a network that pools
            after a ReLU may be too small to be learned in 50 epochs.
        seed: Random seed for initialization and shuffling.

    Returns:
        A function from features [M, D] to probabilities [M, K].

    Raises:
        DataError: A weight of the layer is not finite.

    Source: DermINO (arXiv:2508.12190) for the protocol; Cao, Mirjalili and Raschka,
    Pattern Recognition Letters 140 (2020) for CORAL.

    Examples:
        >>> labels = np.arange(60) % 3
        >>> features = np.eye(3, dtype=np.float32)[labels]
        >>> classifier = fit_linear("classify", 3, features, labels)
        >>> (classifier(features).argmax(axis=1) == labels).all().item()
        True
    """
    import torch

    shift = features.mean(axis=0) if normalise else np.zeros(features.shape[1], np.float32)
    scale = features.std(axis=0) + EPSILON if normalise else np.ones(features.shape[1], np.float32)
    inputs, targets = torch.from_numpy((features - shift) / scale), torch.from_numpy(labels)
    # The published recipe scales its rate by batch / 256. Batches of equal size share
    # one rate. A small last batch would take as large a step as the others.
    batches = max(1, round(len(inputs) / recipe.batch_size))
    rate = recipe.lr * len(inputs) / batches / BASE_BATCH
    # The global generator keeps its state, so a probe does not change what follows it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = make_layer(kind, features.shape[1], classes)
        optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(inputs)).tensor_split(batches):
                loss = compute_loss(kind, layer(inputs[rows]), targets[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    classify = fitted_classifier(kind, layer)
    return lambda features: classify((features - shift) / scale)


def fitted_classifier(kind: Kind, layer: "nn.Module") -> FittedClassifier:
    """Return a trained layer as a function from features to class probabilities.

    Raises:
        DataError: A weight of the layer is not finite.

    Examples:
        >>> classify = fitted_classifier("classify", make_layer("classify", 8, 3))
        >>> classify(np.zeros((2, 8), np.float32)).shape
        (2, 3)
    """
    import torch

    from dermedge.train.finite import check_weights

    check_weights(layer, "a linear probe", REMEDY)

    def classify(features: Features) -> Probabilities:
        with torch.inference_mode():
            logits = layer(torch.from_numpy(features))
        return class_probabilities(kind, logits.numpy().astype(np.float64))

    return classify


def class_probabilities(kind: Kind, logits: Probabilities) -> Probabilities:
    """Return the class probabilities [N, K] of logits.

    The exceedance P(y > k) of an ordinal task is the running minimum over k, as in
    `dermedge_runtime.decode`.

    Args:
        kind: Kind of the task.
        logits: Logits [N, K], [N, 1] or [N, K-1], by kind.

    Examples:
        >>> class_probabilities("binary", np.array([[0.0]])).tolist()
        [[0.5, 0.5]]
    """
    if kind == "classify":
        return np.asarray(softmax(logits), np.float64)
    above = np.minimum.accumulate(sigmoid(logits), axis=1)
    certain, impossible = np.ones((len(logits), 1)), np.zeros((len(logits), 1))
    # The probability of a level is the difference of two neighbouring exceedances:
    # P(y = k) = P(y > k - 1) - P(y > k). At the ends, P(y > -1) = 1, P(y > K - 1) = 0.
    return np.asarray(-np.diff(np.concatenate([certain, above, impossible], axis=1), axis=1))


def make_layer(kind: Kind, width: int, classes: int) -> "nn.Module":
    """Return a new linear layer: weights with standard deviation 0.01, biases 0.

    Examples:
        >>> sum(weight.numel() for weight in make_layer("classify", 8, 3).parameters())
        27
    """
    from torch import nn

    from dermedge.models.network import Coral

    layer = (
        Coral(width, classes)
        if kind == "ordinal"
        else nn.Linear(width, 1 if kind == "binary" else classes)
    )
    weights = layer.score if isinstance(layer, Coral) else layer
    nn.init.normal_(weights.weight, std=0.01)
    if weights.bias is not None:
        nn.init.zeros_(weights.bias)
    return layer


def compute_loss(kind: Kind, logits: "Tensor", labels: "Tensor") -> "Tensor":
    """Return the mean cross entropy of logits against class indices [N].

    Examples:
        >>> import torch
        >>> loss = compute_loss("classify", torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> round(loss.exp().item(), 3)
        4.0
    """
    import torch.nn.functional as F

    from dermedge.train.losses import cumulative_cross_entropy

    if kind == "classify":
        return F.cross_entropy(logits, labels)
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return cumulative_cross_entropy(logits, labels)
