"""A Core ML program without Core ML: read from the file that is shipped, computed in torch, rounded as it says.

Core ML exists on Apple's systems only, so what is measured elsewhere is this. The program is taken from the
.mlpackage, not from the network that it was converted from: compressed weights, operators left in fp32, quantized
activations and a converter's mistakes are all in what is measured. Every output that the file declares fp16 is rounded
to fp16; what remains unknown is in which order, and how wide, the accelerator sums.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.exporters.coreml.operators import MOVING, Operator, operators
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import UsageError
from dermedge_runtime.signature import INPUT

Observe = Callable[["Step", Mapping[str, Any], tuple[Any, ...]], None]


@dataclass(frozen=True)
class Step:
    """One operator of a program: what it computes from which values, and what its outputs are called.

    `constants` are bound by parameter; `values` names what flows in, one name or a tuple of them. `half` says which
    outputs are fp16.
    """

    kind: str
    name: str
    compute: Operator
    constants: Mapping[str, Any]
    values: Mapping[str, str | tuple[str, ...]]
    outputs: tuple[str, ...]
    half: tuple[bool, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all that flows in."""
        found: list[str] = []
        for names in self.values.values():
            found += [names] if isinstance(names, str) else names
        return tuple(found)


@dataclass(frozen=True)
class Program:
    """A program's operators in the order of their computation, and its constant values and outputs by name."""

    steps: tuple[Step, ...]
    constants: Mapping[str, Any]
    outputs: tuple[str, ...]

    def run(
        self, image: Any, *, rounded: bool = True, observe: Observe | None = None
    ) -> dict[str, Any]:
        """Outputs [1, ...] of `image`, float32 [1, 3, S, S] of 0..255.

        Args:
            image: the torch tensor.
            rounded: round what the program declares fp16; otherwise everything is fp32.
            observe: shown every operator with what went in, by parameter, and what came out.
        """
        values = {**self.constants, INPUT: image}
        for step in self.steps:
            taken = {
                parameter: values[name]
                if isinstance(name, str)
                else [values[each] for each in name]
                for parameter, name in step.values.items()
            }
            found = step.compute(**taken, **step.constants)
            results = (
                (found,)
                if len(step.outputs) == 1 and not isinstance(found, (tuple, list))
                else tuple(found)
            )
            if observe is not None:
                observe(step, taken, results)
            for name, value, half in zip(step.outputs, results, step.half, strict=True):
                values[name] = (
                    value.half().float() if rounded and half and step.kind not in MOVING else value
                )
        return {name: values[name] for name in self.outputs}


def read_program(files: Mapping[str, bytes]) -> Program:
    """The program in an .mlpackage, given as path inside the package -> content.

    Raises:
        UsageError: the program has an operator that is not known here.
    """
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    with tempfile.TemporaryDirectory(prefix="dermedge-") as folder, quiet():
        package = Path(folder) / "model.mlpackage"
        for name, content in files.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_bytes(content)
        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        read = load(spec, spec.specificationVersion, model.weights_dir)
    return _program(read.functions["main"])


def simulated_run(
    program: Program,
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """The program as a function from uint8 [N, S, S, 3] to float32 outputs [N, ...] by task, one image at a time."""
    import torch

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            rows = [program.run(image) for image in pixels(images)]
        return {
            name: np.concatenate([row[name].numpy() for row in rows]) for name in program.outputs
        }

    return run


def pixels(images: NDArray[np.uint8]) -> Iterator[Any]:
    """Images uint8 [N, S, S, 3] as Core ML hands them over, one by one: float32 tensors [1, 3, S, S] of 0..255."""
    import torch

    for image in images:
        yield torch.from_numpy(
            np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        )


def _program(function: Any) -> Program:
    constants: dict[str, Any] = {}
    steps = []
    for operation in function.operations:
        if operation.op_type == "const":
            constants[operation.outputs[0].name] = _tensor(operation.outputs[0].val)
        elif operation.op_type.startswith("constexpr_"):
            constants[operation.outputs[0].name] = _tensor(operation.materialized_val_inference())
        else:
            steps.append(_step(operation))
    used = {name for step in steps for name in step.inputs}
    kept = {name: value for name, value in constants.items() if name in used}
    return Program(tuple(steps), kept, tuple(output.name for output in function.outputs))


def _step(operation: Any) -> Step:
    known = operators()
    if operation.op_type not in known:
        raise UsageError(
            f"Operator {operation.op_type!r} of Core ML is not simulated, so nobody could tell whether the artifact is "
            "still the same model: export for android or cpu, or take another backbone."
        )
    constants: dict[str, Any] = {}
    values: dict[str, str | tuple[str, ...]] = {}
    for parameter, variable in operation.inputs.items():
        if isinstance(variable, (tuple, list)):
            values[parameter] = tuple(each.name for each in variable)
        elif _describes(parameter, variable):
            constants[parameter] = _plain(variable.val)
        else:
            values[parameter] = variable.name
    return Step(
        kind=operation.op_type,
        name=operation.name,
        compute=known[operation.op_type],
        constants=constants,
        values=values,
        outputs=tuple(output.name for output in operation.outputs),
        half=tuple(output.is_tensor_or_scalar_of(dtype="fp16") for output in operation.outputs),
    )


def _describes(parameter: str, variable: Any) -> bool:
    """Whether a constant says how to compute (a stride, a mode) rather than being computed with (a weight)."""
    if variable.val is None or parameter in ("x", "y", "indices"):
        return False
    return np.ndim(variable.val) == 0 or np.asarray(variable.val).dtype.kind != "f"


def _plain(value: Any) -> Any:
    """A constant as plain numbers and lists."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _tensor(value: Any) -> Any:
    """A constant as a float32 tensor, or as it is where it is text."""
    import torch

    array = np.asarray(value)
    return (
        value if array.dtype.kind in "USO" else torch.from_numpy(np.array(array, dtype=np.float32))
    )
