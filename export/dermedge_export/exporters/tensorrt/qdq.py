"""Insert Q/DQ nodes into fp32 ONNX graphs where TensorRT computes in int8."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dermedge_export.graph.fp16 import SMALLEST, float_tensors, typed_fp16
from dermedge_export.graph.read import input_at, name_of, rank_of, read_graph
from dermedge_export.quantization.saturation import LEVELS, clip_thresholds

if TYPE_CHECKING:
    import onnx
    import onnx_ir

Edge = tuple[str, int]  # an input of a node, by the node's name and the input's position


def typed_int8(
    graph: bytes,
    thresholds: Mapping[str, float],
    wide: Collection[str] = (),
    keep: Collection[str] = (),
) -> "onnx.ModelProto":
    """Return an fp32 graph as a typed model with explicit Q/DQ.

    Args:
        graph: The fp32 ONNX model, shapes inferred.
        thresholds: The magnitude at which each quantized activation saturates.
        wide: Names of the nodes that stay fp32, the wide type.
        keep: Names of further nodes that are not quantized; they compute in fp16.
    """
    import onnx

    model = load_graph(graph)
    inserter = _Inserter(model, thresholds)
    quantized = weighted_nodes(model, {*wide, *keep})
    edges = set(activation_edges(model, {*wide, *keep}))
    for node in list(model.graph.node):
        for position in range(len(node.input)):
            if (node.name, position) in edges:
                node.input[position] = inserter.activation(node, position)
        if node.name in quantized:
            node.input[1] = inserter.weight(node)
        inserter.nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(inserter.nodes)
    used = {name for node in model.graph.node for name in node.input}
    left = [tensor for tensor in model.graph.initializer if tensor.name in used]
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(left)
    return typed_fp16(onnx.shape_inference.infer_shapes(model), wide)


def weighted_nodes(model: "onnx.ModelProto", keep: Collection[str] = ()) -> dict[str, int]:
    """Return the layers with constant weights, and the axis of output channels.

    Args:
        model: The fp32 model.
        keep: Names of nodes to leave out.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[1,2] x) => (float[1,1] y) <float[2,1] w = {1, 2}>
        ...     { y = MatMul (x, w) }''')
        >>> model.graph.node[0].name = "linear"
        >>> weighted_nodes(model)
        {'linear': 1}
    """
    return _weighted(read_graph(model), keep)


def _weighted(graph: "onnx_ir.Graph", keep: Collection[str] = ()) -> dict[str, int]:
    """Return the same as `weighted_nodes`, for a graph that has been read."""
    axes = {}
    for node in graph:
        weights = input_at(node, 1)
        if name_of(node) in keep or weights is None or not weights.is_initializer():
            continue
        if node.op_type == "Conv" and rank_of(weights):
            axes[name_of(node)] = 0
        elif node.op_type in ("Gemm", "MatMul") and rank_of(weights) == 2:
            axes[name_of(node)] = 0 if node.attributes.get_int("transB", False) else 1
    return axes


def activation_edges(model: "onnx.ModelProto", keep: Collection[str] = ()) -> list[Edge]:
    """Return the inputs that get a Q/DQ pair.

    These are the activations that `weighted_nodes` read, and one branch of each
    residual addition that TensorRT can fuse into a convolution.

    Args:
        model: The fp32 model, shapes inferred.
        keep: Names of nodes that are not quantized.
    """
    graph = read_graph(model)
    quantized = _weighted(graph, keep)
    floats = float_tensors(model)

    def fusible(value: "onnx_ir.Value | None") -> bool:
        """Return whether a quantized convolution's output has a single reader."""
        producer = None if value is None else value.producer()
        if value is None or producer is None or producer.op_type != "Conv":
            return False
        reads = len(value.uses()) + value.is_graph_output()
        return name_of(producer) in quantized and reads == 1

    # TensorRT fuses conv + skip into one int8 kernel if the skip branch is quantized
    # and the convolution's output goes to the addition directly. So of the two
    # branches, the one that is not such a convolution gets the pair. If both are,
    # either would do, and the second gets it.
    edges: list[Edge] = []
    for node in graph:
        if name_of(node) in quantized:
            edges.append((name_of(node), 0))
            continue
        if node.op_type != "Add" or name_of(node) in keep:
            continue
        computed = all(
            value is not None and value.name in floats and not value.is_initializer()
            for value in node.inputs
        )
        if computed and any(map(fusible, node.inputs)):
            edges.append((name_of(node), 1 if fusible(node.inputs[0]) else 0))
    return edges


def activation_thresholds(graph: bytes, images: NDArray[np.uint8], method: str) -> dict[str, float]:
    """Return the magnitude at which each activation that may be quantized saturates.

    Args:
        graph: The fp32 ONNX model, shapes inferred.
        images: Calibration images, uint8 [N, S, S, 3].
        method: `minmax` or `entropy`, see
            `dermedge_export.quantization.saturation.clip_thresholds`.

    Raises:
        DermedgeError: The student gives NaN or Inf on one of the images.
    """
    model = load_graph(graph)
    nodes = {name for name, _ in activation_edges(model)}
    # Measure both branches of an addition, because the kept nodes decide which of them
    # is quantized.
    inputs = {name for node in model.graph.node if node.name in nodes for name in node.input}
    constants = {tensor.name for tensor in model.graph.initializer}
    names = sorted((inputs & float_tensors(model)) - constants)
    return clip_thresholds(graph, names, images, method)


class _Inserter:
    """The nodes of a graph with Q/DQ pairs, in order.

    Scales are rounded to fp16 before they are used, because the typed graph stores them
    in fp16. Weights are rounded with these scales.
    """

    def __init__(self, model: "onnx.ModelProto", thresholds: Mapping[str, float]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants = model.graph.initializer
        self._weights = {tensor.name: tensor for tensor in self._constants}
        self._axes = weighted_nodes(model)
        self._thresholds = thresholds

    def activation(self, node: "onnx.NodeProto", position: int) -> str:
        """Quantize an input per tensor.

        Each reader gets a pair of its own; TensorRT fuses and merges them.
        """
        import onnx

        name, base = node.input[position], f"{node.name}.{position}"
        scale = _round_scale(np.float32(self._thresholds[name]))
        constants = [
            self._constant(scale, f"{base}.scale"),
            self._constant(np.int8(0), f"{base}.zero"),
        ]
        quantize = onnx.helper.make_node(
            "QuantizeLinear",
            [name, *constants],
            [f"{base}.quantized"],
            name=f"{base}.QuantizeLinear",
        )
        self.nodes.append(quantize)
        return self._dequantize(f"{base}.quantized", constants, base)

    def weight(self, node: "onnx.NodeProto") -> str:
        """Quantize the second input per output channel, and store it as int8."""
        import onnx

        base, axis = f"{node.name}.1", self._axes[node.name]
        values = onnx.numpy_helper.to_array(self._weights[node.input[1]])
        others = tuple(other for other in range(values.ndim) if other != axis)
        scale = _round_scale(np.abs(values).max(axis=others))
        steps = np.rint(values / np.expand_dims(scale, others)).clip(-LEVELS, LEVELS)
        zero = np.zeros(scale.shape, np.int8)
        constants = [self._constant(scale, f"{base}.scale"), self._constant(zero, f"{base}.zero")]
        stored = self._constant(steps.astype(np.int8), f"{base}.quantized")
        return self._dequantize(stored, constants, base, axis=axis)

    def _dequantize(
        self, name: str, constants: list[str], base: str, axis: int | None = None
    ) -> str:
        """Append a DequantizeLinear, and return the name of its output."""
        import onnx

        node = onnx.helper.make_node(
            "DequantizeLinear",
            [name, *constants],
            [f"{base}.dequantized"],
            name=f"{base}.DequantizeLinear",
        )
        if axis is not None:
            node.attribute.append(onnx.helper.make_attribute("axis", axis))
        self.nodes.append(node)
        return f"{base}.dequantized"

    def _constant(self, values: ArrayLike, name: str) -> str:
        """Store a constant under `name`, and return the name."""
        import onnx

        self._constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name


def _round_scale(peak: "np.float32 | NDArray[np.float32]") -> NDArray[np.float32]:
    """Return the size of one step, rounded to fp16.

    A silent channel gets the smallest normal fp16 number instead of 0.
    """
    step = np.maximum(np.asarray(peak) / LEVELS, SMALLEST)
    return step.astype(np.float16).astype(np.float32)


def load_graph(graph: bytes) -> "onnx.ModelProto":
    """Return a serialized ONNX model as protobuf."""
    import onnx

    return onnx.load_model_from_string(graph)


def infer_shapes(model: "onnx.ModelProto") -> bytes:
    """Return a model as bytes, shapes inferred."""
    import onnx

    inferred: bytes = onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()
    return inferred
