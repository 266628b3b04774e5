"""Read the operators of LiteRT models."""

import functools
from dataclasses import dataclass

from dermedge_runtime.errors import MissingExtraError


@dataclass(frozen=True)
class Operator:
    """An operator of a LiteRT model.

    Attributes:
        name: Name of its first output tensor, by which recipes select it.
        kind: Name of its type, such as `CONV_2D`.
        shape: Shape of its first output.
        inputs: Names of its input tensors, weights included.
        outputs: Names of its output tensors.

    Example:
        >>> conv = Operator("stem", "CONV_2D", (1, 16, 16, 8), ("image", "w"), ("stem",))
        >>> conv.kind, conv.shape[-1]
        ('CONV_2D', 8)
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_litert(model: bytes) -> tuple[Operator, ...]:
    """Return the operators of a model's main graph, in the order of computation.

    Args:
        model: The content of a `.tflite` file.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtraError("ai-edge-litert", "litert", "A LiteRT model") from error
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]

    def name_of(index: int) -> str:
        name = graph.tensors[index].name
        return name.decode() if isinstance(name, bytes) else str(name)

    operators = []
    for one in graph.operators:
        code = parsed.operatorCodes[one.opcodeIndex]
        # Older files hold the type in a byte, newer ones in both fields.
        kind = _kinds()[max(int(code.builtinCode), int(code.deprecatedBuiltinCode))]
        outputs = [int(index) for index in one.outputs]
        operators.append(
            Operator(
                name_of(outputs[0]),
                kind,
                tuple(int(length) for length in _shape(graph.tensors[outputs[0]])),
                tuple(name_of(int(index)) for index in one.inputs if index >= 0),
                tuple(map(name_of, outputs)),
            )
        )
    return tuple(operators)


def layer_of(name: str) -> str:
    """Return the path of the torch module that an operator's name tells, for people.

    litert-torch names a tensor after the classes and attributes of the modules around
    it. If it merged several operators, the first one counts.

    Args:
        name: Name of an operator.

    Example:
        >>> layer_of("app.Net/torch.nn.modules.conv.Conv2d_stem;;app.Net;1")
        'stem'
        >>> layer_of("serving_default_diagnosis_output")
        'serving_default_diagnosis_output'
    """
    parts = name.partition(";")[0].split("/")[1:]
    # Each part is the path of a class, then "_" and the attribute.
    attributes = [part.rpartition(".")[2].partition("_")[2] for part in parts]
    return ".".join(filter(None, attributes)) or name


def _shape(tensor: object) -> list[int]:
    shape = getattr(tensor, "shape", None)
    return [] if shape is None else list(shape)


@functools.cache
def _kinds() -> dict[int, str]:
    """Return the names of operator types by their number."""
    from ai_edge_litert import schema_py_generated as schema

    return {number: name for name, number in vars(schema.BuiltinOperator).items() if name.isupper()}
