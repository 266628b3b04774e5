"""Report which targets this machine can build, run and check."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from dermedge_export.candidate import Candidate, list_candidates
from dermedge_export.target import Target, all_targets
from dermedge_runtime.hardware import describe_device

# Modules that the exporter of each format imports.
TRACING = ("torch", "timm", "onnx", "onnxscript")
FORMATS: Mapping[str, tuple[str, ...]] = {
    "onnx": (*TRACING, "onnxruntime"),
    "tensorrt": (*TRACING, "onnxruntime"),
    "openvino": (*TRACING, "openvino"),
    "coreml": ("torch", "timm", "coremltools"),
}
# Modules that a quantization method imports besides. The quantizers of `qat` are ours; only
# its training loop needs another package.
METHODS: Mapping[str, tuple[str, ...]] = {
    "nncf": ("nncf",),
    "accuracy-control": ("nncf",),
    "qat": ("lightning_fabric",),
}
# Engines that are named unlike the format, engines that are named unlike their module, and
# engines that exist on one operating system only.
ENGINES = {"onnx": "onnxruntime"}
MODULES = {"coreml": "coremltools"}
SYSTEMS = {"coreml": "darwin"}
SIMULATED = "torch simulation"


@dataclass(frozen=True)
class TargetState:
    """A target, and what this machine can do for it.

    Attributes:
        target: The target.
        build: Missing modules by precision: empty if the precision can be built here, None
            if no exporter makes it for this CPU.
        run: Engines of the target's devices that are installed here.
        check: Engine or simulation that measures the artifact here, or None.
    """

    target: Target
    build: Mapping[str, tuple[str, ...] | None]
    run: tuple[str, ...]
    check: str | None


def targets() -> list[TargetState]:
    """Return every target with its state on this machine, without importing an engine.

    Example:
        >>> [state.target.name for state in targets()][:2]
        ['cpu', 'jetson']
    """
    flags = describe_device()["flags"].split()
    return [_state(target, list_candidates(target, flags)) for target in all_targets()]


def _state(target: Target, candidates: list[Candidate]) -> TargetState:
    build: dict[str, tuple[str, ...] | None] = {}
    for precision in target.precisions:
        missing = [_missing(each) for each in candidates if each.precision == precision]
        build[precision] = min(missing, key=len, default=None)
    run = tuple(engine for engine in _own_engines(target, candidates) if _is_here(engine))
    simulated = SIMULATED if _installed("torch") else None
    host = target.host if target.host is not None and _is_here(target.host) else None
    check = simulated if target.host is None else host
    return TargetState(target, build, run, " or ".join(run) or check)


def _own_engines(target: Target, candidates: list[Candidate]) -> list[str]:
    """Return the engines of dermedge that a device of this target runs its artifacts with."""
    formats = [each.format for each in candidates] if target.native else [target.format]
    engines = dict.fromkeys(ENGINES.get(name, name) for name in formats)
    return [engine for engine in engines if engine in target.engine.split()]


def _is_here(engine: str) -> bool:
    right_system = SYSTEMS.get(engine, sys.platform) == sys.platform
    return right_system and _installed(MODULES.get(engine, engine))


def _missing(candidate: Candidate) -> tuple[str, ...]:
    needed = (*FORMATS.get(candidate.format, ()), *METHODS.get(candidate.method, ()))
    return tuple(name for name in needed if not _installed(name))


def _installed(module: str) -> bool:
    return find_spec(module) is not None
