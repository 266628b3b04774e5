"""Report what this machine can do, and which extras are missing."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import GROUP, RUNTIMES
from dermedge_runtime.registry import list_entries

# What each extra brings, by distribution name.
EXTRAS = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "coreml": ("coremltools",),
    "evaluate": ("pandas", "scikit-learn", "scipy"),
    "data": ("imagehash", "pyarrow"),
    "report": ("jinja2",),
    "export": ("torch", "timm", "onnx", "onnxscript", "safetensors"),
    "quantize": ("nncf",),
    "train": ("lightning-fabric", "albumentations", "torch-pruning"),
}
ENABLES = {
    "onnxruntime": "predict, verify, bench",
    "openvino": "the same, and export for cpu",
    "tensorrt": "build and run on a Jetson",
    "coreml": "export for ios, verify on a Mac",
    "evaluate": "evaluate",
    "data": "data check",
    "report": "report.html",
    "export": "export",
    "quantize": "export --precision auto",
    "train": "finetune, distill, run, demo",
}


@dataclass(frozen=True)
class ExtraState:
    """An extra: whether all it brings is installed, and what is missing."""

    name: str
    enables: str
    status: str
    versions: dict[str, str]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class DoctorReport:
    """This machine, the engines it knows, and the extras of dermedge."""

    dermedge: str
    device: dict[str, str]
    engines: tuple[str, ...]
    extras: tuple[ExtraState, ...]


def doctor() -> DoctorReport:
    """Look at this machine without importing a single engine."""
    states = []
    for extra, packages in EXTRAS.items():
        versions = {name: found for name in packages if (found := _version(name))}
        missing = tuple(name for name in packages if name not in versions)
        states.append(
            ExtraState(extra, ENABLES[extra], "missing" if missing else "ok", versions, missing)
        )
    return DoctorReport(
        version("dermedge"),
        dict(describe_device()),
        tuple(sorted(list_entries(RUNTIMES, GROUP))),
        tuple(states),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
