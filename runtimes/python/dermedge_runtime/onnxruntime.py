"""ONNX Runtime, on the CPU unless other providers are asked for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import EngineError, MissingExtraError, first_line
from dermedge_runtime.signature import AGAIN, INPUT, Port, check_signature
from dermedge_runtime.spec import Spec
from dermedge_runtime.telemetry import no_telemetry

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
RECORD = "get_provider_graph_assignment_info"  # which older ones do not have
NAMED = 5  # operators that a message lists
# By execution provider: how many nodes of each operator it computes.
Placement = Mapping[str, Mapping[str, int]]


class OnnxRuntime:
    """An ONNX graph whose one input is `image`, uint8 [N, S, S, 3], and whose outputs are float32, named after their
    tasks. A graph with a batch of one is called once per image.
    """

    name = "onnxruntime"

    def __init__(self, session: "onnxruntime.InferenceSession", spec: Spec, version: str) -> None:
        self.version = version
        self._names = [task.name for task in spec.tasks]
        self._batch_one = check_signature(
            _ports(session.get_inputs()), _ports(session.get_outputs()), spec
        )
        self._placement = _placement(session)
        self._session: onnxruntime.InferenceSession | None = session

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = (CPU,)
    ) -> "OnnxRuntime":
        """Starts a session on a bundle's ONNX file.

        Args:
            bundle: The bundle.
            threads: Threads within one operator; by default one per physical core.
            providers: ONNX Runtime execution providers, the preferred first. They alone compute: nodes fall back to
                the CPU only where `CPUExecutionProvider` is named as well.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: ONNX Runtime refuses the graph or a provider, a provider leaves the graph to the CPU, or inputs
                and outputs do not fit the spec.
            BundleError: The file was changed since the bundle was opened.
        """
        try:
            with no_telemetry():
                import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnxruntime", "An ONNX bundle") from error
        available = onnxruntime.get_available_providers()
        if missing := [name for name in providers if name not in available]:
            raise EngineError(
                f"This onnxruntime has no {', '.join(missing)}, only {', '.join(available)}: "
                "install the build that has it, or leave `providers` out."
            )
        graph = bundle.read(bundle.artifact.path)
        try:
            # Without fallback: a provider that fails is an error, not a line on stdout and another provider.
            session = onnxruntime.InferenceSession(
                graph, _options(threads, providers), providers=list(providers), enable_fallback=0
            )
            # The wrapper keeps the file's bytes for that fallback, as much memory again as the weights take.
            session._model_bytes = None
        except Exception as error:
            raise EngineError(
                f"onnxruntime {onnxruntime.__version__} refuses {bundle.artifact.path} ({first_line(error)}): "
                f"it needs {', '.join(bundle.artifact.requires) or 'another version'}; upgrade it, or {AGAIN}"
            ) from error
        runtime = cls(session, bundle.spec, str(onnxruntime.__version__))
        check_placement(runtime._placement, providers)
        return runtime

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs [N, ...] by task. Raises EngineError where the engine fails or is closed."""
        session = self._session
        if session is None:
            raise EngineError("The ONNX Runtime session is closed: load the bundle again.")
        try:
            if not self._batch_one or len(images) == 1:
                return dict(
                    zip(self._names, session.run(self._names, {INPUT: images}), strict=True)
                )
            rows = [
                session.run(self._names, {INPUT: images[index : index + 1]})
                for index in range(len(images))
            ]
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on {images.dtype} {list(images.shape)} ({first_line(error)}): "
                "run `dermedge verify` on the bundle."
            ) from error
        return {
            name: np.concatenate(column)
            for name, column in zip(self._names, zip(*rows, strict=True), strict=True)
        }

    def placement(self) -> Placement:
        """By execution provider, how many nodes of each operator it computes; empty where this onnxruntime is too old
        to tell.
        """
        return self._placement

    def close(self) -> None:
        """Frees the session; one that still runs in another thread ends first."""
        self._session = None


def check_placement(placement: Placement, providers: Sequence[str]) -> None:
    """Refuse what a provider silently left to the CPU.

    Args:
        placement: As `OnnxRuntime.placement` gives it; an empty one, of an older onnxruntime, tells nothing.
        providers: Those that were asked for.

    Raises:
        EngineError: Nodes run on a provider that was not asked for, or one that was asked for got none at all.
    """
    if not placement:
        return
    total = sum(sum(operators.values()) for operators in placement.values())
    for name, operators in placement.items():
        if name not in providers:
            raise EngineError(
                f"{', '.join(providers)} cannot compute {sum(operators.values())} of {total} nodes "
                f"({_listed(operators)}), which fell back to {name}: add {name!r} to `providers` to accept that."
            )
    for name in providers:
        if name != CPU and not placement.get(name):
            taken = "; ".join(
                f"{other}: {_listed(operators)}" for other, operators in placement.items()
            )
            raise EngineError(
                f"{name} computes none of the {total} nodes ({taken}): leave it out of `providers`, or export at a "
                "precision that it computes."
            )


def _placement(session: Any) -> Placement:
    recorded = getattr(session, RECORD, tuple)
    found: dict[str, Counter[str]] = {}
    for part in recorded():
        found.setdefault(part.ep_name, Counter()).update(node.op_type for node in part.get_nodes())
    return {name: dict(operators) for name, operators in found.items()}


def _listed(operators: Mapping[str, int]) -> str:
    """`17 Conv, 14 Mul and 5 more`: the most frequent ones."""
    ranked = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[NAMED:])
    named = ", ".join(f"{count} {name}" for name, count in ranked[:NAMED])
    return f"{named} and {rest} more" if rest else named


def _options(threads: int | None, providers: Sequence[str]) -> "onnxruntime.SessionOptions":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Measured no slower, and what one call needed at its peak is not kept for the life of the process.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    if hasattr(onnxruntime.InferenceSession, RECORD):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    elif CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _ports(nodes: Sequence[Any]) -> dict[str, Port]:
    """By name, the type and sizes of a session's inputs or outputs; an open size has a name in ONNX."""
    return {
        node.name: (
            TYPES.get(node.type, node.type),
            [size if isinstance(size, int) else None for size in node.shape],
        )
        for node in nodes
    }
