"""Test ONNX artifacts: contract, reproducible bytes and batch size."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dermedge.models import Network, TrainedModel, load_model_folder
from dermedge.models.network import Backbone
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, module_runner
from dermedge_export.exporters.onnx import export_onnx
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.target import CPU
from dermedge_runtime.bundle import write_bundle
from dermedge_runtime.canonical_json import parse_json
from dermedge_runtime.errors import UsageError
from dermedge_runtime.golden import golden_files
from dermedge_runtime.model import load
from dermedge_runtime.spec import Label, Preprocess, Spec, Task, to_json
from support import small

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.student_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def student(folder: Path) -> TrainedModel:
    return load_model_folder(folder)


@pytest.fixture(scope="module")
def artifact(folder: Path) -> BuiltArtifact:
    return small.built(folder)


@pytest.fixture(scope="module")
def graph(artifact: BuiltArtifact) -> onnx.ModelProto:
    return onnx.load_model_from_string(artifact.files["model.onnx"])


@pytest.fixture(scope="module")
def backwards() -> tuple[TrainedModel, BuiltArtifact]:
    """Return a model with tasks not in alphabetical order, exported with an open batch."""
    labels = tuple(
        Label(name, name, malignant)
        for name, malignant in (("nv", False), ("mel", True), ("df", False))
    )
    tasks = (Task("malignancy", "binary"), Task("diagnosis", "classify", labels))
    torch.manual_seed(5)
    backbone = Backbone("test_resnet")
    source = TrainedModel(
        Network(backbone, tasks).eval(), Spec("backwards", "1", tasks, Preprocess(40)), backbone
    )
    return source, export_onnx(
        ExportContext(source, dynamic_batch=True), CPU, Candidate("fp32", "onnx")
    )


def session(artifact: BuiltArtifact) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        artifact.files["model.onnx"], providers=["CPUExecutionProvider"]
    )


def run_artifact(artifact: BuiltArtifact, images: torch.Tensor) -> dict[str, np.ndarray]:
    engine = session(artifact)
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, {"image": images.numpy()}), strict=True))


class TestContract:
    def test_one_uint8_image_in_one_float32_output_per_task_out(
        self, artifact: BuiltArtifact
    ) -> None:
        engine = session(artifact)
        assert [(node.name, node.type, node.shape) for node in engine.get_inputs()] == [
            ("image", "tensor(uint8)", [1, small.SIZE, small.SIZE, 3])
        ]
        assert [(node.name, node.type, node.shape) for node in engine.get_outputs()] == [
            ("diagnosis", "tensor(float)", [1, 6]),
            ("malignancy", "tensor(float)", [1, 1]),
        ]

    def test_it_computes_what_the_student_computes(
        self, student: TrainedModel, artifact: BuiltArtifact
    ) -> None:
        images = small.pixels(6)
        expected = module_runner(student.module)(images.numpy())
        assert {name: values.shape for name, values in expected.items()} == {
            "diagnosis": (6, 6),
            "malignancy": (6, 1),
        }
        rows = [run_artifact(artifact, image[None]) for image in images]
        for name, values in expected.items():
            np.testing.assert_allclose(
                np.concatenate([row[name] for row in rows]), values, atol=5e-5
            )
        assert np.ptp(expected["diagnosis"], axis=0).max() > 0.1

    def test_channels_are_read_as_rgb(self, artifact: BuiltArtifact) -> None:
        image = small.pixels(1)
        turned = run_artifact(artifact, image.flip(-1))["diagnosis"]
        assert np.abs(run_artifact(artifact, image)["diagnosis"] - turned).max() > 0.1

    def test_opset_and_ir_version_are_the_recorded_ones(
        self, artifact: BuiltArtifact, graph: onnx.ModelProto
    ) -> None:
        details = artifact.artifact.details
        assert {(opset.domain, opset.version) for opset in graph.opset_import} == {
            ("", details["opset"])
        }
        assert details["opset"] == CPU.opset
        assert (
            graph.ir_version == details["ir_version"] <= 9
        )  # what the oldest onnxruntime in `requires` reads
        assert details["batch"] == 1
        assert artifact.artifact.precision == "fp32"
        assert set(artifact.artifact.toolchain) == {"dermedge", "torch", "onnx", "onnxscript"}

    def test_the_weights_are_inside(
        self, student: TrainedModel, artifact: BuiltArtifact, graph: onnx.ModelProto
    ) -> None:
        assert set(artifact.files) == {"model.onnx"}
        assert all(
            tensor.data_location == onnx.TensorProto.DEFAULT for tensor in graph.graph.initializer
        )
        held = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
        parameters = sum(parameter.numel() for parameter in student.module.parameters())
        assert 0.9 * 4 * parameters < held < 1.2 * 4 * parameters

    def test_its_metadata_is_the_spec_and_nothing_else(
        self, student: TrainedModel, graph: onnx.ModelProto
    ) -> None:
        assert [entry.key for entry in graph.metadata_props] == [METADATA_KEY]
        written = graph.metadata_props[0].value.encode()
        mirrored = parse_json(written, "metadata", ValueError)  # type: ignore[type-var]
        assert mirrored == to_json(student.spec)
        assert Spec.from_json(mirrored) == student.spec

    def test_the_students_own_mode_and_weights_do_not_change(
        self, folder: Path, student: TrainedModel
    ) -> None:
        fresh = load_model_folder(folder)
        assert not student.module.training
        for name, tensor in fresh.module.state_dict().items():
            assert torch.equal(tensor, student.module.state_dict()[name])


SCRIPT = """
import sys, hashlib, dermedge, dermedge_export, dermedge_runtime
from pathlib import Path
from dermedge.models import load_model_folder
from dermedge_export.candidate import Candidate
from dermedge_export.exporters.onnx import export_onnx
from dermedge_export.target import CPU
from dermedge_export.context import ExportContext
for package in (dermedge, dermedge_export, dermedge_runtime):
    assert Path(package.__file__).is_relative_to(sys.argv[2]), package.__file__
work = ExportContext(load_model_folder(sys.argv[1]))
for candidate in (Candidate("fp32", "onnx"), Candidate("int8", "onnx", "minmax")):
    print(hashlib.sha256(export_onnx(work, CPU, candidate).files["model.onnx"]).hexdigest())
"""


class TestReproducibility:
    def test_another_folder_and_process_give_the_same_bytes(
        self, folder: Path, artifact: BuiltArtifact, tmp_path: Path
    ) -> None:
        source = tmp_path / "some other place"
        for package in ("dermedge", "export/dermedge_export", "runtimes/python/dermedge_runtime"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, source / Path(package).name, ignore=ignore)
        copy = shutil.copytree(folder, tmp_path / "copy of the student")
        answer = subprocess.run(
            [sys.executable, "-c", SCRIPT, copy, source],
            env={**os.environ, "PYTHONPATH": str(source), "PYTHONHASHSEED": "7"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        quantized = export_onnx(
            ExportContext(load_model_folder(folder)), CPU, Candidate("int8", "onnx", "minmax")
        )
        expected = [
            sha256(built.files["model.onnx"]).hexdigest() for built in (artifact, quantized)
        ]
        assert answer.stdout.split() == expected

    def test_it_names_no_folder_of_this_machine(
        self, folder: Path, artifact: BuiltArtifact, backwards: tuple[TrainedModel, BuiltArtifact]
    ) -> None:
        for model in (artifact, backwards[1]):
            content = model.files["model.onnx"]
            for trace in (
                str(ROOT),
                str(folder.parent),
                str(Path.home()),
                sys.prefix,
                "site-packages",
                ".py",
            ):
                assert trace.encode() not in content, trace


class TestDynamicBatch:
    def test_any_number_of_images_gives_the_same_rows(
        self, backwards: tuple[TrainedModel, BuiltArtifact]
    ) -> None:
        source, artifact = backwards
        assert artifact.artifact.details["batch"] == "dynamic"
        images = small.pixels(5, size=40)
        expected = module_runner(source.module)(images.numpy())
        for count in (1, 2, 5):
            found = run_artifact(artifact, images[:count])
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values[:count], atol=5e-5)

    def test_outputs_are_named_after_their_tasks_in_any_order(
        self, backwards: tuple[TrainedModel, BuiltArtifact]
    ) -> None:
        engine = session(backwards[1])
        assert engine.get_inputs()[0].shape[1:] == [40, 40, 3]
        assert not isinstance(engine.get_inputs()[0].shape[0], int)
        assert [(node.name, node.shape[1:]) for node in engine.get_outputs()] == [
            ("malignancy", [1]),
            ("diagnosis", [3]),
        ]


def test_an_operator_that_onnx_lacks_is_named_with_what_to_try() -> None:
    class Odd(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            values = image.float().mean((1, 2))
            return {"malignancy": torch.special.airy_ai(values)[:, :1]}

    task = Task("malignancy", "binary")
    spec = Spec("odd", "1", (task,), Preprocess(32))
    source = TrainedModel(Odd().eval(), spec, Backbone("none"))  # type: ignore[arg-type]
    with pytest.raises(
        UsageError,
        match=r"cannot be exported to ONNX \(the operator aten.*airy_ai.*Try --target ios",
    ):
        export_onnx(ExportContext(source), CPU, Candidate("fp32", "onnx"))


def test_a_graph_with_a_batch_of_one_runs_many_images(
    student: TrainedModel, artifact: BuiltArtifact, tmp_path: Path
) -> None:
    from dermedge_export.synthetic.golden import golden_cases

    images = small.pixels(5).numpy()
    run = module_runner(student.module)
    write_bundle(
        tmp_path / "small.dermedge",
        spec=student.spec,
        artifact=artifact.artifact,
        postprocessing={},
        tolerance={"diagnosis": 1e-3, "malignancy": 1e-3},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={**artifact.files, **golden_files(golden_cases(student.spec, run, run, {}))},
    )
    with load(tmp_path / "small.dermedge") as model:
        found = model.run(images)
    for name, values in run(images).items():
        np.testing.assert_allclose(found[name], values, atol=5e-5)
