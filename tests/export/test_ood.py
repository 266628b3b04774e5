"""Every exporter keeps the head of an `ood` task in float32; the gate counts what it rejects."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from dermedge.models import Network, TrainedModel
from dermedge.models.network import Backbone
from dermedge.models.new_spec import make_spec
from dermedge.models.ood import OOD, fit_distance, fit_foreign
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext, module_runner
from dermedge_export.evaluation.ood import fit_ood_threshold
from dermedge_export.evaluation.postprocessing import fit_postprocessing
from dermedge_export.evaluation.predictions import Predictions
from dermedge_export.graph.exact import exact_nodes
from dermedge_export.parity.compare import parity
from dermedge_export.parity.foreign import FOREIGN, with_foreign
from dermedge_export.quantization.ptq import quantize_onnx
from dermedge_export.synthetic.foreign import KINDS, draw_foreign
from dermedge_export.target import ANDROID, CPU, IOS, JETSON_AGX_ORIN
from dermedge_runtime.errors import UsageError
from dermedge_runtime.report import Limit
from dermedge_runtime.spec import Postprocessing, Preprocess, Spec, Task
from support import small

SIZE = 64
TASKS = (Task("malignancy", "binary"), Task("features", "embed"), OOD)


@pytest.fixture(scope="module")
def context() -> ExportContext:
    """Return a student whose `ood` head is fitted on drawn lesions."""
    torch.manual_seed(0)
    backbone = Backbone(small.EXPORTED)
    network = Network(backbone, TASKS).eval()
    calibration = synthetic_calibration(Preprocess(SIZE), 64)
    with torch.no_grad():
        features = network.features(torch.from_numpy(calibration.images))
        drawn = np.stack([draw_foreign(seed, SIZE) for seed in range(1000, 1021)])
        foreign = network.features(torch.from_numpy(drawn))
    head = fit_distance(features)
    fit_foreign(head, features, features, foreign)
    network.heads[OOD.name] = head
    spec = make_spec("foreign", TASKS, Preprocess(SIZE), {})
    return ExportContext(TrainedModel(network, spec, backbone), lambda: calibration)


def head_of(context: ExportContext) -> list[str]:
    return exact_nodes(onnx.load_model_from_string(context.graph(CPU.opset)))


def test_the_head_is_a_product_and_sums(context: ExportContext) -> None:
    """No node of the head is one that quantizers of layers convert."""
    model = onnx.load_model_from_string(context.graph(CPU.opset))
    head = set(head_of(context))
    kinds = {node.op_type for node in model.graph.node if node.name in head}
    assert {"Mul", "ReduceSum", "Sqrt"} <= kinds
    assert not kinds & {"Conv", "Gemm", "MatMul"}
    written = {name for node in model.graph.node if node.name in head for name in node.output}
    assert "ood" in written
    assert not written & {"malignancy", "features"}


@pytest.mark.parametrize("method", ["minmax", "nncf"])
def test_int8_onnx_reads_no_quantized_value_in_the_head(
    context: ExportContext, method: str
) -> None:
    content, _, _ = quantize_onnx(context, CPU, Candidate("int8", "onnx", method))
    model = onnx.load_model_from_string(content)
    makers = {name: node for node in model.graph.node for name in node.output}
    head = set(head_of(context))
    inside = [node for node in model.graph.node if node.name in head]
    assert {node.name for node in inside} == head
    entering = {
        name
        for node in inside
        for name in node.input
        if name in makers and makers[name].name not in head
    }
    # Only the features that enter the head may have been rounded.
    assert len(entering) == 1


def test_typed_fp16_keeps_the_head_in_float32(context: ExportContext) -> None:
    from dermedge_export.exporters.tensorrt.export import export_tensorrt

    head = set(head_of(context))
    for candidate in (
        Candidate("fp16", "tensorrt"),
        Candidate("int8+fp16", "tensorrt", "minmax"),
    ):
        built = export_tensorrt(context, JETSON_AGX_ORIN, candidate)
        model = onnx.load_model_from_string(built.files["model.onnx"])
        stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        constants = [
            stored[name]
            for node in model.graph.node
            if node.name in head
            for name in node.input
            if name in stored
        ]
        assert onnx.TensorProto.FLOAT in constants
        assert onnx.TensorProto.FLOAT16 not in constants
        assert head <= {node.name for node in model.graph.node}


def test_openvino_rounds_features_only(context: ExportContext) -> None:
    import openvino

    from dermedge_export.exporters.openvino import WEIGHTS, XML, export_openvino

    built = export_openvino(context, CPU, Candidate("int8", "openvino", "nncf"))
    model = openvino.Core().read_model(built.files[XML], built.files[WEIGHTS])
    node = model.output("ood").get_node()
    seen = []
    # From the output up to the pooled features, which a pooling or a quantizer writes.
    while node.get_type_name() not in ("ReduceMean", "FakeQuantize"):
        seen.append(node.get_type_name())
        node = node.input_value(0).get_node()
    assert seen[:6] == ["Result", "Add", "Sqrt", "Abs", "Subtract", "ReduceSum"]
    assert seen.count("Subtract") == 2


@pytest.mark.parametrize("precision", ["int8", "w8", "fp16"])
def test_litert_keeps_the_head_in_float32(context: ExportContext, precision: str) -> None:
    pytest.importorskip("litert_torch")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from dermedge_export.exporters.litert import PATH, export_litert

    method = "minmax" if precision == "int8" else "plain"
    built = export_litert(context, ANDROID, Candidate(precision, "litert", method))
    graph = schema.ModelT.InitFromPackedBuf(built.files[PATH], 0).subgraphs[0]
    axes = [
        tensor
        for tensor in graph.tensors
        if tensor.shape is not None and list(tensor.shape)[-2:] == list(axes_shape(context))
    ]
    assert axes
    assert {tensor.type for tensor in axes} == {schema.TensorType.FLOAT32}


def axes_shape(context: ExportContext) -> tuple[int, ...]:
    return tuple(context.source.module.heads["ood"].axes.shape)  # type: ignore[union-attr, index]


@pytest.mark.parametrize("precision", ["fp16", "w8", "palettized", "w8a8"])
def test_core_ml_keeps_the_head_in_float32(context: ExportContext, precision: str) -> None:
    pytest.importorskip("coremltools")
    from dermedge_export.exporters.coreml.export import PATH, export_coreml
    from dermedge_export.exporters.coreml.ranges import exact_steps
    from dermedge_export.exporters.coreml.simulation import read_program

    options = {"bits": 8} if precision == "palettized" else {}
    target = replace(IOS, facts={**IOS.facts, "w8a8": True})
    built = export_coreml(context, target, Candidate(precision, "coreml", "plain", options))
    files = {name.removeprefix(f"{PATH}/"): content for name, content in built.files.items()}
    assert exact_steps(read_program(files), {"ood"}) == set()
    images = small.pixels(2, SIZE).numpy()
    assert built.simulation is not None
    assert np.isfinite(built.simulation.run(images)["ood"]).all()


def test_fake_quantizers_leave_the_head_alone(context: ExportContext) -> None:
    from dermedge_export.quantization.qat import fake_quantized

    module = fake_quantized(context.module, context.calibration)
    head = context.source.module.heads["ood"]  # type: ignore[union-attr, index]
    stored = [tensor for tensor in module.buffers() if tensor.shape == head.axes.shape]
    assert any(torch.equal(tensor, head.axes) for tensor in stored)
    assert all(
        tensor.shape != head.axes.shape for tensor in module.parameters()
    )  # nothing trains it


def scores(values: list[float]) -> dict[str, np.ndarray]:
    return {"ood": np.array(values, np.float32)[:, None]}


def table(values: list[float], foreign: list[float]) -> Predictions:
    count = len(values)
    names = tuple(map(str, range(count)))
    return Predictions(
        names,
        scores(values),
        np.full(count, -1),
        np.full(count, np.nan),
        np.array(names),
        foreign=np.array(foreign, np.float32),
    )


SPEC = Spec("ood", "1", (OOD,), Preprocess(32))


def compare(first: Predictions, second: Predictions, precision: str) -> dict[str, Limit]:
    fitted = [fit_postprocessing(side, SPEC) for side in (first, second)]
    report = parity(
        first,
        second,
        SPEC,
        *fitted,
        precision=precision,
        basis="tests",
        engine="numpy",
        hardware="none",
        replicates=200,
    )
    return {limit.metric: limit for limit in report.limits}


def test_the_threshold_keeps_95_percent_of_val() -> None:
    values = np.random.default_rng(0).gamma(2, size=1000)
    threshold = fit_ood_threshold(values)
    assert threshold is not None
    assert (values <= threshold).sum() == 950
    assert fit_ood_threshold(np.array([np.nan])) is None
    fitted = fit_postprocessing(table(values.tolist(), []), SPEC)
    assert fitted["ood"] == Postprocessing(ood_threshold=pytest.approx(threshold, rel=1e-6))


def test_the_gate_fails_a_candidate_that_rejects_less() -> None:
    values = np.linspace(0.5, 1.5, 200).tolist()
    student = table(values, [3.0] * 140)
    equal = compare(student, student, "int8")
    assert equal["ood_rejection"].status == equal["ood_retention"].status == "passed"
    assert equal["ood_rejection"].reference == 1
    worse = compare(student, table(values, [3.0] * 120 + [1.0] * 20), "int8")
    assert worse["ood_rejection"].status == "failed"
    assert worse["ood_rejection"].loss.value == pytest.approx(20 / 140)
    assert worse["ood_retention"].status == "passed"


def test_the_gate_fails_a_candidate_that_flags_more_of_the_test_images() -> None:
    values = np.linspace(0.5, 1.5, 200)
    student, other = (
        table(values.tolist(), [3.0] * 140),
        table((values * 1.2).tolist(), [3.0] * 140),
    )
    fitted = fit_postprocessing(student, SPEC)  # not fitted again for the candidate
    report = parity(
        student,
        other,
        SPEC,
        fitted,
        fitted,
        precision="int8",
        basis="tests",
        engine="numpy",
        hardware="none",
        replicates=200,
    )
    found = {limit.metric: limit.status for limit in report.limits}
    assert found["ood_retention"] == "failed"


def test_a_model_without_the_task_is_compared_as_before() -> None:
    spec = Spec("plain", "1", (Task("malignancy", "binary"),), Preprocess(32))
    plain = replace(table([0.0] * 120, []), outputs={"malignancy": np.zeros((120, 1), np.float32)})
    assert with_foreign(plain, lambda images: {}, spec) is plain
    report = parity(
        plain, plain, spec, {}, {}, precision="fp32", basis="t", engine="e", hardware="h"
    )
    assert not [limit for limit in report.limits if limit.metric.startswith("ood")]


class TestForeign:
    def test_each_kind_is_drawn_the_same_way_every_time(self) -> None:
        for kind in KINDS:
            for size in (16, 48):
                image = draw_foreign(5, size, kind)
                assert image.shape == (size, size, 3)
                assert image.dtype == np.uint8
                assert (image == draw_foreign(5, size, kind)).all()
                assert (image != draw_foreign(6, size, kind)).any()

    def test_the_gate_counts_each_kind_equally(self) -> None:
        assert [KINDS[seed % len(KINDS)] for seed in FOREIGN] == list(KINDS) * 20

    @pytest.mark.parametrize(("kind", "size"), [("cat", 64), ("text", 8)])
    def test_what_cannot_be_drawn_is_refused(self, kind: str, size: int) -> None:
        with pytest.raises(UsageError, match=rf"'{kind}' and {size} px"):
            draw_foreign(0, size, kind)

    def test_the_model_runs_on_all_of_them(self) -> None:
        seen: list[int] = []

        def run(images: np.ndarray) -> dict[str, np.ndarray]:
            seen.append(len(images))
            return {"ood": images.mean((1, 2, 3), np.float32)[:, None]}

        found = with_foreign(table([1.0], []), run, SPEC)
        assert found.foreign is not None
        assert len(found.foreign) == sum(seen) == len(FOREIGN)


def test_the_student_flags_drawings_that_its_lesions_are_unlike(context: ExportContext) -> None:
    run: Callable[..., dict[str, np.ndarray]] = module_runner(context.module)
    lesions = run(synthetic_calibration(Preprocess(SIZE), 32).images)["ood"]
    noise = run(np.stack([draw_foreign(seed, SIZE, "noise") for seed in range(8)]))["ood"]
    assert noise.min() > lesions.max()
