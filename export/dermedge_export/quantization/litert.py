"""Quantize LiteRT models with litert-quantizer, by quantization recipes.

A quantization recipe is a list of entries, of which the last one that fits an operator
counts. An entry has a `regex` for the names of the operator's outputs, the `operation`
(`*` is every one that can be quantized), an `algorithm_key`, and an `op_config`. See
litert-quantizer's `recipe.py` and `qtyping.py`.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.litert import import_litert, seal_litert
from dermedge_export.graph.read_litert import Operator, read_litert
from dermedge_export.toolchain import silence
from dermedge_runtime.errors import DermedgeError, first_line
from dermedge_runtime.hardware import usable_cores
from dermedge_runtime.litert import hide_first_message
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Spec

Entry: TypeAlias = Mapping[str, Any]
Recipe: TypeAlias = Sequence[Entry]
Ranges: TypeAlias = Mapping[str, Any]
"""Smallest and largest value of each tensor by its name, as litert-quantizer has them."""
Update = Literal["minmax", "average"]

# Algorithms of litert-quantizer for weights. Its others, MSE and OCTAV, cut the ranges of
# weights. At 8 bits that increased the difference from fp32 on each network tried, and
# XNNPACK left some of the layers to slow kernels.
MIN_MAX, CAST = "min_max_uniform_quantize", "float_casting"
EVERY = ".*"
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED")
# Operators that XNNPACK computes in int8. The others, such as those of norms and of
# attention, would lose accuracy, or run in slow reference kernels.
INTEGER = (
    *WEIGHTED,
    "ADD",
    "AVERAGE_POOL_2D",
    "CONCATENATION",
    "LOGISTIC",
    "MAX_POOL_2D",
    "MEAN",
    "MUL",
    "PAD",
    "RESHAPE",
    "RESIZE_BILINEAR",
    "SLICE",
    "SPLIT",
    "STRIDED_SLICE",
    "SUB",
    "TANH",
    "TRANSPOSE",
)


def int8_operators(model: bytes) -> list[Operator]:
    """Return the operators of an fp32 LiteRT model that int8 artifacts quantize.

    They lie between the first and the last layers with weights. The normalization of
    pixels, the heads and the operators behind heads stay in float32: they take little
    time, and rounding them costs most.

    Args:
        model: The fp32 LiteRT model.
    """
    operators = read_litert(model)
    behind: set[str] = set()  # tensors that depend on a layer with weights
    for one in operators:
        if one.kind in WEIGHTED or behind.intersection(one.inputs):
            behind.update(one.outputs)
    before: set[str] = set()  # tensors that a layer with weights depends on
    for one in reversed(operators):
        if one.kind in WEIGHTED or before.intersection(one.outputs):
            before.update(one.inputs)
    return [
        one
        for one in operators
        if one.kind in INTEGER
        and behind.intersection(one.outputs)
        and before.intersection(one.outputs)
    ]


def int8_recipe(model: bytes, *, kept: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return a recipe for int8 weights and activations of `int8_operators`.

    Args:
        model: The fp32 LiteRT model.
        kept: Names of operators that stay in fp32.
    """
    recipe = [_static(_exactly(one)) for one in int8_operators(model) if one.name not in kept]
    # Without these, inputs and outputs that such an operator reads or writes become
    # int8.
    return recipe + [
        {"regex": EVERY, "operation": name, "algorithm_key": "no_quantize"}
        for name in ("INPUT", "OUTPUT")
    ]


def weights_recipe(bits: Literal[8, 16]) -> list[dict[str, Any]]:
    """Return a recipe for weights of int8 or fp16 and activations of float32.

    Args:
        bits: 8 for int8, 16 for fp16.
    """
    kind = {8: ("INT", MIN_MAX), 16: ("FLOAT", CAST)}[bits]
    return [
        {
            "regex": EVERY,
            "operation": operation,
            "algorithm_key": kind[1],
            "op_config": {
                "weight_tensor_config": _tensor(bits, "CHANNELWISE", kind[0]),
                "compute_precision": "FLOAT",
                "explicit_dequantize": True,
            },
        }
        for operation in WEIGHTED
    ]


def calibrate_litert(
    model: bytes, recipe: Recipe, images: NDArray[np.uint8], update: Update = "minmax"
) -> Ranges:
    """Return the range of each tensor over calibration images.

    Args:
        model: The fp32 LiteRT model.
        recipe: Recipe that needs the ranges.
        images: Calibration images, uint8 [N, S, S, 3].
        update: `minmax` takes the smallest and the largest value of all images.
            `average` is litert-quantizer's own choice, a moving average over the
            images, which extreme values change less.

    Raises:
        MissingExtraError: litert-quantizer is not installed.
        DermedgeError: litert-quantizer fails on this model.
    """
    calibrator = import_litert("litert_quantizer.calibrator")
    statistics = import_litert("litert_quantizer.utils.qsv_utils")
    recipes = import_litert("litert_quantizer.recipe_manager")
    functions = {
        "minmax": statistics.min_max_update,
        "average": statistics.moving_average_update,
    }
    samples = [{INPUT: image[None]} for image in images]
    with silence(), _errors("calibrate"):
        manager = recipes.RecipeManager()
        manager.load_quantization_recipe([dict(entry) for entry in recipe])
        # This mode reads the ranges in C++; the default copies every tensor to Python.
        mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
        with hide_first_message():
            observer = calibrator.Calibrator(
                model, usable_cores(), mode=mode, qsv_update_func=functions[update]
            )
        observer.calibrate({None: samples}, manager)
        ranges: Ranges = observer.get_model_qsvs()
    return ranges


def quantize_litert(
    model: bytes, spec: Spec, recipe: Recipe, ranges: Ranges | None = None
) -> bytes:
    """Return a LiteRT model that a recipe quantized, sealed again.

    Args:
        model: The fp32 LiteRT model.
        spec: The model's contract.
        recipe: The recipe.
        ranges: Ranges of tensors, which a recipe with integer activations needs.

    Raises:
        MissingExtraError: litert-quantizer is not installed.
        DermedgeError: litert-quantizer fails on this model, or quantizes nothing.
    """
    quantizer = import_litert("litert_quantizer.quantizer")
    with silence(), _errors("quantize"):
        engine = quantizer.Quantizer(bytearray(model), [dict(entry) for entry in recipe])
        quantized = engine.quantize(
            ranges, enable_progress_bar=False, enable_progress_report=False
        ).quantized_model
    sealed = seal_litert(bytes(quantized), spec)
    if not {"QUANTIZE", "DEQUANTIZE"} & {one.kind for one in read_litert(sealed)}:
        raise DermedgeError(
            f"litert-quantizer quantized no layer of {spec.name!r}. Export it in fp32."
        )
    return sealed


def _exactly(operator: Operator) -> str:
    """Return a regular expression that selects one operator of a model."""
    # litert-quantizer searches in the names of an operator's outputs, each of which it
    # ends with a semicolon. Names hold semicolons themselves, and one may begin with
    # another, hence the end of the line.
    return "^" + "".join(f"{re.escape(name)};" for name in operator.outputs) + "$"


def _static(regex: str) -> dict[str, Any]:
    """Return the entry for int8 weights and activations of the operators that fit."""
    return {
        "regex": regex,
        "operation": "*",
        "algorithm_key": MIN_MAX,
        "op_config": {
            # LiteRT's kernels take symmetric weights only.
            "activation_tensor_config": {**_tensor(8, "TENSORWISE", "INT"), "symmetric": False},
            "weight_tensor_config": _tensor(8, "CHANNELWISE", "INT"),
            "compute_precision": "INTEGER",
            "explicit_dequantize": False,
        },
    }


def _tensor(bits: int, granularity: str, kind: str) -> dict[str, Any]:
    return {"num_bits": bits, "symmetric": True, "granularity": granularity, "dtype": kind}


@contextmanager
def _errors(step: str) -> Iterator[None]:
    """Replace the errors of litert-quantizer by one that says what to do."""
    try:
        yield
    except DermedgeError:
        raise
    except Exception as error:
        raise DermedgeError(
            f"litert-quantizer cannot {step} this model ({first_line(error)}). "
            "Export it in fp32, or with --engine onnxruntime."
        ) from error
