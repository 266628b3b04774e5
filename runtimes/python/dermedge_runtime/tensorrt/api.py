"""Call TensorRT's Python API by the names that versions 10 and 11 share.

No other module calls TensorRT. The names are checked against NVIDIA's own bindings of
10.3 and 11.4 (tests/runtime/test_tensorrt.py). Version 11 has strongly typed networks
only; version 10 has them on request. So both take the precision from the ONNX file, and
neither gets a precision flag.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from dermedge_runtime.errors import ElsewhereError, EngineError
from dermedge_runtime.tensorrt.cuda import Cuda

MAJORS = ("10", "11")
FLAGS: Mapping[str, Any] = {"strongly_typed": True, "tf32": False, "batch": 1}
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """Type and shape of an engine's input or output.

    Example:
        >>> image = Tensor(np.dtype("uint8"), (1, 224, 224, 3))
        >>> np.empty(image.shape, image.dtype).nbytes
        150528
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _ErrorLog(Protocol):
    """TensorRT logger that keeps the errors for an exception's message."""

    errors: list[str]


class TensorRt:
    """TensorRT on this machine's GPU.

    Args:
        trt: The module `tensorrt`.
        cuda: GPU in whose memory engines work.

    Raises:
        EngineError: TensorRT is older than 10 or newer than 11.

    Example:
        >>> from types import SimpleNamespace
        >>> from dermedge_runtime.tensorrt.cuda import Gpu
        >>> old = SimpleNamespace(__version__="8.6.1", ILogger=object)
        >>> orin = SimpleNamespace(gpu=lambda: Gpu("Orin", "87", "12.6", 8 << 30))
        >>> TensorRt(old, orin)
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.EngineError: TensorRT 8.6.1 is not supported. ...
    """

    def __init__(self, trt: ModuleType, cuda: Cuda) -> None:
        self.trt, self.cuda = trt, cuda
        self.version = str(trt.__version__)
        self.gpu = cuda.gpu()
        self.logger = _logger(trt)
        if self.version.partition(".")[0] not in MAJORS:
            raise EngineError(
                f"TensorRT {self.version} is not supported. Install 10 or 11 "
                "(JetPack 6.1 has 10.3)."
            )

    @classmethod
    def open(cls, bundle: Path) -> "TensorRt":
        """Open this machine's TensorRT and GPU.

        Args:
            bundle: Path of the bundle to run, for the message.

        Raises:
            ElsewhereError: This machine has no TensorRT or no NVIDIA GPU.
            EngineError: This machine's TensorRT is older than 10 or newer than 11.
        """
        try:
            import tensorrt

            cuda = Cuda.open()
        except (ImportError, OSError, EngineError) as error:
            raise ElsewhereError(
                f"This machine has no TensorRT, or no NVIDIA GPU ({error}). On the Jetson, run "
                f"`dermedge build {bundle}`. Its ONNX can be checked here: "
                f"`dermedge verify {bundle} --engine onnxruntime`."
            ) from error
        return cls(tensorrt, cuda)

    def build(self, onnx: bytes, *, workspace: int | None, timings: bytes) -> tuple[bytes, bytes]:
        """Build an engine for this GPU and this TensorRT.

        Args:
            onnx: Typed model with explicit Q/DQ; an open batch size becomes 1.
            workspace: Bytes that a layer may use for intermediate results; by default
                all of the GPU's memory.
            timings: Timing cache of an earlier build, or no bytes. One of another GPU
                or TensorRT is not used.

        Returns:
            The serialized engine, and the timing cache of this build.

        Raises:
            EngineError: TensorRT refuses the model, or memory runs out.
        """
        trt = self.trt
        self.cuda.activate()
        self.logger.errors.clear()
        builder = trt.Builder(self.logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(onnx):
            reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
            raise EngineError(
                f"TensorRT {self.version} cannot read the model ({'; '.join(reasons)}). "
                "Install a newer TensorRT, or export the model again."
            )
        image = network.get_input(0)
        if image.shape[0] == -1:
            image.shape = (1, *tuple(image.shape)[1:])
        config = builder.create_builder_config()
        # `read_precision` needs the details of each layer.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        # The export keeps a layer in fp32 for its accuracy; TF32 has 10 bits of
        # mantissa.
        config.clear_flag(trt.BuilderFlag.TF32)
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        known = config.create_timing_cache(timings)
        if known is None or not config.set_timing_cache(known, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise self.failure(
                "cannot build an engine",
                "Close other programs, or give less memory with --workspace.",
            )
        return bytes(plan), bytes(config.get_timing_cache().serialize())

    def load(self, plan: bytes) -> "Engine":
        """Deserialize a built engine.

        Raises:
            EngineError: The engine is for another GPU or TensorRT, or is damaged, or
                memory runs out.
        """
        return Engine(self, plan)

    def failure(self, what: str, remedy: str) -> EngineError:
        """Return an error that quotes the last error TensorRT logged.

        Args:
            what: Predicate of the message, such as `refuses the engine`.
            remedy: What the user can do.
        """
        reason = self.logger.errors[-1] if self.logger.errors else "without a reason"
        return EngineError(f"TensorRT {self.version} {what} ({reason}). {remedy}")


class Engine:
    """Deserialized engine with the GPU memory for one image.

    Threads may share it; they wait for each other.

    Args:
        machine: TensorRT and the GPU.
        plan: Serialized engine.

    Raises:
        EngineError: The engine is for another GPU or TensorRT, or memory runs out.

    Example:
        >>> from types import SimpleNamespace
        >>> class Runtime:  # TensorRT's own: it returns None for another GPU's engine
        ...     def __init__(self, logger): ...
        ...     def deserialize_cuda_engine(self, plan): ...
        >>> trt = SimpleNamespace(__version__="10.3.0", ILogger=object, Runtime=Runtime)
        >>> cuda = SimpleNamespace(gpu=lambda: None, activate=lambda: None)
        >>> Engine(TensorRt(trt, cuda), b"engine of another GPU")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.EngineError: TensorRT 10.3.0 refuses the engine...
    """

    def __init__(self, machine: TensorRt, plan: bytes) -> None:
        trt, self._machine, self._cuda = machine.trt, machine, machine.cuda
        self._cuda.activate()
        machine.logger.errors.clear()
        # TensorRT requires that the runtime outlives its engines, and an engine its
        # contexts.
        self._runtime = runtime = trt.Runtime(machine.logger)
        self._engine = engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise machine.failure(
                "refuses the engine", "Run `dermedge build` on its bundle again, with --rebuild."
            )
        self._context = context = engine.create_execution_context()
        if context is None:
            raise machine.failure(
                "cannot start the engine", "Close other programs that use the GPU."
            )
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            side = (
                self.inputs
                if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
                else self.outputs
            )
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            side[name] = Tensor(dtype, tuple(int(n) for n in engine.get_tensor_shape(name)))
        self._lock = threading.Lock()
        self._stream = self._cuda.stream()
        self._memory = {
            name: self._allocate(name, tensor)
            for name, tensor in (self.inputs | self.outputs).items()
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs of one call.

        Args:
            inputs: Contiguous arrays of the engine's own types and shapes.

        Raises:
            EngineError: The engine fails, or it is closed.
        """
        outputs = {
            name: np.empty(tensor.shape, tensor.dtype) for name, tensor in self.outputs.items()
        }
        with self._lock:
            context = self._context
            if context is None:
                raise EngineError("The TensorRT engine is closed. Load the bundle again.")
            self._cuda.activate()
            for name, array in inputs.items():
                self._cuda.upload(array, self._memory[name], self._stream)
            if not context.execute_async_v3(self._stream):
                raise self._machine.failure(
                    "failed while running", "Run `dermedge verify` on the bundle."
                )
            for name, array in outputs.items():
                self._cuda.download(self._memory[name], array, self._stream)
            self._cuda.wait(self._stream)
        return outputs

    def layers(self) -> list[str]:
        """Return TensorRT's description of each layer as JSON text."""
        inspector = self._engine.create_engine_inspector()
        form = self._machine.trt.LayerInformationFormat.JSON
        return [
            str(inspector.get_layer_information(index, form))
            for index in range(self._engine.num_layers)
        ]

    def close(self) -> None:
        """Free the GPU's memory; a call that still runs ends first."""
        with self._lock:
            if self._context is None:
                return
            self._cuda.activate()
            for address in self._memory.values():
                self._cuda.free(address)
            self._cuda.drop(self._stream)
            self._context = self._engine = self._runtime = None

    def _allocate(self, name: str, tensor: Tensor) -> int:
        address = self._cuda.allocate(int(np.prod(tensor.shape)) * tensor.dtype.itemsize)
        if not self._context.set_tensor_address(name, address):
            raise self._machine.failure(
                f"refuses memory for {name!r}",
                "Run `dermedge build` on its bundle again, with --rebuild.",
            )
        return address


def _logger(trt: ModuleType) -> _ErrorLog:
    """Return a logger that prints nothing and keeps the errors."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(msg.strip())

    return Log()
