"""List the student presets: backbones of 0.4 to 5 million parameters, without torch.

A preset has the name of its timm model. The suffix `-4` means that only the model's
first four stages are kept. Every option that takes the name of a backbone takes the
name of a preset too.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermedge.models.backbone import Backbone
from dermedge_export.target import Target
from dermedge_runtime.errors import UsageError

# tests/benchmarks/students.py writes the file: sizes, exports and latencies.
MEASURED = Path(__file__).with_name("student_presets.json")
NOT_RUN = "not_run"
# Exports for a target's variants differ in engine and precision, seldom in operators, so
# families of targets are measured.
EVERYWHERE = ("cpu", "jetson", "ios", "android", "web")


@dataclass(frozen=True)
class StudentPreset:
    """A backbone that suits students.

    Attributes:
        name: Name of the preset.
        architecture: timm name of the backbone.
        stages: Number of stages to keep. None keeps all.
        size: Side of the input in pixels: the default of `finetune` and `run`, at which
            multiply-accumulates and latencies are measured.

    Example:
        >>> STUDENT_PRESETS["tf_efficientnet_lite0-4"].stages
        4
    """

    name: str
    architecture: str
    stages: int | None = None
    size: int = 160

    @property
    def backbone(self) -> Backbone:
        """The backbone, with ImageNet's normalization."""
        return Backbone(self.architecture, stages=self.stages)

    @property
    def exports(self) -> Mapping[str, str]:
        """Result of the export by target: `ok`, `refused`, `failed` or `not_run`."""
        measured = read_measurements()["presets"].get(self.name, {}).get("exports", {})
        return {target: measured.get(target, {}).get("state", NOT_RUN) for target in EVERYWHERE}

    def exports_to(self, target: Target) -> bool:
        """Return False if a target is known to refuse the preset.

        Args:
            target: The target. A variant is judged by its family, and a target of a
                plug-in refuses no preset.
        """
        state = self.exports.get(target.family or target.name, NOT_RUN)
        return state in ("ok", NOT_RUN)


_WHOLE = (
    "tf_efficientnet_lite0",
    "mobilenetv4_conv_small",
    "mobilenetv2_050",
    "mobilenetv4_conv_small_050",
    "efficientvit_b0",
    "mobilenetv2_100",
    "mobilenetv2_035",
    "repvit_m0_9",
    "tf_efficientnet_lite1",
    "tf_efficientnet_lite2",
)
# The last stages of these hold most of the parameters.
_TRUNCATED = ("mobilenetv2_100", "tf_efficientnet_lite0")
STUDENT_PRESETS: Mapping[str, StudentPreset] = {
    preset.name: preset
    for preset in (
        *(StudentPreset(f"{name}-4", name, stages=4) for name in _TRUNCATED),
        *(StudentPreset(name, name) for name in _WHOLE),
    )
}
# docs/students.md gives the reasons and the measurements.
DEFAULTS: Mapping[str, str] = dict.fromkeys(EVERYWHERE, "tf_efficientnet_lite0")


@functools.cache
def read_measurements() -> Mapping[str, Any]:
    """Return the content of `student_presets.json`."""
    measured: Mapping[str, Any] = json.loads(MEASURED.read_text("utf-8"))
    return measured


def resolve_preset(name: str | None, stages: int | None) -> tuple[str | None, int | None]:
    """Return the timm name and the number of stages of a preset; others stay as they are.

    Args:
        name: timm name or preset, or None.
        stages: Number of stages to keep. None takes the preset's.

    Example:
        >>> resolve_preset("mobilenetv2_100-4", None)
        ('mobilenetv2_100', 4)
    """
    preset = STUDENT_PRESETS.get(name or "")
    if preset is None:
        return name, stages
    return preset.architecture, preset.stages if stages is None else stages


def default_student(target: Target) -> StudentPreset:
    """Return the preset that `run` distils for a target if no student is named.

    Args:
        target: The target. A variant has the default of its family, and a target of a
            plug-in that of `cpu`.

    Example:
        >>> from dermedge_export import find_target
        >>> default_student(find_target("android-onnx")).name
        'tf_efficientnet_lite0'
    """
    return STUDENT_PRESETS[DEFAULTS.get(target.family or target.name, DEFAULTS["cpu"])]


def check_exportable(name: str | None, target: Target) -> None:
    """Check that a target exports a preset. Other backbones are not checked.

    Args:
        name: Name of a backbone or a preset, or None.
        target: The target.

    Raises:
        UsageError: The target does not export the preset.
    """
    preset = STUDENT_PRESETS.get(name or "")
    if preset is not None and not preset.exports_to(target):
        known = [each for each, state in preset.exports.items() if state == "ok"]
        raise UsageError(
            f"The target {target.name!r} does not export the student preset {preset.name!r}. "
            f"Choose one of the targets {', '.join(known)}, or another preset: "
            f"`dermedge students --target {target.name}` lists them."
        )
