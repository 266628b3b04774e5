"""Export LiteRT models (`.tflite`) from uint8 pixels to named logits.

The same weights, calibration images and tool versions give the same bytes.
"""

from collections.abc import Mapping
from typing import Any, Literal

from dermedge_export.candidate import Candidate
from dermedge_export.context import (
    BuiltArtifact,
    ExportContext,
    describe_artifact,
    unsupported_candidate,
)
from dermedge_export.graph.litert import trace_litert
from dermedge_export.graph.read_litert import layer_of
from dermedge_export.quantization.litert import (
    Update,
    calibrate_litert,
    int8_recipe,
    quantize_litert,
    weights_recipe,
)
from dermedge_export.quantization.litert_mixed import sensitive_operators
from dermedge_export.target import Target
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.progress import no_progress

PATH = "model.tflite"
TOOLS = ("dermedge", "torch", "litert-torch", "litert-converter")
REQUIRES = ("litert>=1.0",)
WEIGHT_BITS: Mapping[str, Literal[8, 16]] = {"w8": 8, "fp16": 16}
# By method of int8: how the ranges of activations follow from those of each image.
METHODS: Mapping[str, Update] = {
    "minmax": "minmax",
    "average": "average",
    "mixed": "minmax",
    "mixed-more": "minmax",
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
    details: dict[str, Any] = {"batch": 1, "method": method, **candidate.options}
    if precision == "int8" and method in METHODS:
        model, kept = _quantize(context, target, candidate)
        details["kept_fp32"] = list(dict.fromkeys(map(layer_of, kept)))
    elif precision in WEIGHT_BITS and method == "plain":
        recipe = weights_recipe(WEIGHT_BITS[precision])
        model = quantize_litert(float_model(context, target), context.spec, recipe)
    elif precision == "fp32" and method == "plain":
        model = float_model(context, target)
    else:
        raise unsupported_candidate(candidate)
    quantizer = () if precision == "fp32" else ("litert-quantizer",)
    artifact = describe_artifact(
        target,
        candidate,
        PATH,
        (*TOOLS, *quantizer),
        details=details,
        calibration=context.calibration if precision == "int8" else None,
        requires=REQUIRES,
    )
    return BuiltArtifact(artifact, {PATH: model})


def float_model(context: ExportContext, target: Target) -> bytes:
    """Return the student as an fp32 LiteRT model, converted once per export.

    Args:
        context: The student.
        target: The target. On other devices than this machine a GPU may compute, in
            fp16.
    """
    module = context.module if target.native else context.gpu_module
    return context.cached(
        ("litert", module is context.module), lambda: trace_litert(module, context.spec)
    )


def _quantize(
    context: ExportContext, target: Target, candidate: Candidate
) -> tuple[bytes, tuple[str, ...]]:
    """Return the student in int8, and the names of the operators that stay in fp32."""
    update = METHODS[candidate.method]
    model, images = float_model(context, target), context.calibration.images
    ranges = context.cached(
        ("litert ranges", sha256_hex(model), update),
        lambda: calibrate_litert(model, int8_recipe(model), images, update),
    )
    kept: tuple[str, ...] = ()
    if "remaining" in candidate.options:
        kept = sensitive_operators(
            model,
            context.spec,
            images,
            ranges,
            remaining=candidate.options["remaining"],
            progress=context.progress or no_progress,
        )
    recipe = int8_recipe(model, kept=kept)
    return quantize_litert(model, context.spec, recipe, ranges), kept
