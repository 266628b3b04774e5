"""Read the intermediate tensors of an ONNX or OpenVINO graph by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.read import name_of, read_graph
from dermedge_export.graph.run import open_session
from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import MissingExtraError, UsageError
from dermedge_runtime.signal_stack import keep_signal_stack
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import no_telemetry

if TYPE_CHECKING:
    import openvino

ProbeTensors = Callable[[NDArray[np.uint8]], list[NDArray[np.generic]]]


@dataclass(frozen=True)
class Node:
    """An operator with the names of its input and output tensors.

    Example:
        >>> graph = inspect_bundle(Bundle.open("toy.dermedge"))
        >>> node = graph.producers["malignancy"]
        >>> node.op, node.outputs
        ('Gemm', ('malignancy',))
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class InspectableGraph:
    """A graph whose intermediate tensors can be read, in ONNX or OpenVINO format.

    `nodes` are in the order of computation. `constants` are the stored weights, with
    their shapes. `rounded` maps a tensor that is quantized to the tensor that its
    consumers read. `probe_tensors` takes names of tensors and returns a function from
    images uint8 [1, S, S, 3] to their values, computed operator by operator.

    Example:
        >>> from dermedge_runtime.bundle import Bundle
        >>> graph = inspect_bundle(Bundle.open("toy.dermedge"))
        >>> graph.nodes[0].op, graph.nodes[0].inputs
        ('Transpose', ('image',))
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, tuple[int, ...]]
    rounded: Mapping[str, str]
    probe_tensors: Callable[[Sequence[str]], ProbeTensors]

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that produces each tensor, by the tensor's name."""
        return {name: node for node in self.nodes for name in node.outputs}


def inspect_bundle(bundle: Bundle) -> InspectableGraph:
    """Return the graph of a bundle's artifact, ready for inspection.

    Raises:
        UsageError: The format cannot be inspected on this machine.
        MissingExtraError: The package that reads the format is not installed.
    """
    artifact = bundle.artifact
    if artifact.format in ("onnx", "tensorrt"):
        return inspect_onnx(bundle.read(artifact.path))
    if artifact.format == "openvino":
        files = {name.rpartition(".")[2]: bundle.read(name) for name in artifact_files(bundle)}
        return inspect_openvino(files["xml"], files["bin"])
    raise UsageError(
        f"Graphs in {artifact.format!r} format cannot be inspected. Debug a bundle of the same "
        "student in onnx, tensorrt or openvino format, for example for target cpu."
    )


def inspect_onnx(graph: bytes) -> InspectableGraph:
    """Return an ONNX model for inspection; onnxruntime runs it without fusion."""
    import onnx

    model = onnx.load_model_from_string(graph)
    nodes = []
    rounded: dict[str, str] = {}
    for node in read_graph(model):
        inputs = tuple("" if value is None else name_of(value) for value in node.inputs)
        outputs = tuple(name_of(value) for value in node.outputs)
        nodes.append(Node(name_of(node), node.op_type, inputs, outputs))
        if node.op_type != "QuantizeLinear":
            continue
        # The last DequantizeLinear behind a quantized tensor is the one that layers
        # read.
        readers = [
            reader for reader in node.outputs[0].consumers() if reader.op_type == "DequantizeLinear"
        ]
        if readers:
            rounded.setdefault(inputs[0], name_of(readers[-1].outputs[0]))

    def probe_tensors(names: Sequence[str]) -> ProbeTensors:
        watched = onnx.load_model_from_string(graph)
        known = {output.name for output in watched.graph.output}
        watched.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known
        )
        session = open_session(watched.SerializeToString(), optimized=False)
        return lambda images: list(session.run(list(names), {INPUT: images}))

    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return InspectableGraph(tuple(nodes), constants, rounded, probe_tensors)


def inspect_openvino(xml: bytes, weights: bytes) -> InspectableGraph:
    """Return an OpenVINO IR, ready for inspection.

    The IR must come from ONNX, so that its tensors have the names of the ONNX graph.
    `constants` is empty, because OpenVINO merges weights with the operators behind
    them.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    try:
        with no_telemetry():
            import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "An OpenVINO bundle") from error
    core = openvino.Core()
    stored = openvino.Tensor(np.frombuffer(weights, np.uint8))

    def probe_tensors(names: Sequence[str]) -> ProbeTensors:
        model = core.read_model(xml, stored)
        operators = [op for op in model.get_ordered_ops() if op.get_type_name() != "Result"]
        outputs = {_tensor_name(output): output for op in operators for output in op.outputs()}
        wanted = [_place(outputs[name]) for name in names]
        # add_outputs may give a tensor further names, so results are matched by place.
        model.add_outputs([outputs[name] for name in dict.fromkeys(names)])
        results = [_place(result.input_value(0)) for result in model.get_results()]
        positions = [results.index(place) for place in wanted]
        with keep_signal_stack():
            compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            request = compiled.create_infer_request()

        def probe(images: NDArray[np.uint8]) -> list[NDArray[np.generic]]:
            values = list(request.infer({INPUT: images}).values())
            return [values[position] for position in positions]

        return probe

    nodes = tuple(
        Node(
            op.get_friendly_name(),
            op.get_type_name(),
            tuple(_tensor_name(port.get_source_output()) for port in op.inputs()),
            tuple(_tensor_name(output) for output in op.outputs()),
        )
        for op in core.read_model(xml, stored).get_ordered_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result")
    )
    rounded = {node.inputs[0]: node.outputs[0] for node in nodes if node.op == "FakeQuantize"}
    return InspectableGraph(nodes, {}, rounded, probe_tensors)


def _tensor_name(output: "openvino.Output") -> str:
    """Return a tensor's name from ONNX, else one made of its operator's name."""
    names: set[str] = output.get_names()
    return min(names, default="{}:{}".format(*_place(output)))


def _place(output: "openvino.Output") -> tuple[str, int]:
    """Return the operator and the index of an output."""
    return output.get_node().get_friendly_name(), output.get_index()
