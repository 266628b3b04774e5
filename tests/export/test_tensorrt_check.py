"""Test the static check of ONNX graphs for TensorRT."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dermedge_export.exporters.tensorrt.check import GraphFinding, check_tensorrt

# Constants that the graphs below may read by name.
CONSTANTS = {
    "scale": np.float16(0.5),
    "negative": np.float16(-0.5),
    "denormal": np.float16(2e-5),
    "zero": np.int8(0),
    "three": np.int8(3),
    "unsigned": np.uint8(0),
    "scales": np.float16([1, 2, 3]),
    "zeros": np.int8([0, 0, 0]),
    "kernel": np.arange(9, dtype=np.float32).reshape(3, 3, 1, 1),
    "half_kernel": np.arange(9, dtype=np.float16).reshape(3, 3, 1, 1),
    "int8_kernel": np.arange(9, dtype=np.int8).reshape(3, 3, 1, 1),
    "int32_bias": np.int32([1, 2, 3]),
    "half": np.float16(0.5),
    "infinite": np.float16(np.inf),
    "sizes": np.float32([1, 1, 1, 1]),
    "yes": np.bool_(True),
}
HALF = "float16[1,3,8,8] x"
PAIR = "a = QuantizeLinear (x, scale, zero) b = DequantizeLinear (a, scale, zero)"
WEIGHT = "w = DequantizeLinear <axis: int = 0> (int8_kernel, scales, zeros)"
END = "y = Cast <to: int = 1> (c)"


def graph(nodes: str, image: str = "float[1,3,8,8] x", opset: int = 19, domain: str = "") -> bytes:
    """Return a graph from `x` to `y`; nodes have the names of their outputs."""
    imports = f'"" : {opset}' + (f', "{domain}" : 1' if domain else "")
    model = onnx.parser.parse_model(
        f"<ir_version: 9, opset_import: [{imports}]> "
        f"g ({image}) => (float[1,3,8,8] y) {{ {nodes} }}"
    )
    for node in model.graph.node:
        node.name = node.output[0]
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in CONSTANTS.items()
        if name in read
    )
    return model.SerializeToString()


def only(found: tuple[GraphFinding, ...]) -> GraphFinding:
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    "nodes",
    [
        f"{PAIR} {WEIGHT} n = Conv (b, w) c = Relu (n) {END}",
        f"f = Cast <to: int = 1> (x) s = Softmax (f) c = Cast <to: int = 10> (s) {END}",
        f"{PAIR} f = Cast <to: int = 1> (b) s = Softmax (f) c = Cast <to: int = 10> (s) {END}",
    ],
)
def test_a_well_typed_graph_has_no_finding(nodes: str) -> None:
    assert check_tensorrt(graph(nodes, HALF)) == ()


@pytest.mark.parametrize(
    ("nodes", "node", "text"),
    [
        ("y = Det (x)", "y", "no such operator"),
        ('y = Resize <mode = "cubic"> (x, , sizes)', "y", "mode='cubic'"),
        ('y = Resize <mode = "linear", antialias: int = 1> (x, , sizes)', "y", "antialias=1"),
        ("y, i = MaxPool <kernel_shape = [1, 1]> (x)", "y", "only the first output"),
        ("y = AveragePool <kernel_shape = [1, 1], dilations = [2, 2]> (x)", "y", "dilations of 1"),
        ("d = Cast <to: int = 11> (x) y = Cast <to: int = 1> (d)", "d", "float64"),
        ("d = Cast <to: int = 2> (x) y = Cast <to: int = 1> (d)", "d", "uint8"),
        ("n = Shape (x) a = ReduceMax (x, n) y = Add (x, a)", "a", "axes must be constant"),
    ],
)
def test_operators_and_types_that_the_parser_refuses(nodes: str, node: str, text: str) -> None:
    found = only(tuple(one for one in check_tensorrt(graph(nodes)) if one.level == "error"))
    assert found.node == node
    assert text in found.message


def test_operators_of_other_domains_need_a_plugin() -> None:
    found = only(check_tensorrt(graph("y = com.microsoft.FusedConv (x)", domain="com.microsoft")))
    assert (found.level, found.op) == ("error", "FusedConv")
    assert "'com.microsoft'" in found.message


def test_control_flow_is_refused() -> None:
    model = onnx.load_model_from_string(graph("y = Where (yes, x, x)"))
    branch = onnx.parser.parse_graph(
        "a () => (float[1] p) { p = Constant <value_floats = [1.0]> () }"
    )
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["p"], "choice", then_branch=branch, else_branch=branch)
    )
    found = only(check_tensorrt(model.SerializeToString()))
    assert (found.level, found.op, found.node) == ("error", "If", "choice")


class TestInput:
    def test_only_a_cast_may_read_uint8(self) -> None:
        image = "uint8[1,8,8,3] x"
        refused = "t = Transpose <perm = [0, 3, 1, 2]> (x) y = Cast <to: int = 1> (t)"
        assert {(one.level, one.node) for one in check_tensorrt(graph(refused, image))} == {
            ("error", "t")
        }
        right = "t = Cast <to: int = 1> (x) y = Transpose <perm = [0, 3, 1, 2]> (t)"
        assert check_tensorrt(graph(right, image)) == ()

    def test_strings_are_refused(self) -> None:
        found = only(
            check_tensorrt(
                graph("t = Identity (x) y = Cast <to: int = 1> (t)", "string[1,3,8,8] x")
            )
        )
        assert (found.level, found.node) == ("error", "t")

    def test_int64_arithmetic_is_slow_and_int64_shapes_are_not(self) -> None:
        found = only(
            check_tensorrt(graph("a = Abs (x) y = Cast <to: int = 1> (a)", "int64[1,3,8,8] x"))
        )
        assert (found.level, found.node) == ("warning", "a")
        assert check_tensorrt(graph("n = Shape (x) y = Reshape (x, n)")) == ()


@pytest.mark.parametrize(("opset", "majors"), [(20, ()), (21, (10,)), (25, (10,)), (26, (10, 11))])
def test_each_version_has_its_highest_opset(opset: int, majors: tuple[int, ...]) -> None:
    found = check_tensorrt(graph("y = Relu (x)", opset=opset))
    assert [one.level for one in found] == ["error"] * len(majors)
    for one, major in zip(found, majors, strict=True):
        assert f"TensorRT {major} " in one.message
    assert check_tensorrt(graph("y = Relu (x)", opset=opset), major=(11,)) == found[1:]


class TestTypes:
    def test_a_mix_of_float_types_is_refused(self) -> None:
        found = only(check_tensorrt(graph("y = Add (x, half)")))
        assert (found.level, found.node) == ("error", "y")
        assert "mixes" in found.message

    def test_norms_and_softmax_belong_in_fp32(self) -> None:
        found = only(check_tensorrt(graph(f"c = Softmax (x) {END}", HALF)))
        assert (found.level, found.op) == ("warning", "Softmax")

    def test_a_convolution_left_in_fp32_is_slow(self) -> None:
        found = only(check_tensorrt(graph("c = Cast <to: int = 1> (x) y = Conv (c, kernel)", HALF)))
        assert (found.level, found.node) == ("warning", "y")
        assert check_tensorrt(graph("y = Conv (x, kernel)")) == ()

    def test_a_constant_beyond_fp16_is_refused(self) -> None:
        found = only(check_tensorrt(graph(f"c = Add (x, infinite) {END}", HALF)))
        assert (found.level, found.node) == ("error", "c")


QUANTIZE = "a = QuantizeLinear (x, {0}) c = DequantizeLinear (a, {0})"


@pytest.mark.parametrize(
    ("nodes", "level", "node", "text"),
    [
        (QUANTIZE.format("scale, three"), "error", "a", "zero point"),
        (QUANTIZE.format("scale, unsigned"), "error", "a", "type other than int8"),
        (QUANTIZE.format("scale"), "error", "a", "type other than int8"),
        (QUANTIZE.format("scales, zeros"), "error", "a", "per channel"),
        (QUANTIZE.format("negative, zero"), "error", "a", "not positive"),
        (QUANTIZE.format("denormal, zero"), "warning", "a", "smallest normal"),
        ("n = Abs (half) " + QUANTIZE.format("n, zero"), "warning", "a", "computes its scale"),
        (
            "a = QuantizeLinear (x, scale, zero) c = Cast <to: int = 10> (a)",
            "error",
            "a",
            "not followed",
        ),
        (
            "a = Cast <to: int = 3> (x) c = DequantizeLinear (a, scale, zero)",
            "error",
            "c",
            "no QuantizeLinear",
        ),
        (f"{PAIR} c = Conv (b, half_kernel)", "warning", "c", "one of its two inputs"),
        (f"{WEIGHT} {PAIR} c = Conv (x, w)", "warning", "c", "one of its two inputs"),
        (f"{PAIR} {WEIGHT.replace('= 0', '= 1')} c = Conv (b, w)", "error", "c", "along axis 1"),
        (
            f"{PAIR} {WEIGHT} e = DequantizeLinear (int32_bias, scales) c = Conv (b, w, e)",
            "error",
            "e",
            "bias",
        ),
        (f"{PAIR} c = Softmax (b)", "warning", "b", "feeds Softmax"),
        (
            "n = Softmax (x) " + QUANTIZE.format("scale, zero").replace("x,", "n,"),
            "warning",
            "a",
            "the output of Softmax in fp16",
        ),
        (
            f"{PAIR} {WEIGHT} n = Conv (b, w) o = QuantizeLinear (n, scale, zero) "
            "p = DequantizeLinear (o, scale, zero) c = Relu (p)",
            "warning",
            "o",
            "between a convolution and its activation",
        ),
    ],
)
def test_quantizers_that_tensorrt_refuses_or_cannot_fuse(
    nodes: str, level: str, node: str, text: str
) -> None:
    found = check_tensorrt(graph(f"{nodes} {END}", HALF))
    assert [one.node for one in found if one.level == level and text in one.message].count(
        node
    ) == 1, found


def test_the_axis_of_a_linear_layer_follows_its_layout() -> None:
    for op, axis, clean in [
        ("MatMul (b, w)", 1, True),
        ("MatMul (b, w)", 0, False),
        ("Gemm <transB: int = 1> (b, w)", 0, True),
        ("Gemm <transB: int = 1> (b, w)", 1, False),
    ]:
        model = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : 19]> '
            f"g ({HALF.replace('1,3,8,8', '1,3')}) => (float[1,3] y) {{ {PAIR} "
            f"w = DequantizeLinear <axis: int = {axis}> (matrix, scales, zeros) c = {op} {END} }}"
        )
        matrix = np.arange(9, dtype=np.int8).reshape(3, 3)
        for name, value in {**CONSTANTS, "matrix": matrix}.items():
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        assert (check_tensorrt(model.SerializeToString()) == ()) is clean, (op, axis)
