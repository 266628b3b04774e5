"""Plant what breaks on GPUs in fp16: wide sums, values out of range, indices, transposes."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dermedge_export.calibration import Calibration
from dermedge_export.context import BuiltArtifact, ExportContext
from dermedge_export.gpu_hazards import with_gpu_hazards
from dermedge_export.graph.delegates import find_hazards, find_transposes, split_means
from dermedge_export.model_card import GPU_HAZARDS, gpu_hazards, model_card
from dermedge_export.target import ANDROID, CPU, Target
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Artifact, Label, Preprocess, Spec, Task

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)

LABELS = tuple(Label(name, name) for name in ("nv", "mel", "bkl"))
SPEC = Spec("gate", "1", (Task("diagnosis", "classify", LABELS),), Preprocess(64))


class Squeeze(nn.Module):
    """A convolution with a squeeze-excite gate, on values that `gain` makes large."""

    def __init__(self, gain: float, *, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.gain, self.pool = gain, pool
        self.conv, self.gate = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = self.conv(maps).relu() * self.gain
        pooled = maps.mean((2, 3), keepdim=True) if self.pool is None else self.pool(maps)
        return maps * self.gate(pooled).sigmoid()


class Network(nn.Module):
    def __init__(self, body: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body((image.permute(0, 3, 1, 2).float() - 127) / 60)
        return {"diagnosis": self.head(maps.mean((2, 3)))}


def network(body: nn.Module, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Network(body, width).eval()


def outputs(module: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return module(torch.from_numpy(IMAGES[:1]))["diagnosis"]


class TestFindHazards:
    def test_a_usual_network_has_none(self) -> None:
        assert find_hazards(network(Squeeze(1.0)), IMAGES) == ()

    @pytest.mark.parametrize("pool", [None, nn.AdaptiveAvgPool2d(1)])
    def test_a_squeeze_whose_sum_overflows_is_named(self, pool: nn.Module | None) -> None:
        """Values of some hundred fit, but a thousand of them do not."""
        hazards = find_hazards(network(Squeeze(300.0, pool=pool)), IMAGES)
        assert hazards[0].layer.startswith("body")
        assert hazards[0].operator in ("mean", "adaptive_avg_pool2d")
        assert "its sum reaches" in hazards[0].reason
        assert "fp16 ends at 65,504" in hazards[0].reason

    def test_terms_of_both_signs_do_not_cancel(self) -> None:
        """The order of a GPU's sum is its own, so an intermediate sum may overflow."""

        class Waves(nn.Module):
            def forward(self, maps: torch.Tensor) -> torch.Tensor:
                return torch.sin(maps) * 300

        assert find_hazards(network(Waves(), 3), IMAGES)[0].operator == "mean"

    def test_only_the_operator_that_leaves_the_range_is_named(self) -> None:
        body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.MaxPool2d(2))
        module = network(body)
        with torch.no_grad():
            body[0].weight *= 1e6
        found = [(one.layer, one.operator) for one in find_hazards(module, IMAGES)]
        assert found[0] == ("body.0", "conv2d")
        assert ("body.1", "relu") not in found

    def test_a_convolution_that_a_batch_norm_follows_is_judged_with_it(self) -> None:
        """Exporters fold the norm, so the large value between them does not exist."""
        norm = nn.BatchNorm2d(8)
        module = network(nn.Sequential(nn.Conv2d(3, 8, 1), norm))
        with torch.no_grad():
            module.body[0].weight *= 1e6
            norm.weight *= 1e-6
        assert find_hazards(module, IMAGES) == ()

    def test_the_squares_inside_a_layer_norm_count(self) -> None:
        class Norm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.LayerNorm([3, 64, 64])

            def forward(self, maps: torch.Tensor) -> torch.Tensor:
                return self.norm(maps * 50)

        assert find_hazards(network(Norm(), 3), IMAGES)[0].operator == "layer_norm"

    def test_a_value_that_is_not_a_number_counts(self) -> None:
        class Undefined(nn.Module):
            def forward(self, maps: torch.Tensor) -> torch.Tensor:
                return maps.sub(maps.max()).log()

        assert find_hazards(network(Undefined(), 3), IMAGES)

    @pytest.mark.parametrize("pick", ["argmax", "max", "topk"])
    def test_an_index_in_the_graph_is_named(self, pick: str) -> None:
        class Index(nn.Module):
            def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
                mean = image.float().mean((1, 2)) / 255
                picked = {
                    "argmax": lambda: mean.argmax(1, keepdim=True),
                    "max": lambda: mean.max(1, keepdim=True)[1],
                    "topk": lambda: mean.topk(1)[1],
                }[pick]()
                return {"diagnosis": picked.float()}

        found = find_hazards(Index().eval(), IMAGES[:, :8, :8])
        assert [one.operator for one in found] == [pick]
        assert "index" in found[0].reason


class TestSplitMeans:
    def test_the_sums_fit_and_the_outputs_stay(self) -> None:
        module = network(Squeeze(300.0))
        split = split_means(module, IMAGES)
        assert find_hazards(split, IMAGES) == ()
        expected = outputs(module)
        assert (outputs(split) - expected).abs().max() <= 1e-6 * expected.abs().max()

    def test_a_network_without_wide_sums_stays_itself(self) -> None:
        module = network(Squeeze(1.0))
        assert split_means(module, IMAGES) is module

    def test_layers_keep_their_names(self) -> None:
        """A gain of 5,000 overflows even the sum of one row."""
        found = find_hazards(split_means(network(Squeeze(5000.0)), IMAGES), IMAGES)
        assert "body" in {one.layer for one in found}


class TestTransposes:
    @pytest.mark.parametrize(("turned", "expected"), [(0, False), (1, False), (4, True)])
    def test_transposes_around_every_convolution_are_named(
        self, turned: int, expected: bool
    ) -> None:
        found = find_transposes(litert_model(["CONV_2D"] * 2 + ["TRANSPOSE"] * turned))
        assert bool(found) == expected
        assert not found or "4 transposes" in found[0].reason


class TestBundles:
    def described(
        self, gain: float, target: Target, kinds: Sequence[str] = ("CONV_2D",)
    ) -> Artifact:
        """Return the description of an artifact of a network with a squeeze-excite gate."""
        context = ExportContext(
            SimpleNamespace(module=network(Squeeze(gain)), spec=SPEC),
            lambda: Calibration(IMAGES, ("0" * 64,) * len(IMAGES), "procedural"),
        )
        built = BuiltArtifact(
            Artifact(target.name, target.format, "model", "fp32"), {"model": litert_model(kinds)}
        )
        return with_gpu_hazards(built, context, target).artifact

    def test_a_litert_bundle_lists_what_no_split_mends(self) -> None:
        """The values themselves are out of range, so splitting the mean cannot help."""
        artifact = self.described(50_000.0, ANDROID)
        assert "body" in gpu_hazards(artifact)[0]
        report = ParityReport("passed", "drawn lesions", 4, "litert", "a CPU", "fp32", ())
        card = model_card(SPEC, artifact, {}, report)
        assert "force fp32 on the GPU" in card
        assert gpu_hazards(artifact)[0] in card

    def test_a_mean_that_was_split_is_no_hazard(self) -> None:
        assert gpu_hazards(self.described(300.0, ANDROID)) == ()

    def test_transposes_are_listed_too(self) -> None:
        artifact = self.described(1.0, ANDROID, ("CONV_2D", "TRANSPOSE"))
        assert "1 transposes" in gpu_hazards(artifact)[0]

    def test_other_formats_are_not_examined(self) -> None:
        assert GPU_HAZARDS not in self.described(50_000.0, CPU).details


def litert_model(kinds: Sequence[str]) -> bytes:
    """Return a LiteRT file with operators in a row; it holds no weights and cannot run."""
    flatbuffers = pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers = 3, [schema.BufferT()]
    codes = sorted(set(kinds))
    model.operatorCodes = []
    for kind in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
        model.operatorCodes.append(code)
    graph.tensors, graph.operators = [], []
    for index in range(len(kinds) + 1):
        tensor = schema.TensorT()
        tensor.name, tensor.shape = f"tensor{index}", [1, 8, 8, 3]
        graph.tensors.append(tensor)
    for index, kind in enumerate(kinds):
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = (
            codes.index(kind),
            [index],
            [index + 1],
        )
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [0], [len(kinds)]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
