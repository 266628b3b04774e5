"""Types that all exporters share: the student they read, the artifact they return."""

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration, synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.evaluation.predictions import Run
from dermedge_export.target import Target
from dermedge_export.toolchain import limit_torch_threads
from dermedge_runtime.errors import UsageError
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Artifact, Spec

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


class Exportable(Protocol):
    """A model that can be exported: a torch module and its spec.

    The module maps uint8 images [N, S, S, 3] to a dictionary of logits by task name.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from dermedge_runtime.spec import Preprocess, Task
        >>> class Darkness(torch.nn.Module):
        ...     def forward(self, images):
        ...         return {"malignancy": 128 - images.float().mean((1, 2, 3))[:, None]}
        >>> spec = Spec("toy", "1", (Task("malignancy", "binary"),), Preprocess(32))
        >>> model: Exportable = SimpleNamespace(module=Darkness(), spec=spec)
        >>> module_runner(model.module)(np.zeros((1, 32, 32, 3), np.uint8))
        {'malignancy': array([[128.]], dtype=float32)}
    """

    @property
    def module(self) -> "nn.Module": ...

    @property
    def spec(self) -> Spec: ...


@dataclass(frozen=True)
class Simulation:
    """A `Runtime` that simulates an engine which cannot run on this machine.

    Example:
        >>> import numpy as np
        >>> from dermedge_export import Simulation
        >>> simulation = Simulation("coreml-simulation", "1", lambda images: {})
        >>> simulation.run(np.zeros((1, 8, 8, 3), np.uint8))
        {}

    Attributes:
        name: Name of the simulation; it must say that this is not the engine itself.
        version: Version of the library that computes the simulation.
        run: Function from uint8 images [N, S, S, 3] to float32 outputs [N, ...] by
            task.
    """

    name: str
    version: str
    run: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]

    def close(self) -> None:
        """Do nothing; a simulation holds no engine."""


@dataclass(frozen=True)
class BuiltArtifact:
    """The result of an exporter: the artifact's description and its files.

    Attributes:
        artifact: Description that the bundle's manifest carries.
        files: Content of each file by its path inside the bundle.
        simulation: Replaces the engine where the exporting machine does not have it.

    Example:
        >>> from dermedge_runtime.bundle import Bundle
        >>> toy = Bundle.open("toy.dermedge")
        >>> built = BuiltArtifact(toy.artifact, {"model.onnx": toy.read("model.onnx")})
        >>> built.artifact.precision, built.artifact.path in built.files
        ('fp32', True)
    """

    artifact: Artifact
    files: Mapping[str, bytes]
    simulation: Simulation | None = None


class Retrain(Protocol):
    """A function that trains a module whose layers carry fake quantizers.

    `dermedge` implements it; this package does not train.

    Example:
        >>> def unchanged(module, calibration, candidate):
        ...     return module  # `dermedge` trains it here
        >>> retrain: Retrain = unchanged
        >>> candidate = Candidate("int8", "onnx", "qat", tier="trained")
        >>> retrain("module", None, candidate)
        'module'
    """

    def __call__(
        self, module: "nn.Module", calibration: Calibration, candidate: Candidate
    ) -> "nn.Module": ...


@dataclass(frozen=True, eq=False)
class ExportContext:
    """One student during its export, with the graphs and images its candidates share.

    Attributes:
        source: The student.
        calibration_source: Function that returns the calibration images; None means
            synthetic lesions.
        dynamic_batch: Leave the batch size of the graph open.
        retrain: Quantization-aware training; None where no data set is given.
        progress: Receives the progress of slow steps inside an exporter.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> context = ExportContext(load_model_folder("student"))
        >>> context.spec.name, context.module.training
        ('small', False)
        >>> context.cached("answer", lambda: 42), context.cached("answer", lambda: 43)
        (42, 42)
    """

    source: Exportable
    calibration_source: Callable[[], Calibration] | None = None
    dynamic_batch: bool = False
    retrain: Retrain | None = None
    progress: Progress | None = None
    _cache: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def spec(self) -> Spec:
        """Spec of the student."""
        return self.source.spec

    @cached_property
    def module(self) -> "nn.Module":
        """Inference copy of the network; `source` itself stays as it is."""
        return inference_copy(self.source.module)

    @cached_property
    def gpu_module(self) -> "nn.Module":
        """Inference copy for GPUs that compute in fp16: its global means do not overflow.

        It is `module` itself where none would.
        """
        from dermedge_export.graph.delegates import split_means

        return split_means(self.module, self.calibration.images)

    @cached_property
    def calibration(self) -> Calibration:
        """Images that calibrate quantization; synthetic lesions if there is no data."""
        if self.calibration_source is None:
            return synthetic_calibration(self.spec.preprocess)
        return self.calibration_source()

    def graph(self, opset: int) -> bytes:
        """Return the serialized fp32 ONNX model at an opset.

        Args:
            opset: Version of the ONNX operator set.
        """
        from dermedge_export.graph.trace import trace

        return self.cached(
            ("graph", opset),
            lambda: trace(self.module, self.spec, opset, dynamic_batch=self.dynamic_batch),
        )

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return `make()`, computed once per key.

        Args:
            key: Name of the value; every input that the value depends on belongs in it.
            make: Function that computes the value.
        """
        if key not in self._cache:
            self._cache[key] = make()
        value: T = self._cache[key]
        return value


def describe_artifact(
    target: Target,
    candidate: Candidate,
    path: str,
    tools: Iterable[str],
    *,
    details: Mapping[str, Any],
    calibration: Calibration | None,
    requires: tuple[str, ...] | None = None,
) -> Artifact:
    """Return the description of an artifact that the bundle's manifest carries.

    Args:
        target: The target that the artifact is built for.
        candidate: The precision and format of the artifact.
        path: Entry point inside the bundle, a file or a folder.
        tools: Names of the installed packages that built it; the manifest lists their
            versions.
        details: Facts that only this format has.
        calibration: Images that quantization used; None if it used none.
        requires: What the device needs; by default the target's list.

    Example:
        >>> from dermedge_export.target import CPU
        >>> candidate = Candidate("fp32", "onnx")
        >>> artifact = describe_artifact(
        ...     CPU, candidate, "model.onnx", ["numpy"], details={}, calibration=None
        ... )
        >>> artifact.target, artifact.requires, list(artifact.toolchain)
        ('cpu', ('onnxruntime>=1.17',), ['numpy'])
    """
    return Artifact(
        target=target.name,
        format=candidate.format,
        path=path,
        precision=candidate.precision,
        requires=target.requires if requires is None else requires,
        toolchain={name: version(name) for name in tools},
        details=details,
        calibration=None if calibration is None else calibration.to_json(),
    )


class Exporter(Protocol):
    """A function that builds artifacts in one format.

    Each exporter has its own file. `EXPORTERS` in `exporters/registry.py` lists it, or
    an entry point in the group `dermedge.exporters` does.

    Example:
        >>> from types import SimpleNamespace
        >>> from dermedge_export.target import CPU
        >>> def export_name(context, target, candidate):
        ...     artifact = Artifact(target.name, "text", "name", candidate.precision)
        ...     return BuiltArtifact(artifact, {"name": context.spec.name.encode()})
        >>> exporter: Exporter = export_name
        >>> context = ExportContext(SimpleNamespace(spec=SimpleNamespace(name="toy")))
        >>> exporter(context, CPU, Candidate("fp32", "text")).files
        {'name': b'toy'}
    """

    def __call__(
        self, context: ExportContext, target: Target, candidate: Candidate
    ) -> BuiltArtifact: ...


def inference_copy(module: "nn.Module") -> "nn.Module":
    """Return a copy of a torch module in eval mode, in the form that converters read.

    RepViT, FastViT, MobileOne and LeViT train parallel branches that are equivalent to
    one convolution; timm merges them. Attention becomes products and a softmax, which
    is equivalent, too.

    Args:
        module: The network; it stays as it is.
    """
    from timm.utils.model import reparameterize_model

    merged: nn.Module = reparameterize_model(copy.deepcopy(module).eval())
    for layer in merged.modules():
        # Converters take torch's fused attention with four axes only (onnxscript:
        # aten_scaled_dot_product_attention), and Hiera's has five. timm's layers have
        # this switch between both forms.
        if "fused_attn" in vars(layer):
            vars(layer)["fused_attn"] = False
    return merged


def module_runner(module: "nn.Module") -> Run:
    """Return a function that runs a torch module on numpy images.

    The function maps uint8 images [N, S, S, 3] to float32 outputs [N, ...] by task
    name.

    Args:
        module: The network; this function switches it to eval mode.
    """
    import torch

    limit_torch_threads()

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(np.ascontiguousarray(images)))
        return {name: output.float().numpy() for name, output in outputs.items()}

    module.eval()
    return run


def unsupported_candidate(candidate: Candidate) -> UsageError:
    """Return the error of an exporter that does not know a candidate.

    Args:
        candidate: The candidate that no branch of the exporter handles.
    """
    return UsageError(f"No exporter builds {candidate.name!r}. Choose another precision or engine.")
