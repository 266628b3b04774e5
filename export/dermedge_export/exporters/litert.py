"""Export LiteRT models (`.tflite`) from uint8 pixels to named logits.

The same weights and tool versions give the same bytes.
"""

from dermedge_export.candidate import Candidate
from dermedge_export.context import (
    BuiltArtifact,
    ExportContext,
    describe_artifact,
    unsupported_candidate,
)
from dermedge_export.graph.litert import trace_litert
from dermedge_export.target import Target

PATH = "model.tflite"
TOOLS = ("dermedge", "torch", "litert-torch", "litert-converter")
REQUIRES = ("litert>=1.0",)


def export_litert(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Build a LiteRT artifact in fp32.

    The model has the input `image` uint8 [1, S, S, 3] and one float32 output per task.
    It contains the normalization of pixels.

    Raises:
        MissingExtraError: litert-torch is not installed.
        UsageError: The candidate is unknown, or LiteRT lacks an operator of the
            network.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> from dermedge_export.target import CPU
        >>> context = ExportContext(load_model_folder("student"))
        >>> built = export_litert(context, CPU, Candidate("fp32", "litert"))
        >>> list(built.files), built.artifact.details["batch"]
        (['model.tflite'], 1)
    """
    if candidate.precision != "fp32":
        raise unsupported_candidate(candidate)
    model = context.cached("litert", lambda: trace_litert(context.module, context.spec))
    artifact = describe_artifact(
        target,
        candidate,
        PATH,
        TOOLS,
        details={"batch": 1, "method": candidate.method},
        calibration=None,
        requires=REQUIRES,
    )
    return BuiltArtifact(artifact, {PATH: model})
