"""Run a Core ML program without Core ML: read its file, compute it with torch.

Core ML exists only on Apple's systems; on other systems this simulation is measured. It
takes the program from the .mlpackage, not from the network that was converted. So
compressed weights, operators left in fp32, quantized activations and mistakes of the
converter are all part of the measurement. Every output that the file declares fp16 is
rounded to fp16. The order and the width in which an accelerator sums remain unknown.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dermedge_export.exporters.coreml.operators import MOVING, Operator, check_arguments
from dermedge_export.toolchain import silence
from dermedge_runtime.files import write_files
from dermedge_runtime.signature import INPUT

if TYPE_CHECKING:
    import torch
    from coremltools.converters.mil.mil import Function, Operation, Var

# Values that flow into an operator, by parameter: a tensor, or a list of them.
Arguments: TypeAlias = "Mapping[str, torch.Tensor | list[torch.Tensor]]"
Observe: TypeAlias = "Callable[[Step, Arguments, tuple[torch.Tensor, ...]], None]"


@dataclass(frozen=True)
class Step:
    """An operator of a program with its arguments and the names of its outputs.

    `constants` holds plain arguments by parameter. `values` names the tensors that flow
    in by parameter, one name or a tuple of names. `half` says which outputs are fp16.

    Example:
        >>> values, outputs = {"x": "image"}, ("y",)
        >>> relu = Step("relu", "a", lambda x: x.relu(), {}, values, outputs, (True,))
        >>> relu.inputs
        ('image',)
    """

    kind: str
    name: str
    compute: Operator
    constants: Mapping[str, object]
    values: Mapping[str, str | tuple[str, ...]]
    outputs: tuple[str, ...]
    half: tuple[bool, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all tensors that flow in."""
        inputs: list[str] = []
        for names in self.values.values():
            inputs += [names] if isinstance(names, str) else names
        return tuple(inputs)


@dataclass(frozen=True)
class Program:
    """The operators of a program in the order of computation, and its constants.

    Example:
        >>> import torch
        >>> values, outputs = {"x": "image"}, ("y",)
        >>> relu = Step("relu", "a", lambda x: x.relu(), {}, values, outputs, (True,))
        >>> program = Program((relu,), {}, outputs)
        >>> program.run(torch.tensor([[-1.0, 2.0]]))["y"]
        tensor([[0., 2.]])
    """

    steps: tuple[Step, ...]
    constants: "Mapping[str, torch.Tensor]"
    outputs: tuple[str, ...]

    def run(
        self, image: "torch.Tensor", *, rounded: bool = True, observe: "Observe | None" = None
    ) -> "dict[str, torch.Tensor]":
        """Return the outputs [1, ...] of one image by name.

        Args:
            image: float32 [1, 3, S, S], 0 to 255.
            rounded: Round the values that the program declares fp16; otherwise
                everything is fp32.
            observe: Receives every operator with its arguments and its results.
        """
        values = {**self.constants, INPUT: image}
        for step in self.steps:
            arguments = {
                parameter: values[names]
                if isinstance(names, str)
                else [values[name] for name in names]
                for parameter, names in step.values.items()
            }
            computed = step.compute(**arguments, **step.constants)
            single = not isinstance(computed, (tuple, list))
            results = (computed,) if single else tuple(computed)
            if observe is not None:
                observe(step, arguments, results)
            for name, value, half in zip(step.outputs, results, step.half, strict=True):
                round_it = rounded and half and step.kind not in MOVING
                values[name] = value.half().float() if round_it else value
        return {name: values[name] for name in self.outputs}


def read_program(files: Mapping[str, bytes]) -> Program:
    """Read the program of an .mlpackage.

    Args:
        files: The content of the package's files by path inside the package.

    Raises:
        UsageError: The simulation lacks an operator of the program, or an argument's
            value.
    """
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    with tempfile.TemporaryDirectory(prefix="dermedge-") as folder, silence():
        package = Path(folder) / "model.mlpackage"
        write_files(package, files)
        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        read = load(spec, spec.specificationVersion, model.weights_dir)
    return _convert_program(read.functions["main"])


def simulated_runner(
    program: Program,
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """Return a function from uint8 [N, S, S, 3] to float32 outputs [N, ...] by task.

    Images run one at a time.
    """
    import torch

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode():
            rows = [program.run(image) for image in pixels(images)]
        return {
            name: np.concatenate([row[name].numpy() for row in rows]) for name in program.outputs
        }

    return run


def pixels(images: NDArray[np.uint8]) -> "Iterator[torch.Tensor]":
    """Yield images uint8 [N, S, S, 3] as float32 [1, 3, S, S], 0 to 255."""
    import torch

    for image in images:
        yield torch.from_numpy(
            np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32)
        )


def _convert_program(function: "Function") -> Program:
    """Return a program of coremltools as steps; compressed weights are decompressed."""
    constants: dict[str, torch.Tensor] = {}
    steps = []
    for operation in function.operations:
        if operation.op_type == "const":
            # Text describes an operator, so no operator reads it as a tensor.
            if np.asarray(operation.outputs[0].val).dtype.kind not in "USO":
                constants[operation.outputs[0].name] = _to_tensor(operation.outputs[0].val)
        elif operation.op_type.startswith("constexpr_"):
            value = operation.materialized_val_inference()
            constants[operation.outputs[0].name] = _to_tensor(value)
        else:
            steps.append(_convert_step(operation))
    used = {name for step in steps for name in step.inputs}
    kept = {name: value for name, value in constants.items() if name in used}
    return Program(tuple(steps), kept, tuple(output.name for output in function.outputs))


def _convert_step(operation: "Operation") -> Step:
    """Return an operation of coremltools as a step.

    Raises:
        UsageError: The simulation lacks the operator, or an argument's value.
    """
    constants: dict[str, object] = {}
    values: dict[str, str | tuple[str, ...]] = {}
    for parameter, variable in operation.inputs.items():
        if isinstance(variable, (tuple, list)):
            values[parameter] = tuple(each.name for each in variable)
        elif _describes(parameter, variable):
            constants[parameter] = _to_plain(variable.val)
        else:
            values[parameter] = variable.name
    return Step(
        kind=operation.op_type,
        name=operation.name,
        compute=check_arguments(operation.op_type, operation.name, {**values, **constants}),
        constants=constants,
        values=values,
        outputs=tuple(output.name for output in operation.outputs),
        half=tuple(output.is_tensor_or_scalar_of(dtype="fp16") for output in operation.outputs),
    )


def _describes(parameter: str, variable: "Var") -> bool:
    """Return whether a constant describes the operator (a stride, a mode).

    Other constants, such as weights, are computed with.
    """
    if variable.val is None or parameter in ("x", "y", "indices"):
        return False
    return np.ndim(variable.val) == 0 or np.asarray(variable.val).dtype.kind != "f"


def _to_plain(value: object) -> object:
    """Return a constant as plain numbers, lists and strings."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _to_tensor(value: ArrayLike) -> "torch.Tensor":
    """Return a constant as a float32 tensor."""
    import torch

    return torch.from_numpy(np.array(value, dtype=np.float32))
