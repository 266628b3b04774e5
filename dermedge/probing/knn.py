"""Nearest neighbours on frozen features: nothing is trained."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dermedge.probing.features import Features
from dermedge.probing.task import Labels

Floats = NDArray[np.float64]
NEIGHBOURS = 20
TEMPERATURE = 0.07
HITS, AVERAGE = (1, 5), "mean_average_precision"
CHUNK = 256


def vote(
    gallery: Features,
    labels: Labels,
    queries: Features,
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Floats:
    """Shares of the vote [M, K] that each class has among a query's nearest neighbours, by cosine similarity s, each of
    which votes with exp(s / T).

    Source: Wu et al., Unsupervised feature learning via non-parametric instance discrimination, CVPR 2018; with the
    settings of Caron et al., DINO, ICCV 2021.

    Args:
        gallery: [N, D].
        labels: [N], 0 to K-1, of the gallery.
        queries: [M, D].
        classes: K.
        neighbours: how many vote; all of the gallery where it is smaller.
        temperature: T.
    """
    member = np.eye(classes)[labels]
    shares = []
    for similarity in _similarities(gallery, queries):
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
        close = np.take_along_axis(similarity, nearest, axis=1).astype(np.float64)
        # Relative to the nearest, so that no vote overflows.
        weight = np.exp((close - close[:, :1]) / temperature)
        votes = (weight[:, :, None] * member[nearest]).sum(axis=1)
        shares.append(votes / votes.sum(axis=1, keepdims=True))
    return np.concatenate(shares)


def retrieval(
    gallery: Features, labels: Labels, queries: Features, wanted: Labels
) -> dict[str, Floats]:
    """How well images of a query's own class are found by cosine similarity: values [M] by metric.

    `hit_at_1` and `hit_at_5` are 1 where one of so many nearest images has the query's class, else 0;
    `mean_average_precision` is the average precision of the whole ranking, NaN where the gallery has no image of the
    class.

    Args:
        gallery: [N, D].
        labels: [N], of the gallery.
        queries: [M, D].
        wanted: [M], of the queries.
    """
    found: dict[str, list[Floats]] = {
        name: [] for name in (*(f"hit_at_{k}" for k in HITS), AVERAGE)
    }
    start = 0
    for similarity in _similarities(gallery, queries):
        ranking = np.argsort(-similarity, axis=1, kind="stable")
        right = labels[ranking] == wanted[start : start + len(ranking), None]
        start += len(ranking)
        for k in HITS:
            found[f"hit_at_{k}"].append(right[:, :k].any(axis=1).astype(np.float64))
        precision = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
        count = right.sum(axis=1)
        with np.errstate(invalid="ignore"):
            found[AVERAGE].append((precision * right).sum(axis=1) / count)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _similarities(gallery: Features, queries: Features) -> Iterator[Features]:
    """Cosine similarities [m, N] of a few queries at a time."""
    there = _unit(gallery)
    for start in range(0, len(queries), CHUNK):
        yield _unit(queries[start : start + CHUNK]) @ there.T


def _unit(features: Features) -> Features:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, np.finfo(np.float32).tiny), np.float32)
