"""Measure the ranges of a Core ML program's values.

A value that leaves fp16 stays fp32, and a value that is quantized needs a scale.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from dermedge_export.exporters.coreml.simulation import Arguments, Program, Step, pixels
from dermedge_export.graph.fp16 import LARGEST
from dermedge_runtime.signature import INPUT

if TYPE_CHECKING:
    import torch

MARGIN = 2.0  # values of other images may be larger than those of the measured images
UNSELECTABLE = ("cast",)  # its precision follows from its neighbours


@dataclass
class Range:
    """The least and the greatest number of a value over all images.

    Example:
        >>> import torch
        >>> seen = Range()
        >>> seen.widen(torch.tensor([-2.0, 1.0]))
        >>> seen.widen(torch.tensor([0.0, 1.5]))
        >>> seen.low, seen.high, seen.reach
        (-2.0, 1.5, 2.0)
    """

    low: float = math.inf
    high: float = -math.inf

    def widen(self, value: "torch.Tensor") -> None:
        """Include the numbers of a tensor; NaN counts as infinite."""
        low, high = (float(bound) for bound in value.aminmax())
        nan = math.isnan(low) or math.isnan(high)
        self.low, self.high = (
            min(self.low, -math.inf if nan else low),
            max(self.high, math.inf if nan else high),
        )

    @property
    def reach(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)


@dataclass(frozen=True)
class Ranges:
    """The range of each value by name, and the largest inner result by operator.

    A norm squares its centred input, and a mean is a sum first. Both may overflow where
    input and output do not.

    Example:
        >>> values = {"sum": Range(-3.0, 70_000.0), "mean": Range(-1.0, 2.0)}
        >>> ranges = Ranges(values, inner={})
        >>> [name for name, value in ranges.values.items() if value.reach > LARGEST]
        ['sum']
    """

    values: Mapping[str, Range]
    inner: Mapping[str, float]


def measure_ranges(program: Program, images: NDArray[np.uint8]) -> Ranges:
    """Measure the ranges of a program's values.

    Args:
        program: The program; it runs in fp32, so that an overflow shows as a number.
        images: uint8 [N, S, S, 3].
    """
    import torch

    values: defaultdict[str, Range] = defaultdict(Range)
    inner: defaultdict[str, float] = defaultdict(float)

    def note(step: Step, arguments: Arguments, results: "tuple[torch.Tensor, ...]") -> None:
        inner[step.name] = max(inner[step.name], _inner_peak(step, arguments, results[0]))
        for name, value in zip(step.outputs, results, strict=True):
            values[name].widen(value)

    with torch.inference_mode():
        for image in pixels(images):
            values[INPUT].widen(image)
            program.run(image, rounded=False, observe=note)
    return Ranges(values, inner)


def overflowing(program: Program, ranges: Ranges) -> set[str]:
    """Return the operators and outputs whose numbers fp16 cannot hold.

    These are numbers that an operator reads, computes on the way, or returns. The names
    are those from before the conversion to fp16. Both kinds of names are returned,
    because some passes of coremltools rename the operator and some its output.
    """
    far = {name for name, value in ranges.values.items() if value.reach * MARGIN > LARGEST}
    return {
        original(name)
        for step in program.steps
        if step.kind not in UNSELECTABLE
        and any(step.half)
        and (
            far.intersection((*step.outputs, *step.inputs))
            or ranges.inner[step.name] * MARGIN > LARGEST
        )
        for name in (step.name, *step.outputs)
    }


def exact_steps(program: Program, outputs: Collection[str]) -> set[str]:
    """Return the operators in fp16 that only some outputs depend on.

    Args:
        program: The program.
        outputs: Names of outputs that stay in fp32.

    Returns:
        Names of operators and of their outputs, as `overflowing` returns them.
    """
    needed = {*program.outputs} - {*outputs}
    for step in reversed(program.steps):
        if needed.intersection(step.outputs):
            needed.update(step.inputs)
    return {
        original(name)
        for step in program.steps
        if step.kind not in UNSELECTABLE
        and any(step.half)
        and not needed.intersection(step.outputs)
        for name in (step.name, *step.outputs)
    }


def original(name: str) -> str:
    """Return the name of an operator or output from before the conversion to fp16."""
    return name.replace("_cast_fp16", "")


def _inner_peak(step: Step, arguments: Arguments, result: "torch.Tensor") -> float:
    """Return the largest magnitude between an operator's input and its result."""
    x = arguments.get("x")
    if x is None or isinstance(x, list):
        return 0.0
    if step.kind in ("layer_norm", "instance_norm"):
        axes = cast("list[int] | None", step.constants.get("axes")) or list(range(2, x.ndim))
        return float((x - x.mean(axes, keepdim=True)).square().max())
    if step.kind in ("l2_norm", "reduce_l2_norm"):
        return float(x.square().max())
    if step.kind == "reduce_mean":
        return float(result.abs().max()) * float(x.numel() / result.numel())
    return 0.0
