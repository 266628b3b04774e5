"""`targets`: report the targets that this machine can build, run and check."""

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
    "litert": ("torch", "timm", "litert_torch", "litert_quantizer"),
    "coreml": ("torch", "timm", "coremltools"),
}
# Further modules that a quantization method imports. `qat` has quantizers of its own,
# so only its training loop needs another package.
METHODS: Mapping[str, tuple[str, ...]] = {
    "nncf": ("nncf",),
    "accuracy-control": ("nncf",),
    "qat": ("lightning_fabric",),
}
# Engine by format, module by engine, and `sys.platform` by engine; each lists only the
# exceptions.
ENGINES = {"onnx": "onnxruntime"}
MODULES = {"coreml": "coremltools", "litert": "ai_edge_litert"}
SYSTEMS = {"coreml": "darwin"}
SIMULATED = "torch simulation"


@dataclass(frozen=True)
class TargetState:
    """A target, and the abilities of this machine for it.

    Attributes:
        target: The target.
        build: Missing modules by precision. Empty means that the precision can be built
            here, None that no exporter makes it for this CPU.
        run: Engines of the target's devices that are installed here.
        check: Engine or simulation that computes the artifact here, or None.

    Example:
        >>> cpu = targets()[0]
        >>> cpu.target.name, cpu.build["fp32"], "onnxruntime" in cpu.run
        ('cpu', (), True)
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
    # Some candidates need instructions that not every CPU has, such as those for
    # bf16.
    flags = describe_device()["flags"].split()
    return [_describe_target(target, list_candidates(target, flags)) for target in all_targets()]


def _describe_target(target: Target, candidates: list[Candidate]) -> TargetState:
    build: dict[str, tuple[str, ...] | None] = {}
    for precision in target.precisions:
        missing = [_find_missing(each) for each in candidates if each.precision == precision]
        # Any of the candidates is enough, so the one with the fewest gaps counts.
        build[precision] = min(missing, key=len, default=None)
    run = tuple(engine for engine in _own_engines(target, candidates) if _runs_here(engine))
    # The engine of the device checks best, then the target's host engine. A target
    # without a host engine is simulated.
    simulated = SIMULATED if _is_installed("torch") else None
    host = target.host if target.host is not None and _runs_here(target.host) else None
    check = simulated if target.host is None else host
    return TargetState(target, build, run, " or ".join(run) or check)


def _own_engines(target: Target, candidates: list[Candidate]) -> list[str]:
    """Return the engines through which dermedge runs the artifacts on a device."""
    formats = [each.format for each in candidates] if target.native else [target.format]
    engines = dict.fromkeys(ENGINES.get(name, name) for name in formats)
    return [engine for engine in engines if engine in target.engine.split()]


def _runs_here(engine: str) -> bool:
    right_system = SYSTEMS.get(engine, sys.platform) == sys.platform
    return right_system and _is_installed(MODULES.get(engine, engine))


def _find_missing(candidate: Candidate) -> tuple[str, ...]:
    needed = (*FORMATS.get(candidate.format, ()), *METHODS.get(candidate.method, ()))
    return tuple(name for name in needed if not _is_installed(name))


def _is_installed(module: str) -> bool:
    return find_spec(module) is not None
