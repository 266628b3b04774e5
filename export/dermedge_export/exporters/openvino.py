"""OpenVINO: an IR of the student's graph, in fp32 or int8 by NNCF, the same bytes for the same weights and versions."""

import importlib
import io
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, unsupported_candidate
from dermedge_export.exporters.onnx import TOOLS
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.parity.gate import limits_for
from dermedge_export.quantization.ptq import sensitive_nodes
from dermedge_export.target import Target
from dermedge_export.toolchain import quiet
from dermedge_runtime.activations import sigmoid, softmax
from dermedge_runtime.errors import DermedgeError, MissingExtraError
from dermedge_runtime.signal_stack import keep_signal_stack
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Artifact, Kind, Spec, to_json
from dermedge_runtime.telemetry import no_telemetry

FOLDER, XML, WEIGHTS = "model", "model/model.xml", "model/model.bin"
REQUIRES = ("openvino>=2024.4",)
PLAIN = ("fp32", "bf16")
METHODS = ("nncf", "mixed", "mixed-more", "accuracy-control")
# Of nodes that the converter or NNCF made: the number counts all nodes that the process has ever made.
COUNTED = re.compile(r"(^|/)[A-Z][A-Za-z]*_\d+(/|$)")
WEIGHTED = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
)
DEQUANTIZATION = ("Convert", "Subtract", "Multiply", "Reshape")
RANKED = 64  # images on which accuracy control ranks layers

Output = NDArray[np.float32]
Pair = tuple[NDArray[np.uint8], Mapping[str, Output]]


def export_openvino(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Make an OpenVINO artifact, a folder of `model.xml` and `model.bin`: input `image` uint8 [N, S, S, 3], one float32
    output per task, normalisation inside. That of bf16 is the one of fp32, for a runtime that computes in bfloat16.

    Raises:
        MissingExtraError: torch, onnx, openvino or nncf is not installed.
        DermedgeError: NNCF fails on this model.
    """
    plain = candidate.precision in PLAIN and candidate.method == "plain"
    if not plain and (candidate.precision != "int8" or candidate.method not in METHODS):
        raise unsupported_candidate(candidate)
    openvino = _import("openvino", "openvino")
    model = openvino.Core().read_model(io.BytesIO(context.graph(target.opset)))
    details: dict[str, Any] = {
        "batch": "dynamic" if context.dynamic_batch else 1,
        "method": candidate.method,
    }
    tools = [*TOOLS, "openvino"]
    if not plain:
        model = _quantized(model, context, target, candidate)
        details |= {**candidate.options, "kept_fp32": kept_fp32(model)}
        tools.append("nncf")
    artifact = Artifact(
        target=target.name,
        format=candidate.format,
        path=FOLDER,
        precision=candidate.precision,
        requires=REQUIRES,
        toolchain={name: version(name) for name in tools},
        details=details,
        calibration=None if plain else context.calibration.to_json(),
    )
    return BuiltArtifact(artifact, sealed(model, context.spec))


def sealed(model: Any, spec: Spec) -> dict[str, bytes]:
    """An openvino.Model as files that depend on nothing but its mathematics and `spec`, which is mirrored in its
    `rt_info`: what else was noted there goes, and nodes that were numbered by the process are numbered anew.
    """
    import openvino

    for key in list(model.rt_info):
        del model.rt_info[key]
    model.set_rt_info(json.dumps(to_json(spec), sort_keys=True, ensure_ascii=False), METADATA_KEY)
    for index, node in enumerate(model.get_ordered_ops()):
        if COUNTED.search(node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
    with tempfile.TemporaryDirectory(prefix="dermedge-openvino-") as folder:
        path = Path(folder) / Path(XML).name
        openvino.save_model(model, path, compress_to_fp16=False)
        return {XML: path.read_bytes(), WEIGHTS: path.with_suffix(".bin").read_bytes()}


def kept_fp32(model: Any) -> list[str]:
    """The layers of an int8 openvino.Model whose weights are still float32, by name."""
    return sorted(
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() in WEIGHTED and _weight_type(node) == "f32"
    )


def _weight_type(layer: Any) -> str | None:
    """The element type that a layer's weights are stored in; None where it multiplies two activations."""
    node = layer.input_value(1).get_node()
    while node.get_type_name() in DEQUANTIZATION:
        node = node.input_value(0).get_node()
    return (
        str(node.get_element_type().get_type_name()) if node.get_type_name() == "Constant" else None
    )


def has_attention(model: Any) -> bool:
    """Whether an openvino.Model holds a softmax, as transformers do; NNCF then keeps their delicate tensors exact."""
    return any(node.get_type_name() == "Softmax" for node in model.get_ops())


def _quantized(model: Any, context: ExportContext, target: Target, candidate: Candidate) -> Any:
    """The model in int8, calibrated on the workbench's calibration images.

    Raises:
        MissingExtraError: nncf is not installed.
        DermedgeError: NNCF fails on this graph, or leaves nothing of it in int8.
    """
    nncf = _import("nncf", "quantize")
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    images = context.calibration.images
    parameters = {
        "calibration_dataset": nncf.Dataset(list(images), _feed),
        "preset": nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": len(images),
        "fast_bias_correction": True,
        "model_type": nncf.ModelType.TRANSFORMER if has_attention(model) else None,
        # Gates and the like: in fp32 they cost, measured, neither accuracy nor time; in int8 both.
        "ignored_scope": nncf.IgnoredScope(
            names=_sensitive(model, context, target, candidate), types=["Multiply"], validate=False
        ),
    }
    # By default NNCF takes the mean of the images' extremes and clips the rest: measured ten times the error.
    advanced = nncf.AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
    )
    if candidate.options.get("reduce_range"):
        advanced.overflow_fix = nncf.OverflowFix.ENABLE
    try:
        with no_telemetry(), quiet(), keep_signal_stack():
            if candidate.method != "accuracy-control":
                found = nncf.quantize(model, **parameters, advanced_parameters=advanced)
            else:
                limit = limits_for(candidate.precision, target.gate)["top1_agreement"]
                pairs = _pairs(model, images, context.spec)
                found = nncf.quantize_with_accuracy_control(
                    model,
                    validation_dataset=nncf.Dataset(pairs, lambda pair: _feed(pair[0])),
                    validation_fn=lambda compiled, items: _agreement(compiled, items, context.spec),
                    max_drop=limit,
                    **parameters,
                    advanced_quantization_parameters=advanced,
                    advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                        ranking_subset_size=RANKED, num_ranking_workers=1
                    ),
                )
    except (
        Exception
    ) as error:  # NNCF has no common error; whatever it raises means that it cannot do this graph
        raise DermedgeError(
            f"NNCF cannot quantize this graph ({error}): choose another method."
        ) from error
    if not any(node.get_type_name() == "FakeQuantize" for node in found.get_ops()):
        raise DermedgeError(
            f"No layer of {context.spec.name!r} bears int8 by {candidate.method}: export it in fp32."
        )
    return found


def _sensitive(
    model: Any, context: ExportContext, target: Target, candidate: Candidate
) -> list[str]:
    """The operators that came of nodes which are better left in fp32; a convolution with a bias becomes two."""
    if "remaining" not in candidate.options:
        return []
    kept = sensitive_nodes(context, target, candidate)
    names = [node.get_friendly_name() for node in model.get_ops()]
    return [name for name in names if name.partition("/")[0] in kept]


def _feed(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    return {INPUT: image[None]}


def _pairs(model: Any, images: NDArray[np.uint8], spec: Spec) -> list[Pair]:
    """Each image with what the fp32 model answers to it."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [(image, _ask(compiled, image, spec)) for image in images]


def _ask(compiled: Any, image: NDArray[np.uint8], spec: Spec) -> dict[str, Output]:
    found = compiled(_feed(image))
    return {task.name: found[compiled.output(task.name)][0] for task in spec.tasks}


def _agreement(compiled: Any, items: Iterable[Pair], spec: Spec) -> tuple[float, list[float]]:
    """How much of the fp32 model's answers a quantized one keeps, 1 where it keeps all: the mean, and per image."""
    scores = []
    for image, expected in items:
        found = _ask(compiled, image, spec)
        scores.append(
            float(np.mean([likeness(found[t.name], expected[t.name], t.kind) for t in spec.tasks]))
        )
    return float(np.mean(scores)), scores


def likeness(first: Output, second: Output, kind: Kind) -> float:
    """How alike two outputs for one image are, at most 1.

    One minus the total variation distance of the probabilities, which bounds how often decisions drawn from them can
    differ and, other than agreement of the top label, moves with every layer; for embeddings their cosine.
    """
    if kind == "embed":
        return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))
    if kind == "classify":
        return float(1 - np.abs(softmax(first, axis=0) - softmax(second, axis=0)).sum() / 2)
    return float(1 - np.abs(sigmoid(first) - sigmoid(second)).mean())


def _import(package: str, extra: str) -> Any:
    try:
        with no_telemetry(), quiet():
            return importlib.import_module(package)
    except ImportError as error:
        raise MissingExtraError(error.name or package, extra, "Export to OpenVINO") from error
