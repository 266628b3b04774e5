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
    from dermedge_runtime.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "dermedge_export.build": ("DeviceReport", "LabelledImages", "build_engine"),
            "dermedge_export.calibration": ("Calibration",),
            "dermedge_export.candidate": ("Candidate", "list_candidates", "select_candidates"),
            "dermedge_export.context": (
                "BuiltArtifact",
                "ExportContext",
                "Exportable",
                "Exporter",
                "Retrain",
                "Simulation",
            ),
            "dermedge_export.debug": ("DebugReport", "NodeDrift", "debug_parity"),
            "dermedge_export.export": ("ExportSession",),
            "dermedge_export.exporters.registry": ("EXPORTERS", "find_exporter"),
            "dermedge_export.options": ("ExportOptions",),
            "dermedge_export.parity.evaluator": ("EvaluationData", "ParityEvaluator"),
            "dermedge_export.target": ("TARGETS", "Target", "all_targets", "find_target"),
        },
    )


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
