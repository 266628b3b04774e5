"""Quantize graphs with NNCF: the options of both formats, and the ONNX side."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.graph.exact import exact_nodes
from dermedge_export.toolchain import silence
from dermedge_runtime.errors import DermedgeError, MissingExtraError
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import no_telemetry

if TYPE_CHECKING:
    import onnx


def import_nncf() -> ModuleType:
    """Import NNCF without its telemetry and its console output.

    Raises:
        MissingExtraError: nncf is not installed.
    """
    try:
        with no_telemetry(), silence():
            import nncf
    except ImportError as error:
        raise MissingExtraError(error.name or "nncf", "quantize", "Quantization by NNCF") from error
    module: ModuleType = nncf
    return module


def nncf_options(
    images: NDArray[np.uint8], operators: Iterable[str], product: str, keep: Sequence[str] = ()
) -> dict[str, object]:
    """Return the arguments of `nncf.quantize` that are the same for ONNX and OpenVINO.

    Args:
        images: Calibration images, uint8 [N, S, S, 3].
        operators: The operator type of every node of the graph.
        product: The format's name for an elementwise product. Gates and the like stay
            in fp32: measured, int8 costs both accuracy and time there.
        keep: Names of nodes that stay in fp32.
    """
    nncf = import_nncf()
    return {
        "calibration_dataset": nncf.Dataset(list(images), as_input),
        "preset": nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": len(images),
        "fast_bias_correction": True,
        "model_type": nncf.ModelType.TRANSFORMER if has_attention(operators) else None,
        "ignored_scope": nncf.IgnoredScope(names=list(keep), types=[product], validate=False),
    }


def range_options() -> dict[str, object]:
    """Return the advanced arguments that make NNCF use the images' extremes.

    By default NNCF averages the extremes of all images and clips values beyond. With
    OpenVINO and the test student, the mean error is then half of the differences
    between images, against a tenth with the extremes (`tests/export/test_openvino.py`).
    """
    import_nncf()
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return {"activations_range_estimator_params": RangeEstimatorParametersSet.MINMAX}


def has_attention(operators: Iterable[str]) -> bool:
    """Return whether a graph computes a softmax, as transformers do.

    NNCF then keeps the tensors around attention in floating point.

    Example:
        >>> has_attention(["MatMul", "Softmax"]), has_attention(["Conv", "Relu"])
        (True, False)
    """
    return "Softmax" in operators


def as_input(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Return one image [S, S, 3] as the input of a graph."""
    return {INPUT: image[None]}


@contextlib.contextmanager
def nncf_errors() -> Iterator[None]:
    """Run NNCF without output, and convert its errors to `DermedgeError`."""
    try:
        with no_telemetry(), silence():
            yield
    except Exception as error:
        # NNCF has no base class for its errors. Any of them means that it cannot do
        # this graph.
        raise DermedgeError(
            f"NNCF cannot quantize this graph ({error}). Choose another method."
        ) from error


def nncf_onnx(graph: bytes, calibration: Calibration) -> "onnx.ModelProto":
    """Quantize an ONNX graph to int8 with NNCF and its fast bias correction.

    Raises:
        MissingExtraError: nncf is not installed.
        DermedgeError: NNCF fails on this graph.
    """
    import onnx

    nncf = import_nncf()
    from nncf.quantization.advanced_parameters import QuantizationParameters

    model = onnx.load_model_from_string(graph)
    operators = [node.op_type for node in model.graph.node]
    # NNCF quantizes the activations of depthwise convolutions per channel. onnxruntime
    # refuses such files ("scale must be 1D tensor"; openvinotoolkit/nncf#1537 has the
    # rule on opsets). Before deleting this, run test_ptq.py with a depthwise network
    # without it.
    advanced = nncf.AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False),
        **range_options(),
    )
    with nncf_errors():
        quantized: onnx.ModelProto = nncf.quantize(
            model,
            **nncf_options(calibration.images, operators, "Mul", exact_nodes(model)),
            advanced_parameters=advanced,
        )
    return quantized
