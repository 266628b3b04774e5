"""Post-training quantization of an ONNX graph: int8 with explicit Q/DQ, weights per channel, activations per tensor."""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext, unsupported_candidate
from dermedge_export.graph.seal import seal
from dermedge_export.quantization.saturation import clip_thresholds
from dermedge_export.target import Target
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import DermedgeError, MissingExtraError
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import import_silently, no_telemetry

# Elementwise products, gates and softmax stay in fp32: they cost accuracy and, measured, time as well.
OPERATORS = (
    *(
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Concat",
        "AveragePool",
        "GlobalAveragePool",
        "MaxPool",
    ),
    *(
        "Clip",
        "Relu",
        "LeakyRelu",
        "Flatten",
        "Gather",
        "Pad",
        "Reshape",
        "Resize",
        "Slice",
        "Split",
        "Squeeze",
    ),
    *("Transpose", "Unsqueeze"),
)
ACTIVATIONS = ("Clip", "Relu", "LeakyRelu")
REQUANTIZED = ("Conv", "ConvTranspose", "Gemm")
STRIDE = 16  # images whose intermediate tensors are held at once
PERCENTILE = 99.99


def quantize_onnx(
    context: ExportContext, target: Target, candidate: Candidate
) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """Quantize the student's graph by the candidate's method.

    Returns:
        The sealed graph, the distributions that made it, and the nodes that were kept in fp32.

    Raises:
        MissingExtraError: nncf is not installed and the method needs it.
        DermedgeError: the quantizer fails on this graph.
    """
    if candidate.method == "qat":
        from dermedge_export.quantization.qat import qat_graph

        return *qat_graph(context, target, candidate), ()
    graph = context.graph(target.opset)
    if candidate.method == "nncf":
        return (
            seal(nncf_onnx(graph, context.calibration), context.spec),
            ("nncf", "onnxruntime"),
            (),
        )
    method = candidate.method
    if "remaining" not in candidate.options and method not in ("minmax", "percentile", "entropy"):
        raise unsupported_candidate(candidate)
    options = dict(candidate.options)
    kept: tuple[str, ...] = ()
    if options.pop("remaining", None) is None:
        quantizer = Quantizer(graph, context.calibration, method, **options)
    else:
        quantizer, kept = (
            _by_extremes(context, target, options),
            sensitive_nodes(context, target, candidate),
        )
    return seal(quantizer.model(kept), context.spec), ("onnxruntime",), kept


def sensitive_nodes(
    context: ExportContext, target: Target, candidate: Candidate
) -> tuple[str, ...]:
    """The nodes of the student's graph that are better left in fp32, so that no more than the candidate's `remaining`
    share of the drift is left; swept for with onnxruntime, once for all engines.
    """
    from dermedge_export.quantization.sensitivity import choose_kept

    options = {"activations": "u8", **candidate.options}
    remaining = options.pop("remaining")

    def choose() -> tuple[str, ...]:
        images = context.calibration.images
        return choose_kept(
            _by_extremes(context, target, options),
            context.graph(target.opset),
            images,
            remaining=remaining,
        )

    return context.cached(("sensitive", target.opset, remaining, *sorted(options.items())), choose)


def _by_extremes(context: ExportContext, target: Target, options: Mapping[str, Any]) -> "Quantizer":
    key = ("quantizer", target.opset, *sorted(options.items()))
    return context.cached(
        key, lambda: Quantizer(context.graph(target.opset), context.calibration, **options)
    )


class Quantizer:
    """A graph whose activation ranges are known: call it with the nodes to keep in fp32 for the quantized ONNX bytes.

    Ranges come from one pass over the calibration images, so that each further call costs no inference.
    """

    def __init__(
        self,
        graph: bytes,
        calibration: Calibration,
        method: str = "minmax",
        *,
        activations: str = "u8",
        reduce_range: bool = False,
    ) -> None:
        self.graph, self.reduce_range = graph, reduce_range
        self.signed = activations == "s8"
        with quiet():
            self.ranges = activation_ranges(graph, calibration.images, method)

    def __call__(self, keep: Collection[str] = ()) -> bytes:
        serialised: bytes = self.model(keep).SerializeToString()
        return serialised

    def model(self, keep: Collection[str] = ()) -> Any:
        """The quantized onnx.ModelProto."""
        import onnx

        import_silently("onnxruntime")
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

        with quiet():
            quantizer = QDQQuantizer(
                save_and_reload_model_with_shape_infer(onnx.load_model_from_string(self.graph)),
                per_channel=True,
                reduce_range=self.reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QInt8 if self.signed else QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=sorted({*keep, *self._activations_behind(keep)}),
                op_types_to_quantize=list(OPERATORS),
                extra_options={"ActivationSymmetric": self.signed},
            )
            quantizer.quantize_model()
            shield(quantizer.model.model, keep)
            quantizer.model.topological_sort()
        return quantizer.model.model

    def _activations_behind(self, keep: Collection[str]) -> set[str]:
        """The activation functions that read what kept nodes give: quantizing what goes into a Clip, with the whole
        range that is about to be cut off, would lose more than keeping its layer gains.
        """
        import onnx

        nodes = onnx.load_model_from_string(self.graph).graph.node
        given = {name for node in nodes if node.name in keep for name in node.output}
        return {
            node.name for node in nodes if node.op_type in ACTIVATIONS and node.input[0] in given
        }


def shield(model: Any, keep: Collection[str]) -> None:
    """Let kept layers read their input through a DequantizeLinear of their own, with the same scale once per channel.

    Behind one with a single scale, onnxruntime (1.20 to 1.32, WeightBiasQuantization) quantizes a layer's fp32 weights
    by itself, with one scale for all of them: a depthwise convolution that was kept in fp32 because of its weights came
    out worse than quantized. Changes `model` in place.
    """
    from onnx import helper, numpy_helper

    values = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in [node for node in model.graph.node if node.name in keep]:
        maker = makers.get(node.input[0])
        if node.op_type not in REQUANTIZED or maker is None or maker.op_type != "DequantizeLinear":
            continue
        inputs = [maker.input[0]]
        for name in maker.input[1:]:
            own = f"{node.name}.{name}"
            value = numpy_helper.to_array(values[name])
            model.graph.initializer.append(
                numpy_helper.from_array(np.repeat(value, _channels(node, values)), own)
            )
            inputs.append(own)
        reading = f"{node.name}.input"
        model.graph.node.append(
            helper.make_node("DequantizeLinear", inputs, [reading], f"{node.name}.dq", axis=1)
        )
        node.input[0] = reading


def _channels(node: Any, values: dict[str, Any]) -> int:
    """How many channels a layer reads."""
    shape, options = (
        values[node.input[1]].dims,
        {attribute.name: attribute.i for attribute in node.attribute},
    )
    if node.op_type == "Conv":
        return int(shape[1] * options.get("group", 1))
    return int(shape[1] if node.op_type == "Gemm" and options.get("transB") else shape[0])


def activation_ranges(graph: bytes, images: NDArray[np.uint8], method: str) -> Any:
    """The range of every activation, as onnxruntime's `TensorsData`: of the extremes (`minmax`), of all but a share of
    the values (`percentile`), or of the least divergence from the histogram (`entropy`).

    Histograms hold every intermediate tensor of the images that they are told at once, so they get a few at a time.
    """
    import_silently("onnxruntime")
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    methods = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "percentile": (
            CalibrationMethod.Percentile,
            {"symmetric": False, "percentile": PERCENTILE},
        ),
        "entropy": (CalibrationMethod.MinMax, {}),
    }
    kind, options = methods[method]
    with tempfile.TemporaryDirectory(prefix="dermedge-calibrate-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(graph)
        calibrator = create_calibrator(
            path,
            list(OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=kind,
            extra_options=options,
        )
        for start in range(0, len(images), STRIDE):
            calibrator.collect_data(_Reader(images[start : start + STRIDE]))
        ranges = calibrator.compute_data()
    if method == "entropy":
        # onnxruntime's own entropy is minmax with its default of 128 bins for 128 levels, and wild with more.
        for name, magnitude in clip_thresholds(graph, list(ranges.keys()), images, method).items():
            ranges[name] = _cut(ranges[name], np.float32(magnitude))
    return ranges


def _cut(data: Any, magnitude: np.float32) -> Any:
    """Onnxruntime's `TensorData`, its range cut off at a magnitude on either side."""
    low, high = data.range_value
    return type(data)(lowest=np.maximum(low, -magnitude), highest=np.minimum(high, magnitude))


class _Reader:
    """Images one by one, as onnxruntime's calibrators ask for them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image[None]}


def has_attention(model: Any) -> bool:
    """Whether an ONNX model holds a softmax, as transformers do; NNCF then keeps their delicate tensors exact."""
    return any(node.op_type == "Softmax" for node in model.graph.node)


def nncf_onnx(graph: bytes, calibration: Calibration) -> Any:
    """NNCF's int8 with fast bias correction, as an onnx.ModelProto.

    Activations are quantized per tensor: NNCF's own choice for depthwise convolutions, per channel, gives files that
    onnxruntime refuses.

    Raises:
        MissingExtraError: nncf is not installed.
        DermedgeError: NNCF fails on this graph.
    """
    import onnx

    try:
        with no_telemetry(), quiet():
            import nncf
            from nncf.quantization.advanced_parameters import (
                AdvancedQuantizationParameters,
                QuantizationParameters,
            )
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        raise MissingExtraError(error.name or "nncf", "quantize", "Quantization by NNCF") from error
    model = onnx.load_model_from_string(graph)
    try:
        with no_telemetry(), quiet():
            return nncf.quantize(
                model,
                nncf.Dataset(list(calibration.images), lambda image: {INPUT: image[None]}),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(calibration),
                fast_bias_correction=True,
                model_type=nncf.ModelType.TRANSFORMER if has_attention(model) else None,
                ignored_scope=nncf.IgnoredScope(types=["Mul"], validate=False),
                advanced_parameters=AdvancedQuantizationParameters(
                    activations_quantization_params=QuantizationParameters(per_channel=False),
                    # By default the extremes of all images are averaged, and what lies beyond is cut off.
                    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                ),
            )
    except (
        Exception
    ) as error:  # NNCF has no common error; whatever it raises means that it cannot do this graph
        raise DermedgeError(
            f"NNCF cannot quantize this graph ({error}): choose another method."
        ) from error
