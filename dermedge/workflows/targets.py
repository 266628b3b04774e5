"""Report which targets this machine can build, run and check."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from dermedge_export.candidate import Candidate, list_candidates
from dermedge_export.target import Target, all_targets
from dermedge_runtime.hardware import describe_device

# What building takes, by the name that is imported, and the extra of dermedge that brings it.
PACKAGES = {
    "torch": "export",
    "timm": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "nncf": "quantize",
    "coremltools": "coreml",
}
TRACED = ("torch", "timm", "onnx", "onnxscript")
FORMATS = {
    "onnx": (*TRACED, "onnxruntime"),
    "tensorrt": (*TRACED, "onnxruntime"),
    "openvino": (*TRACED, "openvino"),
    "coreml": ("torch", "timm", "coremltools"),
}
METHODS = {"nncf": ("nncf",), "accuracy-control": ("nncf",), "qat": ("nncf",)}
# Engines and systems whose names differ from the format's and the package's, or that only one system has.
ENGINES = {"onnx": "onnxruntime"}
MODULES = {"coreml": "coremltools"}
SYSTEMS = {"coreml": "darwin"}
SIMULATED = "torch simulation"


@dataclass(frozen=True)
class TargetState:
    """A target, and what this machine can do for it.

    `build` maps each precision to the packages that it still needs, none where it can be built, None where this machine
    can never build it. `run` names the device's engines that are here, `check` who measures the artifact here, None
    where nobody can.
    """

    target: Target
    build: Mapping[str, tuple[str, ...] | None]
    run: tuple[str, ...]
    check: str | None


def targets() -> list[TargetState]:
    """Every target, and what this machine can do for it; looks for packages without importing any."""
    flags = describe_device()["flags"].split()
    return [_state(target, list_candidates(target, flags)) for target in all_targets()]


def _state(target: Target, known: list[Candidate]) -> TargetState:
    build: dict[str, tuple[str, ...] | None] = {}
    for precision in target.precisions:
        ways = [_missing(candidate) for candidate in known if candidate.precision == precision]
        build[precision] = min(ways, key=len, default=None)
    run = tuple(engine for engine in _own_engines(target, known) if _here(engine))
    simulated = SIMULATED if _installed("torch") else None
    check = simulated if target.host is None else target.host if _here(target.host) else None
    return TargetState(target, build, run, " or ".join(run) or check)


def _own_engines(target: Target, known: list[Candidate]) -> list[str]:
    """The engines that a device of this kind would run its artifacts with, as far as this package knows them."""
    formats = [candidate.format for candidate in known] if target.native else [target.format]
    engines = dict.fromkeys(ENGINES.get(name, name) for name in formats)
    return [engine for engine in engines if engine in target.engine.split()]


def _here(engine: str) -> bool:
    return (
        _installed(MODULES.get(engine, engine))
        and SYSTEMS.get(engine, sys.platform) == sys.platform
    )


def _missing(candidate: Candidate) -> tuple[str, ...]:
    needed = (*FORMATS.get(candidate.format, ()), *METHODS.get(candidate.method, ()))
    return tuple(name for name in needed if not _installed(name))


def _installed(package: str) -> bool:
    return find_spec(package) is not None
