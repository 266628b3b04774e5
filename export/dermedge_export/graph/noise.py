"""Measure the noise between the tensors of two graphs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.inspect import InspectableGraph, ProbeTensors

CEILING = 150.0  # dB: more than float32 can resolve
WEIGHTED_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def compare_tensors(
    student: ProbeTensors, candidate: ProbeTensors, images: NDArray[np.uint8]
) -> tuple[list[float], list[float | None]]:
    """Return the signal-to-noise ratio in dB and the largest difference per tensor.

    The tensors of only one image are in memory at a time.

    Args:
        student: Function that computes the student's tensors.
        candidate: Function that computes the same tensors of the artifact.
        images: Preprocessed images, uint8 [N, S, S, 3].

    Returns:
        Ratios in dB, and largest absolute differences; None where they are not finite.
    """
    sums: list[list[tuple[float, float, float]]] = []
    for image in images:
        rows = [
            _powers(*values)
            for values in zip(student(image[None]), candidate(image[None]), strict=True)
        ]
        sums.append(rows)
    # Powers are summed over images before they are divided, so that an image with a
    # weak signal does not dominate the ratio.
    table = np.array(sums)
    ratios = [decibels(signal, noise) for signal, noise in table[:, :, :2].sum(axis=0)]
    peaks = table[:, :, 2].max(axis=0)
    return ratios, [float(peak) if np.isfinite(peak) else None for peak in peaks]


def _powers(reference: NDArray[Any], candidate: NDArray[Any]) -> tuple[float, float, float]:
    """Return the powers of signal and noise, and the largest absolute difference."""
    signal = reference.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):
        noise = candidate.astype(np.float64).ravel() - signal
    return float(signal @ signal), float(noise @ noise), float(np.abs(noise).max(initial=0.0))


def decibels(signal: float, noise: float) -> float:
    """Return a ratio of powers in dB within -150..150; infinite noise gives -150.

    Args:
        signal: Power of the signal.
        noise: Power of the noise.

    Example:
        >>> from dermedge_export.graph.noise import decibels
        >>> decibels(100.0, 1.0)
        20.0
    """
    if not np.isfinite(noise):
        return -CEILING
    tiny = np.finfo(np.float64).tiny
    ratio = 10 * (np.log10(max(signal, tiny)) - np.log10(max(noise, tiny)))
    return float(np.clip(ratio, -CEILING, CEILING))


def compare_weights(
    student: InspectableGraph,
    candidate: InspectableGraph,
    nodes: Sequence[str],
    image: NDArray[np.uint8],
) -> dict[str, float]:
    """Return the signal-to-noise ratio in dB of the weights of the named nodes.

    Nodes without weights in both graphs are left out.

    Args:
        student: The student's graph.
        candidate: The artifact's graph.
        nodes: Names of the nodes.
        image: One preprocessed image, uint8 [1, S, S, 3]; both graphs need an input.
    """
    ours = {node.name: node for node in student.nodes}
    theirs = {node.name: node for node in candidate.nodes if candidate.constants}
    stored = {}
    for name in dict.fromkeys(nodes):
        # A weight has two or more dimensions; a bias or a scale has at most one.
        ranks = [len(student.constants.get(of, ())) for of in ours[name].inputs]
        place = next(
            (i for i, rank in enumerate(ranks) if rank > 1 and ours[name].op in WEIGHTED_OPS), None
        )
        if place is not None and name in theirs:
            stored[name] = ours[name].inputs[place], theirs[name].inputs[place]
    if not stored:
        return {}
    first, second = zip(*stored.values(), strict=True)
    values = zip(
        stored,
        student.probe_tensors(first)(image),
        candidate.probe_tensors(second)(image),
        strict=True,
    )
    return {name: decibels(*_powers(a, b)[:2]) for name, a, b in values if a.shape == b.shape}
