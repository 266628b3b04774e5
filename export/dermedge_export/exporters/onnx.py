"""ONNX: one graph from uint8 pixels to named logits, the same bytes for the same weights and versions."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, unsupported_candidate
from dermedge_export.graph.seal import IR_VERSION
from dermedge_export.target import Target
from dermedge_runtime.spec import Artifact

PATH = "model.onnx"
TOOLS = ("dermedge", "torch", "onnx", "onnxscript")


def export_onnx(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Make an ONNX artifact: input `image` uint8 [N, S, S, 3], one float32 output per task, normalisation inside.

    Raises:
        MissingExtraError: torch, onnx or what quantizes is not installed.
        DermedgeError: a quantizer fails on this model.
    """
    if candidate.precision == "fp32":
        return artifact(context, target, candidate, context.graph(target.opset), TOOLS)
    if candidate.precision != "int8":
        raise unsupported_candidate(candidate)
    from dermedge_export.quantization.ptq import quantize_onnx

    graph, tools, kept = quantize_onnx(context, target, candidate)
    return artifact(context, target, candidate, graph, (*TOOLS, *tools), {"kept_fp32": list(kept)})


def artifact(
    context: ExportContext,
    target: Target,
    candidate: Candidate,
    graph: bytes,
    tools: Sequence[str],
    details: Mapping[str, Any] | None = None,
) -> BuiltArtifact:
    """An ONNX file with the description that its manifest carries; `tools` are the distributions that made it."""
    described = Artifact(
        target=target.name,
        format=candidate.format,
        path=PATH,
        precision=candidate.precision,
        requires=target.requires,
        toolchain={name: version(name) for name in tools},
        details={
            "opset": target.opset,
            "ir_version": IR_VERSION,
            "batch": "dynamic" if context.dynamic_batch else 1,
            "method": candidate.method,
            **({} if candidate.precision == "fp32" else dict(candidate.options)),
            **(details or {}),
        },
        calibration=context.calibration.to_json() if "int8" in candidate.precision else None,
    )
    return BuiltArtifact(described, {PATH: graph})
