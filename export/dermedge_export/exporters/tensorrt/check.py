"""Check an ONNX graph for TensorRT without TensorRT.

The check finds operators and types that TensorRT's parser refuses, and Q/DQ placements
that it refuses or that keep a layer out of int8.

Sources: for operators and their restrictions, docs/operators.md of onnx/onnx-tensorrt
for TensorRT 10.15; for the highest opset, that file for 10.x and NVIDIA's "ONNX Opset
Guide" for 11.x; for Q/DQ, the checks of that parser's QuantizeLinear importer and
NVIDIA's "Explicit Quantization".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dermedge_export.graph.fp16 import SMALLEST, WIDE
from dermedge_export.graph.read import (
    constant_value,
    input_at,
    name_of,
    producer_type,
    rank_of,
    read_graph,
)

if TYPE_CHECKING:
    import onnx
    import onnx_ir

# The highest opset of the oldest supported release of each major version, 10.3 and
# 11.0.
OPSETS = {10: 20, 11: 25}

_OPERATOR_TABLE = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant
ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU
Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
Greater GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow
HardSigmoid HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN
LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod
Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow
QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RoiAlign RotaryEmbedding Round STFT ScaledTanh Scan Scatter
ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_OPERATOR_TABLE.split())
CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
RESIZE = {
    "mode": ("nearest", "linear"),
    "coordinate_transformation_mode": (
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "asymmetric",
        "align_corners",
    ),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch",),
    "antialias": (0,),
}
FUSED_AFTER = frozenset(
    ("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "BatchNormalization")
)
_INTEGER_TABLE = """
Add And ArgMax ArgMin Cast CastLike Concat Constant ConstantOfShape Div Equal Expand
Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max Min
Mod Mul Neg NonZero Not Or Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Shape
Size Slice Split Squeeze Sub Tile TopK Transpose Unsqueeze Where
"""
INTEGER = frozenset(_INTEGER_TABLE.split())  # may compute in int64: shapes and indices


@dataclass(frozen=True)
class GraphFinding:
    """A problem of a graph, and what to do about it.

    `level` is `error` if TensorRT refuses the graph, and `warning` if the problem costs
    speed or accuracy.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[2] x) => (float[2] y) { y = Bernoulli (x) }''')
        >>> for finding in check_tensorrt(model.SerializeToString()):
        ...     print(f"{finding.level} in {finding.op}: {finding.message}")
        error in Bernoulli: TensorRT's ONNX parser has no such operator
    """

    level: Literal["error", "warning"]
    node: str
    op: str
    message: str


Remark = tuple[Literal["error", "warning"], str]
"""Level and message of a finding, before its node is added."""


def check_tensorrt(graph: bytes, *, major: tuple[int, ...] = (10, 11)) -> tuple[GraphFinding, ...]:
    """Check an ONNX model against TensorRT.

    Args:
        graph: The ONNX model.
        major: The major versions of TensorRT.

    Returns:
        The problems in the order of the nodes; empty if there are none.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[2] x) => (float[2] y) { y = Bernoulli (x) }''')
        >>> check_tensorrt(model.SerializeToString())[0].message
        "TensorRT's ONNX parser has no such operator"
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    findings = [*_check_opset(model, major)]
    main = read_graph(model)
    view = _View.of(main)
    for node in main:
        for check in (
            _check_operator,
            _check_types,
            _check_restrictions,
            _check_parameters,
            _check_placement,
            _check_layer,
            _check_precision,
            _check_constants,
        ):
            findings.extend(
                GraphFinding(level, name_of(node), node.op_type, message)
                for level, message in check(node, view)
            )
    return tuple(findings)


@dataclass(frozen=True)
class _View:
    """Facts about the whole graph that single nodes are checked against."""

    quantized: bool
    typed: bool

    @classmethod
    def of(cls, graph: "onnx_ir.Graph") -> "_View":
        """Return the facts about a graph."""
        import onnx_ir

        half = onnx_ir.DataType.FLOAT16
        values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        values += [value for node in graph for value in node.outputs]
        return cls(
            quantized=any(node.op_type == "QuantizeLinear" for node in graph),
            typed=any(value.dtype == half for value in values),
        )


def _check_opset(model: "onnx.ModelProto", major: tuple[int, ...]) -> Iterator[GraphFinding]:
    """Yield an error for each TensorRT version that does not read the model's opset."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    opset = next(iter(versions), 0)
    for version in major:
        if opset > OPSETS[version]:
            yield GraphFinding(
                "error",
                "",
                "opset",
                f"opset {opset} is newer than TensorRT {version} reads. "
                f"Export with opset {OPSETS[version]} or lower",
            )


def _check_operator(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield an error if TensorRT does not have the operator."""
    if node.domain not in ("", "ai.onnx"):
        yield "error", f"operators of the domain {node.domain!r} need a plugin. Use standard ones"
    elif node.op_type not in OPERATORS:
        yield "error", "TensorRT's ONNX parser has no such operator"
    elif node.op_type in CONTROL_FLOW:
        yield (
            "error",
            "control flow prevents TensorRT from fusing and may not build. Export without it",
        )


def _check_types(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield remarks on element types that TensorRT lacks, mixes or computes slowly."""
    from onnx_ir import DataType

    lacking = (DataType.DOUBLE, DataType.STRING, DataType.COMPLEX64, DataType.COMPLEX128)
    for value in node.outputs:
        if value.dtype == DataType.UINT8 and node.op_type != "QuantizeLinear":
            yield "error", "uint8 is only for a network's inputs and outputs. Cast it first"
        elif value.dtype in lacking:
            yield (
                "error",
                "TensorRT has no float64, strings or complex numbers. Cast to float32",
            )
        elif value.dtype == DataType.INT64 and node.op_type not in INTEGER:
            yield (
                "warning",
                "computes in int64, which is slow on a GPU. Use int64 only for shapes and indices",
            )
    for operand in node.inputs:
        if operand is None or node.op_type == "Cast":
            continue
        if operand.is_graph_input() and operand.dtype == DataType.UINT8:
            yield "error", "reads the uint8 input, which only a Cast may read. Cast the input first"
    floats = {DataType.FLOAT, DataType.FLOAT16}
    if len({value.dtype for value in _inputs_of_one_type(node)} & floats) > 1:
        yield (
            "error",
            "mixes float32 and float16 inputs, which a strongly typed network refuses. "
            "Cast one of them",
        )


def _check_restrictions(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield errors for attributes and outputs that TensorRT does not support."""
    attributes = _attributes(node)
    if node.op_type == "Resize":
        for name, allowed in RESIZE.items():
            value = attributes.get(name, allowed[0])
            if value not in allowed:
                yield (
                    "error",
                    f"{name}={value!r} is not supported. Use one of {', '.join(map(str, allowed))}",
                )
    elif node.op_type in ("MaxPool", "LayerNormalization") and any(
        value.name for value in node.outputs[1:]
    ):
        yield "error", "only the first output is supported. Do not read the others"
    elif node.op_type == "ScatterND" and attributes.get("reduction", "none") != "none":
        yield "error", f"reduction={attributes['reduction']!r} is not supported. Use none"
    if node.op_type in ("AveragePool", "LpPool", "MaxPool"):
        dilations = node.attributes.get_ints("dilations", ())
        if set(dilations) - {1}:
            yield "error", "dilated pooling is not supported. Use dilations of 1"
    axes = input_at(node, 1)
    if node.op_type.startswith("Reduce") and axes is not None and constant_value(axes) is None:
        yield "error", "axes must be constant. Fold them"


def _check_parameters(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield remarks on the type, scale and zero point of a Q or DQ node."""
    from onnx_ir import DataType

    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale, zero = constant_value(input_at(node, 1)), constant_value(input_at(node, 2))
    source = node.inputs[0]
    integers = source if node.op_type == "DequantizeLinear" else node.outputs[0]
    kind = None if integers is None else integers.dtype
    if kind == DataType.INT32:
        yield "error", "a quantized bias is not supported. Leave biases in floating point"
    elif kind != DataType.INT8:
        yield "error", "quantizes to a type other than int8. Use symmetric int8"
    if zero is not None and np.any(zero):
        yield "error", "has a zero point other than 0, and TensorRT only quantizes symmetrically"
    if scale is None:
        yield "warning", "computes its scale, which prevents fusion. Use a constant"
        return
    if not np.all(scale > 0):
        yield "error", "has a scale that is not positive. Calibrate on images that reach it"
    elif scale.dtype == np.float16 and np.any(scale < SMALLEST):
        yield (
            "warning",
            "has a scale below the smallest normal fp16, which may be flushed to zero. Raise it",
        )
    per_channel = scale.size > 1 and node.op_type == "QuantizeLinear"
    if per_channel and source is not None and not source.is_initializer():
        yield (
            "error",
            "quantizes an activation per channel, and TensorRT only quantizes them per tensor",
        )


def _check_placement(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield remarks on the nodes before and behind a Q or DQ node."""
    if node.op_type == "QuantizeLinear":
        yield from _check_quantize(node)
    elif node.op_type == "DequantizeLinear":
        source = node.inputs[0]
        constant = source is not None and source.is_initializer()
        if not constant and producer_type(source) != "QuantizeLinear":
            yield "error", "dequantizes a tensor that no QuantizeLinear produces"
        for reader in node.outputs[0].consumers():
            if reader.op_type in WIDE:
                yield (
                    "warning",
                    f"feeds {reader.op_type} ({reader.name}) with 8 bits, which loses accuracy. "
                    "Remove it",
                )


def _check_quantize(node: "onnx_ir.Node") -> Iterator[Remark]:
    """Yield remarks on the nodes before and behind a QuantizeLinear."""
    from onnx_ir import DataType

    source, readers = node.inputs[0], node.outputs[0].consumers()
    before = producer_type(source)
    behind = [after for reader in readers for after in reader.outputs[0].consumers()]
    if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
        yield "error", "is not followed by a DequantizeLinear, which TensorRT requires"
    elif before == "Conv" and any(after.op_type in FUSED_AFTER for after in behind):
        yield (
            "warning",
            "is between a convolution and its activation, which then cannot fuse. "
            "Put it behind the activation",
        )
    elif before in WIDE and source is not None and source.dtype == DataType.FLOAT16:
        yield "warning", f"quantizes the output of {before} in fp16. Keep {before} in fp32"


def _check_layer(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield remarks on a layer that is quantized in part, or along a wrong axis."""
    if node.op_type not in ("Conv", "Gemm", "MatMul") or not view.quantized:
        return
    quantized = [producer_type(value) == "DequantizeLinear" for value in node.inputs[:2]]
    if any(quantized) and not all(quantized):
        yield (
            "warning",
            "has one of its two inputs quantized, and so does not run in int8. "
            "Quantize both or none",
        )
    for value in node.inputs[2:]:
        if producer_type(value) == "DequantizeLinear":
            yield "error", "has a quantized bias. Leave biases in floating point"
    weights = input_at(node, 1)
    dequantizer = None if weights is None else weights.producer()
    if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
        return
    scale = constant_value(input_at(dequantizer, 1))
    if scale is None or scale.size == 1:
        return
    rank = rank_of(dequantizer.inputs[0])
    axis = dequantizer.attributes.get_int("axis", 1) % max(rank, 1)
    first = node.op_type == "Conv" or node.attributes.get_int("transB", False)
    expected = 0 if first else rank - 1
    if axis != expected:
        yield (
            "error",
            f"has weights quantized along axis {axis}. "
            f"Quantize them along their output channels, axis {expected}",
        )


def _check_precision(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield warnings for a norm in fp16, and for a layer in fp32 among fp16 layers."""
    from onnx_ir import DataType

    source = input_at(node, 0)
    if node.op_type in WIDE and source is not None and source.dtype == DataType.FLOAT16:
        yield "warning", "computes in fp16, where it is known to overflow. Keep it in fp32"
    layer = node.op_type in ("Conv", "Gemm", "MatMul")
    if layer and view.typed and node.outputs[0].dtype == DataType.FLOAT:
        yield "warning", "computes in fp32 in a graph of fp16, which is slow"


def _check_constants(node: "onnx_ir.Node", view: _View) -> Iterator[Remark]:
    """Yield an error for each fp16 constant that is infinite or NaN."""
    from onnx_ir import DataType

    for value in node.inputs:
        if value is None or value.dtype != DataType.FLOAT16:
            continue
        constant = constant_value(value)
        if constant is not None and not np.all(np.isfinite(constant)):
            yield (
                "error",
                f"reads the constant {name_of(value)!r}, which is beyond the range of fp16. "
                "Keep this node in fp32",
            )


def _inputs_of_one_type(node: "onnx_ir.Node") -> list["onnx_ir.Value"]:
    """Return the inputs of a node that must share one type."""
    import onnx

    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return []
    formal = onnx.defs.get_schema(node.op_type).inputs
    first = formal[0].type_str if formal else ""
    return [
        value
        for position, value in enumerate(node.inputs)
        if value is not None and formal[min(position, len(formal) - 1)].type_str == first
    ]


def _attributes(node: "onnx_ir.Node") -> dict[str, object]:
    """Return the values of a node's attributes by name."""
    return {name: attribute.value for name, attribute in node.attributes.items()}
