"""What exporters work on and what they make."""

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration, synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.evaluation.predictions import Run
from dermedge_export.target import Target
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Artifact, Spec

T = TypeVar("T")


class Exportable(Protocol):
    """What an exporter needs of a model: a torch module from uint8 [N, S, S, 3] to logits by task, and its contract."""

    @property
    def module(self) -> Any: ...

    @property
    def spec(self) -> Spec: ...


@dataclass(frozen=True)
class Simulation:
    """An engine that cannot run here, imitated: satisfies `Runtime`, and its name says that it is no engine."""

    name: str
    version: str
    run: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]

    def close(self) -> None:
        """Nothing to give back."""


@dataclass(frozen=True)
class BuiltArtifact:
    """What an exporter makes: the artifact's description and its files, by path inside the bundle.

    `simulation` stands in for an engine that the exporting machine does not have.
    """

    artifact: Artifact
    files: Mapping[str, bytes]
    simulation: Simulation | None = None


class Retrain(Protocol):
    """Quantization-aware training, which the top floor brings: a module whose fake quantizers have been trained."""

    def __call__(self, module: Any, calibration: Calibration, candidate: Candidate) -> Any: ...


@dataclass
class ExportContext:
    """One student while it is exported: what its candidates share is made once.

    `module` is the student's network ready for inference: in eval mode, a copy, with the branches that some families
    (RepViT, FastViT, MobileOne, LeViT) train with merged into single convolutions.
    """

    source: Exportable
    calibration_source: Callable[[], Calibration] | None = None
    dynamic_batch: bool = False
    retrain: Retrain | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """The student's contract."""
        return self.source.spec

    @cached_property
    def module(self) -> Any:
        """The network, merged and frozen; the student itself is left alone."""
        return inference_copy(self.source.module)

    @cached_property
    def calibration(self) -> Calibration:
        """The images that quantization may look at; drawn lesions where there are no others."""
        if self.calibration_source is None:
            return synthetic_calibration(self.spec.preprocess)
        return self.calibration_source()

    def graph(self, opset: int) -> bytes:
        """The fp32 ONNX model at an opset, as `dermedge_export.graph.trace` makes it."""
        from dermedge_export.graph.trace import trace

        return self.cached(
            ("graph", opset),
            lambda: trace(self.module, self.spec, opset, dynamic_batch=self.dynamic_batch),
        )

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes, made when it is first asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made


class Exporter(Protocol):
    """A format. One function in a file of its own, named in `EXPORTERS` or by the entry points `dermedge.exporters`."""

    def __call__(
        self, context: ExportContext, target: Target, candidate: Candidate
    ) -> BuiltArtifact: ...


def inference_copy(module: Any) -> Any:
    """A copy of a torch module in eval mode, its training-time branches merged where its layers know how."""
    from timm.utils.model import reparameterize_model

    return reparameterize_model(copy.deepcopy(module).eval())


def module_runner(module: Any) -> Run:
    """A torch module as a function from uint8 [N, S, S, 3] to float32 outputs [N, ...] by task."""
    import torch

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(np.ascontiguousarray(images)))
        return {name: output.float().numpy() for name, output in outputs.items()}

    module.eval()
    return run


def unsupported_candidate(candidate: Candidate) -> UsageError:
    """The error of an exporter that is asked for a candidate it does not know."""
    return UsageError(f"No exporter makes {candidate.name!r}: choose another precision or engine.")
