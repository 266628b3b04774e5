"""Frequency baseline: the most common caption of the label that neighbours predict."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dermedge.probing.features import Features
from dermedge.probing.knn import vote


def most_common_captions(
    gallery: Features, labels: Sequence[str], captions: Sequence[str], queries: Features
) -> list[str]:
    """Return a caption per query: the most common one of its predicted label.

    The label is predicted by the nearest train images; see `vote`. Of captions that are
    equally common, the first in alphabetical order is taken.

    Args:
        gallery: Features [N, D] of the train images.
        labels: Diagnosis of each train image, "" for an unknown one.
        captions: Caption of each train image.
        queries: Features [M, D].

    Example:
        >>> gallery = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
        >>> queries = np.array([[0.1, 1]], np.float32)
        >>> most_common_captions(gallery, ["nv", "nv", "mel"], ["a", "a", "b"], queries)
        ['b']
    """
    names, index = np.unique(np.asarray(labels), return_inverse=True)
    common = [
        _most_common([captions[row] for row in np.flatnonzero(index == label).tolist()])
        for label in range(len(names))
    ]
    predicted = vote(gallery, index, queries, len(names)).argmax(axis=1)
    return [common[label] for label in predicted]


def _most_common(captions: Sequence[str]) -> str:
    return min(Counter(captions).items(), key=lambda item: (-item[1], item[0]))[0]
