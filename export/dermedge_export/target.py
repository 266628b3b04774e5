"""Targets: what a bundle is made for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dermedge_runtime.registry import lookup


@dataclass(frozen=True)
class Target:
    """A class of devices and what a bundle for it looks like.

    `precisions` are those that can be asked for, the default first. `gate` tightens the limits of DESIGN's table, by
    metric; it cannot loosen them. `requires` is what the device must have, `checked` where the artifact's numbers are
    measured.
    """

    name: str
    format: str
    precisions: tuple[str, ...]
    engine: str
    requires: tuple[str, ...]
    opset: int
    checked: str
    gate: Mapping[str, float] = field(default_factory=dict)


CPU = Target(
    name="cpu",
    format="onnx",
    precisions=("fp32",),
    engine="onnxruntime",
    requires=("onnxruntime>=1.17",),
    opset=18,
    checked="on the exporting machine",
)

TARGETS: dict[str, str] = {"cpu": "dermedge_export.target:CPU"}
GROUP = "dermedge.targets"


def find_target(name: str) -> Target:
    """The target of that name, built in or installed.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    target: Target = lookup("target", name, TARGETS, GROUP)
    return target
