"""Tests that graphs read through onnx_ir have the edges that the protobuf names."""

from collections import defaultdict
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from dermedge.models import load_model_folder
from dermedge_export.context import ExportContext
from dermedge_export.graph.inspect import inspect_onnx
from dermedge_export.graph.read import (
    constant_value,
    input_at,
    name_of,
    producer_type,
    rank_of,
    read_graph,
)
from dermedge_export.quantization.ptq import Quantizer
from dermedge_export.target import CPU
from support import small


@pytest.fixture(scope="module", params=["fp32", "int8"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> onnx.ModelProto:
    folder: Path = small.student_folder(tmp_path_factory.getbasetemp())
    context = ExportContext(load_model_folder(folder))
    graph = context.graph(CPU.opset)
    if request.param == "int8":
        graph = Quantizer(graph, context.calibration)()
    return onnx.load_model_from_string(graph)


def test_nodes_keep_their_order_operators_and_tensors(model: onnx.ModelProto) -> None:
    read = [
        (
            name_of(node),
            node.op_type,
            ["" if value is None else name_of(value) for value in node.inputs],
            [name_of(value) for value in node.outputs],
        )
        for node in read_graph(model)
    ]
    assert read == [
        (node.name, node.op_type, list(node.input), list(node.output)) for node in model.graph.node
    ]


def test_producers_and_consumers_are_those_that_the_protobuf_names(model: onnx.ModelProto) -> None:
    producers = {name: node for node in model.graph.node for name in node.output}
    consumers = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            consumers[name].append(node.name)
    for node in read_graph(model):
        for value in node.inputs:
            if value is not None:
                expected = producers.get(name_of(value))
                assert producer_type(value) == ("" if expected is None else expected.op_type)
        for value in node.outputs:
            assert [name_of(consumer) for consumer in value.consumers()] == consumers[value.name]


def test_constants_and_ranks_are_those_of_the_initializers(model: onnx.ModelProto) -> None:
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    seen = set()
    for node in read_graph(model):
        for value in node.inputs:
            constant = constant_value(value)
            if value is None or constant is None:
                assert value is None or value.name not in stored
                continue
            seen.add(value.name)
            assert constant.dtype == stored[name_of(value)].dtype
            assert constant.tobytes() == stored[name_of(value)].tobytes()
            assert rank_of(value) == stored[name_of(value)].ndim
    assert seen == stored.keys()
    assert input_at(next(iter(read_graph(model))), 99) is None


def test_an_unsorted_graph_is_linked_as_well() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 19]>
        g (float[2] x) => (float[2] y) { a = Relu (x) y = Neg (a) }"""
    )
    first, second = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([second, first])
    negation, _ = read_graph(model)
    assert producer_type(negation.inputs[0]) == "Relu"


def test_an_inspected_graph_finds_producers_by_tensor(model: onnx.ModelProto) -> None:
    graph = inspect_onnx(model.SerializeToString())
    assert {name: node.name for name, node in graph.producers.items()} == {
        name: node.name for node in model.graph.node for name in node.output
    }
