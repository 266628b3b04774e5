"""Convert ONNX graphs to fp16, except for nodes whose values fp16 cannot hold."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.read import name_of, read_graph

if TYPE_CHECKING:
    import onnx
    import onnx_ir

LARGEST = 65504.0  # the largest fp16 number
SMALLEST = 2.0**-14  # the smallest normal fp16 number; engines may flush smaller ones to zero
# Calibration images may use half of the range of fp16; other images reach higher.
MARGIN = 0.5

# Operators that sum squares or exponentials. Such sums overflow or lose precision in
# fp16, so these operators stay in fp32, the wide type.
_WIDE_TABLE = """
BatchNormalization GroupNormalization InstanceNormalization LayerNormalization
LpNormalization MeanVarianceNormalization RMSNormalization
ReduceL2 ReduceLogSumExp ReduceSumSquare Softmax LogSoftmax
"""
WIDE = frozenset(_WIDE_TABLE.split())
HEAVY = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "QuantizeLinear", "DequantizeLinear"))


def typed_fp16(model: "onnx.ModelProto", keep: Collection[str]) -> "onnx.ModelProto":
    """Return a copy of an fp32 model with fp16 tensors, except around `keep`.

    Inputs and outputs of the graph keep their names and types. A tensor that is used
    in both types gets one Cast. A light node between kept nodes stays fp32 as well,
    because that costs less than two casts.

    Args:
        model: The fp32 model, shapes inferred; it is not changed.
        keep: Names of the nodes that compute in fp32.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[2] x) => (float[2] y) { a = Relu (x) y = Neg (a) }''')
        >>> model = onnx.shape_inference.infer_shapes(model)
        >>> [node.op_type for node in typed_fp16(model, []).graph.node]
        ['Cast', 'Relu', 'Neg', 'Cast']
    """
    import onnx

    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    graph = typed.graph
    floats = float_tensors(typed)
    writer = _Writer({tensor.name: tensor for tensor in graph.initializer if tensor.name in floats})
    wide = _keep_light_nodes(read_graph(model), floats - writer.constants.keys(), keep)
    for node in graph.node:
        kind = onnx.TensorProto.FLOAT if node.name in wide else onnx.TensorProto.FLOAT16
        writer.add(node, floats, kind)
    writer.restore({output.name for output in graph.output})
    others = [tensor for tensor in graph.initializer if tensor.name not in writer.constants]
    graph.ClearField("node")
    graph.node.extend(writer.nodes)
    graph.ClearField("initializer")
    graph.initializer.extend([*others, *writer.written.values()])
    graph.ClearField("value_info")
    return typed


class _Writer:
    """The nodes of a typed graph in order, and the types of their outputs."""

    def __init__(self, constants: Mapping[str, "onnx.TensorProto"]) -> None:
        self.constants = constants
        self.nodes: list[onnx.NodeProto] = []
        self.written: dict[str, onnx.TensorProto] = {}
        self._types: dict[str, int] = {}
        self._cast: set[str] = set()

    def add(self, node: "onnx.NodeProto", floats: Collection[str], kind: int) -> None:
        """Append a node that computes in `kind`, and casts of its inputs."""
        import onnx

        fixed = _fixed_inputs(node)
        for position, name in enumerate(node.input):
            if name in floats:
                wanted = onnx.TensorProto.FLOAT if position in fixed else kind
                node.input[position] = self._in_type(name, wanted)
        for attribute in node.attribute:
            to_float = attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT
            if node.op_type == "Cast" and to_float:
                attribute.i = kind
            elif attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(_convert(attribute.t, attribute.t.name, kind))
        self._types.update((name, kind) for name in node.output if name in floats)
        self.nodes.append(node)

    def restore(self, outputs: Collection[str]) -> None:
        """Cast the fp16 outputs of the graph back to float32, under their own names."""
        import onnx

        half = onnx.TensorProto.FLOAT16
        renamed = {name: f"{name}.fp16" for name in outputs if self._types.get(name) == half}
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        for name, half_name in sorted(renamed.items()):
            self.nodes.append(_cast(half_name, name, onnx.TensorProto.FLOAT))

    def _in_type(self, name: str, kind: int) -> str:
        """Return the name of a tensor as `kind`; append a cast if there is none."""
        import onnx

        suffixed = f"{name}.{'fp32' if kind == onnx.TensorProto.FLOAT else 'fp16'}"
        if name in self.constants:
            self.written.setdefault(suffixed, _convert(self.constants[name], suffixed, kind))
            return suffixed
        if self._types.get(name, onnx.TensorProto.FLOAT) == kind:
            return name
        if suffixed not in self._cast:
            self._cast.add(suffixed)
            self.nodes.append(_cast(name, suffixed, kind))
        return suffixed


def fragile_nodes(model: "onnx.ModelProto", peaks: Mapping[str, float]) -> list[str]:
    """List the nodes that must stay fp32, in the order of the graph.

    These are softmax, and normalizations as one operator or as several. Nodes that read
    or write a tensor with values beyond half the range of fp16 are listed too.

    Args:
        model: The fp32 model.
        peaks: The largest magnitude of each activation on calibration images, as
            `dermedge_export.graph.run.activation_peaks` measures it.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[2] x) => (float[2] y) { a = Relu (x) y = Neg (a) }''')
        >>> for node in model.graph.node:
        ...     node.name = node.op_type
        >>> fragile_nodes(model, {"x": 10.0, "a": 10.0, "y": 60000.0})
        ['Neg']
    """
    import onnx

    # A NaN compares as False, so it counts as out of range.
    beyond = {name for name, value in peaks.items() if not value <= MARGIN * LARGEST}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and _out_of_range(
            onnx.numpy_helper.to_array(tensor)
        ):
            beyond.add(tensor.name)
    statistics = _statistics(read_graph(model))
    return [
        node.name
        for node in model.graph.node
        if node.op_type in WIDE or node.name in statistics or beyond & {*node.input, *node.output}
    ]


def float_tensors(model: "onnx.ModelProto", kind: int = 1) -> set[str]:
    """Return the names of all tensors with the element type `kind`.

    Args:
        model: The model, shapes inferred.
        kind: An `onnx.TensorProto.DataType`; float32 by default.
    """
    graph = model.graph
    names = {tensor.name for tensor in graph.initializer if tensor.data_type == kind}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == kind:
            names.add(value.name)
    return names


def _keep_light_nodes(
    graph: "onnx_ir.Graph", activations: Collection[str], keep: Collection[str]
) -> set[str]:
    """Return `keep` plus the light nodes whose float neighbours are all kept."""
    # A ReLU between two fp32 norms would need a cast before it and one behind it.
    # Convolutions and matrix products are never added: their time in fp32 is worth more
    # than two casts. A chain of two or more light nodes is not added; it is rare, and
    # only costs casts.
    wide = set(keep)
    for node in graph:
        producers = [
            value.producer()
            for value in node.inputs
            if value is not None and value.name in activations
        ]
        before = [name_of(producer) for producer in producers if producer is not None]
        after = [
            name_of(consumer)
            for value in node.outputs
            if value.name in activations
            for consumer in value.consumers()
        ]
        if node.op_type not in HEAVY and before and after and wide.issuperset([*before, *after]):
            wide.add(name_of(node))
    return wide


def _statistics(graph: "onnx_ir.Graph") -> set[str]:
    """Return the nodes of normalizations that are spelled out as single operators."""
    # Some norms have no operator of their own. Exporters write them as this chain:
    #   mean(x) -> x - mean -> square -> mean -> + epsilon -> Sqrt -> Div.
    # Reciprocal and Mul may replace Div.
    # Squares of values above 256 overflow fp16 and the epsilon underflows, so the whole
    # chain must stay fp32. A Sqrt behind a sum marks such a chain. Walk up from it to
    # the sum of squares, from there up to the mean, and down to the division.
    found: set[str] = set()
    for root in graph:
        if root.op_type != "Sqrt":
            continue
        path = [*_above(root, ("Add", "Clip", "Max", "Mul", "ReduceMean", "ReduceSum"))]
        sums = [node for node in path if node.op_type in ("ReduceMean", "ReduceSum")]
        if not sums:
            continue
        for total in sums:
            path += _above(total, ("Mul", "Pow", "Sub", "ReduceMean"))
        divisions = [
            node for node in root.outputs[0].consumers() if node.op_type in ("Div", "Reciprocal")
        ]
        products = [
            node
            for division in divisions
            if division.op_type == "Reciprocal"
            for node in division.outputs[0].consumers()
            if node.op_type == "Mul"
        ]
        found.update(name_of(node) for node in (root, *path, *divisions, *products))
    return found


def _above(node: "onnx_ir.Node", kinds: Collection[str]) -> Iterator["onnx_ir.Node"]:
    """Yield the nodes above `node` through operators in `kinds`, up to a sum."""
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type in kinds:
            yield producer
            if not producer.op_type.startswith("Reduce"):
                yield from _above(producer, kinds)


def _fixed_inputs(node: "onnx.NodeProto") -> set[int]:
    """Return the inputs that must be float32, such as the scales of Resize."""
    import onnx

    inputs = onnx.defs.get_schema(node.op_type, node.domain).inputs
    return {
        position for position, formal in enumerate(inputs) if formal.type_str == "tensor(float)"
    }


def _out_of_range(values: NDArray[np.float32]) -> bool:
    """Return whether a constant is too large for fp16, or a single number too small.

    A single small number is an epsilon, which becomes 0 in fp16; small weights among
    others may become 0.
    """
    largest = np.abs(values[np.isfinite(values)]).max(initial=0)
    return bool(largest > LARGEST or (values.size == 1 and 0 < largest < SMALLEST))


def _convert(tensor: "onnx.TensorProto", name: str, kind: int) -> "onnx.TensorProto":
    """Return a float32 tensor as `kind`, and tensors of other types unchanged."""
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return tensor
    dtype = np.float16 if kind == onnx.TensorProto.FLOAT16 else np.float32
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), name)


def _cast(source: str, target: str, kind: int) -> "onnx.NodeProto":
    """Return a node that casts `source` to `kind` under the name `target`."""
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)
