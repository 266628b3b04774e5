"""Run OpenVINO bundles on the CPU."""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.decode import Outputs
from dermedge_runtime.errors import EngineError, MissingExtraError, UsageError, last_line
from dermedge_runtime.fork import claim_engine, leave_to_parent
from dermedge_runtime.image import Pixels
from dermedge_runtime.signal_stack import keep_signal_stack
from dermedge_runtime.signature import Port, check_signature
from dermedge_runtime.spec import AGAIN, Spec
from dermedge_runtime.telemetry import no_telemetry

if TYPE_CHECKING:
    import openvino

Hint = Literal["latency", "throughput"]
HINTS = ("latency", "throughput")
DEVICE = "CPU"
TYPES = {"u8": "uint8", "f32": "float32"}


class OpenVinoRuntime:
    """OpenVINO model compiled from a bundle's IR.

    The graph's one input is `image`, uint8 [N, S, S, 3]. Its outputs are float32, named
    after their tasks. A graph with a fixed batch of one is called once per image; under
    the `throughput` hint several images run at a time.

    A request of OpenVINO serves one call at a time, so each call takes an idle one.
    Calls by several threads run side by side.

    Args:
        compiled: Compiled model.
        spec: Spec of the model.
        version: Version of OpenVINO.

    Example:
        >>> bundle = Bundle.open("toy.dermedge")
        >>> with no_telemetry(), keep_signal_stack():
        ...     import openvino
        ...     model = openvino.Core().read_model(bundle.read("model.onnx"))
        ...     compiled = openvino.compile_model(model, DEVICE)
        >>> runtime = OpenVinoRuntime(compiled, bundle.spec, openvino.__version__)
        >>> runtime.run(np.zeros((2, 48, 48, 3), np.uint8))["malignancy"].shape
        (2, 1)
    """

    name = "openvino"

    def __init__(self, compiled: "openvino.CompiledModel", spec: Spec, version: str) -> None:
        self.version = version
        self._batch_one = check_signature(
            _describe_ports(compiled.inputs), _describe_ports(compiled.outputs), spec
        )
        self._pool: _Pool | None = _Pool(compiled, [task.name for task in spec.tasks])
        leave_to_parent(self, "_pool")

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, hint: Hint = "latency"
    ) -> "OpenVinoRuntime":
        """Compile a bundle's IR for the CPU, from memory also if it is zipped.

        The model computes in float32 unless the artifact's precision is bf16. By itself
        OpenVINO computes in bfloat16 on every CPU that has it, with other numbers.

        Args:
            bundle: The opened bundle.
            threads: Number of threads in all; by default one per physical core.
            hint: `latency` makes one image fast; `throughput` makes many images fast,
                in one call or by several threads.

        Raises:
            UsageError: The hint is unknown.
            MissingExtraError: OpenVINO is not installed.
            EngineError: OpenVINO refuses the graph, this CPU lacks the artifact's
                precision, inputs and outputs do not fit the spec, or this process was
                forked from one that used OpenVINO.
            BundleError: A file changed after the bundle was opened.
        """
        if hint not in HINTS:
            raise UsageError(f"hint is {hint!r}. Use 'latency' or 'throughput'.")
        try:
            with no_telemetry():
                import openvino
        except ImportError as error:
            raise MissingExtraError("openvino", "openvino", "An OpenVINO bundle") from error
        claim_engine("openvino")
        version = str(openvino.__version__).partition("-")[0]
        xml, weights = _read_graph(bundle)
        # Without the hint the numbers depend on the CPU, because bf16 is the default
        # wherever the hardware has it
        # (https://github.com/openvinotoolkit/openvino.genai/issues/164).
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
                f"it needs {', '.join(bundle.artifact.requires) or 'another version'}. "
                "Upgrade it, or export the model again."
            ) from error
        check_precision(compiled, precision)
        return cls(compiled, bundle.spec, version)

    def run(self, images: Pixels) -> Outputs:
        """Return the outputs [N, ...] by task for images [N, S, S, 3].

        Raises:
            EngineError: OpenVINO fails, or the model is closed.
        """
        pool = self._pool
        if pool is None:
            raise EngineError("The OpenVINO model is closed. Load the bundle again.")
        try:
            if not self._batch_one or len(images) == 1:
                return pool.run(images)
            rows = pool.run_each(images)
        except Exception as error:
            raise EngineError(
                f"openvino failed on {images.dtype} {list(images.shape)} ({last_line(error)}). "
                "Run `dermedge verify` on the bundle."
            ) from error
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def close(self) -> None:
        """Free the compiled model; a call that still runs ends first."""
        self._pool = None


def check_precision(compiled: "openvino.CompiledModel", wanted: str) -> None:
    """Check that a model computes in the wanted type.

    OpenVINO replaces a type that the CPU lacks by another one, without an error.

    Args:
        compiled: Compiled model.
        wanted: `f32` or `bf16`.

    Raises:
        EngineError: The model computes in another type.
    """
    actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if actual != wanted:
        raise EngineError(
            f"This CPU computes in {actual}, and the model was exported for {wanted}. "
            f"Export it again in fp32, or use a CPU that has {wanted}."
        )


class _Pool:
    """Idle requests of a compiled model. A request that failed is not used again."""

    def __init__(self, compiled: "openvino.CompiledModel", tasks: Sequence[str]) -> None:
        self._compiled = compiled
        self._ports = {task: compiled.output(task) for task in tasks}
        self._parallel = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: deque[openvino.InferRequest] = deque([compiled.create_infer_request()])

    def run(self, images: Pixels) -> Outputs:
        """Return the outputs of one call."""
        request = self._take(images)
        request.infer()
        return self._finish(request)

    def run_each(self, images: Pixels) -> list[Outputs]:
        """Return the outputs of one call per image; the hint sets the parallelism."""
        running: deque[openvino.InferRequest] = deque()
        rows = []
        for index in range(len(images)):
            if len(running) == self._parallel:
                rows.append(self._finish(running.popleft()))
            request = self._take(images[index : index + 1])
            request.start_async()
            running.append(request)
        return rows + [self._finish(request) for request in running]

    def _take(self, images: Pixels) -> "openvino.InferRequest":
        import openvino

        try:
            request = self._idle.pop()  # atomic, so that two threads never get the same one
        except IndexError:
            request = self._compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(images))
        return request

    def _finish(self, request: "openvino.InferRequest") -> Outputs:
        request.wait()
        # A copy, because the request overwrites its tensors in the next call.
        outputs = {task: request.get_tensor(port).data.copy() for task, port in self._ports.items()}
        self._idle.append(request)
        return outputs


def _read_graph(bundle: Bundle) -> tuple[bytes, bytes]:
    """Return the graph (XML) and its weights."""
    files = artifact_files(bundle)
    graphs = [name for name in files if name.endswith(".xml")]
    weights = [name for name in files if name.endswith(".bin")]
    if len(graphs) != 1 or len(weights) != 1:
        raise EngineError(
            f"{bundle.artifact.path} holds {files}, not one .xml and one .bin. {AGAIN}"
        )
    return bundle.read(graphs[0]), bundle.read(weights[0])


def _describe_ports(ports: Sequence[Any]) -> dict[str, Port]:
    """Return the type and sizes of a compiled model's inputs or outputs by name."""
    described: dict[str, Port] = {}
    for port in ports:
        kind = port.get_element_type().get_type_name()
        sizes = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
        described[port.get_any_name()] = (TYPES.get(kind, kind), sizes)
    return described
