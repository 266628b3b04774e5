"""Compress converted Core ML models with `coremltools.optimize.coreml`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from dermedge_export.candidate import Candidate
from dermedge_export.exporters.coreml.package import read_files
from dermedge_export.exporters.coreml.ranges import Ranges
from dermedge_export.exporters.coreml.simulation import read_program

if TYPE_CHECKING:
    from coremltools.models import MLModel

# Tensors with fewer weights stay fp16. They are a small part of the file, and
# coremltools clusters them from a random start instead of exactly.
LEAST_PALETTIZED = 10_000

# Factors of products: the head of an `ood` task has its axes there, and norms and gates
# their few scales.
UNCOMPRESSED = {"mul": None}

Compress: TypeAlias = "Callable[[MLModel, Candidate, Ranges], MLModel]"


def _leave_fp16(model: "MLModel", candidate: Candidate, ranges: Ranges) -> "MLModel":
    """Return the model as it is."""
    return model


def _quantize_weights(model: "MLModel", candidate: Candidate, ranges: Ranges) -> "MLModel":
    """Quantize weights to int8, symmetric, with a scale per output channel."""
    from coremltools.optimize.coreml import (
        OpLinearQuantizerConfig,
        OptimizationConfig,
        linear_quantize_weights,
    )

    config = OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel"
    )
    return linear_quantize_weights(model, OptimizationConfig(config, op_type_configs=UNCOMPRESSED))


def _palettize(model: "MLModel", candidate: Candidate, ranges: Ranges) -> "MLModel":
    """Store weights as indices into a table of 2^bits values per tensor.

    The table comes from exact one-dimensional k-means.
    """
    from coremltools.optimize.coreml import (
        OpPalettizerConfig,
        OptimizationConfig,
        palettize_weights,
    )

    config = OpPalettizerConfig(
        mode="kmeans", nbits=candidate.options["bits"], weight_threshold=LEAST_PALETTIZED
    )
    return palettize_weights(model, OptimizationConfig(config, op_type_configs=UNCOMPRESSED))


def _quantize_all(model: "MLModel", candidate: Candidate, ranges: Ranges) -> "MLModel":
    """Quantize weights, and activations around operators that compute in int8.

    These are convolutions, matrix products, additions and pooling, as far as they compute
    in fp16. Those in fp32 are the heads that stay exact, and operators that leave fp16.
    """
    # `coremltools.optimize.coreml.linear_quantize_activations` measures the ranges with
    # Core ML, which runs on macOS only (apple/coremltools 9.0). The passes behind it
    # accept ranges from anywhere, so they run here with the simulation's. Delete this
    # once that function accepts ranges, or a predictor, as an argument.
    from coremltools.converters.mil.mil.passes.graph_pass import PassOption
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
    from coremltools.models.utils import _apply_graph_pass
    from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig

    steps = read_program(read_files(model)).steps
    config = OptimizationConfig(
        global_config=OpLinearQuantizerConfig(mode="linear_symmetric"),
        op_name_configs={step.name: None for step in steps if not any(step.half)},
    )
    stats = {name: {"rmin": value.low, "rmax": value.high} for name, value in ranges.values.items()}
    passes = [
        PASS_REGISTRY[f"compression::insert_{side}_quantize_dequantize_pair"]
        for side in ("prefix", "suffix")
    ]
    for each in passes:
        each.set_options([PassOption("config", config), PassOption("activation_stats", stats)])
    passes.append(PASS_REGISTRY["common::dequantize_quantize_pair_elimination"])
    quantized = _apply_graph_pass(model, passes, spec_version=model.get_spec().specificationVersion)
    return _quantize_weights(quantized, candidate, ranges)


COMPRESS: Mapping[str, Compress] = {
    "fp16": _leave_fp16,
    "w8": _quantize_weights,
    "palettized": _palettize,
    "w8a8": _quantize_all,
}
