"""Targets: classes of devices that a bundle can be exported for.

A device with limits of its own is a target of its own, such as `jetson-orin-nano`.
"""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dermedge_runtime.registry import list_entries, lookup


@dataclass(frozen=True)
class Target:
    """A class of devices, and the properties of a bundle for it.

    Example:
        >>> from dermedge_export import find_target
        >>> find_target("jetson").precisions
        ('fp16', 'int8+fp16')

    Attributes:
        name: Name of the target, as `--target` takes it.
        format: Format of the artifact.
        precisions: Precisions of the target, the default first.
        engine: Name of the engine on the device.
        requires: Packages and versions that the device must have.
        opset: ONNX operator set of the graph.
        checked: Where the artifact's numbers are measured, for people.
        family: Target that this one is a variant of; empty if it is none.
        host: Engine that runs the artifact on the exporting machine; None if only a
            simulation can.
        native: The exporting machine is such a device. Its measurements count for the
            device, and candidates are compared by their latency.
        todo: Step that is left to do on the device, with `{bundle}` for the bundle's
            name.
        gate: Tighter limits by metric; they cannot loosen the gate's own.
        facts: Properties of the device that exporters read, such as the lowest iOS.
    """

    name: str
    format: str
    precisions: tuple[str, ...]
    engine: str
    requires: tuple[str, ...]
    opset: int
    checked: str
    family: str = ""
    host: str | None = "onnxruntime"
    native: bool = False
    todo: str = ""
    gate: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


ISA = Literal["vnni", "x86", "arm"]


def _variant(base: Target, suffix: str, **changes: Any) -> Target:
    """Return a variant of a target, in the target's family."""
    return replace(base, name=f"{base.name}-{suffix}", family=base.name, **changes)


CPU = Target(
    name="cpu",
    format="onnx",
    precisions=("fp32", "int8", "bf16"),
    engine="onnxruntime or openvino or litert",
    requires=("onnxruntime>=1.17",),
    opset=18,
    checked="on the exporting machine",
    native=True,
)

JETSON = Target(
    name="jetson",
    format="tensorrt",
    precisions=("fp16", "int8+fp16"),
    engine="tensorrt",
    requires=("tensorrt>=10,<12",),
    opset=19,
    checked="ONNX here by onnxruntime, engine on the Jetson",
    todo="on the Jetson: dermedge build {bundle} --data DIR",
    facts={"sm": (87, 110), "int8": True, "fp8": False},
)
ORIN = replace(
    JETSON,
    requires=("tensorrt>=10.3,<11", "JetPack>=6.1,<7"),
    facts={"sm": (87,), "int8": True, "fp8": False, "jetpack": "6.1 to 6.2", "tensorrt": "10.3"},
)
JETSON_ORIN_NANO = _variant(ORIN, "orin-nano")
JETSON_ORIN_NX = _variant(ORIN, "orin-nx")
JETSON_AGX_ORIN = _variant(
    ORIN,
    "agx-orin",
    requires=("tensorrt>=10.3,<12", "JetPack>=6.1"),
    facts={**ORIN.facts, "jetpack": "6.1 to 7.2", "tensorrt": "10.3, or 11.4 on JetPack 7.2.2"},
)
JETSON_THOR = _variant(
    ORIN,
    "thor",
    requires=("tensorrt>=10.13,<12", "JetPack>=7.0"),
    facts={
        "sm": (110,),
        "int8": True,
        "fp8": True,
        "jetpack": "7.0 to 7.2",
        "tensorrt": "10.13, or 11.4",
    },
)

IOS = Target(
    name="ios",
    format="coreml",
    precisions=("fp16", "w8", "palettized", "w8a8"),
    engine="coreml",
    requires=("iOS>=17",),
    opset=18,
    checked="torch simulation here, Core ML on a Mac or phone",
    host=None,
    todo="on a Mac: dermedge verify {bundle}",
    facts={"deployment": "iOS17", "w8a8": True},
)
IOS_16 = _variant(
    IOS,
    "16",
    precisions=("fp16", "w8", "palettized"),
    requires=("iOS>=16",),
    facts={"deployment": "iOS16", "w8a8": False},
)
IOS_18 = _variant(
    IOS,
    "18",
    requires=("iOS>=18",),
    facts={"deployment": "iOS18", "w8a8": True},
)

ANDROID = Target(
    name="android",
    format="litert",
    precisions=("int8", "fp16", "w8", "fp32"),
    engine="litert",
    requires=("litert>=1.0",),
    opset=18,
    checked="here by LiteRT",
    host="litert",
    todo="in the app: dermedge embed {bundle} --platform android -o DIR, then model.verify()",
    facts={"abi": "arm64-v8a", "provider": "XNNPACK", "isa": "arm"},
)
ANDROID_ONNX = _variant(
    ANDROID,
    "onnx",
    format="onnx",
    precisions=("int8", "fp32"),
    engine="onnxruntime-android",
    requires=("onnxruntime>=1.17",),
    checked="ONNX here by onnxruntime",
    host="onnxruntime",
)
ANDROID_NNAPI = replace(
    ANDROID_ONNX,
    name="android-nnapi",
    facts={"abi": "arm64-v8a", "provider": "NNAPI", "isa": "arm"},
)
ANDROID_QNN = replace(
    ANDROID_ONNX,
    name="android-qnn",
    facts={"abi": "arm64-v8a", "provider": "QNN", "isa": "arm"},
)
ANDROID_X86 = replace(
    ANDROID_ONNX,
    name="android-x86_64",
    facts={"abi": "x86_64", "provider": "CPU", "isa": "x86"},
)

WEB = Target(
    name="web",
    format="litert",
    precisions=("int8", "fp16", "w8", "fp32"),
    engine="LiteRT.js",
    requires=("litert>=1.0",),
    opset=18,
    checked="here by LiteRT",
    host="litert",
    todo="in the browser: dermedge serve {bundle}, then run the self-test",
    facts={"provider": "wasm", "isa": "x86"},
)
WEB_WEBGPU = _variant(
    WEB,
    "webgpu",
    precisions=("fp32", "fp16"),
    todo="in the browser: load {bundle} with accelerator webgpu, then model.verify()",
    facts={"provider": "webgpu", "isa": "x86"},
)
WEB_ONNX = _variant(
    WEB,
    "onnx",
    format="onnx",
    precisions=("int8", "fp32"),
    engine="onnxruntime-web",
    requires=("onnxruntime>=1.17",),
    checked="ONNX here by onnxruntime",
    host="onnxruntime",
)

TARGETS: dict[str, str] = {
    "cpu": "dermedge_export.target:CPU",
    "jetson": "dermedge_export.target:JETSON",
    "jetson-orin-nano": "dermedge_export.target:JETSON_ORIN_NANO",
    "jetson-orin-nx": "dermedge_export.target:JETSON_ORIN_NX",
    "jetson-agx-orin": "dermedge_export.target:JETSON_AGX_ORIN",
    "jetson-thor": "dermedge_export.target:JETSON_THOR",
    "ios": "dermedge_export.target:IOS",
    "ios-16": "dermedge_export.target:IOS_16",
    "ios-18": "dermedge_export.target:IOS_18",
    "android": "dermedge_export.target:ANDROID",
    "android-onnx": "dermedge_export.target:ANDROID_ONNX",
    "android-nnapi": "dermedge_export.target:ANDROID_NNAPI",
    "android-qnn": "dermedge_export.target:ANDROID_QNN",
    "android-x86_64": "dermedge_export.target:ANDROID_X86",
    "web": "dermedge_export.target:WEB",
    "web-webgpu": "dermedge_export.target:WEB_WEBGPU",
    "web-onnx": "dermedge_export.target:WEB_ONNX",
}
GROUP = "dermedge.targets"


def find_target(name: str) -> Target:
    """Return the target of a name, built in or installed.

    Args:
        name: Name of a target.

    Raises:
        UsageError: No target has this name; the message names the closest one.

    Example:
        >>> from dermedge_export import find_target
        >>> find_target("cpu").native
        True
    """
    target: Target = lookup("target", name, TARGETS, GROUP)
    return target


def all_targets() -> list[Target]:
    """Return all targets, each family followed by its variants."""
    return [find_target(name) for name in list_entries(TARGETS, GROUP)]


def families() -> list[str]:
    """Return the names of the targets that are not variants of another one."""
    return [target.name for target in all_targets() if not target.family]


def instruction_set(target: Target, flags: Iterable[str]) -> ISA:
    """Return the instruction set that computes int8 on a target.

    int8 weights and activations are chosen for it: `vnni` and `x86` multiply unsigned
    by signed bytes, `arm` multiplies signed bytes.

    Args:
        target: The target. If it does not state an instruction set, this machine's
            counts.
        flags: Flags of this machine's CPU.
    """
    if "isa" in target.facts:
        return "arm" if target.facts["isa"] == "arm" else "x86"
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    return "vnni" if {"avx512_vnni", "avx_vnni"} & set(flags) else "x86"
