"""Export ONNX graphs from uint8 pixels to named logits.

The same weights and tool versions give the same bytes.
"""

from collections.abc import Mapping, Sequence

from dermedge_export.candidate import Candidate
from dermedge_export.context import (
    BuiltArtifact,
    ExportContext,
    describe_artifact,
    unsupported_candidate,
)
from dermedge_export.graph.seal import IR_VERSION
from dermedge_export.target import Target

PATH = "model.onnx"
TOOLS = ("dermedge", "torch", "onnx", "onnxscript")


def export_onnx(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Build an ONNX artifact in fp32 or int8.

    The graph has the input `image` uint8 [N, S, S, 3] and one float32 output per task.
    It contains the normalization of pixels.

    Raises:
        MissingExtraError: torch, onnx or the quantizer's package is not installed.
        UsageError: The candidate is unknown, or ONNX lacks an operator of the network.
        DermedgeError: A quantizer fails on this model.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> from dermedge_export.target import CPU
        >>> context = ExportContext(load_model_folder("student"))
        >>> built = export_onnx(context, CPU, Candidate("fp32", "onnx"))
        >>> list(built.files), built.artifact.details["opset"]
        (['model.onnx'], 18)
    """
    if candidate.precision == "fp32":
        return describe_onnx(context, target, candidate, context.graph(target.opset), TOOLS)
    if candidate.precision != "int8":
        raise unsupported_candidate(candidate)
    from dermedge_export.quantization.ptq import quantize_onnx

    graph, tools, kept = quantize_onnx(context, target, candidate)
    details = {"kept_fp32": list(kept)}
    return describe_onnx(context, target, candidate, graph, (*TOOLS, *tools), details)


def describe_onnx(
    context: ExportContext,
    target: Target,
    candidate: Candidate,
    graph: bytes,
    tools: Sequence[str],
    details: Mapping[str, object] | None = None,
) -> BuiltArtifact:
    """Return an ONNX file with the description that the bundle's manifest contains.

    Args:
        context: The student and its calibration.
        target: The target that the file is built for.
        candidate: The precision, method and options that the file was built with.
        graph: The ONNX model.
        tools: Names of the installed packages that built it; the manifest lists their
            versions.
        details: Further facts for the manifest.
    """
    described = describe_artifact(
        target,
        candidate,
        PATH,
        tools,
        details={
            "opset": target.opset,
            "ir_version": IR_VERSION,
            "batch": "dynamic" if context.dynamic_batch else 1,
            "method": candidate.method,
            **({} if candidate.precision == "fp32" else dict(candidate.options)),
            **(details or {}),
        },
        calibration=context.calibration if "int8" in candidate.precision else None,
    )
    return BuiltArtifact(described, {PATH: graph})
