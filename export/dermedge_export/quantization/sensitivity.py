"""Rank layers by the drift of their quantization, and choose those kept in fp32."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.exact import output_kinds
from dermedge_export.graph.read import name_of, producer_type, read_graph
from dermedge_export.graph.run import evenly_spaced, open_session
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.signature import INPUT

Quantize = Callable[[Collection[str]], bytes]
Outputs = dict[str, NDArray[np.float64]]

MAX_CALLS = 64  # quantized graphs that a sweep may build
MAX_IMAGES = 16  # images that a drift is measured on
REMAINING = 0.1
# A short list counts as good as a longer one up to this factor between their drifts.
NEARLY = 1.1
# Operators that compute with quantized values; the others only pass them on.
LAYERS = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat", "GlobalAveragePool", "LeakyRelu")
)


@dataclass(frozen=True)
class Reader:
    """Functions that read and run the models of one format.

    Attributes:
        run: Returns the outputs [N, ...] by name for a model and images [N, S, S, 3].
        kinds: Returns the task kind of each output, as far as it is known.
        operators: Returns the type of each operator by its name, in their order.
        layers: Returns the operators, by name, that compute with quantized values; its
            arguments are the result of `operators` and the quantized model.
        label: Returns the name of an operator as people read it.

    Example:
        >>> from dermedge_runtime.bundle import Bundle
        >>> bundle = Bundle.open("toy.dermedge")
        >>> ONNX.kinds(bundle.read(bundle.artifact.path))["malignancy"]
        'binary'
    """

    run: Callable[[bytes, NDArray[np.uint8]], Outputs]
    kinds: Callable[[bytes], Mapping[str, str]]
    operators: Callable[[bytes], Mapping[str, str]]
    layers: Callable[[Mapping[str, str], bytes], Sequence[str]]
    label: Callable[[str], str] = str


@dataclass(frozen=True)
class Sensitivity:
    """The drift of the outputs when this layer alone is quantized.

    `score` is the drift, as `drift_from` measures it. `shared` counts the layers that
    were measured together and share the drift evenly; 1 means a measurement of its own.

    Example:
        >>> stem = Sensitivity("stem", "Conv", 0.3)
        >>> head = Sensitivity("head", "Gemm", 0.02)
        >>> f"{stem.node} causes {stem.score / head.score:.0f} times the drift of head"
        'stem causes 15 times the drift of head'
    """

    node: str
    op: str
    score: float
    shared: int = 1


def sweep(
    graph: bytes,
    quantize: Quantize,
    images: NDArray[np.uint8],
    *,
    calls: int = MAX_CALLS,
    progress: Progress = no_progress,
    reader: Reader | None = None,
) -> tuple[Sensitivity, ...]:
    """Rank the quantized layers by the drift that each causes alone, the worst first.

    The sweep quantizes one layer at a time. Keeping one layer at a time instead would
    rank wrongly where several layers each ruin the outputs. If there are more layers
    than `calls`, neighbours are measured together, then the worst groups layer by
    layer.

    Args:
        graph: The fp32 model.
        quantize: Returns that model quantized, except for the nodes that it is given.
        images: uint8 [N, S, S, 3]; at most 16, evenly spaced, are used.
        calls: How often `quantize` may be called, 8 or more.
        progress: Receives the number of calls done, their total and the layer's name.
        reader: Reads and runs the models; None is for ONNX.

    Raises:
        DermedgeError: The fp32 model gives NaN or Inf.

    Example:
        >>> from dermedge_export.calibration import synthetic_calibration
        >>> from dermedge_export.quantization.ptq import Quantizer
        >>> from dermedge_runtime.bundle import Bundle
        >>> bundle = Bundle.open("toy.dermedge")
        >>> graph = bundle.read(bundle.artifact.path)
        >>> calibration = synthetic_calibration(bundle.spec.preprocess, 4)
        >>> ranking = sweep(graph, Quantizer(graph, calibration), calibration.images)
        >>> ranking[0].score >= ranking[-1].score
        True
    """
    reader = reader or ONNX
    drift, nodes = drift_from(graph, images, reader), reader.operators(graph)
    layers = reader.layers(nodes, quantize(()))
    spent, total = 1, min(calls, len(layers) + 1)

    def drift_of(group: Sequence[str]) -> float:
        nonlocal spent
        score = drift(quantize(sorted(set(nodes) - set(group))))
        spent += 1
        progress(spent, total, f"sensitivity of {reader.label(group[0])}")
        return score

    # With more layers than calls, a third of the calls measures groups, and the rest is
    # left to take the worst groups apart.
    size = 1 if len(layers) < calls else math.ceil(3 * len(layers) / calls)
    groups = [layers[start : start + size] for start in range(0, len(layers), size)]
    scores = [(group, drift_of(group)) for group in groups]
    ranked = []
    for group, score in sorted(scores, key=lambda pair: -pair[1]):
        if len(group) > 1 and spent + len(group) <= calls:
            ranked += [Sensitivity(layer, nodes[layer], drift_of([layer])) for layer in group]
        else:
            share = score / len(group)
            ranked += [Sensitivity(layer, nodes[layer], share, len(group)) for layer in group]
    return tuple(sorted(ranked, key=lambda entry: -entry.score))


def choose_kept(
    quantize: Quantize,
    graph: bytes,
    images: NDArray[np.uint8],
    *,
    remaining: float = REMAINING,
    progress: Progress = no_progress,
    reader: Reader | None = None,
) -> tuple[str, ...]:
    """Return the fewest layers to keep in fp32 so that little of the drift remains.

    The layers are taken from the head of the ranking of `sweep`. At most half of them
    are kept, because with more, little of the speed is left. If half does not suffice,
    the result is the shortest list that does about as well as the best one. It is empty
    if keeping layers does not help.

    Args:
        quantize: Returns the model quantized, except for the nodes that it is given.
        graph: The fp32 model.
        images: uint8 [N, S, S, 3]; at most 16, evenly spaced, are used.
        remaining: The share of the drift of the fully quantized model that may remain.
        progress: Receives the progress of the sweep, which takes most of the time.
        reader: Reads and runs the models; None is for ONNX.

    Raises:
        DermedgeError: The fp32 model gives NaN or Inf.
    """
    drift = drift_from(graph, images, reader)
    full_drift = drift(quantize(()))
    if full_drift == 0:
        return ()
    ranking = sweep(graph, quantize, images, progress=progress, reader=reader)
    order = [entry.node for entry in ranking if entry.score > 0]

    @cache
    def remaining_drift(count: int) -> float:
        return drift(quantize(order[:count])) if count else full_drift

    # Double the list until it suffices, then search between the last two lengths.
    goal, most = remaining * full_drift, (len(order) + 1) // 2
    tried = [0]
    while tried[-1] < most and remaining_drift(tried[-1]) > goal:
        tried.append(min(max(1, 2 * tried[-1]), most))
    if remaining_drift(tried[-1]) > goal:
        least = min(remaining_drift(count) for count in tried)
        return tuple(
            order[: next(count for count in tried if remaining_drift(count) <= NEARLY * least)]
        )
    low, high = tried[-2:]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if remaining_drift(middle) <= goal else (middle, high)
    return tuple(order[:high])


def drift_from(
    graph: bytes, images: NDArray[np.uint8], reader: Reader | None = None
) -> Callable[[bytes], float]:
    """Return a function that measures how far another model is from `graph`.

    The drift is a sum over outputs. Outputs that are read as probabilities add their KL
    divergence in nats. Other outputs add their squared error as a share of their power.
    The drift is infinite if an output is not finite.

    Args:
        graph: The fp32 model; its metadata say how each output is read.
        images: uint8 [N, S, S, 3]; at most 16, evenly spaced, are used.
        reader: Reads and runs the models; None is for ONNX.

    Raises:
        DermedgeError: The outputs of `graph` itself are not finite.

    Example:
        >>> from dermedge_export.calibration import synthetic_calibration
        >>> from dermedge_runtime.bundle import Bundle
        >>> bundle = Bundle.open("toy.dermedge")
        >>> graph = bundle.read(bundle.artifact.path)
        >>> images = synthetic_calibration(bundle.spec.preprocess, 4).images
        >>> drift_from(graph, images)(graph)
        0.0
    """
    reader = reader or ONNX
    chosen = evenly_spaced(images, MAX_IMAGES)
    reference, kinds = reader.run(graph, chosen), reader.kinds(graph)
    if bad := [name for name, values in reference.items() if not np.isfinite(values).all()]:
        raise DermedgeError(
            f"The fp32 model gives NaN or Inf in {', '.join(bad)}. Train or export it again."
        )

    def drift(candidate: bytes) -> float:
        outputs = reader.run(candidate, chosen)
        with np.errstate(invalid="ignore", over="ignore"):
            parts = [
                _distance(kinds.get(name), values, outputs[name])
                for name, values in reference.items()
            ]
        return float(np.nan_to_num(sum(parts), nan=math.inf))

    return drift


def _distance(
    kind: str | None, reference: NDArray[np.float64], candidate: NDArray[np.float64]
) -> float:
    """Return the drift of one output of the given task kind."""
    if kind == "classify":
        return _divergence(reference, candidate)
    if kind in ("binary", "ordinal", "segment"):
        # A sigmoid is a softmax over its logit and zero.
        pairs = (np.stack([side, np.zeros_like(side)], axis=1) for side in (reference, candidate))
        return _divergence(*pairs)
    power = max(np.square(reference).sum(), np.finfo(np.float64).tiny)
    return float(np.square(reference - candidate).sum() / power)


def _divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """Return the mean KL divergence in nats of the softmax of logits [N, K, ...]."""
    first, second = (
        side - np.logaddexp.reduce(side, axis=1, keepdims=True) for side in (reference, candidate)
    )
    return float(np.maximum(0.0, (np.exp(first) * (first - second)).sum(axis=1).mean()))


def _run(model: bytes, images: NDArray[np.uint8]) -> Outputs:
    """Return the outputs [N, ...] by name; images run in batches of 1."""
    session = open_session(model, optimized=True)
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {INPUT: image[None]}) for image in images]
    return {
        name: np.concatenate(column).astype(np.float64)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _output_kinds(graph: bytes) -> dict[str, str]:
    """Return the task kind of each output, as far as the model's metadata say."""
    import onnx

    return output_kinds(onnx.load_model_from_string(graph))


def _node_types(graph: bytes) -> dict[str, str]:
    """Return the operator type of each ONNX node by its name, in the graph's order."""
    import onnx

    return {node.name: node.op_type for node in onnx.load_model_from_string(graph).graph.node}


def _quantized_layers(nodes: Mapping[str, str], quantized: bytes) -> list[str]:
    """Return the fp32 graph's layers that read quantized values in the other."""
    import onnx

    reading = {
        name_of(node)
        for node in read_graph(onnx.load_model_from_string(quantized))
        if any(producer_type(value) == "DequantizeLinear" for value in node.inputs)
    }
    return [name for name, op in nodes.items() if name in reading and op in LAYERS]


ONNX = Reader(_run, _output_kinds, _node_types, _quantized_layers)
