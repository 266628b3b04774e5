"""Test LiteRT artifacts: contract, precisions, reproducibility, errors and the command."""

import copy
import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dermedge.models import Network, TrainedModel, load_model_folder
from dermedge.models.network import Backbone
from dermedge.models.new_spec import make_spec
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, module_runner
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.target import ANDROID, CPU, find_target
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.canonical_json import parse_json
from dermedge_runtime.errors import DermedgeError, GateError, MissingExtraError, UsageError
from dermedge_runtime.litert import LiteRtRuntime
from dermedge_runtime.model import load
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support import small
from support.command import TOY_LITERT, dermedge

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="litert-torch is not installed"
)
from dermedge_export.exporters.litert import PATH, export_litert  # noqa: E402
from dermedge_export.graph.read_litert import read_litert  # noqa: E402

ROOT = Path(__file__).parents[2]
FP32 = Candidate("fp32", "litert")
INT8 = Candidate("int8", "litert", "minmax")
# By precision: the candidate, and how far its outputs may be from the student's.
PRECISIONS = {
    "fp32": (FP32, 1e-4),
    "fp16": (Candidate("fp16", "litert"), 0.02),
    "w8": (Candidate("w8", "litert"), 0.2),
    "int8": (INT8, 1.0),
    "int8 average": (Candidate("int8", "litert", "average"), 1.0),
}
SIZE = 64
LEVELS = tuple(Label(str(level), f"severity {level}") for level in range(4))
TASKS = (
    Task("diagnosis", "classify", (Label("nv", "Naevus"), Label("mel", "Melanoma"))),
    Task("malignancy", "binary"),
    Task("severity", "ordinal", LEVELS),
    Task("lesion", "segment"),
    Task("features", "embed"),
)
IMAGES = small.pixels(6, SIZE).numpy()


@pytest.fixture(scope="module")
def student() -> TrainedModel:
    """Return a student with tasks of every kind."""
    torch.manual_seed(0)
    backbone = Backbone(small.EXPORTED)
    network = Network(backbone, TASKS).eval()
    return TrainedModel(network, make_spec("kinds", TASKS, Preprocess(SIZE), {}), backbone)


@pytest.fixture(scope="module")
def context(student: TrainedModel) -> ExportContext:
    return ExportContext(student, lambda: synthetic_calibration(student.spec.preprocess, 32))


@pytest.fixture(scope="module")
def built(context: ExportContext) -> dict[str, BuiltArtifact]:
    """Return the artifacts by precision; the network is converted once."""
    return {
        name: export_litert(context, ANDROID, candidate)
        for name, (candidate, _) in PRECISIONS.items()
    }


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a student that was trained on drawn lesions."""
    return small.student_folder(tmp_path_factory.getbasetemp())


@contextmanager
def running(artifact: BuiltArtifact, spec: Spec, folder: Path) -> Iterator[LiteRtRuntime]:
    state = {"status": "not_run"}
    bundle = write_bundle(
        folder / "built.dermedge",
        spec=spec,
        artifact=artifact.artifact,
        postprocessing={},
        tolerance={task.name: 1e-3 for task in spec.tasks},
        parity={"host": state, "device": state},
        files=artifact.files,
    )
    runtime = LiteRtRuntime.open(bundle, threads=1)
    yield runtime
    runtime.close()


def parsed(artifact: BuiltArtifact) -> Any:
    """Return the file as an object of the format's schema."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(artifact.files[PATH], 0)


def kinds(artifact: BuiltArtifact) -> list[str]:
    """Return the types of the operators in the order of computation."""
    return [one.kind for one in read_litert(artifact.files[PATH])]


def integer_operators(artifact: BuiltArtifact) -> list[bool]:
    """Return for each operator whether its output is int8."""
    from ai_edge_litert.schema_py_generated import TensorType

    graph = parsed(artifact).subgraphs[0]
    return [
        graph.tensors[one.outputs[0]].type == TensorType.INT8 and kind != "QUANTIZE"
        for one, kind in zip(graph.operators, kinds(artifact), strict=True)
    ]


class TestContract:
    @pytest.mark.parametrize("name", PRECISIONS)
    def test_it_computes_what_the_student_computes(
        self, name: str, student: TrainedModel, built: dict[str, BuiltArtifact], tmp_path: Path
    ) -> None:
        expected = module_runner(student.module)(IMAGES)
        with running(built[name], student.spec, tmp_path) as runtime:
            found = runtime.run(IMAGES)
        assert found.keys() == expected.keys()
        for task, values in expected.items():
            assert found[task].dtype == np.float32
            np.testing.assert_allclose(found[task], values, atol=PRECISIONS[name][1], rtol=0)

    def test_the_manifest_describes_how_it_was_made(self, built: dict[str, BuiltArtifact]) -> None:
        for name, made in built.items():
            artifact = made.artifact
            assert (artifact.format, artifact.path, list(made.files)) == ("litert", PATH, [PATH])
            assert artifact.requires == ("litert>=1.0",)
            assert artifact.details["batch"] == 1
            assert {"torch", "litert-torch", "litert-converter"} <= set(artifact.toolchain)
            assert ("litert-quantizer" in artifact.toolchain) == (name != "fp32")
            assert (artifact.calibration is not None) == name.startswith("int8")

    def test_its_metadata_is_the_spec_for_every_precision(
        self, student: TrainedModel, built: dict[str, BuiltArtifact]
    ) -> None:
        for made in built.values():
            model = parsed(made)
            (index,) = (m.buffer for m in model.metadata if m.name == METADATA_KEY.encode())
            mirrored = parse_json(bytes(model.buffers[index].data), "metadata", ValueError)
            assert Spec.from_json(mirrored) == student.spec

    def test_weights_are_aligned_in_the_file(self, built: dict[str, BuiltArtifact]) -> None:
        from ai_edge_litert import schema_py_generated as schema

        for made in built.values():
            model = schema.Model.GetRootAs(made.files[PATH])
            starts = [
                buffer._tab.Vector(buffer._tab.Offset(4))
                for buffer in map(model.Buffers, range(model.BuffersLength()))
                if buffer.DataLength()
            ]
            assert len(starts) > 10
            assert {start % 16 for start in starts} == {0}

    def test_no_path_of_this_machine_is_in_the_file(self, built: dict[str, BuiltArtifact]) -> None:
        for made in built.values():
            for trace in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", ".py", "/tmp"):
                assert trace.encode() not in made.files[PATH], trace

    def test_pixels_are_normalized_row_by_row(self, built: dict[str, BuiltArtifact]) -> None:
        """Check the shape of the constants, on which the speed depends."""
        for made in built.values():
            graph = parsed(made).subgraphs[0]
            constants = [
                list(graph.tensors[one.inputs[1]].shape)
                for one, kind in zip(graph.operators, kinds(made), strict=True)
                if kind in ("SUB", "MUL")
            ]
            assert constants[:2] == [[1, 1, SIZE, 3]] * 2


class TestPrecisions:
    def test_smaller_weights_make_a_smaller_file(self, built: dict[str, BuiltArtifact]) -> None:
        size = {name: len(made.files[PATH]) for name, made in built.items()}
        assert size["w8"] < size["fp16"] < size["fp32"]

    def test_weights_alone_are_stored_smaller(self, built: dict[str, BuiltArtifact]) -> None:
        for name in ("fp16", "w8"):
            assert "QUANTIZE" not in kinds(built[name])
            assert "DEQUANTIZE" in kinds(built[name])

    def test_pixels_are_normalized_and_heads_computed_in_float32(
        self, built: dict[str, BuiltArtifact]
    ) -> None:
        for name in ("int8", "int8 average"):
            integer = integer_operators(built[name])
            first, last = integer.index(True), len(integer) - integer[::-1].index(True)
            found = kinds(built[name])
            assert {"SUB", "MUL"} <= set(found[:first])
            assert {"FULLY_CONNECTED", "RESIZE_BILINEAR", "DIV"} <= set(found[last:])
            layers = [one for one, kind in zip(integer, found, strict=True) if kind == "CONV_2D"]
            assert layers.count(False) == 1  # the head of the masks
            assert len(layers) > 10

    def test_the_methods_of_int8_differ(self, built: dict[str, BuiltArtifact]) -> None:
        files = [built[name].files[PATH] for name in ("int8", "int8 average")]
        assert len(set(files)) == 2

    def test_no_precision_quantizes_activations_at_run_time(
        self, built: dict[str, BuiltArtifact]
    ) -> None:
        """Check that no operator mixes float32 activations with int8 weights."""
        for made in built.values():
            graph = parsed(made).subgraphs[0]
            for one, kind in zip(graph.operators, kinds(made), strict=True):
                if kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
                    pixels, weights = (graph.tensors[index].type for index in one.inputs[:2])
                    assert pixels == weights


class TestProcess:
    def test_the_same_student_gives_the_same_bytes(
        self, student: TrainedModel, built: dict[str, BuiltArtifact]
    ) -> None:
        again = ExportContext(student, lambda: synthetic_calibration(student.spec.preprocess, 32))
        for name in ("fp32", "int8"):
            assert export_litert(again, ANDROID, PRECISIONS[name][0]).files == built[name].files

    def test_nothing_is_printed_and_nothing_of_the_process_is_changed(
        self, student: TrainedModel, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def state() -> tuple[object, ...]:
            return (
                dict(os.environ),
                list(warnings.filters),
                list(logging.root.handlers),
                logging.root.level,
                {name: logging.getLogger(name).level for name in ("torch", "torch._dynamo", "jax")},
                torch.is_grad_enabled(),
                torch.get_num_threads(),
                torch.random.get_rng_state().tolist(),
            )

        before = state()
        export_litert(
            ExportContext(student, lambda: synthetic_calibration(student.spec.preprocess, 32)),
            ANDROID,
            INT8,
        )
        assert state() == before
        assert capfd.readouterr() == ("", "")


QUANTIZED = """
import sys
import numpy as np
from dermedge_export.quantization.litert import calibrate_litert, int8_recipe, quantize_litert
from dermedge_runtime.bundle import Bundle
bundle = Bundle.open(sys.argv[1])
model = bundle.read("model.tflite")
recipe = int8_recipe(model)
ranges = calibrate_litert(model, recipe, np.zeros((2, 32, 32, 3), np.uint8))
print(len(quantize_litert(model, bundle.spec, recipe, ranges)) > 0)
"""


def test_the_first_use_of_litert_in_a_process_prints_nothing() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", QUANTIZED, TOY_LITERT], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True\n", "")


class Network1(torch.nn.Module):
    """Network of one operator after the mean of the pixels."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = image.permute(0, 3, 1, 2).float() / 255
        return {"malignancy": self.operator(x).mean((1, 2, 3))[:, None]}


def one_operator(operator: Any) -> Any:
    spec = Spec("one", "1", (Task("malignancy", "binary"),), Preprocess(32))
    return SimpleNamespace(module=Network1(operator).eval(), spec=spec)


class TestErrors:
    @pytest.mark.parametrize(
        ("operator", "named"),
        [
            (torch.special.bessel_j0, "aten.special_bessel_j0"),
            (torch.erfinv, "aten.erfinv"),
            (torch.fft.rfft2, "aten._fft_r2c"),
        ],
    )
    def test_an_operator_that_litert_lacks_is_named_with_a_target_that_works(
        self, operator: Any, named: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        model = one_operator(lambda x: operator(x).abs())
        with pytest.raises(UsageError, match=rf"{named}\).*--target android-onnx") as caught:
            export_litert(ExportContext(model), ANDROID, FP32)
        assert "\n" not in str(caught.value)
        assert capfd.readouterr() == ("", "")

    def test_a_network_without_weights_is_not_called_quantized(self) -> None:
        for name in ("w8", "fp16"):
            with pytest.raises(DermedgeError, match=r"quantized no layer of 'one'.*in fp32"):
                export_litert(ExportContext(one_operator(torch.relu)), ANDROID, PRECISIONS[name][0])

    def test_an_unknown_candidate_is_named(self, context: ExportContext) -> None:
        for candidate in (Candidate("int4", "litert"), Candidate("int8", "litert", "entropy")):
            with pytest.raises(UsageError, match=candidate.name):
                export_litert(context, CPU, candidate)

    @pytest.mark.parametrize(
        ("module", "package", "candidate"),
        [
            ("litert_torch", "litert-torch", FP32),
            ("litert_quantizer.quantizer", "litert-quantizer", PRECISIONS["w8"][0]),
        ],
    )
    def test_a_missing_package_is_named_with_its_extra(
        self,
        module: str,
        package: str,
        candidate: Candidate,
        student: TrainedModel,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"{package}.*dermedge\[litert-export\]"):
            export_litert(ExportContext(student), ANDROID, candidate)


class TestCommand:
    """`dermedge export`, and what the bundle does on the engine that runs it."""

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            (("--target", "android"), "small-android.dermedge"),
            (("--target", "web", "--precision", "fp16"), "small-web.dermedge"),
        ],
    )
    def test_a_bundle_is_written_that_verifies_and_predicts(
        self, arguments: tuple[str, ...], name: str, folder: Path, tmp_path: Path
    ) -> None:
        ran = dermedge("export", folder, *arguments, "-o", tmp_path)
        assert ran.code == 0, ran.err
        bundle = Bundle.open(tmp_path / name)
        assert bundle.artifact.format == "litert"
        assert bundle.parity["host"]["engine"].startswith("litert ")
        assert bundle.parity["device"]["status"] == "not_run"
        assert dermedge("verify", bundle.path).code == 0
        with load(bundle) as model:
            assert model.predict(IMAGES[0]).provenance.engine.startswith("litert ")

    def test_int8_that_loses_accuracy_is_not_written(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(GateError, match="int8"):
            small.export_model(
                spread(load_model_folder(folder)), "android", tmp_path, precision="int8"
            )
        assert not list(tmp_path.glob("*.dermedge"))


def spread(student: TrainedModel) -> Any:
    """Return a student with one channel whose range hides the others in int8."""
    module = copy.deepcopy(student.module)
    first = next(layer for layer in module.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        first.weight[0] *= 1e5
    return SimpleNamespace(module=module, spec=student.spec)


def test_the_targets_of_litert_and_their_variants() -> None:
    assert find_target("android").precisions == ("int8", "fp16", "w8", "fp32")
    for name in ("android-onnx", "android-nnapi", "android-qnn", "android-x86_64"):
        target = find_target(name)
        assert (target.format, target.family) == ("onnx", "android")
        assert target.requires == ("onnxruntime>=1.17",)
    assert find_target("web").format == find_target("web-webgpu").format == "litert"
    assert (find_target("web-onnx").format, find_target("web-onnx").family) == ("onnx", "web")
