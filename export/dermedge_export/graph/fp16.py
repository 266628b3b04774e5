"""Half precision with every tensor typed: fp16 where its range suffices, fp32 with explicit casts elsewhere."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import import_silently

LARGEST = 65504.0  # of fp16
SMALLEST = 2.0**-14  # normal fp16; engines may flush what is smaller to zero
MARGIN = 0.5  # share of the largest value that calibration images may use, others reach higher
PROBED = 32  # images; the range of a tensor is far from the limit or far beyond it

WIDE = frozenset(
    (
        *(
            "BatchNormalization",
            "GroupNormalization",
            "InstanceNormalization",
            "LayerNormalization",
        ),
        *("LpNormalization", "MeanVarianceNormalization", "RMSNormalization"),
        *("ReduceL2", "ReduceLogSumExp", "ReduceSumSquare", "Softmax", "LogSoftmax"),
    )
)
HEAVY = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "QuantizeLinear", "DequantizeLinear"))


def typed_fp16(model: Any, keep: Collection[str]) -> Any:
    """A copy of an fp32 onnx.ModelProto whose float tensors are fp16, but for those of the nodes named in `keep`.

    Inputs and outputs of the graph keep their names and types. Where two types meet there is one Cast per tensor; a
    light node between kept ones is kept as well, being cheaper in fp32 than two casts.
    """
    import onnx

    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    graph = typed.graph
    floats = float_tensors(typed)
    writer = _Writer({tensor.name: tensor for tensor in graph.initializer if tensor.name in floats})
    wide = _without_islands(graph, floats - writer.constants.keys(), keep)
    for node in graph.node:
        writer.add(
            node, floats, onnx.TensorProto.FLOAT if node.name in wide else onnx.TensorProto.FLOAT16
        )
    writer.restore({output.name for output in graph.output})
    others = [tensor for tensor in graph.initializer if tensor.name not in writer.constants]
    for field, values in (
        ("node", writer.nodes),
        ("initializer", [*others, *writer.written.values()]),
    ):
        graph.ClearField(field)
        getattr(graph, field).extend(values)
    graph.ClearField("value_info")
    return typed


class _Writer:
    """The nodes of the typed graph, in order, and the types of the tensors that they make."""

    def __init__(self, constants: dict[str, Any]) -> None:
        self.constants = constants
        self.nodes: list[Any] = []
        self.written: dict[str, Any] = {}
        self._types: dict[str, int] = {}
        self._cast: set[str] = set()

    def add(self, node: Any, floats: Collection[str], kind: int) -> None:
        """Append a node that computes in `kind`, its inputs cast where they are of another type."""
        import onnx

        fixed = _fixed_inputs(node)
        for position, name in enumerate(node.input):
            if name in floats:
                node.input[position] = self._as(
                    name, onnx.TensorProto.FLOAT if position in fixed else kind
                )
        for attribute in node.attribute:
            if (
                node.op_type == "Cast"
                and attribute.name == "to"
                and attribute.i == onnx.TensorProto.FLOAT
            ):
                attribute.i = kind
            elif attribute.type == onnx.AttributeProto.TENSOR:
                attribute.t.CopyFrom(_converted(attribute.t, attribute.t.name, kind))
        self._types.update((name, kind) for name in node.output if name in floats)
        self.nodes.append(node)

    def restore(self, outputs: Collection[str]) -> None:
        """Give the graph's outputs their type back, under their names."""
        import onnx

        halved = {
            name: f"{name}.fp16"
            for name in outputs
            if self._types.get(name) == onnx.TensorProto.FLOAT16
        }
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [halved.get(name, name) for name in names]
        for name, half in sorted(halved.items()):
            self.nodes.append(_cast(half, name, onnx.TensorProto.FLOAT))

    def _as(self, name: str, kind: int) -> str:
        """The name under which a tensor is to be had in `kind`."""
        import onnx

        suffixed = f"{name}.{'fp32' if kind == onnx.TensorProto.FLOAT else 'fp16'}"
        if name in self.constants:
            self.written.setdefault(suffixed, _converted(self.constants[name], suffixed, kind))
            return suffixed
        if self._types.get(name, onnx.TensorProto.FLOAT) == kind:
            return name
        if suffixed not in self._cast:
            self._cast.add(suffixed)
            self.nodes.append(_cast(name, suffixed, kind))
        return suffixed


def fragile(model: Any, peaks: dict[str, float]) -> list[str]:
    """Names of the nodes that must stay fp32, in the graph's order: normalisations (whole or taken apart), softmax,
    and whatever reads or writes a tensor that leaves, or nearly leaves, the range of fp16.

    Args:
        model: fp32 onnx.ModelProto.
        peaks: the largest magnitude of each activation on calibration images, as `activation_peaks` finds it.
    """
    import onnx

    beyond = {name for name, value in peaks.items() if not value <= MARGIN * LARGEST}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and _out_of_range(
            onnx.numpy_helper.to_array(tensor)
        ):
            beyond.add(tensor.name)
    statistics = _statistics(model.graph)
    return [
        node.name
        for node in model.graph.node
        if node.op_type in WIDE or node.name in statistics or beyond & {*node.input, *node.output}
    ]


def activation_peaks(graph: bytes, images: NDArray[np.uint8]) -> dict[str, float]:
    """The largest magnitude of every float activation of an fp32 ONNX graph, over at most 32 of `images`
    uint8 [N, S, S, 3], spread evenly. NaN where a tensor holds one.
    """
    import onnx

    model = onnx.load_model_from_string(graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    names = sorted(float_tensors(model) - constants)
    chosen = images[
        np.unique(np.linspace(0, len(images) - 1, min(PROBED, len(images))).astype(int))
    ]
    peaks = np.zeros(len(names), np.float32)
    for values in watched(graph, names, chosen):
        peaks = np.maximum(peaks, [peak(value) for value in values])
    return {name: float(value) for name, value in zip(names, peaks, strict=True)}


def peak(values: NDArray[np.float32]) -> np.float32:
    """The largest magnitude, NaN where there is one."""
    return np.float32(np.maximum(values.max(initial=0), -values.min(initial=0)))


def watched(
    graph: bytes, names: Sequence[str], images: NDArray[np.uint8]
) -> Iterator[list[NDArray[np.float32]]]:
    """The tensors called `names` for each image in turn: one image's worth of them is held at a time."""
    import onnx

    model = onnx.load_model_from_string(graph)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )
    session = _session(model.SerializeToString(), optimised=True)
    for image in images:
        yield session.run(list(names), {INPUT: image[None]})


def rounded_run(graph: bytes) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """A typed graph as a function from uint8 [N, S, S, 3] to float32 outputs by task, in which every fp16 tensor really
    is rounded to fp16 and overflows.

    onnxruntime's CPU kernels compute most fp16 operators in fp32 and drop the casts between them, at every level of
    optimisation, which hides an overflow. What it cannot drop, once its optimisers are off, is a tensor that two
    operators with fp16 kernels of their own hand on; one alone it would turn back into fp32.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    halves = float_tensors(model, onnx.TensorProto.FLOAT16)
    nodes = []
    for node in model.graph.node:
        made = [name for name in node.output if name in halves]
        node.output[:] = [f"{name}.exact" if name in made else name for name in node.output]
        nodes.append(node)
        for name in made:
            nodes.append(onnx.helper.make_node("Identity", [f"{name}.exact"], [f"{name}.held"]))
            nodes.append(onnx.helper.make_node("Identity", [f"{name}.held"], [name]))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    names = [output.name for output in model.graph.output]
    session = _session(model.SerializeToString(), optimised=False)

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        rows = [session.run(names, {INPUT: image[None]}) for image in images]
        return {
            name: np.concatenate(column)
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }

    return run


def float_tensors(model: Any, kind: int = 1) -> set[str]:
    """Names of all tensors of a shape-inferred model that have the element type `kind`, float32 if not given."""
    graph = model.graph
    found = {tensor.name for tensor in graph.initializer if tensor.data_type == kind}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == kind:
            found.add(value.name)
    return found


def _without_islands(graph: Any, activations: Collection[str], keep: Collection[str]) -> set[str]:
    """`keep`, with the light nodes all of whose float neighbours are in it."""
    wide = set(keep)
    makers = {name: node.name for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    for node in graph.node:
        before = [makers[name] for name in node.input if name in activations and name in makers]
        after = [
            reader
            for name in node.output
            if name in activations
            for reader in readers.get(name, [])
        ]
        if node.op_type not in HEAVY and before and after and wide.issuperset([*before, *after]):
            wide.add(node.name)
    return wide


def _statistics(graph: Any) -> set[str]:
    """Nodes of normalisations that were taken apart: from the mean of squares to the division by its square root."""
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    for root in graph.node:
        if root.op_type != "Sqrt":
            continue
        path = [*_above(root, makers, ("Add", "Clip", "Max", "Mul", "ReduceMean", "ReduceSum"))]
        sums = [node for node in path if node.op_type in ("ReduceMean", "ReduceSum")]
        if not sums:
            continue
        path += [
            node
            for total in sums
            for node in _above(total, makers, ("Mul", "Pow", "Sub", "ReduceMean"))
        ]
        below = [
            node
            for node in readers.get(root.output[0], [])
            if node.op_type in ("Div", "Reciprocal")
        ]
        below += [
            node
            for inverse in below
            if inverse.op_type == "Reciprocal"
            for node in readers.get(inverse.output[0], [])
            if node.op_type == "Mul"
        ]
        found.update(node.name for node in (root, *path, *below))
    return found


def _above(node: Any, makers: dict[str, Any], kinds: Collection[str]) -> Iterator[Any]:
    """Nodes that `node` depends on through operators in `kinds` only, up to the first sum on each way."""
    for name in node.input:
        maker = makers.get(name)
        if maker is not None and maker.op_type in kinds:
            yield maker
            if not maker.op_type.startswith("Reduce"):
                yield from _above(maker, makers, kinds)


def _fixed_inputs(node: Any) -> set[int]:
    """Inputs whose type the operator fixes at float32, such as the scales of a Resize."""
    import onnx

    inputs = onnx.defs.get_schema(node.op_type, node.domain).inputs
    return {
        position for position, formal in enumerate(inputs) if formal.type_str == "tensor(float)"
    }


def _out_of_range(values: NDArray[np.float32]) -> bool:
    """Whether a constant is too large for fp16, or, being a single number such as an epsilon, too small."""
    size = np.abs(values[np.isfinite(values)])
    return bool(
        size.max(initial=0) > LARGEST or (values.size == 1 and 0 < size.max(initial=0) < SMALLEST)
    )


def _converted(tensor: Any, name: str, kind: int) -> Any:
    """A float32 tensor as one of `kind` called `name`; a tensor of another type as it is."""
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return tensor
    dtype = np.float16 if kind == onnx.TensorProto.FLOAT16 else np.float32
    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), name)


def _cast(source: str, target: str, kind: int) -> Any:
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind)


def _session(graph: bytes, *, optimised: bool) -> Any:
    onnxruntime = import_silently("onnxruntime")
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    )
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
