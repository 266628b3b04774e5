"""The linear probe: one linear layer on frozen features."""

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


@dataclass(frozen=True)
class LinearRecipe:
    """How long and how fast Adam trains; of a linear probe `lr` is for batches of 256, and shrinks with them."""

    epochs: int
    batch_size: int
    lr: float

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.lr > 0:
            raise UsageError(
                f"{self.epochs} epochs of batches of {self.batch_size} at a rate of {self.lr} train nothing: give at "
                "least 1 epoch, 2 images per batch and a rate above 0."
            )


LINEAR = LinearRecipe(epochs=50, batch_size=256, lr=5e-3)


def fit_linear(
    kind: Kind,
    classes: int,
    features: Features,
    labels: Labels,
    *,
    recipe: LinearRecipe = LINEAR,
    normalise: bool = False,
    seed: int = 0,
) -> FittedClassifier:
    """Fit a linear layer to features by Adam at a constant rate; nothing is chosen, so it needs no validation data.

    Weights start at N(0, 0.01^2), biases at 0. On the CPU, whatever else there is: the same arguments give the same
    layer.

    Args:
        kind: `classify` (cross entropy), `binary` (binary cross entropy) or `ordinal` (CORAL: one score, and a bias per
            level).
        classes: K.
        features: [N, D].
        labels: [N], 0 to K-1.
        recipe: length and speed. Batches are of equal size, as near as can be, so the last one is no rest; the rate is
            `lr` times the images of a batch over 256.
        normalise: subtract the train features' mean and divide by their standard deviation, feature by feature, as a
            batch norm without weights before the layer does (He et al., MAE, CVPR 2022). The published protocol does
            not, and its rate is made for the features of a vision transformer, which its last norm leaves near 1;
            those of a network that pools after a ReLU may be so small that 50 epochs are too short.
        seed: of the initial weights and the order.

    Returns:
        From features [M, D] to probabilities [M, K].

    Source: DermINO (arXiv:2508.12190) for the protocol; Cao, Mirjalili and Raschka, Pattern Recognition Letters 140
    (2020) for CORAL.
    """
    import torch

    shift = features.mean(axis=0) if normalise else np.zeros(features.shape[1], np.float32)
    scale = features.std(axis=0) + EPSILON if normalise else np.ones(features.shape[1], np.float32)
    inputs, answers = torch.from_numpy((features - shift) / scale), torch.from_numpy(labels)
    batches = max(1, round(len(inputs) / recipe.batch_size))
    rate = recipe.lr * len(inputs) / batches / BASE_BATCH
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = _layer(kind, features.shape[1], classes)
        optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
        for _ in range(recipe.epochs):
            for rows in torch.randperm(len(inputs)).tensor_split(batches):
                loss = _loss(kind, layer(inputs[rows]), answers[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    def fitted(features: Features) -> Probabilities:
        with torch.inference_mode():
            logits = layer(torch.from_numpy((features - shift) / scale))
        return likelihoods(kind, logits.numpy().astype(np.float64))

    return fitted


def likelihoods(kind: Kind, logits: Probabilities) -> Probabilities:
    """Probabilities [N, K] of a `classify`, `binary` or `ordinal` task's logits, shaped as in `Task`; of an ordinal one
    P(y > k) is the running minimum over k, as it is where a Prediction is decoded.
    """
    if kind == "classify":
        return softmax(logits)
    above = np.minimum.accumulate(sigmoid(logits), axis=1)
    ends = np.ones((len(logits), 1)), np.zeros((len(logits), 1))
    return np.asarray(
        -np.diff(np.concatenate([ends[0], above, ends[1]], axis=1), axis=1), np.float64
    )


def _layer(kind: Kind, width: int, classes: int) -> "nn.Module":
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


def _loss(kind: Kind, logits: "Tensor", labels: "Tensor") -> "Tensor":
    import torch.nn.functional as F

    from dermedge.train.losses import cumulative_cross_entropy

    if kind == "classify":
        return F.cross_entropy(logits, labels)
    if kind == "binary":
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype))
    return cumulative_cross_entropy(logits, labels)
