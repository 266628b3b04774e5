"""OpenVINO, on the CPU."""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import EngineError, MissingExtraError, UsageError, last_line
from dermedge_runtime.signal_stack import keep_signal_stack
from dermedge_runtime.signature import AGAIN, Port, check_signature
from dermedge_runtime.spec import Spec
from dermedge_runtime.telemetry import no_telemetry

if TYPE_CHECKING:
    import openvino

Outputs = dict[str, npt.NDArray[np.float32]]
Hint = Literal["latency", "throughput"]
HINTS = ("latency", "throughput")
DEVICE = "CPU"
TYPES = {"u8": "uint8", "f32": "float32"}


class OpenVinoRuntime:
    """An IR whose one input is `image`, uint8 [N, S, S, 3], and whose outputs are float32, named after their tasks.

    A request of OpenVINO's serves one call at a time, so each call takes an idle one; calls by several threads run side
    by side. A graph with a batch of one is asked once per image, several at a time under the `throughput` hint.
    """

    name = "openvino"

    def __init__(self, compiled: "openvino.CompiledModel", spec: Spec, version: str) -> None:
        self.version = version
        self._batch_one = check_signature(_ports(compiled.inputs), _ports(compiled.outputs), spec)
        self._pool: _Pool | None = _Pool(compiled, [task.name for task in spec.tasks])

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, hint: Hint = "latency"
    ) -> "OpenVinoRuntime":
        """Compiles a bundle's IR for the CPU, from memory: a zipped bundle is not extracted.

        It computes in float32, unless the artifact was made for bfloat16: by itself OpenVINO takes bfloat16 wherever
        the CPU has it, and its numbers are others.

        Args:
            bundle: The bundle.
            threads: Threads in all; by default one per physical core.
            hint: What to be fast at: one image (`latency`), or many in one call or by several threads (`throughput`).

        Raises:
            UsageError: `hint` is neither.
            MissingExtraError: OpenVINO is not installed.
            EngineError: OpenVINO refuses the graph, this CPU lacks the artifact's precision, or inputs and outputs do
                not fit the spec.
            BundleError: A file was changed since the bundle was opened.
        """
        if hint not in HINTS:
            raise UsageError(f"hint is {hint!r}: use 'latency' or 'throughput'.")
        try:
            with no_telemetry():
                import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "openvino", "An OpenVINO bundle") from error
        version = str(openvino.__version__).partition("-")[0]
        xml, weights = _files(bundle)
        precision = "bf16" if bundle.artifact.precision == "bf16" else "f32"
        config = {"PERFORMANCE_HINT": hint.upper(), "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            core = openvino.Core()
            model = core.read_model(xml, openvino.Tensor(np.frombuffer(weights, np.uint8)))
            with keep_signal_stack():
                compiled = core.compile_model(model, DEVICE, config)
        except Exception as error:
            raise EngineError(
                f"openvino {version} refuses {bundle.artifact.path} ({last_line(error)}): "
                f"it needs {', '.join(bundle.artifact.requires) or 'another version'}; upgrade it, or {AGAIN}"
            ) from error
        check_precision(compiled, precision)
        return cls(compiled, bundle.spec, version)

    def run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Outputs [N, ...] by task. Raises EngineError where the engine fails or is closed."""
        pool = self._pool
        if pool is None:
            raise EngineError("The OpenVINO model is closed: load the bundle again.")
        try:
            if not self._batch_one or len(images) == 1:
                return pool.ask(images)
            rows = pool.ask_each(images)
        except Exception as error:
            raise EngineError(
                f"openvino failed on {images.dtype} {list(images.shape)} ({last_line(error)}): "
                "run `dermedge verify` on the bundle."
            ) from error
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def close(self) -> None:
        """Frees the compiled model; a call that still runs in another thread ends first."""
        self._pool = None


def check_precision(compiled: "openvino.CompiledModel", wanted: str) -> None:
    """Raise EngineError where a model computes in another type than the one that was asked for (`f32`, `bf16`): what a
    CPU lacks, OpenVINO replaces without a word.
    """
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != wanted:
        raise EngineError(
            f"This CPU computes in {found}, and the model was exported for {wanted}: export it again in fp32, or use "
            f"a CPU that has {wanted}."
        )


class _Pool:
    """Requests of a compiled model that wait for images. One that failed is not used again."""

    def __init__(self, compiled: "openvino.CompiledModel", tasks: Sequence[str]) -> None:
        self._compiled = compiled
        self._ports = {task: compiled.output(task) for task in tasks}
        self._parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: deque[Any] = deque([compiled.create_infer_request()])

    def ask(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """The outputs of one call."""
        request = self._take(images)
        request.infer()
        return self._answer(request)

    def ask_each(self, images: npt.NDArray[np.uint8]) -> list[Outputs]:
        """The outputs of a call per image, as many at a time as the hint allows."""
        running: deque[Any] = deque()
        rows = []
        for index in range(len(images)):
            if len(running) == self._parallel:
                rows.append(self._answer(running.popleft()))
            request = self._take(images[index : index + 1])
            request.start_async()
            running.append(request)
        return rows + [self._answer(request) for request in running]

    def _take(self, images: npt.NDArray[np.uint8]) -> Any:
        import openvino

        try:
            request = self._idle.pop()  # atomic, so that two threads never get the same one
        except IndexError:
            request = self._compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(images))
        return request

    def _answer(self, request: Any) -> Outputs:
        request.wait()
        outputs = {task: request.get_tensor(port).data.copy() for task, port in self._ports.items()}
        self._idle.append(request)
        return outputs


def _files(bundle: Bundle) -> tuple[bytes, bytes]:
    """The graph and its weights."""
    files = artifact_files(bundle)
    graphs = [name for name in files if name.endswith(".xml")]
    weights = [name for name in files if name.endswith(".bin")]
    if len(graphs) != 1 or len(weights) != 1:
        raise EngineError(
            f"{bundle.artifact.path} holds {files}, not one .xml and one .bin: {AGAIN}"
        )
    return bundle.read(graphs[0]), bundle.read(weights[0])


def _ports(ports: Sequence[Any]) -> dict[str, Port]:
    """By name, the type and sizes of a compiled model's inputs or outputs."""
    found: dict[str, Port] = {}
    for port in ports:
        kind = port.get_element_type().get_type_name()
        sizes = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
        found[port.get_any_name()] = (TYPES.get(kind, kind), sizes)
    return found
