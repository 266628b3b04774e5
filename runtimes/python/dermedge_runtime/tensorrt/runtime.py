"""TensorRT: the engine that `dermedge build` made of a bundle's ONNX file on this very device."""

import numpy as np
import numpy.typing as npt

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import expected_shape
from dermedge_runtime.errors import EngineError
from dermedge_runtime.spec import Spec
from dermedge_runtime.tensorrt.api import Engine, Tensor, TensorRt
from dermedge_runtime.tensorrt.engine_cache import read_plan, usable

INPUT = "image"
AGAIN = "export the model again."


class TensorRtRuntime:
    """A TensorRT engine whose one input is `image`, uint8 [1, S, S, 3], and whose outputs are float32, named after
    their tasks. It is called once per image.
    """

    name = "tensorrt"

    def __init__(self, engine: Engine, spec: Spec, version: str) -> None:
        self.version = version
        _check(engine, spec)
        self._engine = engine
        self._names = [task.name for task in spec.tasks]

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, machine: TensorRt | None = None
    ) -> "TensorRtRuntime":
        """Loads the engine that was built and gated on this device.

        Args:
            bundle: The bundle.
            threads: Nothing to a GPU.
            machine: The TensorRT to run on; by default this machine's.

        Raises:
            ElsewhereError: This machine has no TensorRT or no GPU.
            EngineError: No engine was built for this device, it failed its gate, is damaged, or does not fit the spec.
        """
        machine = machine or TensorRt.open(bundle.path)
        plan = read_plan(bundle.path, usable(bundle, machine.version, machine.gpu.sm))
        return cls(machine.load(plan), bundle.spec, machine.version)

    def run(self, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Outputs [N, ...] by task. Raises EngineError where the engine fails or is closed."""
        wanted = self._engine.inputs[INPUT].shape[1:]
        if images.dtype != np.uint8 or images.shape[1:] != wanted:
            raise EngineError(
                f"The TensorRT engine takes uint8 [N, {', '.join(map(str, wanted))}], not {images.dtype} "
                f"{list(images.shape)}: preprocess the image first."
            )
        rows = [self._engine.run({INPUT: np.ascontiguousarray(image[None])}) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in self._names}

    def close(self) -> None:
        """Gives the GPU's memory back."""
        self._engine.close()


def _check(engine: Engine, spec: Spec) -> None:
    """Raises EngineError where inputs or outputs do not fit the spec."""
    size = spec.preprocess.size
    if engine.inputs != {INPUT: Tensor(np.dtype(np.uint8), (1, size, size, 3))}:
        raise EngineError(
            f"The engine's inputs are {engine.inputs}, not '{INPUT}', uint8 [1, {size}, {size}, 3]: {AGAIN}"
        )
    tasks = {task.name: expected_shape(task, size) for task in spec.tasks}
    if engine.outputs.keys() != tasks.keys():
        raise EngineError(
            f"The engine gives {sorted(engine.outputs)}, but the tasks are {sorted(tasks)}: {AGAIN}"
        )
    for name, shape in tasks.items():
        found = engine.outputs[name]
        fits = len(found.shape) == 1 + len(shape) and all(
            want is None or want == have for have, want in zip(found.shape[1:], shape, strict=True)
        )
        if found.dtype != np.float32 or found.shape[0] != 1 or not fits:
            wanted = ["D" if want is None else want for want in shape]
            raise EngineError(
                f"Output {name!r} is {found.dtype} {list(found.shape)}, not float32 {[1, *wanted]}: {AGAIN}"
            )
