"""Export OpenVINO IR in fp32, bf16 or int8 from the student's ONNX graph.

The same weights and tool versions give the same bytes.
"""

import io
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge_export.candidate import Candidate
from dermedge_export.context import (
    BuiltArtifact,
    ExportContext,
    describe_artifact,
    unsupported_candidate,
)
from dermedge_export.exporters.onnx import TOOLS
from dermedge_export.graph.exact import EXACT_KINDS, exact_nodes
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.parity.gate import limits_for
from dermedge_export.quantization.nncf import (
    as_input,
    import_nncf,
    nncf_errors,
    nncf_options,
    range_options,
)
from dermedge_export.quantization.ptq import sensitive_nodes
from dermedge_export.target import Target
from dermedge_export.toolchain import quiet
from dermedge_runtime.activations import sigmoid, softmax
from dermedge_runtime.errors import DermedgeError, MissingExtraError
from dermedge_runtime.signal_stack import keep_signal_stack
from dermedge_runtime.spec import Kind, Spec, to_json
from dermedge_runtime.telemetry import no_telemetry

if TYPE_CHECKING:
    import openvino

FOLDER, XML, WEIGHTS = "model", "model/model.xml", "model/model.bin"
REQUIRES = ("openvino>=2024.4",)
PLAIN = ("fp32", "bf16")
METHODS = ("nncf", "mixed", "mixed-more", "accuracy-control")
# The converter and NNCF add nodes whose names end in a counter over all nodes of the
# process (openvinotoolkit/openvino#22208). So these names differ from export to export.
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
    """Build an OpenVINO artifact, a folder of `model.xml` and `model.bin`.

    The graph has the input `image` uint8 [N, S, S, 3] and one float32 output per task.
    It contains the normalization of pixels. The files of bf16 are those of fp32, for a
    runtime that computes in bfloat16.

    Raises:
        MissingExtraError: torch, onnx, openvino or nncf is not installed.
        UsageError: The candidate is unknown.
        DermedgeError: NNCF fails on this model.
    """
    plain = candidate.precision in PLAIN and candidate.method == "plain"
    if not plain and (candidate.precision != "int8" or candidate.method not in METHODS):
        raise unsupported_candidate(candidate)
    core = _import_openvino().Core()
    model: openvino.Model = core.read_model(io.BytesIO(context.graph(target.opset)))
    details: dict[str, object] = {
        "batch": "dynamic" if context.dynamic_batch else 1,
        "method": candidate.method,
    }
    tools = [*TOOLS, "openvino"]
    if not plain:
        model = _quantize(model, context, target, candidate)
        details |= {**candidate.options, "kept_fp32": float_layers(model)}
        tools.append("nncf")
    artifact = describe_artifact(
        target,
        candidate,
        FOLDER,
        tools,
        details=details,
        calibration=None if plain else context.calibration,
        requires=REQUIRES,
    )
    return BuiltArtifact(artifact, seal_openvino(model, context.spec))


def seal_openvino(model: "openvino.Model", spec: Spec) -> dict[str, bytes]:
    """Return a model as files that depend only on its mathematics and on `spec`.

    The spec is written into `rt_info`, and other notes there are removed. Nodes whose
    names hold a counter of the process are numbered in the order of the graph.

    Args:
        model: The model; it is changed.
        spec: The model's contract.
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


def float_layers(model: "openvino.Model") -> list[str]:
    """Return the names of the layers of an int8 model whose weights are float32."""
    return sorted(
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() in WEIGHTED and _weight_type(node) == "f32"
    )


def _weight_type(layer: "openvino.Node") -> str | None:
    """Return the element type of a layer's stored weights; None if it has no weights.

    A MatMul of two activations, as in attention, has none.
    """
    node = layer.input_value(1).get_node()
    while node.get_type_name() in DEQUANTIZATION:
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        return None
    return str(node.get_element_type().get_type_name())


def _quantize(
    model: "openvino.Model", context: ExportContext, target: Target, candidate: Candidate
) -> "openvino.Model":
    """Return the model in int8, calibrated on the context's calibration images.

    Raises:
        MissingExtraError: nncf is not installed.
        DermedgeError: NNCF fails on this graph, or leaves no layer in int8.
    """
    nncf = import_nncf()
    images = context.calibration.images
    keep = _kept_operators(model, context, target, candidate)
    operators = [node.get_type_name() for node in model.get_ops()]
    options = nncf_options(images, operators, "Multiply", keep)
    advanced = nncf.AdvancedQuantizationParameters(**range_options())
    if candidate.options.get("reduce_range"):
        # 7-bit weights: sums of 8-bit products saturate on CPUs without VNNI.
        advanced.overflow_fix = nncf.OverflowFix.ENABLE
    with nncf_errors(), keep_signal_stack():
        if candidate.method != "accuracy-control":
            quantized = nncf.quantize(model, **options, advanced_parameters=advanced)
        else:
            restorer = nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=RANKED, num_ranking_workers=1
            )
            pairs = _predict_pairs(model, images, context.spec)
            quantized = nncf.quantize_with_accuracy_control(
                model,
                validation_dataset=nncf.Dataset(pairs, lambda pair: as_input(pair[0])),
                validation_fn=lambda compiled, items: _agreement(compiled, items, context.spec),
                max_drop=limits_for(candidate.precision, target.gate)["top1_agreement"],
                **options,
                advanced_quantization_parameters=advanced,
                advanced_accuracy_restorer_parameters=restorer,
            )
    if not any(node.get_type_name() == "FakeQuantize" for node in quantized.get_ops()):
        raise DermedgeError(
            f"NNCF quantized no layer of {context.spec.name!r} to int8 by {candidate.method}. "
            "Export it in fp32."
        )
    return quantized


def _kept_operators(
    model: "openvino.Model", context: ExportContext, target: Target, candidate: Candidate
) -> list[str]:
    """Return the operators that stay in fp32: heads of `EXACT_KINDS`, and those of a sweep."""
    import onnx

    kept = set(exact_nodes(onnx.load_model_from_string(context.graph(target.opset))))
    # The converter names an operator that writes an output by the output.
    kept.update(task.name for task in context.spec.tasks if task.kind in EXACT_KINDS)
    if "remaining" in candidate.options:
        kept.update(sensitive_nodes(context, target, candidate))
    names = [node.get_friendly_name() for node in model.get_ops()]
    # The converter splits a convolution with a bias into `name/WithoutBiases` and an
    # addition.
    return [name for name in names if name.partition("/")[0] in kept]


def _predict_pairs(model: "openvino.Model", images: NDArray[np.uint8], spec: Spec) -> list[Pair]:
    """Return each image with the outputs of the fp32 model."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [(image, _predict(compiled, image, spec)) for image in images]


def _predict(
    compiled: "openvino.CompiledModel", image: NDArray[np.uint8], spec: Spec
) -> dict[str, Output]:
    """Return the outputs of a model for one image, by task."""
    outputs = compiled(as_input(image))
    return {task.name: outputs[compiled.output(task.name)][0] for task in spec.tasks}


def _agreement(
    compiled: "openvino.CompiledModel", items: Iterable[Pair], spec: Spec
) -> tuple[float, list[float]]:
    """Return the mean likeness to the fp32 outputs, and the likeness per image.

    `nncf.quantize_with_accuracy_control` expects this pair from a validation function.
    """
    scores = []
    for image, expected in items:
        outputs = _predict(compiled, image, spec)
        alike = [
            likeness(outputs[task.name], expected[task.name], task.kind)
            for task in spec.tasks
            if task.kind not in EXACT_KINDS
        ]
        scores.append(float(np.mean(alike)))
    return float(np.mean(scores)), scores


def likeness(first: Output, second: Output, kind: Kind) -> float:
    """Return how alike two outputs for one image are, at most 1.

    The likeness of probabilities is one minus their total variation distance; that of
    embeddings is their cosine. The distance bounds the share of decisions, drawn from
    the probabilities, that can differ. Unlike agreement of the top label, it changes
    with every layer, so NNCF can rank layers by it.

    Args:
        first: Logits of one image.
        second: Logits of the same image.
        kind: The task kind.

    Example:
        >>> import numpy as np
        >>> p, q = np.float32([0.5, 0.3, 0.2]), np.float32([0.4, 0.3, 0.3])
        >>> round(likeness(np.log(p), np.log(q), "classify"), 6)
        0.9
    """
    if kind == "embed":
        return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))
    if kind == "classify":
        return float(1 - np.abs(softmax(first, axis=0) - softmax(second, axis=0)).sum() / 2)
    return float(1 - np.abs(sigmoid(first) - sigmoid(second)).mean())


def _import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry and its console output."""
    try:
        with no_telemetry(), quiet():
            import openvino
    except ImportError as error:
        raise MissingExtraError(
            error.name or "openvino", "openvino", "Export to OpenVINO"
        ) from error
    module: ModuleType = openvino
    return module
