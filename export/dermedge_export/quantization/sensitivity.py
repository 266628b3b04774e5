"""Which layers quantize badly, and the shortest list of them that is better left in fp32."""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.progress import Progress
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import import_silently

Quantize = Callable[[Collection[str]], bytes]
Outputs = dict[str, NDArray[np.float64]]

MAX_CALLS = 64  # quantized graphs that a sweep may ask for
MAX_IMAGES = 16  # images that a drift is measured on
REMAINING = 0.1
NEARLY = 1.1  # a list that leaves so many times the least drift is as good as the longer one that leaves the least
# Where quantization starts. Other operators pass quantized values on, or only read them.
LAYERS = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat", "GlobalAveragePool", "LeakyRelu")
)


@dataclass(frozen=True)
class Sensitivity:
    """How far the outputs drift when this layer alone is quantized.

    `score` is that drift, as `drift_from` measures it. `shared` counts the layers that it was measured for together and
    dealt out to evenly; 1 is a layer that was measured by itself.
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
    progress: Progress | None = None,
) -> tuple[Sensitivity, ...]:
    """Rank the layers that are quantized by the drift that each causes alone, the worst first.

    Quantizing one layer at a time, and not keeping one, ranks rightly also where several layers each ruin the outputs.
    Of a graph with more layers than `calls`, neighbours are measured together first, and then one by one where they
    are worst.

    Args:
        graph: the fp32 ONNX model.
        quantize: gives that model quantized, the nodes that it is told left in fp32.
        images: uint8 [N, S, S, 3]; at most 16 of them are looked at.
        calls: how often `quantize` may be called, 8 or more.
        progress: told how many of the calls are done.

    Raises:
        DermedgeError: the model as such gives NaN or Inf.
    """
    drift, nodes = drift_from(graph, images), _nodes(graph)
    layers = _quantized(nodes, quantize(()))
    spent, total = 1, min(calls, len(layers) + 1)

    def alone(group: Sequence[str]) -> float:
        nonlocal spent
        found = drift(quantize(sorted(set(nodes) - set(group))))
        spent += 1
        if progress is not None:
            progress(spent, total, group[0])
        return found

    size = 1 if len(layers) < calls else math.ceil(3 * len(layers) / calls)
    groups = [layers[start : start + size] for start in range(0, len(layers), size)]
    ranked = []
    for group, score in sorted(
        [(group, alone(group)) for group in groups], key=lambda pair: -pair[1]
    ):
        if len(group) > 1 and spent + len(group) <= calls:
            ranked += [Sensitivity(layer, nodes[layer], alone([layer])) for layer in group]
        else:
            ranked += [
                Sensitivity(layer, nodes[layer], score / len(group), len(group)) for layer in group
            ]
    return tuple(sorted(ranked, key=lambda found: -found.score))


def choose_kept(
    quantize: Quantize,
    graph: bytes,
    images: NDArray[np.uint8],
    *,
    remaining: float = REMAINING,
    calls: int = MAX_CALLS,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """The shortest head of the ranking whose nodes, left in fp32, bring the drift down to what may remain.

    At most half of the layers are kept: with more, little is left of the speed. Where that does not suffice, the
    answer is the shortest list that does about as well as the best one; it is empty where keeping layers does not help.

    Args:
        quantize: gives the model quantized, the nodes that it is told left in fp32.
        graph: the fp32 ONNX model.
        images: uint8 [N, S, S, 3]; at most 16 of them are looked at.
        remaining: share of the drift of the wholly quantized model that may remain.
        calls: how often the sweep may call `quantize`; choosing among its ranking takes a few calls more.
        progress: told how many of the sweep's calls are done.

    Raises:
        DermedgeError: the model as such gives NaN or Inf.
    """
    drift = drift_from(graph, images)
    everything = drift(quantize(()))
    if everything == 0:
        return ()
    order = [
        found.node
        for found in sweep(graph, quantize, images, calls=calls, progress=progress)
        if found.score > 0
    ]

    @cache
    def left(count: int) -> float:
        return drift(quantize(order[:count])) if count else everything

    goal, most = remaining * everything, (len(order) + 1) // 2
    tried = [0]
    while tried[-1] < most and left(tried[-1]) > goal:
        tried.append(min(max(1, 2 * tried[-1]), most))
    if left(tried[-1]) > goal:
        least = min(left(count) for count in tried)
        return tuple(order[: next(count for count in tried if left(count) <= NEARLY * least)])
    low, high = tried[-2:]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= goal else (middle, high)
    return tuple(order[:high])


def drift_from(graph: bytes, images: NDArray[np.uint8]) -> Callable[[bytes], float]:
    """A function that tells how far another ONNX model's outputs are from those of `graph`: the KL divergence in nats
    of what is read as probabilities, plus the squared error of other outputs as a share of their power. It is infinite
    where they are not finite.

    Args:
        graph: the fp32 ONNX model; its metadata tell how each output is read.
        images: uint8 [N, S, S, 3]; at most 16 of them, evenly spaced, are looked at.

    Raises:
        DermedgeError: the outputs of `graph` itself are not finite.
    """
    chosen = images[
        np.unique(np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).astype(int))
    ]
    reference, kinds = _outputs(graph, chosen), _kinds(graph)
    if bad := [name for name, values in reference.items() if not np.isfinite(values).all()]:
        raise DermedgeError(
            f"The fp32 model gives NaN or Inf in {', '.join(bad)}: train or export it again."
        )

    def drift(candidate: bytes) -> float:
        found = _outputs(candidate, chosen)
        with np.errstate(invalid="ignore", over="ignore"):
            parts = [
                _distance(kinds.get(name), values, found[name])
                for name, values in reference.items()
            ]
        return float(np.nan_to_num(sum(parts), nan=math.inf))

    return drift


def _distance(
    kind: str | None, reference: NDArray[np.float64], candidate: NDArray[np.float64]
) -> float:
    if kind == "classify":
        return _divergence(reference, candidate)
    if kind in ("binary", "ordinal", "segment"):  # a sigmoid is a softmax over its logit and zero
        return _divergence(
            *(np.stack([side, np.zeros_like(side)], axis=1) for side in (reference, candidate))
        )
    return float(
        np.square(reference - candidate).sum()
        / max(np.square(reference).sum(), np.finfo(np.float64).tiny)
    )


def _divergence(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> float:
    """Mean KL divergence in nats of the softmax of logits [N, K, ...]."""
    first, second = (
        side - np.logaddexp.reduce(side, axis=1, keepdims=True) for side in (reference, candidate)
    )
    return float(np.maximum(0.0, (np.exp(first) * (first - second)).sum(axis=1).mean()))


def _outputs(model: bytes, images: NDArray[np.uint8]) -> Outputs:
    """Outputs [N, ...] by name; image by image, which a graph with a batch of one needs."""
    onnxruntime = import_silently("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {INPUT: image[None]}) for image in images]
    return {
        name: np.concatenate(column).astype(np.float64)
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _kinds(graph: bytes) -> dict[str, str]:
    """How each output is read, as far as the model's metadata tell."""
    import onnx

    from dermedge_export.graph.seal import METADATA_KEY

    for entry in onnx.load_model_from_string(graph).metadata_props:
        if entry.key == METADATA_KEY:
            return {task["name"]: task["kind"] for task in json.loads(entry.value)["tasks"]}
    return {}


def _nodes(graph: bytes) -> dict[str, str]:
    """The operators of an ONNX model by node name, in the order of the graph."""
    import onnx

    return {node.name: node.op_type for node in onnx.load_model_from_string(graph).graph.node}


def _quantized(nodes: dict[str, str], quantized: bytes) -> list[str]:
    """The layers of the fp32 graph that read quantized values in the other, in the order of the graph."""
    import onnx

    graph: Any = onnx.load_model_from_string(quantized).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    reading = {node.name for node in graph.node if dequantized & set(node.input)}
    return [name for name, op in nodes.items() if name in reading and op in LAYERS]
