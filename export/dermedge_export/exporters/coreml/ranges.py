"""The ranges of a Core ML program's values: what leaves fp16 stays fp32, what is quantized needs a scale."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.exporters.coreml.simulation import Program, Step, pixels
from dermedge_runtime.signature import INPUT

LARGEST = 65504.0  # the largest number in fp16
MARGIN = 2.0  # other images reach further than those that were looked at
UNSELECTABLE = ("cast",)  # it follows from the precision of its neighbours


@dataclass
class Range:
    """Least and greatest of a value over all images."""

    low: float = math.inf
    high: float = -math.inf

    def widen(self, value: Any) -> None:
        """Take in what a tensor holds; NaN counts as infinite."""
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
    """The range of every value by name, and the largest magnitude that an operator passes through by its name.

    A norm squares its centred input and a mean is a sum first; both may overflow where input and output do not.
    """

    values: Mapping[str, Range]
    inner: Mapping[str, float]


def ranges(program: Program, images: NDArray[np.uint8]) -> Ranges:
    """Ranges over images uint8 [N, S, S, 3], computed in fp32 so that an overflow shows as a number."""
    import torch

    values: defaultdict[str, Range] = defaultdict(Range)
    inner: defaultdict[str, float] = defaultdict(float)

    def note(step: Step, taken: Mapping[str, Any], results: tuple[Any, ...]) -> None:
        inner[step.name] = max(inner[step.name], _inner(step, taken, results[0]))
        for name, value in zip(step.outputs, results, strict=True):
            values[name].widen(value)

    with torch.inference_mode():
        for image in pixels(images):
            values[INPUT].widen(image)
            program.run(image, rounded=False, observe=note)
    return Ranges(values, inner)


def overflowing(program: Program, found: Ranges) -> set[str]:
    """Names from before the conversion to fp16, of operators and of their outputs, where a number is taken, given or
    passed through which fp16 cannot hold with a margin. Some passes rename the one, some the other.
    """
    far = {name for name, value in found.values.items() if value.reach * MARGIN > LARGEST}
    return {
        original(name)
        for step in program.steps
        if step.kind not in UNSELECTABLE
        and any(step.half)
        and (
            far.intersection((*step.outputs, *step.inputs))
            or found.inner[step.name] * MARGIN > LARGEST
        )
        for name in (step.name, *step.outputs)
    }


def original(name: str) -> str:
    """An operator's or output's name before coremltools cast it to fp16."""
    return name.replace("_cast_fp16", "")


def _inner(step: Step, taken: Mapping[str, Any], result: Any) -> float:
    x: Any = taken.get("x")
    if step.kind in ("layer_norm", "instance_norm"):
        axes = step.constants.get("axes") or list(range(2, x.ndim))
        return float((x - x.mean(axes, keepdim=True)).square().max())
    if step.kind in ("l2_norm", "reduce_l2_norm"):
        return float(x.square().max())
    if step.kind == "reduce_mean":
        return float(result.abs().max()) * float(x.numel() / result.numel())
    return 0.0
