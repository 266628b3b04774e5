"""Record in an artifact's description what a GPU may compute wrongly in fp16."""

from dataclasses import replace

from dermedge_export.context import BuiltArtifact, ExportContext
from dermedge_export.graph.delegates import find_hazards, find_transposes
from dermedge_export.model_card import GPU_HAZARDS
from dermedge_export.target import Target

# LiteRT's GPU delegates compute in fp16 by default, also if the file holds fp32 or int8.
# onnxruntime's WebGPU provider computes an fp32 graph in fp32. For Core ML and TensorRT,
# the exporter itself leaves such operators in fp32.
FORMATS = ("litert",)


def with_gpu_hazards(built: BuiltArtifact, context: ExportContext, target: Target) -> BuiltArtifact:
    """Return an artifact whose details list the hazards; empty if there are none.

    Args:
        built: The artifact.
        context: The student.
        target: The target. Other formats than LiteRT's are returned unchanged.

    Raises:
        DermedgeError: torch.export cannot trace this network.
    """
    if target.format not in FORMATS:
        return built
    hazards = context.cached(
        GPU_HAZARDS, lambda: find_hazards(context.gpu_module, context.calibration.images)
    )
    hazards += find_transposes(built.files[built.artifact.path])
    details = {**built.artifact.details, GPU_HAZARDS: [str(hazard) for hazard in hazards]}
    return replace(built, artifact=replace(built.artifact, details=details))
