"""TensorRT: one strongly typed ONNX graph, quantized by explicit Q/DQ, that versions 10 and 11 build without any flag.

Sources: NVIDIA TensorRT documentation, "Working with Quantized Types" (symmetric int8; activations per tensor, weights
per channel and stored as int8; all inputs of weighted operations quantized, outputs and biases not; the skip branch of
a residual addition quantized, so that it fuses into the convolution before it) and "Strongly Typed Networks".
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Simulation, unsupported_candidate
from dermedge_export.exporters.onnx import TOOLS, artifact
from dermedge_export.exporters.tensorrt.check import check_tensorrt
from dermedge_export.graph.fp16 import (
    SMALLEST,
    activation_peaks,
    float_tensors,
    fragile,
    rounded_run,
    typed_fp16,
)
from dermedge_export.graph.seal import seal
from dermedge_export.quantization.saturation import LEVELS, clip_thresholds
from dermedge_export.target import Target
from dermedge_runtime.errors import MissingExtraError, UsageError
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import import_silently

FACTS = ("sm", "tensorrt", "jetpack", "int8", "fp8")  # of the device, which the manifest repeats

Edge = tuple[str, int]  # an input of a node, by its name and position


def export_tensorrt(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Make the ONNX file that the device's TensorRT builds its engine from: input `image` uint8 [N, S, S, 3], one
    float32 output per task, every tensor typed; `int8+fp16` with Q/DQ around its convolutions and linear layers.

    TensorRT is not here: `simulation` is onnxruntime, rounding every fp16 tensor as an engine would.

    Raises:
        MissingExtraError: torch, onnx or onnxruntime is not installed.
        UsageError: TensorRT lacks an operator of this model, or the candidate is unknown.
        DermedgeError: the student gives NaN or Inf on calibration images.
    """
    try:
        onnxruntime = import_silently("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "export", "Export for TensorRT") from error
    graph = cast_pixels_first(context.graph(target.opset))
    require_operators(graph, target)
    peaks = activation_peaks(graph, context.calibration.images)
    wide = fragile(_loaded(graph), peaks)
    kept: tuple[str, ...] = ()
    if candidate.precision == "fp16":
        typed = typed_fp16(_loaded(graph), wide)
    elif candidate.precision == "int8+fp16":
        typed, kept = _int8(graph, wide, context.calibration, candidate)
    else:
        raise unsupported_candidate(candidate)
    sealed = seal(typed, context.spec)
    details = {
        "typed": True,
        "kept_fp32": wide,
        "kept_fp16": list(kept),
        "tensorrt_warnings": require_operators(sealed, target),
        "device": {name: value for name, value in target.facts.items() if name in FACTS},
    }
    built = artifact(context, target, candidate, sealed, (*TOOLS, "onnxruntime"), details)
    simulation = Simulation(
        "onnxruntime rounding to fp16", onnxruntime.__version__, rounded_run(sealed)
    )
    return BuiltArtifact(built.artifact, built.files, simulation)


def require_operators(graph: bytes, target: Target) -> list[str]:
    """Warnings of the static checker, as text.

    Raises:
        UsageError: TensorRT would refuse the graph; the message names the operators.
    """
    findings = check_tensorrt(graph)
    errors = [
        f"{finding.op} ({finding.node}): {finding.message}"
        for finding in findings
        if finding.level == "error"
    ]
    if errors:
        more = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
        raise UsageError(
            f"TensorRT cannot build this student for {target.name}: {'; '.join(errors[:3])}{more}. Choose another "
            "backbone, or the nearest targets that run every ONNX operator: cpu or android."
        )
    return [f"{finding.node}: {finding.message}" for finding in findings]


def cast_pixels_first(graph: bytes) -> bytes:
    """The graph with nothing but a cast reading its pixels: TensorRT has uint8 for inputs and outputs alone."""
    import onnx

    model = _loaded(graph)
    pixels = f"{INPUT}.pixels"
    renamed, same = {INPUT: pixels}, {pixels}
    nodes = [
        onnx.helper.make_node(
            "Cast", [INPUT], [pixels], name=f"cast_{pixels}", to=onnx.TensorProto.FLOAT
        )
    ]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if (
            node.op_type == "Cast"
            and node.input[0] in same
            and node.attribute[0].i == onnx.TensorProto.FLOAT
        ):
            renamed[node.output[0]] = node.input[0]
            continue
        if node.op_type == "Transpose" and node.input[0] in same:
            same.add(node.output[0])
        nodes.append(node)
    for field in ("node", "value_info"):
        model.graph.ClearField(field)
    model.graph.node.extend(nodes)
    return _inferred(model)


def typed_int8(
    graph: bytes,
    thresholds: Mapping[str, float],
    wide: Collection[str] = (),
    keep: Collection[str] = (),
) -> Any:
    """An fp32 graph as a typed onnx.ModelProto with explicit Q/DQ.

    Args:
        graph: fp32 ONNX, shapes inferred.
        thresholds: the magnitude at which each quantized activation saturates.
        wide: names of the nodes that stay fp32.
        keep: names of further nodes that are not quantized, and so fp16.
    """
    import onnx

    model = _loaded(graph)
    inserter = _Inserter(model, thresholds)
    quantized = weighted(model, {*wide, *keep})
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


def weighted(model: Any, keep: Collection[str] = ()) -> dict[str, int]:
    """The nodes whose second input is a constant matrix or kernel, and its axis of output channels, less `keep`."""
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        rank = 0 if node.name in keep or len(node.input) < 2 else ranks.get(node.input[1], 0)
        if node.op_type == "Conv" and rank:
            found[node.name] = 0
        elif node.op_type in ("Gemm", "MatMul") and rank == 2:
            transposed = any(
                attribute.name == "transB" and attribute.i for attribute in node.attribute
            )
            found[node.name] = 0 if transposed else 1
    return found


def activation_edges(model: Any, keep: Collection[str] = ()) -> list[Edge]:
    """The inputs that get a Q/DQ pair: the activations of `weighted` nodes, and the skip branch where the sum with such
    a convolution's output, read by nothing else, can be fused into it; less those of the nodes in `keep`.
    """
    quantized = weighted(model, keep)
    activations = float_tensors(model) - {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    reads = [name for node in model.graph.node for name in node.input] + [
        output.name for output in model.graph.output
    ]

    def fusible(name: str) -> bool:
        maker = makers.get(name)
        return (
            maker is not None
            and maker.op_type == "Conv"
            and maker.name in quantized
            and reads.count(name) == 1
        )

    edges: list[Edge] = []
    for node in model.graph.node:
        if node.name in quantized:
            edges.append((node.name, 0))
        elif node.op_type != "Add" or node.name in keep or not activations.issuperset(node.input):
            continue
        elif any(map(fusible, node.input)):
            edges.append((node.name, 1 if fusible(node.input[0]) else 0))
    return edges


def activation_thresholds(graph: bytes, images: NDArray[np.uint8], method: str) -> dict[str, float]:
    """The magnitude at which each activation that may be quantized saturates: the largest that was seen (`minmax`), or
    the one that `entropy_threshold` finds in its histogram (`entropy`).

    Raises:
        DermedgeError: the student gives NaN or Inf on one of the images.
    """
    model = _loaded(graph)
    nodes = {name for name, _ in activation_edges(model)}
    # Both branches of a sum: which of them is quantized depends on what is kept.
    inputs = {name for node in model.graph.node if node.name in nodes for name in node.input}
    names = sorted(
        (inputs & float_tensors(model)) - {tensor.name for tensor in model.graph.initializer}
    )
    return clip_thresholds(graph, names, images, method)


def _int8(
    graph: bytes, wide: Collection[str], calibration: Calibration, candidate: Candidate
) -> tuple[Any, tuple[str, ...]]:
    """The typed int8 graph of a candidate, and the nodes that its sweep kept in fp16."""
    sweeping = candidate.method == "mixed"
    if not sweeping and candidate.method not in ("minmax", "entropy"):
        raise unsupported_candidate(candidate)
    thresholds = activation_thresholds(
        graph, calibration.images, "minmax" if sweeping else candidate.method
    )
    kept: tuple[str, ...] = ()
    if sweeping:
        from dermedge_export.quantization.sensitivity import choose_kept

        def quantize(keep: Collection[str]) -> bytes:
            return _inferred(typed_int8(graph, thresholds, wide, keep))

        kept = choose_kept(quantize, graph, calibration.images)
    return typed_int8(graph, thresholds, wide, kept), kept


class _Inserter:
    """Writes the Q/DQ pairs of a graph. Scales are rounded to fp16 first, which they will be, and weights to them."""

    def __init__(self, model: Any, thresholds: Mapping[str, float]) -> None:
        self.nodes: list[Any] = []
        self._constants = model.graph.initializer
        self._weights = {tensor.name: tensor for tensor in self._constants}
        self._axes = weighted(model)
        self._thresholds = thresholds

    def activation(self, node: Any, position: int) -> str:
        """Quantize an input per tensor: a pair of its own for each reader, which TensorRT fuses and merges."""
        import onnx

        name, base = node.input[position], f"{node.name}.{position}"
        scale = _scale(np.float32(self._thresholds[name]))
        constants = [
            self._constant(scale, f"{base}.scale"),
            self._constant(np.int8(0), f"{base}.zero"),
        ]
        self.nodes.append(
            onnx.helper.make_node(
                "QuantizeLinear",
                [name, *constants],
                [f"{base}.quantized"],
                name=f"{base}.QuantizeLinear",
            )
        )
        return self._dequantize(f"{base}.quantized", constants, base)

    def weight(self, node: Any) -> str:
        """Quantize the second input per output channel, as an int8 constant and what reads it."""
        import onnx

        base, axis = f"{node.name}.1", self._axes[node.name]
        values = onnx.numpy_helper.to_array(self._weights[node.input[1]])
        others = tuple(other for other in range(values.ndim) if other != axis)
        scale = _scale(np.abs(values).max(axis=others))
        steps = (
            np.rint(values / np.expand_dims(scale, others)).clip(-LEVELS, LEVELS).astype(np.int8)
        )
        zero = np.zeros(scale.shape, np.int8)
        constants = [self._constant(scale, f"{base}.scale"), self._constant(zero, f"{base}.zero")]
        return self._dequantize(
            self._constant(steps, f"{base}.quantized"), constants, base, axis=axis
        )

    def _dequantize(self, name: str, constants: list[str], base: str, **attributes: Any) -> str:
        import onnx

        node = onnx.helper.make_node(
            "DequantizeLinear",
            [name, *constants],
            [f"{base}.dequantized"],
            name=f"{base}.DequantizeLinear",
            **attributes,
        )
        self.nodes.append(node)
        return f"{base}.dequantized"

    def _constant(self, values: Any, name: str) -> str:
        import onnx

        self._constants.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name


def _scale(peak: Any) -> NDArray[np.float32]:
    """The size of one step, as fp16 has it; not below its smallest normal number, which a silent channel would be."""
    step: NDArray[np.float32] = (
        np.maximum(peak / LEVELS, SMALLEST).astype(np.float16).astype(np.float32)
    )
    return step


def _loaded(graph: bytes) -> Any:
    import onnx

    return onnx.load_model_from_string(graph)


def _inferred(model: Any) -> bytes:
    import onnx

    inferred: bytes = onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()
    return inferred
