"""What a graph must take and give to be the model of a spec, the same for every engine."""

from collections.abc import Mapping, Sequence

from dermedge_runtime.decode import expected_shape
from dermedge_runtime.errors import EngineError
from dermedge_runtime.spec import Spec

INPUT = "image"
AGAIN = "export the model again."
# The element type in numpy's words, and the sizes, None where one is open.
Port = tuple[str, Sequence[int | None]]


def check_signature(inputs: Mapping[str, Port], outputs: Mapping[str, Port], spec: Spec) -> bool:
    """Whether a graph takes exactly one image at a time, rather than any number.

    Raises:
        EngineError: The graph's inputs or outputs, by name, are not those of `spec`.
    """
    size = spec.preprocess.size
    kind, shape = inputs.get(INPUT, ("", ()))
    if len(inputs) != 1 or kind != "uint8" or list(shape[1:]) != [size, size, 3]:
        found = (
            ", ".join(f"{name!r} {_described(*port)}" for name, port in inputs.items()) or "none"
        )
        raise EngineError(
            f"The graph's inputs are {found}, not one '{INPUT}' uint8 [N, {size}, {size}, 3]: {AGAIN}"
        )
    if shape[0] not in (None, 1):
        raise EngineError(
            f"The graph takes batches of {shape[0]}, not of one or of any size: {AGAIN}"
        )
    if set(outputs) != {task.name for task in spec.tasks}:
        tasks = sorted(task.name for task in spec.tasks)
        raise EngineError(f"The graph gives {sorted(outputs)}, but the tasks are {tasks}: {AGAIN}")
    for task in spec.tasks:
        kind, found_shape = outputs[task.name]
        expected = expected_shape(task, size)
        fits = len(found_shape) == 1 + len(expected) and all(
            None in (want, have) or want == have
            for have, want in zip(found_shape[1:], expected, strict=True)
        )
        if kind != "float32" or not fits:
            wanted = _described("float32", (None, *expected))
            raise EngineError(
                f"Output {task.name!r} is {_described(kind, found_shape)}, not {wanted}: {AGAIN}"
            )
    return shape[0] == 1


def _described(kind: str, shape: Sequence[int | None]) -> str:
    """`float32 [N, 3]`."""
    sizes = [
        str(size) if size is not None else "D" if index else "N" for index, size in enumerate(shape)
    ]
    return f"{kind} [{', '.join(sizes)}]"
