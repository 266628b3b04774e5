"""Tests of int8 graphs: what is quantized, how, and how close the outputs stay."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from dermedge.models import Network, TrainedModel, load_model_folder
from dermedge.models.network import Backbone
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext, module_runner
from dermedge_export.exporters.onnx import export_onnx
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.quantization.ptq import OPERATORS, Quantizer, sensitive_nodes
from dermedge_export.target import CPU
from dermedge_runtime.errors import DermedgeError, UsageError
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support import small, toy_onnx

METHODS = ("minmax", "percentile", "entropy", "nncf")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ExportContext:
    return ExportContext(load_model_folder(small.student_folder(tmp_path_factory.getbasetemp())))


@pytest.fixture(scope="module")
def transformer() -> ExportContext:
    labels = tuple(
        Label(name, name, malignant) for name, malignant in (("nv", False), ("mel", True))
    )
    tasks = (Task("diagnosis", "classify", labels),)
    torch.manual_seed(3)
    backbone = Backbone("test_vit", {"img_size": 64})
    return ExportContext(
        TrainedModel(
            Network(backbone, tasks).eval(), Spec("small-vit", "1", tasks, Preprocess(64)), backbone
        )
    )


def quantized(context: ExportContext, method: str, **options: object) -> onnx.ModelProto:
    built = export_onnx(context, CPU, Candidate("int8", "onnx", method, options))
    return onnx.load_model_from_string(built.files["model.onnx"])


def answers(model: onnx.ModelProto | bytes, images: np.ndarray) -> np.ndarray:
    content = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.concatenate(
        [session.run(["diagnosis"], {"image": image[None]})[0] for image in images]
    )


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def weights(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return the node that produces each layer's weights: a DequantizeLinear for int8."""
    makers = {output: node for node in model.graph.node for output in node.output}
    return {
        node.name: makers[node.input[1]]
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and node.input[1] in makers
    }


@pytest.mark.parametrize("method", METHODS)
class TestEveryMethod:
    def test_it_computes_nearly_what_the_student_computes(
        self, method: str, context: ExportContext
    ) -> None:
        images = context.calibration.images[:24]
        expected = module_runner(context.source.module)(images)["diagnosis"]
        found = answers(quantized(context, method), images)
        assert found.dtype == np.float32
        noise = np.square(found - expected).mean()
        # NNCF also quantizes gates, which harms a network of so few channels.
        share = 0.6 if method == "nncf" else 0.1
        assert 0 < noise < share * np.square(expected - expected.mean()).mean()

    def test_weights_are_int8_and_symmetric_and_there_are_a_quarter_as_many_bytes(
        self, method: str, context: ExportContext
    ) -> None:
        model, plain = (
            quantized(context, method),
            onnx.load_model_from_string(context.graph(CPU.opset)),
        )
        found = constants(model)
        made = weights(model)
        assert len(made) >= sum(node.op_type == "Conv" for node in plain.graph.node) - 2
        for node in made.values():
            assert node.op_type == "DequantizeLinear"
            assert found[node.input[0]].dtype == np.int8
            if len(node.input) > 2 and node.input[2]:
                assert not found[node.input[2]].any()
        of_layers = sum(found[node.input[0]].nbytes for node in made.values())
        assert of_layers < 0.3 * sum(value.nbytes for value in constants(plain).values())

    def test_activations_have_one_scale_per_tensor(
        self, method: str, context: ExportContext
    ) -> None:
        model = quantized(context, method)
        found = constants(model)
        scales = [
            found[node.input[1]] for node in model.graph.node if node.op_type == "QuantizeLinear"
        ]
        assert scales
        assert all(scale.size == 1 for scale in scales)

    def test_the_artifact_records_method_calibration_and_versions(
        self, method: str, context: ExportContext
    ) -> None:
        built = export_onnx(context, CPU, Candidate("int8", "onnx", method))
        assert built.artifact.precision == "int8"
        assert built.artifact.details["method"] == method
        assert built.artifact.calibration == context.calibration.to_json()
        assert "onnxruntime" in built.artifact.toolchain
        model = onnx.load_model_from_string(built.files["model.onnx"])
        assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]
        assert model.ir_version == built.artifact.details["ir_version"]
        assert {opset.version for opset in model.opset_import if opset.domain == ""} == {CPU.opset}


def test_activations_are_signed_on_demand(context: ExportContext) -> None:
    for kind, dtype in (("u8", np.uint8), ("s8", np.int8)):
        model = quantized(context, "minmax", activations=kind)
        found = constants(model)
        zeros = [
            found[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"
        ]
        assert {zero.dtype for zero in zeros} == {np.dtype(dtype)}
        assert kind == "u8" or not any(zero.any() for zero in zeros)


def test_seven_bit_weights_where_products_would_saturate(context: ExportContext) -> None:
    def largest(reduce_range: bool) -> int:
        model = quantized(context, "minmax", reduce_range=reduce_range)
        found = constants(model)
        return max(
            int(np.abs(found[node.input[0]].astype(int)).max()) for node in weights(model).values()
        )

    assert largest(False) == 127
    assert largest(True) <= 64


def test_softmax_norms_and_products_stay_in_fp32(transformer: ExportContext) -> None:
    model = quantized(transformer, "minmax")
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "Mul", "Div", "Erf"):
            assert node.op_type not in OPERATORS
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert {makers[name] for node in products for name in node.input if name in makers} == {
        "DequantizeLinear"
    }
    images = transformer.calibration.images[:8]
    expected = module_runner(transformer.source.module)(images)["diagnosis"]
    found = answers(model, images)
    assert np.square(found - expected).mean() < 0.1 * max(expected.var(), 1e-3)


def test_layers_can_be_kept_and_ranges_are_measured_once(
    context: ExportContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer = Quantizer(context.graph(CPU.opset), context.calibration)
    monkeypatch.setattr(
        "dermedge_export.quantization.ptq.activation_ranges", None
    )  # a second pass would fail
    nodes = [node.name for node in onnx.load_model_from_string(context.graph(CPU.opset)).graph.node]
    everything = answers(quantizer(nodes), context.calibration.images[:4])
    np.testing.assert_allclose(
        everything, answers(context.graph(CPU.opset), context.calibration.images[:4]), atol=1e-5
    )
    kept = next(name for name in nodes if name in weights(onnx.load_model_from_string(quantizer())))
    assert kept not in weights(onnx.load_model_from_string(quantizer([kept])))


def test_the_sweep_of_an_export_reports_its_progress() -> None:
    spec = toy_onnx.spec()
    reports: list[tuple[int, int, str]] = []
    context = ExportContext(
        SimpleNamespace(module=None, spec=spec),
        lambda: synthetic_calibration(spec.preprocess, 4),
        progress=lambda *report: reports.append(report),
    )
    context.cached(("graph", CPU.opset), toy_onnx.graph)
    sensitive_nodes(context, CPU, Candidate("int8", "onnx", "mixed", {"remaining": 0.1}))
    assert reports
    assert reports[-1][0] == reports[-1][1]
    assert all(note.startswith("sensitivity of ") for _, _, note in reports)


def test_onnxruntime_does_not_quantize_a_kept_layer_again() -> None:
    """onnxruntime quantizes fp32 weights behind a DequantizeLinear again, per tensor."""
    labels = tuple(
        Label(name, name, malignant) for name, malignant in (("nv", False), ("mel", True))
    )
    tasks = (Task("diagnosis", "classify", labels),)
    torch.manual_seed(3)
    backbone = Backbone("test_resnet")
    context = ExportContext(
        TrainedModel(
            Network(backbone, tasks).eval(), Spec("small", "1", tasks, Preprocess(64)), backbone
        )
    )
    model = onnx.load_model_from_string(context.graph(CPU.opset))
    activated = {node.output[0] for node in model.graph.node if node.op_type == "Relu"}
    layer = next(
        node for node in model.graph.node if node.op_type == "Conv" and node.input[0] in activated
    )
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == layer.input[1])
    values = numpy_helper.to_array(weights).copy()
    values[0] *= (
        -500 / np.abs(values[0]).max()
    )  # one loud channel, which the ReLU behind it nearly silences
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    quantized = Quantizer(model.SerializeToString(), context.calibration)([layer.name])
    images = context.calibration.images[:8]
    as_written = onnxruntime.InferenceSession(
        quantized,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    expected = np.concatenate(
        [as_written.run(["diagnosis"], {"image": image[None]})[0] for image in images]
    )
    np.testing.assert_allclose(answers(quantized, images), expected, atol=1e-4)


def test_a_method_that_does_not_exist_is_refused(context: ExportContext) -> None:
    with pytest.raises(UsageError, match="No exporter builds 'int8 onnx magic'"):
        export_onnx(context, CPU, Candidate("int8", "onnx", "magic"))


def test_a_failure_of_nncf_is_reported_in_one_line(
    context: ExportContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nncf

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("Unsupported operator Foo")

    monkeypatch.setattr(nncf, "quantize", fail)
    with pytest.raises(
        DermedgeError, match=r"NNCF cannot quantize this graph \(Unsupported operator Foo\)"
    ):
        export_onnx(context, CPU, Candidate("int8", "onnx", "nncf"))


def test_calibration_holds_few_images_at_a_time(
    context: ExportContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import calibrate

    held: list[int] = []
    collect = calibrate.HistogramCalibrater.collect_data

    def counted(self: object, reader: object) -> None:
        collect(self, reader)
        held.append(len(getattr(self, "intermediate_outputs", [])))

    monkeypatch.setattr(calibrate.HistogramCalibrater, "collect_data", counted)
    quantized(context, "percentile")
    assert len(held) == len(context.calibration) // 16
    assert set(held) == {0}
