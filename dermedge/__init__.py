"""Export dermatology models to edge devices, with an accuracy gate.

Every verb of the command line is a function here: `dermedge export` is
`dermedge.export`. Its options are keywords, or fields of an options class. A name is
imported when it is first used, so `import dermedge` loads no torch and no engine.

Example:
    >>> import dermedge
    >>> with dermedge.load("toy.dermedge") as model:
    ...     prediction = model.predict("lesion.png")
    >>> prediction.labels[0].name
    'Basal cell carcinoma'
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermedge.captions.evaluate import CaptionEvaluation, evaluate_caption
    from dermedge.captions.options import CaptionOptions
    from dermedge.captions.predict import GeneratedCaption, predict_caption
    from dermedge.captions.table import caption_data
    from dermedge.captions.train import train_caption
    from dermedge.data.check import check_data
    from dermedge.data.draw import draw_data_set
    from dermedge.data.importing.add import add_data, list_data_sets
    from dermedge.data.split import split_data
    from dermedge.data.table import read_table
    from dermedge.federated.deployment import join_federated, serve_federated
    from dermedge.federated.options import FederatedOptions
    from dermedge.federated.partition import Partition
    from dermedge.federated.report import FederatedReport
    from dermedge.federated.simulate import simulate_federated
    from dermedge.models.import_teacher import ImportOptions, import_teacher
    from dermedge.models.model_folder import TrainedModel, load_model_folder
    from dermedge.probing.options import ProbeOptions
    from dermedge.probing.probe import probe
    from dermedge.readers.analyze import analyze_readers
    from dermedge.readers.kit import ReaderKit, write_reader_kit
    from dermedge.readers.plan import PlanReport, plan_readers
    from dermedge.readers.report import ReaderReport
    from dermedge.report.html import write_report
    from dermedge.train.distill import DistillOptions, distill
    from dermedge.train.ensemble import make_ensemble
    from dermedge.train.finetune import FinetuneOptions, finetune
    from dermedge.train.hybrid.pretrain import pretrain
    from dermedge.train.hybrid.recipe import ExecutionOptions, HybridRecipe
    from dermedge.train.loop import Schedule
    from dermedge.workflows.build import build
    from dermedge.workflows.debug_parity import debug_parity
    from dermedge.workflows.doctor import doctor
    from dermedge.workflows.embed import Embedded, embed
    from dermedge.workflows.evaluate import evaluate
    from dermedge.workflows.export import ExportSummary, export, export_all
    from dermedge.workflows.inspect import inspect
    from dermedge.workflows.page import MissingPageError
    from dermedge.workflows.run import RunOptions, demo, run
    from dermedge.workflows.serve import PageServer, serve
    from dermedge.workflows.students import students
    from dermedge.workflows.targets import targets
    from dermedge_export.options import ExportOptions
    from dermedge_runtime.bench import bench
    from dermedge_runtime.bundle import Bundle
    from dermedge_runtime.decode import Prediction
    from dermedge_runtime.errors import (
        BundleError,
        DataError,
        DermedgeError,
        ElsewhereError,
        EngineError,
        GateError,
        ImageError,
        MissingExtraError,
        UsageError,
    )
    from dermedge_runtime.model import Model, Runtime, load
    from dermedge_runtime.predict import predict
    from dermedge_runtime.spec import Artifact, Label, Postprocessing, Preprocess, Spec, Task
    from dermedge_runtime.verify import verify
else:
    _MODULES = {
        "dermedge.captions.evaluate": (
            "CaptionEvaluation",
            "evaluate_caption",
        ),
        "dermedge.captions.options": ("CaptionOptions",),
        "dermedge.captions.predict": (
            "GeneratedCaption",
            "predict_caption",
        ),
        "dermedge.captions.table": ("caption_data",),
        "dermedge.captions.train": ("train_caption",),
        "dermedge.data.check": ("check_data",),
        "dermedge.data.draw": ("draw_data_set",),
        "dermedge.data.importing.add": (
            "add_data",
            "list_data_sets",
        ),
        "dermedge.data.split": ("split_data",),
        "dermedge.data.table": ("read_table",),
        "dermedge.federated.deployment": ("join_federated", "serve_federated"),
        "dermedge.federated.options": ("FederatedOptions",),
        "dermedge.federated.partition": ("Partition",),
        "dermedge.federated.report": ("FederatedReport",),
        "dermedge.federated.simulate": ("simulate_federated",),
        "dermedge.models.import_teacher": ("ImportOptions", "import_teacher"),
        "dermedge.models.model_folder": (
            "TrainedModel",
            "load_model_folder",
        ),
        "dermedge.probing.options": ("ProbeOptions",),
        "dermedge.probing.probe": ("probe",),
        "dermedge.readers.analyze": ("analyze_readers",),
        "dermedge.readers.kit": ("ReaderKit", "write_reader_kit"),
        "dermedge.readers.plan": ("PlanReport", "plan_readers"),
        "dermedge.readers.report": ("ReaderReport",),
        "dermedge.report.html": ("write_report",),
        "dermedge.train.distill": (
            "DistillOptions",
            "distill",
        ),
        "dermedge.train.ensemble": ("make_ensemble",),
        "dermedge.train.finetune": (
            "FinetuneOptions",
            "finetune",
        ),
        "dermedge.train.hybrid.pretrain": ("pretrain",),
        "dermedge.train.hybrid.recipe": ("ExecutionOptions", "HybridRecipe"),
        "dermedge.train.loop": ("Schedule",),
        "dermedge.workflows.build": ("build",),
        "dermedge.workflows.debug_parity": ("debug_parity",),
        "dermedge.workflows.doctor": ("doctor",),
        "dermedge.workflows.embed": ("Embedded", "embed"),
        "dermedge.workflows.evaluate": ("evaluate",),
        "dermedge.workflows.export": (
            "ExportSummary",
            "export",
            "export_all",
        ),
        "dermedge.workflows.inspect": ("inspect",),
        "dermedge.workflows.run": (
            "RunOptions",
            "demo",
            "run",
        ),
        "dermedge.workflows.page": ("MissingPageError",),
        "dermedge.workflows.serve": (
            "PageServer",
            "serve",
        ),
        "dermedge.workflows.students": ("students",),
        "dermedge.workflows.targets": ("targets",),
        "dermedge_export.options": ("ExportOptions",),
        "dermedge_runtime.bench": ("bench",),
        "dermedge_runtime.bundle": ("Bundle",),
        "dermedge_runtime.decode": ("Prediction",),
        "dermedge_runtime.errors": (
            "BundleError",
            "DataError",
            "DermedgeError",
            "ElsewhereError",
            "EngineError",
            "GateError",
            "ImageError",
            "MissingExtraError",
            "UsageError",
        ),
        "dermedge_runtime.model": (
            "Model",
            "Runtime",
            "load",
        ),
        "dermedge_runtime.predict": ("predict",),
        "dermedge_runtime.spec": (
            "Artifact",
            "Label",
            "Postprocessing",
            "Preprocess",
            "Spec",
            "Task",
        ),
        "dermedge_runtime.verify": ("verify",),
    }
    # Imported on first use: a device has neither torch nor the training packages.
    _HOMES = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'dermedge' has no attribute {name!r}")
        from importlib import import_module

        try:
            value = getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            from dermedge.workflows.extras import missing_extra

            # The verb is the last word: `check_data` belongs to `data`,
            # `import_teacher` to `teacher`.
            raise missing_extra(error, name, name.rpartition("_")[2]) or error from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Artifact",
    "Bundle",
    "BundleError",
    "CaptionEvaluation",
    "CaptionOptions",
    "DataError",
    "DermedgeError",
    "DistillOptions",
    "ElsewhereError",
    "Embedded",
    "EngineError",
    "ExecutionOptions",
    "ExportOptions",
    "ExportSummary",
    "FederatedOptions",
    "FederatedReport",
    "FinetuneOptions",
    "GateError",
    "GeneratedCaption",
    "HybridRecipe",
    "ImageError",
    "ImportOptions",
    "Label",
    "MissingExtraError",
    "MissingPageError",
    "Model",
    "PageServer",
    "Partition",
    "PlanReport",
    "Postprocessing",
    "Prediction",
    "Preprocess",
    "ProbeOptions",
    "ReaderKit",
    "ReaderReport",
    "RunOptions",
    "Runtime",
    "Schedule",
    "Spec",
    "Task",
    "TrainedModel",
    "UsageError",
    "add_data",
    "analyze_readers",
    "bench",
    "build",
    "caption_data",
    "check_data",
    "debug_parity",
    "demo",
    "distill",
    "doctor",
    "draw_data_set",
    "embed",
    "evaluate",
    "evaluate_caption",
    "export",
    "export_all",
    "finetune",
    "import_teacher",
    "inspect",
    "join_federated",
    "list_data_sets",
    "load",
    "load_model_folder",
    "make_ensemble",
    "plan_readers",
    "predict",
    "predict_caption",
    "pretrain",
    "probe",
    "read_table",
    "run",
    "serve",
    "serve_federated",
    "simulate_federated",
    "split_data",
    "students",
    "targets",
    "train_caption",
    "verify",
    "write_reader_kit",
    "write_report",
]
