"""What TensorRT would say of an ONNX graph, found without TensorRT: operators and types that its parser refuses, and
Q/DQ placements that it refuses or that leave a layer out of int8.

Sources: operators and their restrictions, docs/operators.md of onnx/onnx-tensorrt for TensorRT 10.15; the highest
opset, that file for 10.x and NVIDIA's "ONNX Opset Guide" for 11.x; Q/DQ, the checks of that parser's QuantizeLinear
importer and NVIDIA's "Explicit Quantization".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dermedge_export.graph.fp16 import SMALLEST, WIDE

OPSETS = {
    10: 20,
    11: 25,
}  # the highest of the oldest release of each major version that is supported, 10.3 and 11.0

_TABLE = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow
Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv
DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If ImageScaler
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop
LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression
NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RMSNormalization RNN RandomNormal
RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
RotaryEmbedding Round STFT ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh
Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu
Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_TABLE.split())
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
_INTEGER = """
Add And ArgMax ArgMin Cast CastLike Concat Constant ConstantOfShape Div Equal Expand Gather GatherElements GatherND
Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg NonZero Not Or Range ReduceMax ReduceMin
ReduceProd ReduceSum Reshape Shape Size Slice Split Squeeze Sub Tile TopK Transpose Unsqueeze Where
"""
INTEGER = frozenset(_INTEGER.split())  # what may compute in int64: shapes and indices


@dataclass(frozen=True)
class GraphFinding:
    """One thing that TensorRT refuses (`error`) or that costs speed or accuracy (`warning`), and what to do."""

    level: Literal["error", "warning"]
    node: str
    op: str
    message: str


def check_tensorrt(graph: bytes, *, major: tuple[int, ...] = (10, 11)) -> tuple[GraphFinding, ...]:
    """Check an ONNX model against the TensorRT versions `major`, in the order of its nodes; empty if it is clean."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    view = _View(model)
    found = [*_opset(model, major)]
    for node in model.graph.node:
        for check in (
            _operator,
            _types,
            _restrictions,
            _quantizer,
            _dequantizer,
            _weighted,
            _wide,
            _constants,
        ):
            found.extend(
                GraphFinding(level, node.name, node.op_type, message)
                for level, message in check(node, view)
            )
    return tuple(found)


Remark = tuple[Literal["error", "warning"], str]


class _View:
    """Who makes and who reads each tensor, and its type."""

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input} - self.constants.keys()
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.ranks: dict[str, int] = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.types[value.name] = value.type.tensor_type.elem_type
            if value.type.tensor_type.HasField("shape"):
                self.ranks[value.name] = len(value.type.tensor_type.shape.dim)
        self.quantized = any(node.op_type == "QuantizeLinear" for node in graph.node)
        self.typed = _elem("FLOAT16") in self.types.values()

    def value(self, name: str) -> Any:
        """A constant's array, None for what is computed."""
        import onnx

        tensor = self.constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def maker(self, name: str) -> str:
        """The operator that makes a tensor, "" for inputs and constants."""
        node = self.makers.get(name)
        return "" if node is None else str(node.op_type)


def _opset(model: Any, major: tuple[int, ...]) -> Iterator[GraphFinding]:
    opset = next(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
    )
    for version in major:
        if opset > OPSETS[version]:
            yield GraphFinding(
                "error",
                "",
                "opset",
                f"opset {opset} is newer than TensorRT {version} reads: export with opset {OPSETS[version]} or lower",
            )


def _operator(node: Any, view: _View) -> Iterator[Remark]:
    if node.domain not in ("", "ai.onnx"):
        yield "error", f"operators of the domain {node.domain!r} need a plugin: use standard ones"
    elif node.op_type not in OPERATORS:
        yield "error", "TensorRT's ONNX parser has no such operator"
    elif node.op_type in CONTROL_FLOW:
        yield (
            "error",
            "control flow keeps TensorRT from fusing and may not build: export without it",
        )


def _types(node: Any, view: _View) -> Iterator[Remark]:
    for name in node.output:
        kind = view.types.get(name)
        if kind == _elem("UINT8") and node.op_type != "QuantizeLinear":
            yield "error", "uint8 is for a network's inputs and outputs alone: cast it first"
        elif kind in (_elem("DOUBLE"), _elem("STRING"), _elem("COMPLEX64"), _elem("COMPLEX128")):
            yield (
                "error",
                "TensorRT has neither float64 nor strings nor complex numbers: cast to float32",
            )
        elif kind == _elem("INT64") and node.op_type not in INTEGER:
            yield (
                "warning",
                "computes in int64, which is slow on a GPU: keep int64 to shapes and indices",
            )
    for name in node.input:
        if (
            name in view.inputs
            and view.types.get(name) == _elem("UINT8")
            and node.op_type != "Cast"
        ):
            yield "error", "reads the uint8 input, which only a Cast may: cast the input first"
    floats = {view.types.get(name) for name in _same_type(node)} & {
        _elem("FLOAT"),
        _elem("FLOAT16"),
    }
    if len(floats) > 1:
        yield (
            "error",
            "mixes float32 and float16 inputs, which a strongly typed network refuses: cast one of them",
        )


def _restrictions(node: Any, view: _View) -> Iterator[Remark]:
    attributes = _attributes(node)
    if node.op_type == "Resize":
        for name, allowed in RESIZE.items():
            value = attributes.get(name, allowed[0])
            if value not in allowed:
                yield (
                    "error",
                    f"{name}={value!r} is not supported, only {', '.join(map(str, allowed))}: choose one",
                )
    elif node.op_type in ("MaxPool", "LayerNormalization") and any(node.output[1:]):
        yield "error", "only the first output is supported: do not read the others"
    elif node.op_type == "ScatterND" and attributes.get("reduction", "none") != "none":
        yield "error", f"reduction={attributes['reduction']!r} is not supported: use none"
    if node.op_type in ("AveragePool", "LpPool", "MaxPool") and set(
        attributes.get("dilations", ())
    ) - {1}:
        yield "error", "dilated pooling is not supported: use dilations of 1"
    if (
        node.op_type.startswith("Reduce")
        and len(node.input) > 1
        and node.input[1]
        and view.value(node.input[1]) is None
    ):
        yield "error", "axes must be constant: fold them"


def _quantizer(node: Any, view: _View) -> Iterator[Remark]:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    scale = view.value(node.input[1])
    zero = view.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    kind = view.types.get(node.input[0] if node.op_type == "DequantizeLinear" else node.output[0])
    if kind == _elem("INT32"):
        yield "error", "a quantized bias is not supported: leave biases in floating point"
    elif kind != _elem("INT8"):
        yield (
            "error",
            "quantizes to another type than int8, which alone TensorRT has: use symmetric int8",
        )
    if zero is not None and np.any(zero):
        yield "error", "has a zero point other than 0: TensorRT quantizes symmetrically only"
    if scale is None:
        yield "warning", "computes its scale, which keeps it from being fused: use a constant"
        return
    if not np.all(scale > 0):
        yield (
            "error",
            "has a scale that is not positive: calibrate on images that reach this tensor",
        )
    elif scale.dtype == np.float16 and np.any(scale < SMALLEST):
        yield (
            "warning",
            "has a scale below the smallest normal fp16, which may be flushed to zero: raise it",
        )
    if scale.size > 1 and node.op_type == "QuantizeLinear" and node.input[0] not in view.constants:
        yield (
            "error",
            "quantizes an activation per channel: TensorRT quantizes activations per tensor",
        )


def _dequantizer(node: Any, view: _View) -> Iterator[Remark]:
    readers = [reader for name in node.output for reader in view.readers.get(name, [])]
    if node.op_type == "QuantizeLinear":
        if not readers or any(reader.op_type != "DequantizeLinear" for reader in readers):
            yield (
                "error",
                "is not followed by a DequantizeLinear: no layer of TensorRT reads int8 otherwise",
            )
        elif view.maker(node.input[0]) == "Conv" and any(
            after.op_type in FUSED_AFTER
            for reader in readers
            for after in view.readers.get(reader.output[0], [])
        ):
            yield (
                "warning",
                "stands between a convolution and its activation, which then cannot fuse: put it behind",
            )
        elif view.maker(node.input[0]) in WIDE and view.types.get(node.input[0]) == _elem(
            "FLOAT16"
        ):
            yield (
                "warning",
                f"quantizes what {view.maker(node.input[0])} makes in fp16: keep that in fp32",
            )
    elif node.op_type == "DequantizeLinear":
        if node.input[0] not in view.constants and view.maker(node.input[0]) != "QuantizeLinear":
            yield "error", "dequantizes what no QuantizeLinear made: quantize explicitly"
        for reader in readers:
            if reader.op_type in WIDE:
                yield (
                    "warning",
                    f"feeds {reader.op_type} ({reader.name}) with 8 bits, which loses accuracy: leave it out",
                )


def _weighted(node: Any, view: _View) -> Iterator[Remark]:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or not view.quantized:
        return
    quantized = [view.maker(name) == "DequantizeLinear" for name in node.input[:2]]
    if any(quantized) and not all(quantized):
        yield (
            "warning",
            "has one of its two inputs quantized, and so does not run in int8: quantize both or none",
        )
    for name in node.input[2:]:
        if view.maker(name) == "DequantizeLinear":
            yield "error", "has a quantized bias: leave biases in floating point"
    if not quantized[1]:
        return
    dequantizer = view.makers[node.input[1]]
    scale = view.value(dequantizer.input[1])
    if scale is None or scale.size == 1:
        return
    rank = view.ranks.get(dequantizer.input[0], 0)
    axis = _attributes(dequantizer).get("axis", 1) % max(rank, 1)
    expected = 0 if node.op_type == "Conv" or _attributes(node).get("transB") else rank - 1
    if axis != expected:
        yield (
            "error",
            f"has weights quantized along axis {axis}, not along its output channels, axis {expected}",
        )


def _wide(node: Any, view: _View) -> Iterator[Remark]:
    if node.op_type in WIDE and view.types.get(node.input[0]) == _elem("FLOAT16"):
        yield "warning", "computes in fp16, where it is known to overflow: keep it in fp32"
    if (
        node.op_type in ("Conv", "Gemm", "MatMul")
        and view.typed
        and view.types.get(node.output[0]) == _elem("FLOAT")
    ):
        yield "warning", "computes in fp32 in a graph of fp16: it is slow there"


def _constants(node: Any, view: _View) -> Iterator[Remark]:
    for name in node.input:
        half = name in view.constants and view.types[name] == _elem("FLOAT16")
        if half and not np.all(np.isfinite(view.value(name))):
            yield (
                "error",
                f"reads the constant {name!r}, which has left the range of fp16: keep this node in fp32",
            )


def _same_type(node: Any) -> list[str]:
    """The inputs of a node that must share one type."""
    import onnx

    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return []
    inputs = onnx.defs.get_schema(node.op_type).inputs
    first = inputs[0].type_str if inputs else ""
    return [
        name
        for at, name in enumerate(node.input)
        if inputs[min(at, len(inputs) - 1)].type_str == first
    ]


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    values = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    return {
        name: value.decode() if isinstance(value, bytes) else value
        for name, value in values.items()
    }


def _elem(name: str) -> int:
    import onnx

    return int(onnx.TensorProto.DataType.Value(name))
