"""Every exporter keeps the head of an `ood` task in float32; the gate counts what it rejects."""

import copy
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
from dermedge_export.exporters.onnx import export_onnx
from dermedge_export.graph.exact import exact_nodes
from dermedge_export.graph.run import watch_tensors
from dermedge_export.parity.compare import parity
from dermedge_export.parity.foreign import FOREIGN, with_foreign
from dermedge_export.synthetic.foreign import KINDS, draw_foreign
from dermedge_export.target import ANDROID, CPU, IOS, JETSON_AGX_ORIN
from dermedge_runtime.errors import UsageError
from dermedge_runtime.report import Limit
from dermedge_runtime.spec import Postprocessing, Preprocess, Spec, Task
from support import small

SIZE = 64
TASKS = (Task("malignancy", "binary"), Task("features", "embed"), OOD)
# Operators that write the pooled features: a mean, or a quantizer behind it.
BORDERS = ("ReduceMean", "FakeQuantize", "MEAN", "DEQUANTIZE")


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


def images() -> np.ndarray:
    """Return lesions and foreign images that the head is not fitted on, [N, S, S, 3]."""
    lesions = synthetic_calibration(Preprocess(SIZE), 80).images[64:]
    return np.concatenate([lesions, [draw_foreign(seed, SIZE) for seed in range(14)]])


def assert_computed_in_float32(
    context: ExportContext, features: np.ndarray, scores: np.ndarray
) -> None:
    """Check that an artifact's scores are what the head computes of its own features."""
    network = context.source.module
    assert isinstance(network, Network)
    head = network.heads[OOD.name]
    plain = copy.deepcopy(head)
    plain.foreign.zero_()
    plain.bias.zero_()
    pooled = torch.from_numpy(features).reshape(len(scores), -1)
    with torch.no_grad():
        expected, distance = head(pooled).numpy(), plain(pooled).numpy()
    # Without the classifier, some scores are others.
    assert (expected > 1.1 * distance).any()
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def head_of(context: ExportContext) -> list[str]:
    return exact_nodes(onnx.load_model_from_string(context.graph(CPU.opset)))


def test_the_head_is_a_product_and_sums(context: ExportContext) -> None:
    """No node of the head is one that quantizers of layers convert."""
    model = onnx.load_model_from_string(context.graph(CPU.opset))
    head = set(head_of(context))
    kinds = {node.op_type for node in model.graph.node if node.name in head}
    assert {"Add", "Mul", "ReduceSum", "Sqrt"} <= kinds
    assert not kinds & {"Conv", "Gemm", "MatMul"}
    written = {name for node in model.graph.node if node.name in head for name in node.output}
    assert "ood" in written
    assert not written & {"malignancy", "features"}


@pytest.mark.parametrize("method", ["minmax", "nncf"])
def test_int8_onnx_reads_no_quantized_value_in_the_head(
    context: ExportContext, method: str
) -> None:
    built = export_onnx(context, CPU, Candidate("int8", "onnx", method))
    model = onnx.load_model_from_string(built.files["model.onnx"])
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
    rows = watch_tensors(built.files["model.onnx"], [*entering, OOD.name], images())
    assert_computed_in_float32(context, *map(np.concatenate, zip(*rows, strict=True)))


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
    waiting, seen = [model.output(OOD.name).get_node()], {}
    # From the output up to the pooled features, which a pooling or a quantizer writes.
    while waiting:
        node = waiting.pop()
        name, kind = node.get_friendly_name(), node.get_type_name()
        if name not in seen and kind not in BORDERS:
            waiting += [value.get_node() for value in node.input_values()]
        seen[name] = node
    kinds = [node.get_type_name() for node in seen.values()]
    assert kinds.count("ReduceSum") == 4
    assert kinds.count("Abs") == 2
    (pooled,) = (node for node in seen.values() if node.get_type_name() in BORDERS)
    constants = [node for node in seen.values() if node.get_type_name() == "Constant"]
    assert {node.get_element_type().get_type_name() for node in constants} <= {"f32", "i64"}
    model.add_outputs([pooled.output(0)])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = [compiled(image[None]) for image in images()]
    features, scores = (
        np.concatenate([outputs[one] for outputs in found])
        for one in (compiled.outputs[-1], compiled.output(OOD.name))
    )
    assert_computed_in_float32(context, features, scores)


@pytest.mark.parametrize("precision", ["int8", "w8", "fp16"])
def test_litert_keeps_the_head_in_float32(context: ExportContext, precision: str) -> None:
    pytest.importorskip("litert_torch")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from dermedge_export.exporters.litert import PATH, export_litert
    from dermedge_export.graph.read_litert import read_litert

    method = "minmax" if precision == "int8" else "plain"
    built = export_litert(context, ANDROID, Candidate(precision, "litert", method))
    model = schema.ModelT.InitFromPackedBuf(built.files[PATH], 0)
    graph = model.subgraphs[0]
    makers = {
        index: (operator.kind, one.inputs)
        for one, operator in zip(graph.operators, read_litert(built.files[PATH]), strict=True)
        for index in one.outputs
    }
    # From the output up to the pooled features, which a mean or a quantizer writes.
    outputs = {one.name.decode(): one.tensorIndex for one in model.signatureDefs[0].outputs}
    waiting, seen = [outputs[OOD.name]], {}
    while waiting:
        index = waiting.pop()
        kind, inputs = makers.get(index, ("", ()))
        if kind not in BORDERS:
            waiting += [one for one in inputs if one not in seen]
        seen[index] = kind
    kinds = list(seen.values())
    assert kinds.count("SUM") == 4
    assert kinds.count("ABS") == 2
    (pooled,) = (index for index, kind in seen.items() if kind in BORDERS)
    numbers = {schema.TensorType.FLOAT32, schema.TensorType.INT32}
    assert {graph.tensors[index].type for index in seen} <= numbers
    interpreter = Interpreter(
        model_content=built.files[PATH],
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    rows = []
    for image in images():
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        # A copy, because the next image overwrites the memory.
        rows.append([interpreter.get_tensor(one).copy() for one in (pooled, outputs[OOD.name])])
    assert_computed_in_float32(context, *map(np.concatenate, zip(*rows, strict=True)))


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
    assert built.simulation is not None
    assert np.isfinite(built.simulation.run(images())[OOD.name]).all()


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
