"""Tests of the sweep on a network with one layer that quantizes badly.

The sweep must name the layer, and keeping the layer in fp32 must help.
"""

import io
import json
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from dermedge_export.calibration import synthetic_calibration
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.quantization.sensitivity import choose_kept, drift_from, sweep
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.spec import Preprocess

SIZE = 16
WIDTH = 8
IMAGES = synthetic_calibration(Preprocess(SIZE), 12).images


def network(
    depth: int = 5, outliers: Collection[int] = (), *, kind: str | None = "classify"
) -> bytes:
    """Return convolutions in a row, then a mean and a linear layer.

    Outliers share a tensor with the other weights, so 8 bits per tensor leave nothing of
    those. They belong to a channel that the next layer hardly reads.
    """
    rng = np.random.default_rng(4)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "scale"], ["x0"], "div"),
    ]
    weights = {"scale": np.float32(255.0)}
    for i in range(depth):
        kernel = rng.normal(0, 0.3, (WIDTH, WIDTH if i else 3, 3, 3)).astype(np.float32)
        if i - 1 in outliers:
            kernel[:, 0] = 0
        if i in outliers:
            kernel[0] = 0
            kernel[0, 0, 1, 1] = 400
        weights[f"w{i}"] = kernel
        nodes.append(
            helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Tanh", [f"c{i}"], [f"x{i + 1}"], f"tanh{i}"))
    weights["head"] = rng.normal(0, 3, (WIDTH, 4)).astype(np.float32)
    nodes.append(helper.make_node("GlobalAveragePool", [f"x{depth}"], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    nodes.append(helper.make_node("MatMul", ["flat", "head"], ["diagnosis"], "linear"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("diagnosis", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if kind is not None:
        spec = {"tasks": [{"name": "diagnosis", "kind": kind}]}
        model.metadata_props.add(key=METADATA_KEY, value=json.dumps(spec))
    return model.SerializeToString()


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.images = iter(IMAGES)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


class Quantizer:
    """onnxruntime's own quantization with one scale per tensor; it counts its calls."""

    def __init__(self, graph: bytes) -> None:
        self.graph, self.calls = graph, 0

    def __call__(self, keep: Collection[str]) -> bytes:
        self.calls += 1
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "q.onnx"
            quantize_static(
                onnx.load_model_from_string(self.graph),
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul", "GlobalAveragePool", "Flatten"],
                nodes_to_exclude=list(keep),
            )
            return path.read_bytes()


def test_the_layer_that_quantizes_badly_is_named_first() -> None:
    graph = network(outliers=[2])
    ranking = sweep(graph, Quantizer(graph), IMAGES)
    assert (ranking[0].node, ranking[0].op) == ("conv2", "Conv")
    assert ranking[0].score > 5 * ranking[1].score
    assert {found.node for found in ranking} == {
        "conv0",
        "conv1",
        "conv2",
        "conv3",
        "conv4",
        "pool",
        "linear",
    }
    assert [found.score for found in ranking] == sorted(
        (found.score for found in ranking), reverse=True
    )


def test_keeping_that_layer_removes_most_of_the_drift() -> None:
    graph = network(outliers=[2])
    quantize = Quantizer(graph)
    kept = choose_kept(quantize, graph, IMAGES)
    assert kept == ("conv2",)
    drift = drift_from(graph, IMAGES)
    assert drift(quantize(kept)) <= 0.1 * drift(quantize(()))


def test_choosing_layers_reports_the_progress_of_its_sweep() -> None:
    graph = network(outliers=[2])
    reports: list[tuple[int, int, str]] = []
    choose_kept(Quantizer(graph), graph, IMAGES, progress=lambda *report: reports.append(report))
    assert [report[:2] for report in reports] == [(done, 8) for done in range(2, 9)]
    assert reports[0][2] == "sensitivity of conv0"


def test_two_layers_that_each_ruin_the_outputs_are_both_found() -> None:
    graph = network(outliers=[1, 3])
    quantize = Quantizer(graph)
    assert {found.node for found in sweep(graph, quantize, IMAGES)[:2]} == {"conv1", "conv3"}
    assert set(choose_kept(quantize, graph, IMAGES)) == {"conv1", "conv3"}


def test_the_shortest_sufficient_list_is_chosen() -> None:
    graph = network(depth=9, outliers=[1, 3, 5])
    quantize = Quantizer(graph)
    assert set(choose_kept(quantize, graph, IMAGES)) == {
        "conv1",
        "conv3",
        "conv5",
    }  # not four, which the doubling tries


def test_a_sweep_with_few_calls_still_finds_the_layer() -> None:
    graph = network(depth=14, outliers=[10])
    quantize = Quantizer(graph)
    ranking = sweep(graph, quantize, IMAGES, calls=10)
    assert quantize.calls <= 10
    assert len(ranking) == 16
    assert (ranking[0].node, ranking[0].shared) == ("conv10", 1)
    assert {found.shared for found in ranking} > {1}


def test_a_sweep_is_reproducible_and_reports_progress() -> None:
    graph = network(outliers=[2])
    reports: list[tuple[int, int]] = []
    first = sweep(
        graph,
        Quantizer(graph),
        IMAGES,
        progress=lambda done, total, note: reports.append((done, total)),
    )
    assert first == sweep(graph, Quantizer(graph), IMAGES)
    assert reports == [(done, 8) for done in range(2, 9)]


class TestDrift:
    def test_the_drift_of_classes_is_the_divergence_of_probabilities(self) -> None:
        graph, other = network(), network(outliers=[4])
        logits = [run(model) for model in (graph, other)]
        p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in logits)
        assert drift_from(graph, IMAGES)(other) == pytest.approx(
            float((p * np.log(p / q)).sum(axis=1).mean())
        )
        assert drift_from(graph, IMAGES)(graph) == 0

    def test_the_drift_of_sigmoids_is_the_mean_divergence(self) -> None:
        graph, other = network(kind="ordinal"), network(outliers=[4], kind="ordinal")
        p, q = (1 / (1 + np.exp(-run(model))) for model in (graph, other))
        expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        assert drift_from(graph, IMAGES)(other) == pytest.approx(expected.mean())

    @pytest.mark.parametrize("kind", ["embed", None])
    def test_the_drift_of_other_outputs_is_the_relative_squared_error(
        self, kind: str | None
    ) -> None:
        graph, other = network(kind=kind), network(outliers=[4], kind=kind)
        first, second = run(graph), run(other)
        assert drift_from(graph, IMAGES)(other) == pytest.approx(
            np.square(first - second).sum() / np.square(first).sum()
        )

    def test_outputs_that_are_not_finite_have_infinite_drift(self) -> None:
        graph = network()
        assert drift_from(graph, IMAGES)(broken(graph)) == np.inf

    def test_a_student_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(DermedgeError, match=r"NaN or Inf in diagnosis\. Train"):
            drift_from(broken(network()), IMAGES)


def run(model: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(None, {"image": image[None]})[0] for image in IMAGES]
    ).astype(np.float64)


def broken(graph: bytes) -> bytes:
    model = onnx.load(io.BytesIO(graph))
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "head")
    head.CopyFrom(numpy_helper.from_array(np.full((WIDTH, 4), np.nan, np.float32), "head"))
    return model.SerializeToString()
