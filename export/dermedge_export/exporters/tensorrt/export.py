"""Export strongly typed ONNX graphs, which TensorRT 10 and 11 build without flags.

Int8 is expressed by explicit Q/DQ nodes. Sources: NVIDIA TensorRT documentation,
"Working with Quantized Types" (symmetric int8; activations per tensor, weights per
channel and stored as int8; all inputs of weighted operations quantized, outputs and
biases not; the skip branch of a residual addition quantized, so that the addition fuses
into the convolution before it) and "Strongly Typed Networks".
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Simulation, unsupported_candidate
from dermedge_export.exporters.onnx import TOOLS, describe_onnx
from dermedge_export.exporters.tensorrt.check import check_tensorrt
from dermedge_export.exporters.tensorrt.qdq import (
    activation_thresholds,
    infer_shapes,
    load_graph,
    typed_int8,
)
from dermedge_export.graph.exact import exact_nodes
from dermedge_export.graph.fp16 import fragile_nodes, typed_fp16
from dermedge_export.graph.run import activation_peaks, rounded_runner
from dermedge_export.graph.seal import seal
from dermedge_export.quantization.sensitivity import choose_kept
from dermedge_export.target import Target
from dermedge_runtime.errors import MissingExtraError, UsageError
from dermedge_runtime.progress import no_progress
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import import_silently

if TYPE_CHECKING:
    import onnx

# Facts of the device that the manifest repeats.
FACTS = ("sm", "tensorrt", "jetpack", "int8", "fp8")


def export_tensorrt(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Build the ONNX file from which the device's TensorRT builds its engine.

    The graph has the input `image` uint8 [N, S, S, 3] and one float32 output per task,
    and every tensor in it is typed. `int8+fp16` has Q/DQ around convolutions and linear
    layers. TensorRT is not needed here: `simulation` runs the graph with onnxruntime
    and rounds every fp16 tensor, as an engine does.

    Raises:
        MissingExtraError: torch, onnx or onnxruntime is not installed.
        UsageError: TensorRT lacks an operator of this student, or the candidate is
            unknown.
        DermedgeError: The student gives NaN or Inf on calibration images.
    """
    try:
        onnxruntime = import_silently("onnxruntime")
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "export", "Export for TensorRT") from error
    graph = cast_pixels_first(context.graph(target.opset))
    require_operators(graph, target)
    peaks = activation_peaks(graph, context.calibration.images)
    model = load_graph(graph)
    wide = list(dict.fromkeys([*fragile_nodes(model, peaks), *exact_nodes(model)]))
    kept: tuple[str, ...] = ()
    if candidate.precision == "fp16":
        typed = typed_fp16(load_graph(graph), wide)
    elif candidate.precision == "int8+fp16":
        typed, kept = _quantize(graph, wide, context, candidate)
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
    built = describe_onnx(context, target, candidate, sealed, (*TOOLS, "onnxruntime"), details)
    simulation = Simulation(
        "onnxruntime rounding to fp16", onnxruntime.__version__, rounded_runner(sealed)
    )
    return BuiltArtifact(built.artifact, built.files, simulation)


def require_operators(graph: bytes, target: Target) -> list[str]:
    """Return the warnings of the static check, as text.

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
            f"TensorRT cannot build this student for {target.name}: {'; '.join(errors[:3])}{more}. "
            "Choose another backbone, or the nearest targets that run every ONNX operator: cpu or "
            "android."
        )
    return [f"{finding.node}: {finding.message}" for finding in findings]


def cast_pixels_first(graph: bytes) -> bytes:
    """Return the graph with a single cast as the only reader of its pixels.

    TensorRT accepts uint8 only for inputs and outputs, so a Transpose of uint8 pixels
    before the cast is refused.
    """
    import onnx

    model = load_graph(graph)
    pixels = f"{INPUT}.pixels"
    renamed, same = {INPUT: pixels}, {pixels}
    float32 = onnx.TensorProto.FLOAT
    nodes = [onnx.helper.make_node("Cast", [INPUT], [pixels], name=f"cast_{pixels}", to=float32)]
    # `same` names the pixels in all layouts; they are float already. A cast of them to
    # float does nothing, so it is dropped, and its readers read its input.
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        from_pixels = bool(node.input) and node.input[0] in same
        if from_pixels and node.op_type == "Cast" and node.attribute[0].i == float32:
            renamed[node.output[0]] = node.input[0]
            continue
        if from_pixels and node.op_type == "Transpose":
            same.add(node.output[0])
        nodes.append(node)
    model.graph.ClearField("node")
    model.graph.ClearField("value_info")
    model.graph.node.extend(nodes)
    return infer_shapes(model)


def _quantize(
    graph: bytes,
    wide: Collection[str],
    context: ExportContext,
    candidate: Candidate,
) -> "tuple[onnx.ModelProto, tuple[str, ...]]":
    """Return a candidate's typed int8 graph, and the nodes that stay in fp16."""
    sweeping = candidate.method == "mixed"
    if not sweeping and candidate.method not in ("minmax", "entropy"):
        raise unsupported_candidate(candidate)
    method = "minmax" if sweeping else candidate.method
    images = context.calibration.images
    thresholds = activation_thresholds(graph, images, method)
    kept: tuple[str, ...] = ()
    if sweeping:

        def quantize(keep: Collection[str]) -> bytes:
            return infer_shapes(typed_int8(graph, thresholds, wide, keep))

        kept = choose_kept(quantize, graph, images, progress=context.progress or no_progress)
    return typed_int8(graph, thresholds, wide, kept), kept
