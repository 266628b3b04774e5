"""Graphs that can be looked into: the values of any tensor for an image, whichever engine's format the graph is in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.bundle import Bundle, artifact_files
from dermedge_runtime.errors import MissingExtraError, UsageError
from dermedge_runtime.signal_stack import keep_signal_stack
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import no_telemetry

ProbeTensors = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]


@dataclass(frozen=True)
class Node:
    """An operator with the names of the tensors that it reads and makes."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class InspectableGraph:
    """A graph that can be looked into.

    `nodes` are in the order of computation; `constants` are the tensors that hold weights as they are stored. `rounded`
    maps a tensor that is quantized to the one that its readers see. `probe_tensors` takes names of tensors and
    returns a function from images uint8 [1, S, S, 3] to their values, computed operator by operator.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, tuple[int, ...]]
    rounded: Mapping[str, str]
    probe_tensors: Callable[[Sequence[str]], ProbeTensors]


def inspect_bundle(bundle: Bundle) -> InspectableGraph:
    """A bundle's artifact, looked into.

    Raises:
        UsageError: its format cannot be looked into on this machine.
        MissingExtraError: what reads its format is not installed.
    """
    artifact = bundle.artifact
    if artifact.format in ("onnx", "tensorrt"):
        return inspect_onnx(bundle.read(artifact.path))
    if artifact.format == "openvino":
        files = {name.rpartition(".")[2]: bundle.read(name) for name in artifact_files(bundle)}
        return inspect_openvino(files["xml"], files["bin"])
    raise UsageError(
        f"Nothing here can look into {artifact.format!r}: debug a bundle of the same student in onnx, tensorrt or "
        "openvino format, such as for target cpu."
    )


def inspect_onnx(graph: bytes) -> InspectableGraph:
    """An ONNX model, its operators run by onnxruntime one by one: nothing is fused."""
    import onnx

    model = onnx.load_model_from_string(graph)
    nodes = tuple(
        Node(n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in model.graph.node
    )
    dequantized = {
        node.inputs[0]: node.outputs[0] for node in nodes if node.op == "DequantizeLinear"
    }
    rounded: dict[str, str] = {}
    for node in nodes:
        if node.op == "QuantizeLinear" and node.outputs[0] in dequantized:
            rounded.setdefault(node.inputs[0], dequantized[node.outputs[0]])

    def probe_tensors(names: Sequence[str]) -> ProbeTensors:
        with no_telemetry():
            import onnxruntime

        watched = onnx.load_model_from_string(graph)
        known = {output.name for output in watched.graph.output}
        watched.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known
        )
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return lambda images: list(session.run(list(names), {INPUT: images}))

    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return InspectableGraph(nodes, constants, rounded, probe_tensors)


def inspect_openvino(xml: bytes, weights: bytes) -> InspectableGraph:
    """An OpenVINO IR that was converted from ONNX, and so kept the names of its tensors. OpenVINO stores weights merged
    with what follows them, so none are `constants`.
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
        made = {_name(output): output for op in operators for output in op.outputs()}
        wanted = [_place(made[name]) for name in names]
        model.add_outputs(
            [made[name] for name in dict.fromkeys(names)]
        )  # which may give them further names
        results = [_place(result.input_value(0)) for result in model.get_results()]
        with keep_signal_stack():
            request = core.compile_model(
                model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
            ).create_infer_request()
        positions = [results.index(place) for place in wanted]

        def look(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
            values = list(request.infer({INPUT: images}).values())
            return [values[position] for position in positions]

        return look

    nodes = [
        Node(
            op.get_friendly_name(),
            op.get_type_name(),
            tuple(_name(port.get_source_output()) for port in op.inputs()),
            tuple(_name(output) for output in op.outputs()),
        )
        for op in core.read_model(xml, stored).get_ordered_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result")
    ]
    rounded = {node.inputs[0]: node.outputs[0] for node in nodes if node.op == "FakeQuantize"}
    return InspectableGraph(tuple(nodes), {}, rounded, probe_tensors)


def _name(output: Any) -> str:
    """A tensor's name from ONNX, else one made of its operator's."""
    names: set[str] = output.get_names()
    return min(names, default="{}:{}".format(*_place(output)))


def _place(output: Any) -> tuple[str, int]:
    return output.get_node().get_friendly_name(), output.get_index()
