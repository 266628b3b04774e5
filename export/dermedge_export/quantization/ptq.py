"""Quantize ONNX graphs after training: int8 with explicit Q/DQ nodes.

Weights are quantized per output channel, activations per tensor.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext, unsupported_candidate
from dermedge_export.graph.exact import exact_nodes
from dermedge_export.graph.read import constant_value, input_at, read_graph
from dermedge_export.graph.seal import seal
from dermedge_export.quantization.nncf import nncf_onnx
from dermedge_export.quantization.saturation import clip_thresholds
from dermedge_export.target import Target
from dermedge_export.toolchain import quiet, silence
from dermedge_runtime.progress import no_progress
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import import_silently

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

# Elementwise products, gates and softmax stay in fp32. There int8 loses accuracy and,
# measured, also takes more time.
_OPERATOR_TABLE = """
Conv ConvTranspose Gemm MatMul Add Concat AveragePool GlobalAveragePool MaxPool Clip Relu
LeakyRelu Flatten Gather Pad Reshape Resize Slice Split Squeeze Transpose Unsqueeze
"""
OPERATORS = tuple(_OPERATOR_TABLE.split())
ACTIVATIONS = ("Clip", "Relu", "LeakyRelu")
REQUANTIZED = ("Conv", "ConvTranspose", "Gemm")
METHODS = ("minmax", "percentile", "entropy")
STRIDE = 16  # images whose intermediate tensors are in memory at once
PERCENTILE = 99.99


def quantize_onnx(
    context: ExportContext, target: Target, candidate: Candidate
) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
    """Quantize the student's graph by the candidate's method.

    Returns:
        The sealed graph, the names of the packages that quantized it, and the names of
        the nodes that stay in fp32.

    Raises:
        MissingExtraError: The method needs nncf, which is not installed.
        UsageError: The method is unknown.
        DermedgeError: The quantizer fails on this graph.
    """
    method, options = candidate.method, dict(candidate.options)
    if method == "qat":
        from dermedge_export.quantization.qat import qat_graph

        return qat_graph(context, target, candidate), (), ()
    graph = context.graph(target.opset)
    if method == "nncf":
        sealed = seal(nncf_onnx(graph, context.calibration), context.spec)
        return sealed, ("nncf", "onnxruntime"), ()
    kept: tuple[str, ...] = ()
    if options.pop("remaining", None) is not None:
        quantizer = _minmax_quantizer(context, target, options)
        kept = sensitive_nodes(context, target, candidate)
    elif method in METHODS:
        quantizer = Quantizer(graph, context.calibration, method, **options)
    else:
        raise unsupported_candidate(candidate)
    return seal(quantizer.model(kept), context.spec), ("onnxruntime",), kept


def sensitive_nodes(
    context: ExportContext, target: Target, candidate: Candidate
) -> tuple[str, ...]:
    """Return the nodes of the student's graph that should stay in fp32.

    With these nodes in fp32, at most the share `candidate.options["remaining"]` of the
    drift remains. The sweep runs with onnxruntime once, for all engines.
    """
    from dermedge_export.quantization.sensitivity import choose_kept

    options = {"activations": "u8", **candidate.options}
    remaining = options.pop("remaining")

    def choose() -> tuple[str, ...]:
        return choose_kept(
            _minmax_quantizer(context, target, options),
            context.graph(target.opset),
            context.calibration.images,
            remaining=remaining,
            progress=context.progress or no_progress,
        )

    return context.cached(("sensitive", target.opset, remaining, *sorted(options.items())), choose)


def _minmax_quantizer(
    context: ExportContext, target: Target, options: Mapping[str, object]
) -> "Quantizer":
    """Return the min/max quantizer of the student's graph, cached in the context."""
    activations = "s8" if options.get("activations") == "s8" else "u8"
    reduce_range = bool(options.get("reduce_range", False))

    def make() -> Quantizer:
        return Quantizer(
            context.graph(target.opset),
            context.calibration,
            activations=activations,
            reduce_range=reduce_range,
        )

    return context.cached(("quantizer", target.opset, *sorted(options.items())), make)


class Quantizer:
    """A callable that quantizes one ONNX model, except for the nodes that it is given.

    One pass over the calibration images measures the activation ranges, so that each
    call costs no inference.

    Args:
        graph: The fp32 ONNX model.
        calibration: The calibration images.
        method: `minmax`, `percentile` or `entropy`, see `activation_ranges`.
        activations: `u8` or `s8`.
        reduce_range: Quantize weights to 7 bits, for CPUs without VNNI, on which sums
            of 8-bit products saturate.

    Example:
        >>> from dermedge_export.calibration import synthetic_calibration
        >>> from dermedge_runtime.bundle import Bundle
        >>> bundle = Bundle.open("toy.dermedge")
        >>> graph = bundle.read(bundle.artifact.path)
        >>> images = synthetic_calibration(bundle.spec.preprocess, 4)
        >>> quantize = Quantizer(graph, images)
        >>> b"QuantizeLinear" in quantize()
        True
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
        self.ranges = activation_ranges(graph, calibration.images, method)

    def __call__(self, keep: Collection[str] = ()) -> bytes:
        serialized: bytes = self.model(keep).SerializeToString()
        return serialized

    def model(self, keep: Collection[str] = ()) -> "onnx.ModelProto":
        """Return the quantized model; `keep` and the heads of `EXACT_KINDS` stay in fp32."""
        import onnx

        import_silently("onnxruntime")
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.quant_utils import save_and_reload_model_with_shape_infer

        model = onnx.load_model_from_string(self.graph)
        excluded = {*keep, *self._activations_behind(keep), *exact_nodes(model)}
        with quiet():
            quantizer = QDQQuantizer(
                save_and_reload_model_with_shape_infer(model),
                per_channel=True,
                reduce_range=self.reduce_range,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QInt8 if self.signed else QuantType.QUInt8,
                tensors_range=self.ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=sorted(excluded),
                op_types_to_quantize=list(OPERATORS),
                extra_options={"ActivationSymmetric": self.signed},
            )
            quantizer.quantize_model()
            shield(quantizer.model.model, keep)
            quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        return quantized

    def _activations_behind(self, keep: Collection[str]) -> set[str]:
        """Return the activation functions that directly follow kept nodes."""
        import onnx

        # The output range of a kept layer may be far wider than the range of the Clip
        # behind it. With a quantized Clip input, most of the 256 levels would stand for
        # values that the Clip cuts off. That loses more than keeping the layer gains.
        nodes = onnx.load_model_from_string(self.graph).graph.node
        outputs = {name for node in nodes if node.name in keep for name in node.output}
        return {
            node.name for node in nodes if node.op_type in ACTIVATIONS and node.input[0] in outputs
        }


def shield(model: "onnx.ModelProto", keep: Collection[str]) -> None:
    """Give each kept layer a DequantizeLinear of its own for its input, in place.

    The new node has the same scale, repeated once per channel. Behind a node with a
    single scale, onnxruntime would quantize the layer's fp32 weights again.

    Args:
        model: The quantized model; it is changed.
        keep: Names of the layers that stay in fp32.
    """
    from onnx import helper, numpy_helper

    # onnxruntime's WeightBiasQuantization pass (1.20 to 1.32, added by
    # microsoft/onnxruntime#22969) quantizes fp32 weights behind a DequantizeLinear,
    # with one scale for all channels. A depthwise convolution that was kept in fp32
    # because of its weights came out worse than quantized. The pass skips inputs with a
    # scale per channel. Delete this function once the pass quantizes per channel, or
    # can be turned off in the model file; test_ptq.py has the case.
    for node in [node for node in read_graph(model) if node.name in keep]:
        dequantizer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if node.op_type not in REQUANTIZED or dequantizer is None:
            continue
        if dequantizer.op_type != "DequantizeLinear":
            continue
        inputs = [value.name or "" for value in dequantizer.inputs if value is not None]
        for position, value in enumerate(dequantizer.inputs[1:], start=1):
            scale_or_zero = constant_value(value)
            if scale_or_zero is None:
                continue
            inputs[position] = f"{node.name}.{inputs[position]}"
            repeated = np.repeat(scale_or_zero, _input_channels(node))
            model.graph.initializer.append(numpy_helper.from_array(repeated, inputs[position]))
        output = f"{node.name}.input"
        model.graph.node.append(
            helper.make_node("DequantizeLinear", inputs, [output], f"{node.name}.dq", axis=1)
        )
        next(other for other in model.graph.node if other.name == node.name).input[0] = output


def _input_channels(layer: "onnx_ir.Node") -> int:
    """Return the number of channels that a layer reads."""
    weights = constant_value(input_at(layer, 1))
    shape = () if weights is None else weights.shape
    if layer.op_type == "Conv":
        return int(shape[1]) * layer.attributes.get_int("group", 1)
    if layer.op_type == "Gemm" and layer.attributes.get_int("transB", False):
        return int(shape[1])
    return int(shape[0])


def activation_ranges(graph: bytes, images: NDArray[np.uint8], method: str) -> "TensorsData":
    """Measure the range of every activation.

    Args:
        graph: The fp32 ONNX model.
        images: Calibration images, uint8 [N, S, S, 3].
        method: `minmax` takes the extremes, `percentile` all but the outermost 0.01 %
            of the values, `entropy` the range with the least divergence from the
            histogram (`dermedge_export.quantization.saturation`).
    """
    import_silently("onnxruntime")
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    percentile = method == "percentile"
    with tempfile.TemporaryDirectory(prefix="dermedge-calibrate-") as folder, silence():
        path = Path(folder) / "model.onnx"
        path.write_bytes(graph)
        calibrator = create_calibrator(
            path,
            list(OPERATORS),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=(
                CalibrationMethod.Percentile if percentile else CalibrationMethod.MinMax
            ),
            extra_options=({"symmetric": False, "percentile": PERCENTILE} if percentile else {}),
        )
        # The percentile calibrator holds every intermediate tensor of the images that
        # it gets at once, so it gets a few at a time.
        for start in range(0, len(images), STRIDE):
            calibrator.collect_data(_Reader(images[start : start + STRIDE]))
        ranges: TensorsData = calibrator.compute_data()
    if method == "entropy":
        # onnxruntime's entropy calibrator has 128 bins for 128 levels by default, which
        # is minmax, and picks erratic thresholds with more bins
        # (microsoft/onnxruntime#9597). Delete this branch once its thresholds agree
        # with `entropy_threshold` on 2048 bins.
        for name, magnitude in clip_thresholds(graph, list(ranges.keys()), images, method).items():
            ranges[name] = _clip_range(ranges[name], np.float32(magnitude))
    return ranges


def _clip_range(data: "TensorData", magnitude: np.float32) -> "TensorData":
    """Return a range clipped to a magnitude on either side of zero."""
    low, high = data.range_value
    clipped: TensorData = type(data)(
        lowest=np.maximum(low, -magnitude), highest=np.minimum(high, magnitude)
    )
    return clipped


class _Reader:
    """An iterator over images in the form that onnxruntime's calibrators read."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next image as a batch of one; None after the last."""
        image = next(self._images, None)
        return None if image is None else {INPUT: image[None]}
