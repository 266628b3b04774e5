"""Targets: what a bundle is made for. A device of its own is a target of its own, such as `jetson-orin-nano`."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from dermedge_runtime.registry import list_entries, lookup


@dataclass(frozen=True)
class Target:
    """A class of devices and what a bundle for it looks like.

    `precisions` are those that can be asked for, the default first. `host` is the engine that runs the artifact on the
    exporting machine, None where only a simulation can. `native` says that the exporting machine is such a device, so
    that what is measured there counts for the device and candidates are ranked by their speed; elsewhere the first
    candidate that passes wins. `gate` tightens the limits of DESIGN's table, by metric; it cannot loosen them.
    `requires` is what the device must have, `checked` where the artifact's numbers are measured, `todo` what remains
    to be typed on the device, with `{bundle}` in it. `facts` is what exporters need to know of the device: the lowest
    iOS, what its TensorRT can do.
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

CPU = Target(
    name="cpu",
    format="onnx",
    precisions=("fp32", "int8", "bf16"),
    engine="onnxruntime or openvino",
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
    family="jetson",
    requires=("tensorrt>=10.3,<11", "JetPack>=6.1,<7"),
    facts={"sm": (87,), "int8": True, "fp8": False, "jetpack": "6.1 to 6.2", "tensorrt": "10.3"},
)
JETSON_ORIN_NANO = replace(ORIN, name="jetson-orin-nano")
JETSON_ORIN_NX = replace(ORIN, name="jetson-orin-nx")
JETSON_AGX_ORIN = replace(
    ORIN,
    name="jetson-agx-orin",
    requires=("tensorrt>=10.3,<12", "JetPack>=6.1"),
    facts={**ORIN.facts, "jetpack": "6.1 to 7.2", "tensorrt": "10.3, or 11.4 on JetPack 7.2.2"},
)
JETSON_THOR = replace(
    ORIN,
    name="jetson-thor",
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
IOS_16 = replace(
    IOS,
    name="ios-16",
    family="ios",
    precisions=("fp16", "w8", "palettized"),
    requires=("iOS>=16",),
    facts={"deployment": "iOS16", "w8a8": False},
)
IOS_18 = replace(
    IOS,
    name="ios-18",
    family="ios",
    requires=("iOS>=18",),
    facts={"deployment": "iOS18", "w8a8": True},
)

ANDROID = Target(
    name="android",
    format="onnx",
    precisions=("int8", "fp32"),
    engine="onnxruntime-android",
    requires=("onnxruntime-android>=1.17",),
    opset=18,
    checked="ONNX here by onnxruntime",
    todo="on the phone: the golden cases, through onnxruntime-android",
    facts={"abi": "arm64-v8a", "provider": "XNNPACK", "isa": "arm"},
)
ANDROID_NNAPI = replace(
    ANDROID,
    name="android-nnapi",
    family="android",
    facts={"abi": "arm64-v8a", "provider": "NNAPI", "isa": "arm"},
)
ANDROID_QNN = replace(
    ANDROID,
    name="android-qnn",
    family="android",
    facts={"abi": "arm64-v8a", "provider": "QNN", "isa": "arm"},
)
ANDROID_X86 = replace(
    ANDROID,
    name="android-x86_64",
    family="android",
    facts={"abi": "x86_64", "provider": "CPU", "isa": "x86"},
)

WEB = Target(
    name="web",
    format="onnx",
    precisions=("int8", "fp32"),
    engine="onnxruntime-web",
    requires=("onnxruntime-web>=1.17",),
    opset=18,
    checked="ONNX here by onnxruntime",
    todo="in the browser: the golden cases, through onnxruntime-web",
    facts={"provider": "wasm", "isa": "x86"},
)
WEB_WEBGPU = replace(
    WEB,
    name="web-webgpu",
    family="web",
    precisions=("fp32",),
    facts={"provider": "webgpu", "isa": "x86"},
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
    "android-nnapi": "dermedge_export.target:ANDROID_NNAPI",
    "android-qnn": "dermedge_export.target:ANDROID_QNN",
    "android-x86_64": "dermedge_export.target:ANDROID_X86",
    "web": "dermedge_export.target:WEB",
    "web-webgpu": "dermedge_export.target:WEB_WEBGPU",
}
GROUP = "dermedge.targets"


def find_target(name: str) -> Target:
    """The target of that name, built in or installed.

    Raises:
        UsageError: there is none; the message names the nearest.
    """
    target: Target = lookup("target", name, TARGETS, GROUP)
    return target


def all_targets() -> list[Target]:
    """Every target that is known, the variants of a family behind it."""
    return [find_target(name) for name in list_entries(TARGETS, GROUP)]


def families() -> list[str]:
    """What `--target all` stands for: every target that is not a variant of another."""
    return [target.name for target in all_targets() if not target.family]


def instruction_set(target: Target, flags: Iterable[str]) -> ISA:
    """What decides how int8 is computed: the target's own, or for a native one this machine's (`flags` of its CPU)."""
    if "isa" in target.facts:
        return "arm" if target.facts["isa"] == "arm" else "x86"
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    return "vnni" if {"avx512_vnni", "avx_vnni"} & set(flags) else "x86"
