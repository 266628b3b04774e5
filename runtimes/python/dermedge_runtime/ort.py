"""ONNX Runtime, on the CPU unless other providers are asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import expected_shape
from dermedge_runtime.errors import EngineError, MissingExtraError
from dermedge_runtime.spec import Spec

if TYPE_CHECKING:
    import onnxruntime

INPUT = "image"
AGAIN = "export the model again."


class OrtRuntime:
    """An ONNX graph whose one input is `image`, uint8 [N, S, S, 3], and whose outputs are float32, named after their
    tasks. A graph with a batch of one is called once per image.
    """

    name = "onnxruntime"

    def __init__(self, session: "onnxruntime.InferenceSession", spec: Spec, version: str) -> None:
        self.version = version
        self._names = [task.name for task in spec.tasks]
        self._batch_one = _check_graph(session, spec)
        self._session: onnxruntime.InferenceSession | None = session

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> "OrtRuntime":
        """Starts a session on a bundle's ONNX file.

        Args:
            bundle: The bundle.
            threads: Threads within one operator; by default one per physical core.
            providers: ONNX Runtime execution providers, the preferred first.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: ONNX Runtime refuses the graph or a provider, or inputs and outputs do not fit the spec.
            BundleError: The file was changed since the bundle was opened.
        """
        try:
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
                graph, _options(threads), providers=list(providers), enable_fallback=0
            )
            # The wrapper keeps the file's bytes for that fallback, as much memory again as the weights take.
            session._model_bytes = None
        except Exception as error:
            raise EngineError(
                f"onnxruntime {onnxruntime.__version__} refuses {bundle.artifact.path} ({_first_line(error)}): "
                f"it needs {', '.join(bundle.artifact.requires) or 'another version'}; upgrade it, or {AGAIN}"
            ) from error
        return cls(session, bundle.spec, str(onnxruntime.__version__))

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs [N, ...] by task. Raises EngineError where the engine fails or is closed."""
        session = self._session
        if session is None:
            raise EngineError("The ONNX Runtime session is closed: load the bundle again.")
        try:
            if not self._batch_one or len(images) == 1:
                return dict(zip(self._names, session.run(self._names, {INPUT: images}), strict=True))
            rows = [session.run(self._names, {INPUT: images[index : index + 1]}) for index in range(len(images))]
        except Exception as error:
            raise EngineError(
                f"onnxruntime failed on {images.dtype} {list(images.shape)} ({_first_line(error)}): "
                "run `dermedge verify` on the bundle."
            ) from error
        return {name: np.concatenate(column) for name, column in zip(self._names, zip(*rows, strict=True), strict=True)}

    def close(self) -> None:
        """Frees the session; one that still runs in another thread ends first."""
        self._session = None


def _options(threads: int | None) -> "onnxruntime.SessionOptions":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # Measured no slower, and what one call needed at its peak is not kept for the life of the process.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return options


def _check_graph(session: Any, spec: Spec) -> bool:
    """Whether the graph takes exactly one image at a time. Raises EngineError where it does not fit the spec."""
    size = spec.preprocess.size
    inputs = {node.name: (node.type, node.shape) for node in session.get_inputs()}
    kind, shape = inputs.get(INPUT, ("", []))
    if len(inputs) != 1 or kind != "tensor(uint8)" or list(shape[1:]) != [size, size, 3]:
        raise EngineError(
            f"The graph's inputs are {inputs}, not one '{INPUT}', tensor(uint8) [N, {size}, {size}, 3]: {AGAIN}"
        )
    if isinstance(shape[0], int) and shape[0] != 1:
        raise EngineError(f"The graph takes batches of {shape[0]}, not of one or of any size: {AGAIN}")
    outputs = {node.name: (node.type, node.shape) for node in session.get_outputs()}
    if set(outputs) != {task.name for task in spec.tasks}:
        tasks = sorted(task.name for task in spec.tasks)
        raise EngineError(f"The graph gives {sorted(outputs)}, but the tasks are {tasks}: {AGAIN}")
    for task in spec.tasks:
        kind, found = outputs[task.name]
        expected = expected_shape(task, size)
        fits = len(found) == 1 + len(expected) and all(
            want is None or not isinstance(have, int) or want == have
            for have, want in zip(found[1:], expected, strict=True)
        )
        if kind != "tensor(float)" or not fits:
            wanted = ["N", *("D" if want is None else want for want in expected)]
            raise EngineError(f"Output {task.name!r} is {kind} {found}, not tensor(float) {wanted}: {AGAIN}")
    return isinstance(shape[0], int)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
