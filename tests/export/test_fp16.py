"""Test typed fp16 graphs, the nodes that stay in fp32, and rounding to fp16."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from dermedge_export.graph.fp16 import float_tensors, fragile_nodes, typed_fp16
from dermedge_export.graph.run import activation_peaks, rounded_runner

W = "float[3,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}"
IMAGES = np.array([[[[0, 30, 60]]], [[[90, 200, 0]]]], np.uint8)  # two of one pixel


def model(
    nodes: str, constants: str = "", output: str = "y", shape: str = "1,1,1,3"
) -> onnx.ModelProto:
    """Return a graph from `image` to one output; nodes have the names of their outputs."""
    text = f"""<ir_version: 9, opset_import: ["" : 19]>
    g (uint8[1,1,1,3] image) => (float[{shape}] {output}) <{constants}>
    {{ x = Cast <to: int = 1> (image) {nodes} }}"""
    parsed = onnx.parser.parse_model(text)
    for node in parsed.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(parsed, strict_mode=True)


def checked(typed: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(typed, full_check=True)
    return onnx.shape_inference.infer_shapes(typed, strict_mode=True)


def by_engine(graph: onnx.ModelProto) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in IMAGES])


def keep(graph: onnx.ModelProto) -> list[str]:
    return fragile_nodes(graph, activation_peaks(graph.SerializeToString(), IMAGES))


def types(graph: onnx.ModelProto) -> dict[str, str]:
    """Return the type of each node's output."""
    inferred = checked(graph)
    values = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *graph.graph.output)
    }
    return {
        node.name: TensorProto.DataType.Name(values[node.output[0]]) for node in inferred.graph.node
    }


OVERFLOWING = model("a = Mul (x, x) b = Mul (a, two) y = Sqrt (b)", "float two = {2}")


class TestRounding:
    def test_onnxruntime_hides_an_fp16_overflow_that_rounding_shows(self) -> None:
        typed = typed_fp16(OVERFLOWING, [])
        assert np.isfinite(by_engine(typed)).all()
        rounded = rounded_runner(typed.SerializeToString())(IMAGES)["y"]
        assert np.isinf(rounded).ravel().tolist() == [False, False, False, False, True, False]

    def test_values_are_those_of_fp16(self) -> None:
        typed = typed_fp16(model("y = Mul (x, third)", "float third = {0.333}"), [])
        expected = IMAGES.astype(np.float16) * np.float16(0.333)
        np.testing.assert_array_equal(
            rounded_runner(typed.SerializeToString())(IMAGES)["y"], expected
        )

    def test_with_the_fragile_nodes_in_fp32_nothing_overflows(self) -> None:
        kept = keep(OVERFLOWING)
        assert kept == ["a", "b", "y"]
        rounded = rounded_runner(checked(typed_fp16(OVERFLOWING, kept)).SerializeToString())(
            IMAGES
        )["y"]
        np.testing.assert_allclose(rounded, by_engine(OVERFLOWING), rtol=1e-3)


class TestProbe:
    def test_it_finds_the_largest_magnitude_over_all_images(self) -> None:
        graph = model("a = Neg (x) y = Add (a, fifty)", "float fifty = {50}")
        peaks = activation_peaks(graph.SerializeToString(), IMAGES)
        assert peaks == {"x": 200.0, "a": 200.0, "y": 150.0}

    def test_nan_is_kept_and_not_lost(self) -> None:
        graph = model("a = Neg (x) y = Sqrt (a)")
        assert np.isnan(activation_peaks(graph.SerializeToString(), IMAGES)["y"])
        assert keep(graph) == ["y"]


class TestFragile:
    @pytest.mark.parametrize(
        ("nodes", "constants", "expected"),
        [
            ("y = Softmax (x)", "", ["y"]),
            ("y = LayerNormalization (x, w)", "float[3] w = {1, 2, 3}", ["y"]),
            ("a = Add (x, mask) y = Relu (a)", "float mask = {-1e9}", ["a", "y"]),
            ("a = Add (x, tiny) y = Relu (a)", "float tiny = {1e-6}", ["a"]),
            ("a = Add (x, w) y = Relu (a)", "float[3] w = {1e-6, 0, 1}", []),
            ("y = ReduceMean <keepdims: int = 1> (x, axes)", "int64[2] axes = {1, 2}", []),
        ],
    )
    def test_nodes_that_lose_accuracy_in_fp16_are_fragile(
        self, nodes: str, constants: str, expected: list[str]
    ) -> None:
        assert keep(model(nodes, constants)) == expected

    def test_all_nodes_of_a_spelled_out_norm_are_fragile(self) -> None:
        graph = model(
            """a = Mul (x, small) mean = ReduceMean <keepdims: int = 1> (a, axes) d = Sub (a, mean)
            square = Pow (d, two) variance = ReduceMean <keepdims: int = 1> (square, axes)
            e = Add (variance, eps) root = Sqrt (e)
            inverse = Reciprocal (root) n = Mul (d, inverse) y = Relu (n)""",
            "float small = {0.01}, int64[1] axes = {3}, float two = {2}, float eps = {0.1}",
        )
        assert keep(graph) == ["a", "mean", "d", "square", "variance", "e", "root", "inverse", "n"]


class TestTyping:
    def test_weights_and_tensors_are_halved_and_the_borders_stay(self) -> None:
        graph = model("a = MatMul (x, w) y = Relu (a)", W)
        typed = typed_fp16(graph, [])
        assert types(typed) == {"x": "FLOAT16", "a": "FLOAT16", "y": "FLOAT16", "cast_y": "FLOAT"}
        assert [numpy_helper.to_array(tensor).dtype for tensor in typed.graph.initializer] == [
            np.float16
        ]
        np.testing.assert_allclose(by_engine(typed), by_engine(graph), rtol=1e-3)

    def test_one_cast_serves_all_readers_and_none_is_cast_back(self) -> None:
        graph = model(
            "a = Relu (x) s = Softmax (a) t = Softmax <axis: int = 1> (a) "
            "b = Add (s, t) y = MatMul (b, w)",
            W,
        )
        typed = typed_fp16(graph, keep(graph))
        casts = {
            node.output[0]: node.input[0] for node in typed.graph.node if node.op_type == "Cast"
        }
        assert casts == {"x": "image", "a.fp32": "a", "s.fp16": "s", "t.fp16": "t", "y": "y.fp16"}
        assert not set(casts.values()) & casts.keys()

    def test_a_light_node_between_kept_ones_costs_no_cast(self) -> None:
        graph = model("s = Softmax (x) r = Relu (s) t = Softmax (r) y = MatMul (t, w)", W)
        kept = types(typed_fp16(graph, keep(graph)))
        assert kept["r"] == "FLOAT"
        heavy = model("s = Softmax (x) r = MatMul (s, w) t = Softmax (r) y = MatMul (t, w)", W)
        assert types(typed_fp16(heavy, keep(heavy)))["r"] == "FLOAT16"

    def test_a_constant_read_in_both_types_is_stored_in_both(self) -> None:
        graph = model("a = Mul (x, w) s = Softmax (a) y = Mul (s, w)", "float[3] w = {1, 2, 3}")
        stored = {
            tensor.name: tensor.data_type
            for tensor in typed_fp16(graph, ["s", "y"]).graph.initializer
        }
        assert stored == {"w.fp16": TensorProto.FLOAT16, "w.fp32": TensorProto.FLOAT}

    def test_inputs_that_an_operator_requires_in_fp32_stay_fp32(self) -> None:
        graph = model("y = Resize (x, , scales)", "float[4] scales = {1, 1, 1, 1}")
        typed = checked(typed_fp16(graph, []))
        assert float_tensors(typed) == {"scales.fp32", "y"}

    def test_an_output_that_is_read_inside_too_keeps_its_name(self) -> None:
        graph = model("y = Relu (x) z = Softmax (y)", output="y")
        typed = checked(typed_fp16(graph, ["z"]))
        np.testing.assert_array_equal(by_engine(typed), IMAGES)

    def test_the_given_model_is_not_changed(self) -> None:
        before = OVERFLOWING.SerializeToString()
        typed_fp16(OVERFLOWING, ["a"])
        assert OVERFLOWING.SerializeToString() == before
