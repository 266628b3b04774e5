"""Dermatology models on phones, Jetsons and plain CPUs, with proof that they are still the same model.

Everything named here runs without torch, and is imported when it is first asked for. The makers of models live in
`dermedge.train`, `dermedge.workflows.run` and `dermedge_export`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from dermedge_runtime.spec import Artifact, Label, Postprocessing, Preprocess, Spec, Task
    from dermedge_runtime.verify import verify
else:
    _HOMES = {
        "bench": ("bench",),
        "bundle": ("Bundle",),
        "decode": ("Prediction",),
        "errors": (
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
        "model": ("Model", "Runtime", "load"),
        "spec": ("Artifact", "Label", "Postprocessing", "Preprocess", "Spec", "Task"),
        "verify": ("verify",),
    }

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                from importlib import import_module

                value = getattr(import_module(f"dermedge_runtime.{home}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'dermedge' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Artifact",
    "Bundle",
    "BundleError",
    "DataError",
    "DermedgeError",
    "ElsewhereError",
    "EngineError",
    "GateError",
    "ImageError",
    "Label",
    "MissingExtraError",
    "Model",
    "Postprocessing",
    "Prediction",
    "Preprocess",
    "Runtime",
    "Spec",
    "Task",
    "UsageError",
    "bench",
    "load",
    "verify",
]
