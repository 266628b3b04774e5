"""Turn trained models into bundles for phones, Jetsons, browsers and CPUs.

The names below are imported on first use, and importing this package imports neither
torch nor onnx.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermedge_export.build import DeviceReport, LabelledImages, build_engine
    from dermedge_export.calibration import Calibration
    from dermedge_export.candidate import Candidate, list_candidates, select_candidates
    from dermedge_export.context import (
        BuiltArtifact,
        Exportable,
        ExportContext,
        Exporter,
        Retrain,
        Simulation,
    )
    from dermedge_export.debug import DebugReport, NodeDrift, debug_parity
    from dermedge_export.export import ExportSession
    from dermedge_export.exporters.registry import EXPORTERS, find_exporter
    from dermedge_export.options import ExportOptions
    from dermedge_export.parity.evaluator import EvaluationData, ParityEvaluator
    from dermedge_export.target import TARGETS, Target, all_targets, find_target
else:
    _HOMES = {
        "build": ("DeviceReport", "LabelledImages", "build_engine"),
        "calibration": ("Calibration",),
        "candidate": ("Candidate", "list_candidates", "select_candidates"),
        "context": (
            "BuiltArtifact",
            "ExportContext",
            "Exportable",
            "Exporter",
            "Retrain",
            "Simulation",
        ),
        "debug": ("DebugReport", "NodeDrift", "debug_parity"),
        "export": ("ExportSession",),
        "exporters.registry": ("EXPORTERS", "find_exporter"),
        "options": ("ExportOptions",),
        "parity.evaluator": ("EvaluationData", "ParityEvaluator"),
        "target": ("TARGETS", "Target", "all_targets", "find_target"),
    }

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                from importlib import import_module

                value = getattr(import_module(f"dermedge_export.{home}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'dermedge_export' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "EXPORTERS",
    "TARGETS",
    "BuiltArtifact",
    "Calibration",
    "Candidate",
    "DebugReport",
    "DeviceReport",
    "EvaluationData",
    "ExportContext",
    "ExportOptions",
    "ExportSession",
    "Exportable",
    "Exporter",
    "LabelledImages",
    "NodeDrift",
    "ParityEvaluator",
    "Retrain",
    "Simulation",
    "Target",
    "all_targets",
    "build_engine",
    "debug_parity",
    "find_exporter",
    "find_target",
    "list_candidates",
    "select_candidates",
]
