"""Check a graph's inputs and outputs against the model spec, for every engine."""

from collections.abc import Mapping, Sequence

from dermedge_runtime.decode import expected_shape
from dermedge_runtime.errors import EngineError
from dermedge_runtime.spec import AGAIN, Spec

INPUT = "image"
"""Name of the one input of every exported graph."""
Port = tuple[str, Sequence[int | None]]
"""Element type of an input or output, as numpy names it, and sizes (None is open)."""


def check_signature(inputs: Mapping[str, Port], outputs: Mapping[str, Port], spec: Spec) -> bool:
    """Check a graph's inputs and outputs; return whether it takes one image per call.

    Args:
        inputs: Every input of the graph by name.
        outputs: Every output of the graph by name.
        spec: Spec of the model that the graph must compute.

    Returns:
        True if the batch size is fixed to 1, False if it is open.

    Raises:
        EngineError: The inputs or outputs are not those of `spec`.

    Example:
        >>> from dermedge_runtime.spec import Preprocess, Spec, Task
        >>> tasks = (Task("malignancy", "binary"),)
        >>> spec = Spec("toy", "1", tasks, Preprocess(size=48))
        >>> inputs = {"image": ("uint8", (1, 48, 48, 3))}
        >>> check_signature(inputs, {"malignancy": ("float32", (1, 1))}, spec)
        True
    """
    batch = _check_input(inputs, spec.preprocess.size)
    names = {task.name for task in spec.tasks}
    if set(outputs) != names:
        raise EngineError(
            f"The graph's outputs are {sorted(outputs)}, but the tasks are {sorted(names)}. {AGAIN}"
        )
    for task in spec.tasks:
        kind, shape = outputs[task.name]
        expected = (batch, *expected_shape(task, spec.preprocess.size))
        fits = len(shape) == len(expected) and all(
            None in (want, have) or want == have for have, want in zip(shape, expected, strict=True)
        )
        if kind != "float32" or not fits:
            raise EngineError(
                f"Output {task.name!r} is {_describe(kind, shape)}, "
                f"not {_describe('float32', (None, *expected[1:]))}. {AGAIN}"
            )
    return batch == 1


def _check_input(inputs: Mapping[str, Port], size: int) -> int | None:
    """Return the batch size of the one input, None if it is open; raise EngineError."""
    kind, shape = inputs.get(INPUT, ("", ()))
    if len(inputs) != 1 or kind != "uint8" or list(shape[1:]) != [size, size, 3]:
        described = [f"{name!r} {_describe(*port)}" for name, port in inputs.items()]
        raise EngineError(
            f"The graph's inputs are {', '.join(described) or 'none'}, "
            f"not one '{INPUT}' uint8 [N, {size}, {size}, 3]. {AGAIN}"
        )
    if shape[0] not in (None, 1):
        raise EngineError(
            f"The graph takes batches of {shape[0]}, not of one or of any size. {AGAIN}"
        )
    return shape[0]


def _describe(kind: str, shape: Sequence[int | None]) -> str:
    """Return a port as text, such as `float32 [N, 3]`."""
    sizes = [
        str(size) if size is not None else "D" if index else "N" for index, size in enumerate(shape)
    ]
    return f"{kind} [{', '.join(sizes)}]"
