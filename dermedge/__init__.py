"""Dermatology models on phones, Jetsons and plain CPUs, with proof that they are still the same model.

Everything named here runs without torch. The makers of models live in `dermedge.train`, `dermedge.pipeline` and
`dermedge_export`.
"""

from dermedge_runtime.bench import bench
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import (
    BundleError,
    DataError,
    DermedgeError,
    EngineError,
    GateError,
    ImageError,
    MissingExtraError,
    UsageError,
)
from dermedge_runtime.model import Model, Runtime, load
from dermedge_runtime.spec import Artifact, Label, Postprocessing, Preprocess, Spec, Task
from dermedge_runtime.verify import verify

__all__ = [
    "Artifact",
    "Bundle",
    "BundleError",
    "DataError",
    "DermedgeError",
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
