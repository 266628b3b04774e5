"""Test the typed ONNX files for TensorRT, with onnxruntime and a simulation."""

import functools
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from dermedge.models import Network, TrainedModel
from dermedge.models.network import Backbone
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, module_runner
from dermedge_export.exporters.tensorrt.check import check_tensorrt
from dermedge_export.exporters.tensorrt.export import cast_pixels_first, export_tensorrt
from dermedge_export.exporters.tensorrt.qdq import (
    activation_edges,
    activation_thresholds,
    typed_int8,
    weighted_nodes,
)
from dermedge_export.graph.fp16 import SMALLEST
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.quantization.saturation import entropy_threshold
from dermedge_export.target import JETSON_AGX_ORIN
from dermedge_runtime.errors import DermedgeError, UsageError
from dermedge_runtime.spec import Label, Preprocess, Spec, Task, to_json

CNN, VIT = "test_resnet", "test_vit"
ARGUMENTS = {CNN: {"zero_init_last": False}, VIT: {"img_size": 32}}
LABELS = tuple(
    Label(name, name, malignant)
    for name, malignant in (("nv", False), ("mel", True), ("df", False))
)
TASKS = (Task("malignancy", "binary"), Task("diagnosis", "classify", labels=LABELS))
SPEC = Spec("student", "1.0.0", TASKS, Preprocess(size=32), "Tests only.", {})
FP16, INT8 = Candidate("fp16", "tensorrt"), Candidate("int8+fp16", "tensorrt", "minmax")
OPSET = JETSON_AGX_ORIN.opset
both = pytest.mark.parametrize("backbone", [CNN, VIT])
every = pytest.mark.parametrize("candidate", [FP16, INT8])


@functools.cache
def context_of(name: str) -> ExportContext:
    """Return the context of a student with random weights; its graph is traced once."""
    torch.manual_seed(0)
    backbone = Backbone(name, ARGUMENTS[name])
    return ExportContext(
        TrainedModel(Network(backbone, TASKS), SPEC, backbone),
        lambda: synthetic_calibration(SPEC.preprocess, 32),
    )


@functools.cache
def built(name: str, candidate: str) -> BuiltArtifact:
    return export_tensorrt(
        context_of(name), JETSON_AGX_ORIN, {"fp16": FP16, "int8+fp16": INT8}[candidate]
    )


def loaded(artifact: BuiltArtifact) -> onnx.ModelProto:
    return onnx.load_model_from_string(artifact.files["model.onnx"])


def with_graph(edit: str, name: str = CNN) -> ExportContext:
    """Return the context of a student with operators added behind the normalization."""
    model = onnx.load_model_from_string(context_of(name).graph(OPSET))
    at = next(index for index, node in enumerate(model.graph.node) if node.op_type == "Conv")
    source = model.graph.node[at].input[0]
    nodes = onnx.parser.parse_graph(f"g (float[1] x) => (float[1] y) {{ {edit} }}").node
    for node in nodes:
        node.name = f"added_{node.output[0]}"
        node.input[:] = [source if entry == "x" else entry for entry in node.input]
    model.graph.node[at].input[0] = "y"
    for node in reversed(nodes):
        model.graph.node.insert(at, node)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(400), "large"))
    original = context_of(name)
    context = ExportContext(original.source, original.calibration_source)
    context.cached(("graph", OPSET), model.SerializeToString)
    return context


def reference(context: ExportContext, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return flat(module_runner(context.module)(images))


def flat(outputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([outputs[task.name] for task in TASKS], axis=1)


def by_engine(artifact: BuiltArtifact, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        artifact.files["model.onnx"], providers=["CPUExecutionProvider"]
    )
    names = [task.name for task in TASKS]
    return np.concatenate(
        [np.concatenate(session.run(names, {"image": image[None]}), axis=1) for image in images]
    )


def deviation(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the RMS difference as a share of the logits' deviation between images."""
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.var(expected, axis=0).mean()))


@both
@every
class TestArtifact:
    def test_the_check_finds_no_problem(self, backbone: str, candidate: Candidate) -> None:
        artifact = built(backbone, candidate.precision)
        assert check_tensorrt(artifact.files["model.onnx"]) == ()
        assert artifact.artifact.details["tensorrt_warnings"] == []

    def test_the_input_is_uint8_pixels_and_the_outputs_are_float32_logits(
        self, backbone: str, candidate: Candidate
    ) -> None:
        graph = loaded(built(backbone, candidate.precision)).graph
        assert [(value.name, value.type.tensor_type.elem_type) for value in graph.input] == [
            ("image", TensorProto.UINT8)
        ]
        assert {(value.name, value.type.tensor_type.elem_type) for value in graph.output} == {
            ("malignancy", TensorProto.FLOAT),
            ("diagnosis", TensorProto.FLOAT),
        }

    def test_norms_and_softmax_are_fp32_and_other_nodes_fp16(
        self, backbone: str, candidate: Candidate
    ) -> None:
        model = loaded(built(backbone, candidate.precision))
        types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        for node in model.graph.node:
            if node.op_type in ("LayerNormalization", "Softmax"):
                assert types[node.output[0]] == TensorProto.FLOAT
            elif node.op_type in ("Conv", "Gemm", "MatMul", "Add", "Relu"):
                assert types[node.output[0]] == TensorProto.FLOAT16
        kept = [
            node.name
            for node in model.graph.node
            if node.op_type in ("LayerNormalization", "Softmax")
        ]
        assert built(backbone, candidate.precision).artifact.details["kept_fp32"] == kept

    def test_it_computes_nearly_what_the_student_computes(
        self, backbone: str, candidate: Candidate
    ) -> None:
        context, artifact = context_of(backbone), built(backbone, candidate.precision)
        images = context.calibration.images
        expected, limit = reference(context, images), 0.01 if candidate is FP16 else 0.2
        assert deviation(by_engine(artifact, images), expected) < limit
        assert artifact.simulation is not None
        assert deviation(flat(artifact.simulation.run(images)), expected) < limit

    def test_the_file_is_as_small_as_its_weights(self, backbone: str, candidate: Candidate) -> None:
        whole = len(context_of(backbone).graph(OPSET))
        assert (
            len(built(backbone, candidate.precision).files["model.onnx"])
            < (0.55 if candidate is FP16 else 0.35) * whole
        )

    def test_the_same_student_gives_the_same_bytes(
        self, backbone: str, candidate: Candidate
    ) -> None:
        again = export_tensorrt(context_of(backbone), JETSON_AGX_ORIN, candidate)
        assert again.files == built(backbone, candidate.precision).files


def test_the_manifest_describes_the_artifact() -> None:
    plain, quantized = built(CNN, "fp16").artifact, built(CNN, "int8+fp16").artifact
    assert (quantized.format, quantized.path, quantized.precision) == (
        "tensorrt",
        "model.onnx",
        "int8+fp16",
    )
    assert quantized.requires == JETSON_AGX_ORIN.requires
    assert quantized.details["device"] == JETSON_AGX_ORIN.facts
    assert (
        quantized.details["opset"],
        quantized.details["method"],
        quantized.details["typed"],
    ) == (
        OPSET,
        "minmax",
        True,
    )
    assert plain.calibration is None
    assert quantized.calibration == context_of(CNN).calibration.to_json()
    metadata = {entry.key: entry.value for entry in loaded(built(CNN, "fp16")).metadata_props}
    assert SPEC.name in metadata[METADATA_KEY]
    assert to_json(quantized)["details"]["device"]["sm"] == [87]


class TestInt8:
    @both
    def test_every_layer_with_weights_is_quantized_on_both_inputs(self, backbone: str) -> None:
        model = loaded(built(backbone, "int8+fp16"))
        makers = {name: node for node in model.graph.node for name in node.output}
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
        quantized = [node for node in layers if makers[node.input[1]].op_type == "DequantizeLinear"]
        source = onnx.load_model_from_string(context_of(backbone).graph(OPSET))
        assert {node.name for node in quantized} == weighted_nodes(source).keys()
        for node in quantized:
            activation, weight = makers[node.input[0]], makers[node.input[1]]
            assert makers[activation.input[0]].op_type == "QuantizeLinear"
            assert constants[activation.input[1]].dims == []
            assert constants[weight.input[0]].data_type == TensorProto.INT8
            assert len(constants[weight.input[1]].dims) == 1
            assert all(constants[name].data_type == TensorProto.FLOAT16 for name in node.input[2:])
        # Of attention, both products are of activations alone.
        assert len(layers) - len(quantized) == 2 * sum(
            node.op_type == "Softmax" for node in source.graph.node
        )

    @both
    def test_weights_are_within_half_a_step_of_the_students(self, backbone: str) -> None:
        model = loaded(built(backbone, "int8+fp16"))
        makers = {name: node for node in model.graph.node for name in node.output}
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        source = onnx.load_model_from_string(context_of(backbone).graph(OPSET))
        exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
        names = {node.name: node.input[1] for node in source.graph.node if len(node.input) > 1}
        for node in model.graph.node:
            if node.name in weighted_nodes(source):
                steps, scale, _ = (values[name] for name in makers[node.input[1]].input)
                axis = weighted_nodes(source)[node.name]
                largest = np.abs(steps).max(
                    axis=tuple(at for at in range(steps.ndim) if at != axis)
                )
                assert (largest[scale > SMALLEST] == 127).all()
                scale = scale.astype(np.float32).reshape(
                    [-1 if at == axis else 1 for at in range(steps.ndim)]
                )
                assert (np.abs(steps * scale - exact[names[node.name]]) <= 0.56 * scale).all()

    def test_a_skip_branch_is_quantized_where_it_fuses_into_a_convolution(self) -> None:
        source = onnx.load_model_from_string(context_of(CNN).graph(OPSET))
        makers = {name: node for node in source.graph.node for name in node.output}
        sums = [node for node in source.graph.node if node.op_type == "Add"]
        edges = activation_edges(source)
        for node in sums:
            other = [at for name, at in edges if name == node.name]
            assert len(other) == 1
            assert makers[node.input[1 - other[0]]].op_type == "Conv"
        assert not {name for name, _ in activation_edges(source, [node.name for node in sums])} & {
            s.name for s in sums
        }
        vit = onnx.load_model_from_string(context_of(VIT).graph(OPSET))
        assert {name for name, _ in activation_edges(vit)} == weighted_nodes(vit).keys()

    def test_kept_layers_stay_fp16(self) -> None:
        graph = cast_pixels_first(context_of(CNN).graph(OPSET))
        layers = list(weighted_nodes(onnx.load_model_from_string(graph)))
        thresholds = activation_thresholds(graph, context_of(CNN).calibration.images[:2], "minmax")
        model = typed_int8(graph, thresholds, keep=layers[:3])
        reading = [
            node.name
            for node in model.graph.node
            if any(".dequantized" in name for name in node.input)
        ]
        assert set(reading) & set(layers) == set(layers[3:])
        for layer in layers:
            assert layer not in {
                name for name, _ in activation_edges(onnx.load_model_from_string(graph), [layer])
            }
            onnx.checker.check_model(typed_int8(graph, thresholds, keep=[layer]), full_check=True)

    def test_a_sweep_chooses_the_kept_layers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layers = list(weighted_nodes(onnx.load_model_from_string(context_of(CNN).graph(OPSET))))
        counts = []

        def choose(quantize, graph, images, *, progress):  # type: ignore[no-untyped-def]
            for keep in ((), layers[:1]):
                model = onnx.load_model_from_string(quantize(keep))
                onnxruntime.InferenceSession(
                    model.SerializeToString(), providers=["CPUExecutionProvider"]
                )
                counts.append(
                    Counter(node.op_type for node in model.graph.node)["DequantizeLinear"]
                )
            return tuple(layers[:1])

        monkeypatch.setattr("dermedge_export.exporters.tensorrt.export.choose_kept", choose)
        artifact = export_tensorrt(
            context_of(CNN), JETSON_AGX_ORIN, Candidate("int8+fp16", "tensorrt", "mixed")
        )
        assert counts[0] == counts[1] + 2
        assert artifact.artifact.details["kept_fp16"] == layers[:1]
        nodes = Counter(node.op_type for node in loaded(artifact).graph.node)
        assert nodes["DequantizeLinear"] == counts[1]


class TestThresholds:
    def test_minmax_is_the_largest_magnitude_on_the_images(self) -> None:
        graph = cast_pixels_first(context_of(CNN).graph(OPSET))
        images = context_of(CNN).calibration.images[:3]
        found = activation_thresholds(graph, images, "minmax")
        first = next(
            node for node in onnx.load_model_from_string(graph).graph.node if node.op_type == "Conv"
        ).input[0]
        mean, std = np.array(Backbone("").mean), np.array(Backbone("").std)
        assert found[first] == pytest.approx(np.abs((images / 255 - mean) / std).max(), rel=1e-5)

    def test_entropy_thresholds_are_at_most_minmax_and_some_are_smaller(self) -> None:
        graph = cast_pixels_first(context_of(CNN).graph(OPSET))
        images = context_of(CNN).calibration.images[:8]
        largest = activation_thresholds(graph, images, "minmax")
        cut = activation_thresholds(graph, images, "entropy")
        assert cut.keys() == largest.keys()
        assert all(0 < cut[name] <= largest[name] for name in cut)
        assert any(cut[name] < 0.9 * largest[name] for name in cut)

    def test_entropy_cuts_outliers_off_and_leaves_a_plain_distribution_whole(self) -> None:
        rng = np.random.default_rng(0)
        outlier, _ = np.histogram(np.append(np.abs(rng.normal(size=100_000)), 40.0), 2048, (0, 40))
        assert 2 / 40 < entropy_threshold(outlier.astype(float)) < 8 / 40
        plain, _ = np.histogram(rng.uniform(0, 1, 100_000), 2048, (0, 1))
        assert entropy_threshold(plain.astype(float)) > 0.95
        assert entropy_threshold(np.zeros(2048)) == 1.0


def test_an_open_batch_stays_open() -> None:
    context = ExportContext(
        context_of(CNN).source, context_of(CNN).calibration_source, dynamic_batch=True
    )
    artifact = export_tensorrt(context, JETSON_AGX_ORIN, INT8)
    assert artifact.artifact.details["tensorrt_warnings"] == []
    images = context.calibration.images[:5]
    session = onnxruntime.InferenceSession(
        artifact.files["model.onnx"], providers=["CPUExecutionProvider"]
    )
    together = np.concatenate(session.run([task.name for task in TASKS], {"image": images}), axis=1)
    np.testing.assert_allclose(together, by_engine(artifact, images), atol=1e-4)


class TestTrouble:
    def test_a_student_that_gives_nan_cannot_be_calibrated(self) -> None:
        with pytest.raises(DermedgeError, match="NaN or Inf on calibration images"):
            export_tensorrt(with_graph("y = Sqrt (x)"), JETSON_AGX_ORIN, INT8)

    def test_layers_that_leave_the_range_of_fp16_stay_in_fp32(self) -> None:
        context = with_graph(
            "a = Mul (x, large) b = Mul (a, large) c = Div (b, large) y = Div (c, large)"
        )
        artifact = export_tensorrt(context, JETSON_AGX_ORIN, FP16)
        assert artifact.artifact.details["kept_fp32"] == ["added_b", "added_c"]
        images = context.calibration.images
        assert artifact.simulation is not None
        assert deviation(flat(artifact.simulation.run(images)), reference(context, images)) < 0.01

    def test_an_operator_that_tensorrt_lacks_is_named_with_the_nearest_target(self) -> None:
        context = with_graph("y = Bernoulli (x)")
        with pytest.raises(
            UsageError, match=r"jetson-agx-orin: Bernoulli \(added_y\).*cpu or android"
        ):
            export_tensorrt(context, JETSON_AGX_ORIN, FP16)

    @pytest.mark.parametrize(
        "candidate",
        [Candidate("fp8", "tensorrt"), Candidate("int8+fp16", "tensorrt", "percentile")],
    )
    def test_an_unknown_candidate_is_refused(self, candidate: Candidate) -> None:
        with pytest.raises(UsageError, match=candidate.name.replace("+", r"\+")):
            export_tensorrt(context_of(CNN), JETSON_AGX_ORIN, candidate)
