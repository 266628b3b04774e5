"""The network of `toy` as a LiteRT file, written without a converter."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from conformance.toy import MAPS, PATCH, weights
from dermedge_runtime.spec import Spec

Operators = schema.BuiltinOperator
TYPES = {
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
}


class Graph:
    """A graph of LiteRT's schema; tensors are known by their number.

    Example:
        >>> graph = Graph()
        >>> image = graph.tensor("image", (1, 32, 32, 3), np.uint8)
        >>> pixels = graph.tensor("pixels", (1, 32, 32, 3))
        >>> graph.add(Operators.CAST, [image], pixels)
    """

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, "toy"
        # The first buffer is empty and stands for tensors without constant values.
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.name, self.graph.tensors, self.graph.operators = "main", [], []
        self.model.subgraphs = [self.graph]

    def tensor(self, name: str, shape: tuple[int, ...], kind: type = np.float32) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), TYPES[np.dtype(kind)]
        tensor.buffer = 0
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, name: str, values: np.ndarray) -> int:
        number = self.tensor(name, values.shape, values.dtype.type)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors[number].buffer = len(self.model.buffers) - 1
        return number

    def add(self, code: int, inputs: list[int], output: int, **options: object) -> None:
        """Add an operator; `options` are the fields of its options table."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(code)
        operator.inputs, operator.outputs = inputs, [output]
        name = OPTIONS.get(code)
        if name:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = getattr(schema, f"{name}T")()
            for field, value in options.items():
                assert hasattr(operator.builtinOptions, field), field
                setattr(operator.builtinOptions, field, value)
        self.graph.operators.append(operator)

    def pack(self, image: int, outputs: dict[str, int]) -> bytes:
        """Return the file, with one signature whose names are those of the contract."""
        self.graph.inputs, self.graph.outputs = [image], list(outputs.values())
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [_named("image", image)]
        signature.outputs = [_named(name, number) for name, number in outputs.items()]
        self.model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1 << 14)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _code(self, code: int) -> int:
        for index, known in enumerate(self.model.operatorCodes):
            if known.builtinCode == code:
                return index
        entry = schema.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        entry.version = 1
        self.model.operatorCodes.append(entry)
        return len(self.model.operatorCodes) - 1


OPTIONS = {
    Operators.SUB: "SubOptions",
    Operators.MUL: "MulOptions",
    Operators.CONV_2D: "Conv2DOptions",
    Operators.MEAN: "ReducerOptions",
    Operators.FULLY_CONNECTED: "FullyConnectedOptions",
    Operators.TRANSPOSE: "TransposeOptions",
    Operators.L2_NORMALIZATION: "L2NormOptions",
}


def _named(name: str, number: int) -> object:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, number
    return entry


def litert_model(spec: Spec) -> bytes:
    """Return the network for a batch of one."""
    size, side = spec.preprocess.size, spec.preprocess.size // PATCH
    values, graph = weights(spec.tasks), Graph()
    patch = values["patch.weight"].transpose(0, 2, 3, 1).copy()  # output, rows, columns, input
    channels = len(patch)
    frame = (1, size, size, 3)
    image = graph.tensor("image", frame, np.uint8)
    pixels, centred, scaled = (graph.tensor(name, frame) for name in ("float", "centred", "scaled"))
    graph.add(Operators.CAST, [image], pixels)
    graph.add(Operators.SUB, [pixels, graph.constant("mean", np.float32([128]))], centred)
    graph.add(Operators.MUL, [centred, graph.constant("scale", np.float32([1 / 64]))], scaled)
    maps = graph.tensor("maps", (1, side, side, channels))
    zeros = graph.constant("zeros", np.zeros(channels, np.float32))
    convolution = {"padding": schema.Padding.VALID, "strideW": PATCH, "strideH": PATCH}
    relu = {"fusedActivationFunction": schema.ActivationFunctionType.RELU}
    weight = graph.constant("patch.weight", patch)
    graph.add(Operators.CONV_2D, [scaled, weight, zeros], maps, **convolution, **relu)
    features = graph.tensor("features", (1, channels))
    axes = graph.constant("axes", np.array([1, 2], np.int32))
    graph.add(Operators.MEAN, [maps, axes], features, keepDims=False)
    order = graph.constant("order", np.array([0, 3, 1, 2], np.int32))
    outputs = {}
    for task in spec.tasks:
        name = task.name
        weight, bias = values[f"{name}.weight"], values[f"{name}.bias"]
        parameters = graph.constant(f"{name}.bias", bias)
        if task.kind in MAPS:
            width = len(bias)
            kernel = graph.constant(f"{name}.weight", weight.reshape(width, 1, 1, channels))
            last = graph.tensor(f"{name}.last", (1, side, side, width))
            one = {"padding": schema.Padding.VALID, "strideW": 1, "strideH": 1}
            graph.add(Operators.CONV_2D, [maps, kernel, parameters], last, **one)
            outputs[name] = graph.tensor(name, (1, width, side, side))
            graph.add(Operators.TRANSPOSE, [last, order], outputs[name])
            continue
        outputs[name] = graph.tensor(name, (1, len(bias)))
        linear = [features, graph.constant(f"{name}.weight", weight), parameters]
        if task.kind == "embed":
            long = graph.tensor("long", (1, len(bias)))
            graph.add(Operators.FULLY_CONNECTED, linear, long)
            graph.add(Operators.L2_NORMALIZATION, [long], outputs[name])
        else:
            graph.add(Operators.FULLY_CONNECTED, linear, outputs[name])
    return graph.pack(image, outputs)
