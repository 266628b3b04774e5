"""Run ONNX bundles with ONNX Runtime, on the CPU unless other providers are given."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Outputs
from dermedge_runtime.errors import EngineError, MissingExtraError, first_line
from dermedge_runtime.fork import leave_to_parent
from dermedge_runtime.image import Pixels
from dermedge_runtime.signature import INPUT, Port, check_signature
from dermedge_runtime.spec import Spec
from dermedge_runtime.telemetry import no_telemetry

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
# Method that lists which provider computes which node; ONNX Runtime has it since
# https://github.com/microsoft/onnxruntime/pull/26781.
RECORD = "get_provider_graph_assignment_info"
LISTED = 5  # operators that a message lists
Placement = Mapping[str, Mapping[str, int]]
"""Number of nodes of each operator, by the execution provider that computes them."""


class OnnxRuntime:
    """ONNX Runtime session on a bundle's graph.

    The graph's one input is `image`, uint8 [N, S, S, 3]. Its outputs are float32, named
    after their tasks. A graph with a fixed batch of one is called once per image.

    Args:
        session: Session on the graph.
        spec: Spec of the model.
        version: Version of ONNX Runtime.

    Example:
        >>> runtime = OnnxRuntime.open(Bundle.open("toy.dermedge"), threads=1)
        >>> runtime.run(np.zeros((2, 48, 48, 3), np.uint8))["malignancy"].shape
        (2, 1)
        >>> list(runtime.placement())
        ['CPUExecutionProvider']
        >>> runtime.close()
    """

    name = "onnxruntime"

    def __init__(self, session: "onnxruntime.InferenceSession", spec: Spec, version: str) -> None:
        self.version = version
        self._names = [task.name for task in spec.tasks]
        self._batch_one = check_signature(
            _describe_ports(session.get_inputs()), _describe_ports(session.get_outputs()), spec
        )
        self._placement = _read_placement(session)
        self._session: onnxruntime.InferenceSession | None = session
        leave_to_parent(self, "_session")

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = (CPU,)
    ) -> "OnnxRuntime":
        """Start a session on a bundle's ONNX file.

        Args:
            bundle: The opened bundle.
            threads: Threads within one operator; by default one per physical core.
            providers: Execution providers, the preferred one first. Only these compute.
                Nodes fall back to the CPU only if `CPUExecutionProvider` is in the
                list.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: ONNX Runtime refuses the graph or a provider, a provider leaves
                the graph to the CPU, or inputs and outputs do not fit the spec.
            BundleError: The file changed after the bundle was opened.
        """
        try:
            with no_telemetry():
                import onnxruntime
        except ImportError as error:
            raise MissingExtraError("onnxruntime", "onnxruntime", "An ONNX bundle") from error
        available = onnxruntime.get_available_providers()
        if missing := [name for name in providers if name not in available]:
            raise EngineError(
                f"This onnxruntime has no {', '.join(missing)}, only {', '.join(available)}. "
                "Install the build that has it, or leave `providers` out."
            )
        graph = bundle.read(bundle.artifact.path)
        try:
            # If a provider fails, the Python wrapper prints a line and starts a new
            # session on other providers
            # (https://github.com/microsoft/onnxruntime/pull/1960). `enable_fallback=0`
            # makes the failure an error.
            session = onnxruntime.InferenceSession(
                graph,
                _session_options(threads, providers),
                providers=list(providers),
                enable_fallback=0,
            )
            # For that fallback the wrapper keeps the file's bytes: as much memory again
            # as the weights take. Its source has a TODO at this attribute ("we're
            # holding the memory indefinitely"). Delete this line when that TODO is gone
            # from onnxruntime/python/onnxruntime_inference_collection.py.
            session._model_bytes = None
        except Exception as error:
            raise EngineError(
                f"onnxruntime {onnxruntime.__version__} refuses {bundle.artifact.path} "
                f"({first_line(error)}): it needs "
                f"{', '.join(bundle.artifact.requires) or 'another version'}. "
                "Upgrade it, or export the model again."
            ) from error
        runtime = cls(session, bundle.spec, str(onnxruntime.__version__))
        if fallback := find_fallback(runtime.placement(), providers):
            raise EngineError(fallback)
        return runtime

    def run(self, images: Pixels) -> Outputs:
        """Return the outputs [N, ...] by task for images [N, S, S, 3].

        Raises:
            EngineError: ONNX Runtime fails, or the session is closed.
        """
        session = self._session
        if session is None:
            raise EngineError("The ONNX Runtime session is closed. Load the bundle again.")
        try:
            if not self._batch_one or len(images) == 1:
                values = session.run(self._names, {INPUT: images})
                return dict(zip(self._names, values, strict=True))
            rows = [
                session.run(self._names, {INPUT: images[index : index + 1]})
                for index in range(len(images))
            ]
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on {images.dtype} {list(images.shape)} "
                f"({first_line(error)}). Run `dermedge verify` on the bundle."
            ) from error
        return {
            name: np.concatenate(column)
            for name, column in zip(self._names, zip(*rows, strict=True), strict=True)
        }

    def placement(self) -> Placement:
        """Return the number of nodes of each operator by execution provider.

        It is empty if this version of ONNX Runtime does not record it.
        """
        return self._placement

    def close(self) -> None:
        """Free the session; a call that still runs in another thread ends first."""
        self._session = None


def find_fallback(placement: Placement, providers: Sequence[str]) -> str:
    """Describe nodes that run on another provider than the caller named.

    Args:
        placement: As `OnnxRuntime.placement` returns it. It may be empty, because older
            versions of ONNX Runtime do not record it; then nothing is found.
        providers: Providers that the caller named.

    Returns:
        A message if nodes run on a provider that the caller did not name, or if a named
        provider computes no node. Otherwise an empty string.

    Example:
        >>> find_fallback({CPU: {"Conv": 50}}, (CPU,))
        ''
    """
    if not placement:
        return ""
    total = sum(sum(operators.values()) for operators in placement.values())
    for name, operators in placement.items():
        if name not in providers:
            return (
                f"{', '.join(providers)} cannot compute {sum(operators.values())} of {total} "
                f"nodes ({_list_operators(operators)}), which fell back to {name}. "
                f"Add {name!r} to `providers` to accept that."
            )
    for name in providers:
        # The CPU is named as a reserve, so it may compute nothing.
        if name != CPU and not placement.get(name):
            taken = "; ".join(
                f"{other}: {_list_operators(operators)}" for other, operators in placement.items()
            )
            return (
                f"{name} computes none of the {total} nodes ({taken}). Leave it out of "
                "`providers`, or export at a precision that it computes."
            )
    return ""


def _read_placement(session: "onnxruntime.InferenceSession") -> Placement:
    recorded = getattr(session, RECORD, tuple)
    placement: dict[str, Counter[str]] = {}
    for part in recorded():
        operators = placement.setdefault(part.ep_name, Counter())
        operators.update(node.op_type for node in part.get_nodes())
    return {name: dict(operators) for name, operators in placement.items()}


def _list_operators(operators: Mapping[str, int]) -> str:
    """Return the most frequent operators, such as `17 Conv, 14 Mul and 5 more`."""
    ranked = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ranked[LISTED:])
    listed = ", ".join(f"{count} {name}" for name, count in ranked[:LISTED])
    return f"{listed} and {rest} more" if rest else listed


def _session_options(threads: int | None, providers: Sequence[str]) -> "onnxruntime.SessionOptions":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # The arena keeps the peak memory of one call for the life of the process
    # (https://github.com/microsoft/onnxruntime/issues/11627); without it no call
    # measured slower.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    if hasattr(onnxruntime.InferenceSession, RECORD):
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    elif CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _describe_ports(nodes: Sequence[Any]) -> dict[str, Port]:
    """Return the types and sizes of inputs or outputs; ONNX names an open size."""
    return {
        node.name: (
            TYPES.get(node.type, node.type),
            [size if isinstance(size, int) else None for size in node.shape],
        )
        for node in nodes
    }
