"""Run the TensorRT engine that `dermedge build` made on this device."""

import numpy as np

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Outputs
from dermedge_runtime.errors import EngineError
from dermedge_runtime.fork import claim_engine
from dermedge_runtime.image import Pixels
from dermedge_runtime.signature import INPUT, Port, check_signature
from dermedge_runtime.spec import Spec
from dermedge_runtime.tensorrt.api import Engine, Tensor, TensorRt
from dermedge_runtime.tensorrt.engine_cache import find_usable_engine, read_plan


class TensorRtRuntime:
    """TensorRT engine loaded from the cache beside a bundle.

    The engine's one input is `image`, uint8 [1, S, S, 3]. Its outputs are float32,
    named after their tasks. It is called once per image.

    Args:
        engine: Deserialized engine.
        spec: Spec of the model.
        version: Version of TensorRT.

    Raises:
        EngineError: Inputs and outputs do not fit the spec.

    Example:
        >>> from types import SimpleNamespace
        >>> from dermedge_runtime.spec import Preprocess, Task
        >>> engine = SimpleNamespace(  # stands for `TensorRt.open(bundle).load(plan)`
        ...     inputs={"image": Tensor(np.dtype("uint8"), (1, 48, 48, 3))},
        ...     outputs={"malignancy": Tensor(np.dtype("float32"), (1, 1))},
        ...     run=lambda inputs: {"malignancy": np.zeros((1, 1), np.float32)},
        ... )
        >>> spec = Spec("toy", "1", (Task("malignancy", "binary"),), Preprocess(48))
        >>> runtime = TensorRtRuntime(engine, spec, "10.3.0")
        >>> runtime.run(np.zeros((5, 48, 48, 3), np.uint8))["malignancy"].shape
        (5, 1)
    """

    name = "tensorrt"

    def __init__(self, engine: Engine, spec: Spec, version: str) -> None:
        self.version = version
        check_signature(
            {name: _describe_port(tensor) for name, tensor in engine.inputs.items()},
            {name: _describe_port(tensor) for name, tensor in engine.outputs.items()},
            spec,
        )
        self._engine = engine
        self._names = [task.name for task in spec.tasks]

    @classmethod
    def open(
        cls, bundle: Bundle, *, threads: int | None = None, machine: TensorRt | None = None
    ) -> "TensorRtRuntime":
        """Load the engine that was built and gated on this device.

        Args:
            bundle: The opened bundle.
            threads: Ignored; the GPU computes.
            machine: TensorRT to run on; by default this machine's.

        Raises:
            ElsewhereError: This machine has no TensorRT or no GPU.
            EngineError: No engine was built for this device, or the engine failed its
                gate, is damaged, or does not fit the spec.
        """
        claim_engine("tensorrt")
        machine = machine or TensorRt.open(bundle.path)
        plan = read_plan(bundle.path, find_usable_engine(bundle, machine.version, machine.gpu.sm))
        return cls(machine.load(plan), bundle.spec, machine.version)

    def run(self, images: Pixels) -> Outputs:
        """Return the outputs [N, ...] by task for images [N, S, S, 3].

        Raises:
            EngineError: The images have another type or shape, the engine fails, or it
                is closed.
        """
        wanted = self._engine.inputs[INPUT].shape[1:]
        # TensorRT copies raw bytes: a wrong type or shape would give numbers, not an
        # error.
        if images.dtype != np.uint8 or images.shape[1:] != wanted:
            raise EngineError(
                f"The TensorRT engine takes uint8 [N, {', '.join(map(str, wanted))}], "
                f"not {images.dtype} {list(images.shape)}. Preprocess the image first."
            )
        rows = [self._engine.run({INPUT: np.ascontiguousarray(image[None])}) for image in images]
        return {name: np.concatenate([row[name] for row in rows]) for name in self._names}

    def close(self) -> None:
        """Free the GPU's memory; closing again does nothing."""
        self._engine.close()


def _describe_port(tensor: Tensor) -> Port:
    return tensor.dtype.name, tensor.shape
