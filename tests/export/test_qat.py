"""Test fake quantizers, and the integer graphs that they become."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.quantization.integer import integer_graph
from dermedge_export.quantization.qat import fake_quantized, qat_graph
from dermedge_export.target import CPU
from dermedge_runtime.errors import DermedgeError, UsageError
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support import small
from support.native_candidate import native_candidate

LABELS = tuple(
    Label(name, name, malignant)
    for name, malignant in (("nv", False), ("mel", True), ("df", False))
)
SPEC = Spec(
    "tiny",
    "1",
    (Task("malignancy", "binary"), Task("diagnosis", "classify", LABELS)),
    Preprocess(32),
)
NATIVE = native_candidate("qat").options
OPTIONS = (NATIVE, {"activations": "s8", "reduce_range": True})


class Tiny(nn.Module):
    """A small student: convolutions with and without norm and clip, tokens, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True)
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.SiLU(inplace=True)
        )
        self.pointwise = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        )
        self.norm, self.token = nn.LayerNorm(16), nn.Linear(16, 16)
        self.last = nn.BatchNorm1d(16)
        self.heads = nn.ModuleDict({"diagnosis": nn.Linear(16, 3), "malignancy": nn.Linear(16, 1)})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        start = self.stem(image.permute(0, 3, 1, 2).float() / 64 - 2)
        x = self.pointwise(self.depthwise(nn.functional.max_pool2d(start, 2)))
        x += nn.functional.max_pool2d(start, 2)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + torch.nn.functional.gelu(self.token(self.norm(tokens)))
        pooled = self.last(tokens.mean(1))
        return {name: head(pooled) for name, head in self.heads.items()}


class Source:
    """A model that an exporter accepts."""

    spec = SPEC

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.module = Tiny()
        with torch.no_grad():
            for _ in range(20):
                self.module(small.pixels(16, seed=1))  # gives the norms statistics
            for head in self.module.heads.values():
                head.weight *= 8
        self.module.eval()


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(small.pixels(40, seed=2).numpy(), tuple(map(str, range(40))), "train")


def shaken(twin: Any) -> Any:
    """Change every weight and scale of the copy a little, as training does."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter *= 1 + 0.02 * torch.randn(parameter.shape, generator=generator)
    return twin


@pytest.fixture(scope="module", params=OPTIONS, ids=["native", "s8s8"])
def made(
    request: pytest.FixtureRequest, source: Source, calibration: Calibration
) -> tuple[dict[str, Any], Any, bytes]:
    """Return the options, the fake-quantized copy, and its graph."""
    twin = shaken(fake_quantized(source.module, calibration, **request.param))
    return request.param, twin, integer_graph(twin, source.spec, CPU.opset)


def outputs_of(module: nn.Module, images: Tensor) -> Tensor:
    """Return a module's outputs, one row per image, in the order of the tasks."""
    with torch.no_grad():
        outputs = module(images)
    return torch.cat([outputs[task.name] for task in SPEC.tasks], dim=1)


def graph_outputs(
    graph: bytes, images: Tensor, *, batch: int = 1, optimized: bool = True
) -> Tensor:
    """Return a graph's outputs in the same form, computed by onnxruntime."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    engine = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [task.name for task in SPEC.tasks]
    rows = [
        np.concatenate(engine.run(names, {"image": part.numpy()}), axis=1)
        for part in images.split(batch)
    ]
    return torch.from_numpy(np.concatenate(rows))


class TestFakeQuantized:
    def test_the_copy_computes_nearly_the_same_and_the_source_is_unchanged(
        self, source: Source, calibration: Calibration
    ) -> None:
        before = copy.deepcopy(source.module.state_dict())
        twin = fake_quantized(source.module, calibration)
        images = small.pixels(16, seed=5)
        expected = outputs_of(source.module, images)
        assert 0 < (outputs_of(twin, images) - expected).abs().mean() < 0.05 * expected.abs().mean()
        shaken(twin)
        assert not source.module.training
        for name, value in source.module.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_norms_are_folded_or_frozen(self, source: Source, calibration: Calibration) -> None:
        twin = fake_quantized(source.module, calibration).train()
        kinds = [str(node.target) for node in twin.graph.nodes if node.op == "call_function"]
        assert (
            sum("batch_norm" in kind for kind in kinds) == 1
        )  # the one that follows no convolution
        images = small.pixels(16, seed=6)
        before = {name: value.clone() for name, value in twin.named_buffers()}
        trained = outputs_of(twin, images)
        assert torch.equal(outputs_of(twin.eval(), images), trained)
        for name, value in twin.named_buffers():
            assert torch.equal(value, before[name]), name

    def test_weights_and_scales_are_trained(self, source: Source, calibration: Calibration) -> None:
        twin = shaken(fake_quantized(source.module, calibration))
        outputs = twin(small.pixels(16, seed=5))
        torch.cat(list(outputs.values()), dim=1).square().sum().backward()
        still = [name for name, parameter in twin.named_parameters() if parameter.grad is None]
        assert still == []
        scales = [
            parameter for name, parameter in twin.named_parameters() if name.endswith("log_scale")
        ]
        # Weights of six layers; the pixels, the outputs of three convolutions, and the
        # other inputs of layers.
        assert len(scales) > 6 + 4
        assert all(scale.grad.abs().max() > 0 for scale in scales)

    def test_a_range_covers_the_values_of_calibration_images(self, source: Source) -> None:
        images = np.zeros((32, 32, 32, 3), np.uint8)
        images[:, 0, 0] = 192
        twin = fake_quantized(source.module, Calibration(images, ("",) * 32, "train"))
        first = next(node for node in twin.graph.nodes if "per_tensor" in str(node.target))
        seen: list[Tensor] = []

        class Watcher(torch.fx.Interpreter):
            def run_node(self, n: Any) -> Any:
                value = super().run_node(n)
                if n is first:
                    seen.append(value)
                return value

        with torch.no_grad():
            Watcher(twin).run(torch.full((1, 32, 32, 3), 255, dtype=torch.uint8))
        assert seen[0].max().item() == pytest.approx(1, abs=0.02)  # 192 / 64 - 2, not 255 / 64 - 2

    def test_a_network_that_cannot_be_traced_is_refused(self, calibration: Calibration) -> None:
        class Capricious(Tiny):
            def forward(self, image: Tensor) -> dict[str, Tensor]:
                return super().forward(image if image.float().mean() > 100 else image.flip(1))

        with pytest.raises(DermedgeError, match="Choose another int8 method"):
            fake_quantized(Capricious().eval(), calibration)


class TestGraph:
    def test_the_graph_computes_what_the_trained_module_computes(
        self, made: tuple[dict[str, Any], Any, bytes]
    ) -> None:
        _, twin, graph = made
        images = small.pixels(24, seed=7)
        expected = outputs_of(twin, images)
        # If a value lies between two levels, the order of a sum decides; that moves a
        # logit by a step or two.
        step = 0.01 * expected.abs().max()
        for optimized in (False, True):
            difference = (graph_outputs(graph, images, optimized=optimized) - expected).abs()
            assert difference.max() < 3 * step
            assert difference.median() < 0.1 * step

    def test_weights_are_int8_and_biases_int32(
        self, made: tuple[dict[str, Any], Any, bytes]
    ) -> None:
        options, _, graph = made
        model = onnx.load_model_from_string(graph)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        inputs = {
            node.output[0]: node.input
            for node in model.graph.node
            if node.op_type == "DequantizeLinear"
        }
        layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
        layers += [node for node in model.graph.node if node.op_type == "MatMul"]
        assert len(layers) == 6
        for layer in layers:
            weight, scale, zero = (stored[name] for name in inputs[layer.input[1]])
            assert weight.dtype == np.int8
            assert scale.shape == (1,) or scale.size in weight.shape
            assert not zero.any()
            assert np.abs(weight.astype(int)).max() <= (63 if options.get("reduce_range") else 127)
            assert stored[inputs[layer.input[0]][1]].shape == ()  # activations per tensor
        biases = [
            stored[node.input[2]]
            for node in layers
            if len(node.input) > 2 and node.input[2] in stored
        ]
        assert biases == []
        assert (
            sum(
                stored[names[0]].dtype == np.int32
                for names in inputs.values()
                if names[0] in stored
            )
            == 6
        )

    def test_activations_have_the_requested_type(
        self, made: tuple[dict[str, Any], Any, bytes]
    ) -> None:
        options, _, graph = made
        model = onnx.load_model_from_string(graph)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        zeros = [
            stored[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"
        ]
        assert {zero.dtype for zero in zeros} == {
            np.dtype(np.int8 if options["activations"] == "s8" else np.uint8)
        }

    @pytest.mark.parametrize("made", OPTIONS[:1], indirect=True)  # s8s8 is for ARM
    def test_onnxruntime_computes_every_layer_in_int8(
        self, made: tuple[dict[str, Any], Any, bytes], tmp_path: Path
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(made[2], options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
        assert [
            kinds.count(kind) for kind in ("QLinearConv", "Conv", "QGemm", "Gemm", "MatMul")
        ] == [3, 0, 3, 0, 0]

    @pytest.mark.parametrize("made", OPTIONS[:1], indirect=True)
    def test_the_same_module_gives_the_same_bytes(
        self, source: Source, made: tuple[dict[str, Any], Any, bytes]
    ) -> None:
        _, twin, graph = made
        before = copy.deepcopy(twin.state_dict())
        assert integer_graph(copy.deepcopy(twin), source.spec, CPU.opset) == graph
        assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
        for trace in (b".py", b"site-packages", b"dermedge_export"):
            assert trace not in graph
        model = onnx.load_model_from_string(graph)
        assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]

    def test_a_channel_without_weights_keeps_its_bias(self, calibration: Calibration) -> None:
        source = Source()
        with torch.no_grad():
            source.module.pointwise[1].weight[3] = 0
            source.module.pointwise[2].running_mean[3] = 0
            source.module.pointwise[2].bias[3] = 0.5135
            source.module.token.weight.zero_()
            source.module.token.bias.fill_(0.2467)
        graph = integer_graph(fake_quantized(source.module, calibration), source.spec, CPU.opset)
        model = onnx.load_model_from_string(graph)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        inputs = [node.input for node in model.graph.node if node.op_type == "DequantizeLinear"]
        constants = [names for names in inputs if names[0] in stored]
        biases = [stored[n[0]] * stored[n[1]] for n in constants if stored[n[0]].dtype == np.int32]
        assert any(abs(bias[3] - 0.5135) < 1e-5 for bias in biases if len(bias) > 3)
        assert any(np.abs(bias - 0.2467).max() < 1e-5 for bias in biases)

    def test_the_batch_may_stay_open(self, source: Source, calibration: Calibration) -> None:
        twin = fake_quantized(source.module, calibration)
        graph = integer_graph(twin, source.spec, CPU.opset, dynamic_batch=True)
        images = small.pixels(6, seed=8)
        torch.testing.assert_close(
            graph_outputs(graph, images, batch=6), graph_outputs(graph, images), atol=1e-4, rtol=0
        )


class TestCandidate:
    def test_the_trained_module_is_exported(self, source: Source, calibration: Calibration) -> None:
        seen: list[Any] = []

        def retrain(module: Any, images: Calibration, candidate: Candidate) -> Any:
            seen.append((shaken(module), images, candidate))
            return module

        context = ExportContext(source, calibration_source=lambda: calibration, retrain=retrain)
        candidate = Candidate("int8", "onnx", "qat", OPTIONS[1], "trained")
        graph = qat_graph(context, CPU, candidate)
        assert seen[0][1:] == (calibration, candidate)
        images = small.pixels(8, seed=7)
        expected = outputs_of(seen[0][0], images)
        assert (
            graph_outputs(graph, images) - expected
        ).abs().median() < 0.001 * expected.abs().max()

    def test_without_data_there_is_nothing_to_train_on(self, source: Source) -> None:
        with pytest.raises(UsageError, match="--data"):
            qat_graph(
                ExportContext(source), CPU, Candidate("int8", "onnx", "qat", OPTIONS[0], "trained")
            )
