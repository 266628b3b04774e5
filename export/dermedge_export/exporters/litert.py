"""Export LiteRT models (`.tflite`) from uint8 pixels to named logits.

The same weights, calibration images and tool versions give the same bytes.
"""

from collections.abc import Mapping
from typing import Literal

from dermedge_export.candidate import Candidate
from dermedge_export.context import (
    BuiltArtifact,
    ExportContext,
    describe_artifact,
    unsupported_candidate,
)
from dermedge_export.graph.litert import trace_litert
from dermedge_export.quantization.litert import (
    MSE,
    PLAIN,
    Update,
    calibrate_litert,
    int8_recipe,
    quantize_litert,
    weights_recipe,
)
from dermedge_export.target import Target

PATH = "model.tflite"
TOOLS = ("dermedge", "torch", "litert-torch", "litert-converter")
REQUIRES = ("litert>=1.0",)
WEIGHT_BITS: Mapping[str, Literal[8, 16]] = {"w8": 8, "fp16": 16}
# By method of int8: the ranges of activations, and the algorithm for weights.
METHODS: Mapping[str, tuple[Update, str]] = {
    "minmax": ("minmax", PLAIN),
    "average": ("average", PLAIN),
    "mse": ("minmax", MSE),
}


def export_litert(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Build a LiteRT artifact in fp32, with fp16 or int8 weights, or in int8.

    The model has the input `image` uint8 [1, S, S, 3] and one float32 output per task.
    It contains the normalization of pixels. Weights of fp16 (`fp16`) and int8 (`w8`)
    make the file smaller; LiteRT computes with them in float32.

    Raises:
        MissingExtraError: litert-torch or litert-quantizer is not installed.
        UsageError: The candidate is unknown, or LiteRT lacks an operator of the
            network.
        DermedgeError: litert-quantizer fails on this model.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> from dermedge_export.target import CPU
        >>> context = ExportContext(load_model_folder("student"))
        >>> built = export_litert(context, CPU, Candidate("fp32", "litert"))
        >>> list(built.files), built.artifact.details["batch"]
        (['model.tflite'], 1)
    """
    precision, method = candidate.precision, candidate.method
    if precision == "int8" and method in METHODS:
        model = _quantize(context, method)
    elif precision in WEIGHT_BITS and method == "plain":
        recipe = weights_recipe(WEIGHT_BITS[precision])
        model = quantize_litert(float_model(context), context.spec, recipe)
    elif precision == "fp32" and method == "plain":
        model = float_model(context)
    else:
        raise unsupported_candidate(candidate)
    quantizer = () if precision == "fp32" else ("litert-quantizer",)
    artifact = describe_artifact(
        target,
        candidate,
        PATH,
        (*TOOLS, *quantizer),
        details={"batch": 1, "method": method},
        calibration=context.calibration if precision == "int8" else None,
        requires=REQUIRES,
    )
    return BuiltArtifact(artifact, {PATH: model})


def float_model(context: ExportContext) -> bytes:
    """Return the student as an fp32 LiteRT model, converted once per export.

    Args:
        context: The student.
    """
    return context.cached("litert", lambda: trace_litert(context.module, context.spec))


def _quantize(context: ExportContext, method: str) -> bytes:
    """Return the student in int8, calibrated on the context's calibration images."""
    ranges, weights = METHODS[method]
    model = float_model(context)
    recipe = int8_recipe(model, weights=weights)
    observed = calibrate_litert(model, recipe, context.calibration.images, ranges)
    return quantize_litert(model, context.spec, recipe, observed)
