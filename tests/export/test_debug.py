"""Damage one node of a real artifact in a known way; the report must name this node."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from dermedge.models import Network, TrainedModel
from dermedge.models.network import Backbone
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.context import ExportContext, module_runner
from dermedge_export.debug import LESIONS, DebugReport, debug_parity
from dermedge_export.quantization.ptq import Quantizer
from dermedge_export.synthetic.golden import golden_cases
from dermedge_export.toolchain import quiet
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.errors import UsageError
from dermedge_runtime.golden import golden_files
from dermedge_runtime.spec import Artifact, Label, Preprocess, Spec, Task, to_json

SIZE = 32
OPSET = 18
LABELS = tuple(
    Label(name, name, malignant)
    for name, malignant in (("nv", False), ("mel", True), ("df", False))
)
TASKS = (Task("diagnosis", "classify", LABELS), Task("malignancy", "binary"))
SPEC = Spec("debugged", "1", TASKS, Preprocess(SIZE))

Make = Callable[..., Bundle]


def student(name: str) -> TrainedModel:
    torch.manual_seed(5)
    backbone = Backbone(name)
    return TrainedModel(Network(backbone, TASKS).eval(), SPEC, backbone)


@pytest.fixture(scope="module")
def context() -> ExportContext:
    return ExportContext(student("test_efficientnet"))


@pytest.fixture(scope="module")
def graph(context: ExportContext) -> bytes:
    return context.graph(OPSET)


@pytest.fixture(scope="module")
def quantized(graph: bytes) -> bytes:
    return Quantizer(graph, synthetic_calibration(SPEC.preprocess, 16))(())


@pytest.fixture
def source(context: ExportContext, graph: bytes, monkeypatch: pytest.MonkeyPatch) -> TrainedModel:
    """The student; its graph is traced only once for all tests."""
    monkeypatch.setattr("dermedge_export.graph.trace.trace", lambda *_, **options: graph)
    assert isinstance(context.source, TrainedModel)
    return context.source


@pytest.fixture
def make(context: ExportContext, tmp_path: Path) -> Make:
    run = module_runner(context.module)
    golden = golden_files(golden_cases(SPEC, run, run, {}))

    def bundle(
        files: bytes | dict[str, bytes],
        *,
        format: str = "onnx",
        path: str = "model.onnx",
        **changes: Any,
    ) -> Bundle:
        return write_bundle(
            tmp_path / "debugged.dermedge",
            spec=SPEC,
            artifact=Artifact("cpu", format, path, "int8", details={"opset": OPSET, "batch": 1}),
            postprocessing={},
            tolerance={"diagnosis": 1e-3, "malignancy": 1e-3},
            parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
            files={**(files if isinstance(files, dict) else {path: files}), **golden},
        )

    return bundle


def edited(graph: bytes, edit: Callable[[onnx.GraphProto], None]) -> bytes:
    model = onnx.load_model_from_string(graph)
    edit(model.graph)
    return model.SerializeToString()


def conv(graph: onnx.GraphProto, number: int) -> onnx.NodeProto:
    return [node for node in graph.node if node.op_type == "Conv"][number]


def initializer(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in graph.initializer if tensor.name == name)


def name_of(graph: bytes, number: int) -> str:
    return conv(onnx.load_model_from_string(graph).graph, number).name


def zero_weights(number: int) -> Callable[[onnx.GraphProto], None]:
    def edit(graph: onnx.GraphProto) -> None:
        node = conv(graph, number)
        makers = {name: node for node in graph.node for name in node.output}
        maker = makers.get(node.input[1])
        weights = initializer(graph, node.input[1] if maker is None else maker.input[0])
        weights.raw_data = bytes(len(weights.raw_data))

    return edit


def clip(tensor: str) -> Callable[[onnx.GraphProto], None]:
    """Quantize a tensor with a twentieth of its range."""

    def edit(graph: onnx.GraphProto) -> None:
        node = next(
            node
            for node in graph.node
            if node.op_type == "QuantizeLinear" and node.input[0] == tensor
        )
        scale = initializer(graph, node.input[1])
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 20, scale.name))

    return edit


def swap_channels(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.input[:] = ["bgr" if name == "image" else name for name in node.input]
    graph.initializer.append(helper.make_tensor("order", onnx.TensorProto.INT64, [3], [2, 1, 0]))
    graph.node.insert(0, helper.make_node("Gather", ["image", "order"], ["bgr"], "swap", axis=3))


def test_the_students_own_graph_does_not_drift(
    source: TrainedModel, graph: bytes, make: Make
) -> None:
    report = debug_parity(make(graph), source)
    assert report.first is None
    assert report.worst == ()
    assert report.outputs == {"diagnosis": 150.0, "malignancy": 150.0}
    assert report.images == LESIONS
    assert report.compared > 40


@pytest.mark.parametrize("number", [4, 9])
def test_a_layer_that_was_zeroed_is_named(
    source: TrainedModel, graph: bytes, make: Make, number: int
) -> None:
    report = debug_parity(make(edited(graph, zero_weights(number))), source)
    assert report.first is not None
    assert (report.first.node, report.first.op) == (name_of(graph, number), "Conv")
    assert report.first.snr_db < 6
    assert report.first.inherited_db == 150
    assert report.first.weights_db == pytest.approx(0)
    assert report.first.node in [drift.node for drift in report.worst]
    assert report.outputs["diagnosis"] < 100


def test_a_zeroed_layer_stands_out_from_the_noise_of_quantization(
    source: TrainedModel, quantized: bytes, graph: bytes, make: Make
) -> None:
    report = debug_parity(make(edited(quantized, zero_weights(6))), source)
    assert report.first is not None
    assert report.first.node == name_of(graph, 6)
    assert report.first.quantized
    assert report.first.weights_db == pytest.approx(0)
    assert report.first.inherited_db > 20
    assert report.worst[0].own_db <= report.first.own_db


def test_channels_in_another_order_show_where_the_image_is_read(
    source: TrainedModel, graph: bytes, make: Make
) -> None:
    report = debug_parity(make(edited(graph, swap_channels)), source)
    assert report.first is not None
    assert report.first.op == "Cast"  # the first to compute with the pixels
    assert report.first.inherited_db == 150
    assert report.first.node in [drift.node for drift in report.worst]


def test_a_range_that_clips_is_found_at_the_node_whose_output_it_clips(
    source: TrainedModel, quantized: bytes, graph: bytes, make: Make
) -> None:
    clipped = conv(onnx.load_model_from_string(graph).graph, 5)

    report = debug_parity(make(edited(quantized, clip(clipped.output[0]))), source)
    assert report.first is not None
    assert report.first.node == clipped.name
    assert report.first.inherited_db > 20
    assert report.first.weights_db is not None
    assert report.first.weights_db > 30  # its weights are as good as any, so it is the range


def test_noise_that_is_not_finite_is_the_worst_and_still_json(
    source: TrainedModel, graph: bytes, make: Make
) -> None:
    def spoil(model: onnx.GraphProto) -> None:
        weights = initializer(model, conv(model, 3).input[1])
        weights.CopyFrom(
            numpy_helper.from_array(np.full(tuple(weights.dims), np.inf, np.float32), weights.name)
        )

    report = debug_parity(make(edited(graph, spoil)), source)
    assert report.first is not None
    assert (report.first.node, report.first.snr_db, report.first.max_abs) == (
        name_of(graph, 3),
        -150,
        None,
    )
    json.dumps(to_json(report), allow_nan=False)


class TestQuantized:
    def test_the_ratios_are_those_of_eight_bits(
        self, source: TrainedModel, quantized: bytes, make: Make
    ) -> None:
        report = debug_parity(make(quantized), source, threshold=10)
        assert report.first is None
        assert all(20 < ratio < 80 for ratio in report.outputs.values())
        assert len(report.worst) == 5
        assert [drift.own_db for drift in report.worst] == sorted(
            drift.own_db for drift in report.worst
        )
        assert any(drift.quantized for drift in report.worst)
        assert all(
            30 < drift.weights_db < 60 for drift in report.worst if drift.weights_db is not None
        )
        assert all(drift.own_db >= drift.snr_db for drift in report.worst)

    def test_the_threshold_and_the_number_of_nodes_can_be_set(
        self, source: TrainedModel, quantized: bytes, make: Make
    ) -> None:
        report = debug_parity(make(quantized).path, source, threshold=60, nodes=2)
        assert report.first is not None
        assert report.first.snr_db < report.threshold_db == 60
        assert len(report.worst) == 2

    def test_the_noise_of_a_rounded_output_belongs_to_the_layer_before(
        self, source: TrainedModel, quantized: bytes, make: Make
    ) -> None:
        report = debug_parity(
            make(edited(quantized, clip("diagnosis_QuantizeLinear_Input"))), source
        )
        assert report.first is not None
        assert (report.first.op, report.first.tensor, report.first.quantized) == (
            "Gemm",
            "diagnosis",
            True,
        )
        assert report.first == report.worst[0]

    def test_only_the_given_images_are_compared(
        self, source: TrainedModel, quantized: bytes, make: Make
    ) -> None:
        images = synthetic_calibration(SPEC.preprocess, 2).images
        bundle = make(quantized)
        report = debug_parity(bundle, source, images=images)
        assert report.images == 2
        assert report.outputs != debug_parity(bundle, source).outputs

    def test_an_openvino_bundle_is_matched_by_the_names_of_its_tensors(
        self, source: TrainedModel, graph: bytes, make: Make, tmp_path: Path
    ) -> None:
        openvino = pytest.importorskip("openvino")
        (tmp_path / "model.onnx").write_bytes(edited(graph, zero_weights(6)))
        with quiet():
            openvino.save_model(
                openvino.convert_model(tmp_path / "model.onnx"),
                tmp_path / "model.xml",
                compress_to_fp16=False,
            )
        files = {
            f"model/model.{kind}": (tmp_path / f"model.{kind}").read_bytes()
            for kind in ("xml", "bin")
        }
        report = debug_parity(make(files, format="openvino", path="model"), source)
        assert report.compared > 30
        assert report.first is not None
        assert report.first.node == name_of(graph, 6)
        assert report.first.inherited_db > 100


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"name": "another"}, "its name is 'another', the student's is 'debugged'"),
            ({"preprocess": Preprocess(48)}, "its preprocess is Preprocess"),
        ],
    )
    def test_a_student_with_another_spec(
        self, source: TrainedModel, graph: bytes, make: Make, changes: dict[str, Any], message: str
    ) -> None:
        bundle = make(graph)
        with pytest.raises(UsageError, match="was not exported from this student"):
            debug_parity(replace(bundle, spec=replace(SPEC, **changes)), source)
        with pytest.raises(UsageError, match=message.replace("(", r"\(")):
            debug_parity(replace(bundle, spec=replace(SPEC, **changes)), source)

    def test_a_student_of_another_architecture(self, graph: bytes, make: Make) -> None:
        with pytest.raises(
            UsageError, match=r"was not exported from this student .*layers.*Give the student"
        ):
            debug_parity(make(graph), student("test_resnet"))

    def test_a_format_without_a_graph_that_can_be_read(
        self, source: TrainedModel, graph: bytes, make: Make
    ) -> None:
        with pytest.raises(UsageError, match="'coreml'"):
            debug_parity(make(graph, format="coreml"), source)

    def test_images_of_another_size_and_no_node(
        self, source: TrainedModel, graph: bytes, make: Make
    ) -> None:
        bundle = make(graph)
        with pytest.raises(UsageError, match="Preprocess them first"):
            debug_parity(bundle, source, images=np.zeros((2, 16, 16, 3), np.uint8))
        with pytest.raises(UsageError, match="nodes is 0"):
            debug_parity(bundle, source, nodes=0)


def test_a_report_is_plain_data(source: TrainedModel, quantized: bytes, make: Make) -> None:
    report = debug_parity(make(quantized), source)
    data = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert set(data) == set(DebugReport.__dataclass_fields__)
    assert data["worst"][0]["node"] == report.worst[0].node
