"""`dermedge doctor`."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import click

from dermedge.cli.console import emit, json_option, pairs, table
from dermedge_runtime.bench import device
from dermedge_runtime.model import GROUP, RUNTIMES
from dermedge_runtime.registry import entries

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
        states.append(ExtraState(extra, ENABLES[extra], "missing" if missing else "ok", versions, missing))
    return DoctorReport(version("dermedge"), dict(device()), tuple(sorted(entries(RUNTIMES, GROUP))), tuple(states))


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what this machine can do with dermedge, and what to install for the rest."""
    emit(doctor(), as_json, show)


def show(report: DoctorReport) -> None:
    """Print the machine, then a line per extra with what to type."""
    pairs({"dermedge": report.dermedge, **report.device})
    rows = [
        (
            extra.name,
            extra.status,
            extra.enables,
            ", ".join(f"{name} {found}" for name, found in extra.versions.items()) or "-",
            f"pip install 'dermedge[{extra.name}]'" if extra.missing else "",
        )
        for extra in report.extras
    ]
    table(("extra", "status", "for", "installed", "to do"), rows)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
