"""Classify and retrieve by nearest neighbours of frozen features."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dermedge.probing.features import Features
from dermedge.probing.task import Labels

Floats = NDArray[np.float64]
NEIGHBOURS = 20
TEMPERATURE = 0.07
HIT_RANKS = (1, 5)
AVERAGE_PRECISION = "mean_average_precision"
# Queries per similarity matrix: against 100,000 train images it takes 100 MB.
CHUNK = 256


def vote(
    gallery: Features,
    labels: Labels,
    queries: Features,
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float | None = TEMPERATURE,
) -> Floats:
    """Compute the share of the vote [M, K] for each class among the nearest neighbours.

    A neighbour with cosine similarity s to the query votes with exp(s / temperature).

    Source: Wu et al., Unsupervised feature learning via non-parametric instance
    discrimination, CVPR 2018; with the settings of Caron et al., DINO, ICCV 2021.

    Args:
        gallery: Features [N, D] of the train images.
        labels: Classes [N] of the train images, 0 to K-1.
        queries: Features [M, D] of the images to classify.
        classes: K.
        neighbours: Number of neighbours that vote; all train images if there are fewer.
        temperature: Temperature of the votes; None gives all neighbours equal votes.

    Examples:
        >>> import numpy as np
        >>> gallery = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
        >>> query = np.array([[0.1, 1]], np.float32)
        >>> vote(gallery, np.array([0, 0, 1]), query, 2, neighbours=1).tolist()
        [[0.0, 1.0]]
    """
    member = np.eye(classes)[labels]
    shares = []
    for similarity in _similarities(gallery, queries):
        # A stable sort resolves ties by the order of the gallery.
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
        close = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        # Weights relative to the nearest neighbour cannot overflow, and the shares of
        # the vote are the same.
        relative = close - close[:, :1]
        weight = np.ones_like(close) if temperature is None else np.exp(relative / temperature)
        votes = (weight[:, :, None] * member[nearest]).sum(axis=1)
        shares.append(votes / votes.sum(axis=1, keepdims=True))
    return np.concatenate(shares)


def measure_retrieval(
    gallery: Features, labels: Labels, queries: Features, query_labels: Labels
) -> dict[str, Floats]:
    """Measure how well images of the query's class are retrieved by cosine similarity.

    `hit_at_1` and `hit_at_5` are 1 if one of the nearest 1 or 5 images has the query's
    class, else 0. `mean_average_precision` is the average precision of the whole
    ranking, NaN if the gallery has no image of the class.

    Args:
        gallery: Features [N, D] of the train images.
        labels: Classes [N] of the train images.
        queries: Features [M, D] of the test images.
        query_labels: Classes [M] of the test images.

    Returns:
        Values [M] by metric.

    Examples:
        >>> import numpy as np
        >>> gallery = np.array([[1, 0], [0, 1]], np.float32)
        >>> labels, query_labels = np.array([0, 1]), np.array([0, 0])
        >>> hits = measure_retrieval(gallery, labels, gallery, query_labels)
        >>> hits["hit_at_1"].tolist()
        [1.0, 0.0]
    """
    values: dict[str, list[Floats]] = {
        name: [] for name in (*(f"hit_at_{k}" for k in HIT_RANKS), AVERAGE_PRECISION)
    }
    start = 0
    for similarity in _similarities(gallery, queries):
        ranking = np.argsort(-similarity, axis=1, kind="stable")
        right = labels[ranking] == query_labels[start : start + len(ranking), None]
        start += len(ranking)
        for k in HIT_RANKS:
            values[f"hit_at_{k}"].append(right[:, :k].any(axis=1).astype(np.float64))
        # Precision at the rank of each correct image, averaged over the correct images.
        precision = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
        count = right.sum(axis=1)
        with np.errstate(invalid="ignore"):
            values[AVERAGE_PRECISION].append((precision * right).sum(axis=1) / count)
    return {name: np.concatenate(parts) for name, parts in values.items()}


def _similarities(gallery: Features, queries: Features) -> Iterator[Features]:
    """Yield cosine similarities [m, N] for a few queries at a time."""
    directions = _normalise(gallery)
    for start in range(0, len(queries), CHUNK):
        yield _normalise(queries[start : start + CHUNK]) @ directions.T


def _normalise(features: Features) -> Features:
    """Scale each row to unit length; a row of zeros stays zero."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, np.finfo(np.float32).tiny), np.float32)
