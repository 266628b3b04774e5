"""Test OpenVINO artifacts: contract, int8, accuracy control and errors."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from dermedge.models import TrainedModel, load_model_folder
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, module_runner
from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.quantization.nncf import has_attention
from dermedge_export.target import CPU
from dermedge_runtime.bundle import write_bundle
from dermedge_runtime.canonical_json import parse_json
from dermedge_runtime.errors import DermedgeError, MissingExtraError, UsageError
from dermedge_runtime.openvino import OpenVinoRuntime
from dermedge_runtime.spec import Spec
from dermedge_runtime.telemetry import no_telemetry
from support import small, toy_onnx

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="nncf is not installed"
)
from dermedge_export.exporters.openvino import export_openvino, likeness  # noqa: E402

ROOT = Path(__file__).parents[2]
XML, WEIGHTS = "model/model.xml", "model/model.bin"
FP32 = Candidate("fp32", "openvino")
INT8 = Candidate("int8", "openvino", "nncf")
CONTROLLED = Candidate("int8", "openvino", "accuracy-control")
PIXELS = small.pixels(40).numpy()


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return load_model_folder(small.student_folder(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def context(student: TrainedModel) -> ExportContext:
    return ExportContext(student, lambda: synthetic_calibration(student.spec.preprocess, 32))


@pytest.fixture(scope="module")
def fp32(context: ExportContext) -> BuiltArtifact:
    return export_openvino(context, CPU, FP32)


@pytest.fixture(scope="module")
def int8(context: ExportContext) -> BuiltArtifact:
    return export_openvino(context, CPU, INT8)


@contextmanager
def running(built: BuiltArtifact, spec: Spec, folder: Path) -> Iterator[OpenVinoRuntime]:
    bundle = write_bundle(
        folder / f"{sha256(built.files[XML]).hexdigest()[:8]}-{built.artifact.precision}.dermedge",
        spec=spec,
        artifact=built.artifact,
        postprocessing={},
        tolerance={task.name: 1e-3 for task in spec.tasks},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files=built.files,
    )
    runtime = OpenVinoRuntime.open(bundle, threads=1)
    yield runtime
    runtime.close()


def drift(built: BuiltArtifact, student: TrainedModel, folder: Path) -> float:
    """Return the largest difference between its outputs and the student's."""
    expected = module_runner(student.module)(PIXELS)
    with running(built, student.spec, folder) as runtime:
        outputs = runtime.run(PIXELS)
    return max(float(np.abs(outputs[name] - values).max()) for name, values in expected.items())


def model_of(built: BuiltArtifact) -> Any:
    with no_telemetry():
        import openvino
    return openvino.Core().read_model(
        built.files[XML], openvino.Tensor(np.frombuffer(built.files[WEIGHTS], np.uint8))
    )


def constants(built: BuiltArtifact, kind: str) -> list[np.ndarray]:
    return [
        node.get_data()
        for node in model_of(built).get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == kind
    ]


class TestFp32:
    def test_it_computes_what_the_student_computes(
        self, student: TrainedModel, fp32: BuiltArtifact, tmp_path: Path
    ) -> None:
        assert np.ptp(module_runner(student.module)(PIXELS)["diagnosis"], axis=0).max() > 0.1
        assert drift(fp32, student, tmp_path) < 5e-5

    def test_it_is_a_folder_of_graph_and_weights_that_openvino_2024_reads(
        self, fp32: BuiltArtifact
    ) -> None:
        assert set(fp32.files) == {XML, WEIGHTS}
        assert (fp32.artifact.path, fp32.artifact.format) == ("model", "openvino")
        assert fp32.artifact.requires == ("openvino>=2024.4",)
        assert {"openvino", "torch", "onnx"} <= set(fp32.artifact.toolchain)
        assert ElementTree.fromstring(fp32.files[XML]).get("version") == "11"

    def test_its_weights_are_float32_and_not_compressed(
        self, student: TrainedModel, fp32: BuiltArtifact
    ) -> None:
        parameters = sum(parameter.numel() for parameter in student.module.parameters())
        assert constants(fp32, "f16") == []
        assert (
            0.9 * parameters
            < sum(values.size for values in constants(fp32, "f32"))
            < 1.2 * parameters
        )

    def test_its_metadata_is_the_spec_and_nothing_else(
        self, student: TrainedModel, fp32: BuiltArtifact, int8: BuiltArtifact
    ) -> None:
        for built in (fp32, int8):
            model = model_of(built)
            assert set(model.rt_info) - {"version"} == {
                METADATA_KEY,
                "OpenVINO Runtime",
            }  # OpenVINO notes its own version
            mirrored = parse_json(
                model.rt_info[METADATA_KEY].astype(str).encode(), "metadata", ValueError
            )  # type: ignore[type-var]
            assert Spec.from_json(mirrored) == student.spec

    def test_bf16_is_the_same_file_for_another_arithmetic(
        self, context: ExportContext, fp32: BuiltArtifact
    ) -> None:
        bf16 = export_openvino(context, CPU, Candidate("bf16", "openvino"))
        assert bf16.files == fp32.files
        assert bf16.artifact == replace(fp32.artifact, precision="bf16")

    def test_an_open_batch_stays_open(self, student: TrainedModel, tmp_path: Path) -> None:
        built = export_openvino(ExportContext(student, dynamic_batch=True), CPU, FP32)
        assert built.artifact.details["batch"] == "dynamic"
        assert model_of(built).inputs[0].get_partial_shape()[0].is_dynamic
        assert drift(built, student, tmp_path) < 5e-5


class TestInt8:
    def test_weights_are_stored_in_8_bits(self, fp32: BuiltArtifact, int8: BuiltArtifact) -> None:
        weights = constants(fp32, "f32")
        assert sum(values.size for values in constants(int8, "i8")) > 0.9 * sum(
            values.size for values in weights
        )
        assert len(int8.files[WEIGHTS]) < 0.4 * len(fp32.files[WEIGHTS])

    def test_it_stays_close_to_the_student(
        self, context: ExportContext, student: TrainedModel, int8: BuiltArtifact, tmp_path: Path
    ) -> None:
        images = context.calibration.images
        expected = module_runner(student.module)(images)["diagnosis"]
        with running(int8, student.spec, tmp_path) as runtime:
            found = runtime.run(images)["diagnosis"]
        error = np.abs(found - expected).mean() / np.abs(expected - expected.mean(axis=0)).mean()
        assert (
            1e-4 < error < 0.1
        )  # a tenth of what images differ by; with NNCF's own ranges it is the half

    def test_the_artifact_records_calibration_method_and_tools(
        self, context: ExportContext, int8: BuiltArtifact
    ) -> None:
        assert int8.artifact.calibration == context.calibration.to_json()
        assert int8.artifact.calibration["count"] == 32
        assert int8.artifact.details == {"batch": 1, "method": "nncf", "kept_fp32": []}
        assert "nncf" in int8.artifact.toolchain

    def test_a_reduced_range_leaves_weights_7_bits(
        self, context: ExportContext, int8: BuiltArtifact
    ) -> None:
        reduced = export_openvino(context, CPU, replace(INT8, options={"reduce_range": True}))
        assert reduced.artifact.details["reduce_range"] is True
        assert max(np.abs(values.astype(int)).max() for values in constants(reduced, "i8")) <= 64
        assert max(np.abs(values.astype(int)).max() for values in constants(int8, "i8")) > 64


@pytest.fixture(scope="module")
def toy() -> ExportContext:
    """Return the context of a model with three layers, which are ranked quickly."""
    spec = toy_onnx.spec()
    calibration = synthetic_calibration(spec.preprocess, 32)
    source = SimpleNamespace(module=None, spec=spec)
    context = ExportContext(source, lambda: calibration)
    context.cached(("graph", CPU.opset), toy_onnx.graph)
    return context


@pytest.fixture(scope="module")
def uncontrolled(toy: ExportContext) -> BuiltArtifact:
    return export_openvino(toy, CPU, INT8)


def loss(
    built: BuiltArtifact, context: ExportContext, expected: dict[str, np.ndarray], folder: Path
) -> float:
    """Return one minus the mean likeness to `expected` on the calibration images."""
    with running(built, context.spec, folder) as runtime:
        found = runtime.run(context.calibration.images)
    rows = [
        likeness(one, other, task.kind)
        for task in context.spec.tasks
        for one, other in zip(found[task.name], expected[task.name], strict=True)
    ]
    return 1 - float(np.mean(rows))


class TestAccuracyControl:
    def test_layers_that_lose_more_than_the_gate_allows_stay_in_fp32(
        self, context: ExportContext, student: TrainedModel, int8: BuiltArtifact, tmp_path: Path
    ) -> None:
        expected = module_runner(student.module)(context.calibration.images)
        allowed = loss(int8, context, expected, tmp_path) * 0.8
        built = export_openvino(context, replace(CPU, gate={"top1_agreement": allowed}), CONTROLLED)
        kept = built.artifact.details["kept_fp32"]
        assert kept
        assert set(kept) <= {node.get_friendly_name() for node in model_of(built).get_ops()}
        assert constants(built, "i8")
        assert loss(built, context, expected, tmp_path) <= allowed + 1e-4

    def test_an_int8_model_within_the_limit_is_not_changed(
        self, toy: ExportContext, uncontrolled: BuiltArtifact, tmp_path: Path
    ) -> None:
        assert (
            1e-4
            < loss(uncontrolled, toy, toy_onnx.forward(toy.calibration.images), tmp_path)
            < 0.02
        )
        assert export_openvino(toy, CPU, CONTROLLED).files == uncontrolled.files

    def test_a_model_without_any_int8_layer_is_refused(self, toy: ExportContext) -> None:
        with pytest.raises(
            DermedgeError,
            match="NNCF quantized no layer of 'toy-onnx' to int8 by accuracy-control",
        ):
            export_openvino(toy, replace(CPU, gate={"top1_agreement": 0.0}), CONTROLLED)


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import dermedge_export, dermedge_runtime
for package in (dermedge_export, dermedge_runtime):
    assert Path(package.__file__).is_relative_to(sys.argv[1]), package.__file__
from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.exporters.openvino import export_openvino
from dermedge_export.target import CPU
from dermedge_export.context import ExportContext
from dermedge_runtime.spec import Spec
spec = Spec.from_json(json.loads(Path("spec.json").read_text()))
calibration = Calibration(np.load("images.npy"), (), "procedural")
work = ExportContext(SimpleNamespace(spec=spec), lambda: calibration)
work.cached(("graph", 18), Path("model.onnx").read_bytes)
for candidate in (Candidate("int8", "openvino", "nncf"), Candidate("fp32", "openvino")):
    built = export_openvino(work, CPU, candidate)
    print(*(hashlib.sha256(data).hexdigest() for data in built.files.values()))
"""


def test_layers_that_a_sweep_finds_sensitive_stay_in_fp32(
    student: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ExportContext(student)
    graph = onnx.load_model_from_string(context.graph(CPU.opset))
    kept = [node.name for node in graph.graph.node if node.op_type == "Conv"][1:3]
    monkeypatch.setattr(
        "dermedge_export.exporters.openvino.sensitive_nodes",
        lambda context, target, candidate: tuple(kept),
    )
    candidate = Candidate("int8", "openvino", "mixed", {"remaining": 0.1})
    found = export_openvino(context, CPU, candidate).artifact.details["kept_fp32"]
    assert {name.partition("/")[0] for name in found} == set(kept)


class TestReproducibility:
    def test_another_folder_and_process_give_the_same_bytes(
        self, context: ExportContext, fp32: BuiltArtifact, int8: BuiltArtifact, tmp_path: Path
    ) -> None:
        source = tmp_path / "some other place"
        for package in ("export/dermedge_export", "runtimes/python/dermedge_runtime"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / package, source / Path(package).name, ignore=ignore)
        spec = json.loads(model_of(fp32).rt_info[METADATA_KEY].astype(str))
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        (tmp_path / "model.onnx").write_bytes(context.graph(18))
        np.save(tmp_path / "images.npy", context.calibration.images)
        answer = subprocess.run(
            [sys.executable, "-c", SCRIPT, source],
            env={**os.environ, "PYTHONPATH": str(source), "PYTHONHASHSEED": "7"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        expected = [
            " ".join(sha256(data).hexdigest() for data in built.files.values())
            for built in (int8, fp32)
        ]
        assert answer.stdout.splitlines() == expected

    def test_it_names_no_folder_of_this_machine(
        self, fp32: BuiltArtifact, int8: BuiltArtifact
    ) -> None:
        for built in (fp32, int8):
            for trace in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", ".py", "/tmp"):
                assert trace.encode() not in built.files[XML], trace


class TestErrors:
    def test_an_unknown_candidate_is_named(self, context: ExportContext) -> None:
        for candidate in (
            Candidate("int4", "openvino", "nncf"),
            Candidate("int8", "openvino", "plain"),
        ):
            with pytest.raises(UsageError, match=candidate.name):
                export_openvino(context, CPU, candidate)

    def test_a_missing_toolchain_is_named_with_its_extra(
        self, context: ExportContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(MissingExtraError, match=r"dermedge\[quantize\]") as caught:
            export_openvino(context, CPU, INT8)
        assert caught.value.exit_code == 4


class TestLikeness:
    def test_equal_outputs_have_likeness_one_and_opposite_ones_less(self) -> None:
        first, second = (
            np.array([9.0, -9.0, -9.0], np.float32),
            np.array([-9.0, 9.0, -9.0], np.float32),
        )
        for kind in ("classify", "binary", "ordinal", "segment", "embed"):
            assert likeness(first, first, kind) == pytest.approx(1)
        assert likeness(first, second, "classify") == pytest.approx(0, abs=1e-3)
        assert likeness(first, second, "ordinal") == pytest.approx(1 / 3, abs=1e-3)
        assert likeness(first, -first, "embed") == pytest.approx(-1)

    def test_likeness_is_one_minus_the_total_variation_distance(self) -> None:
        p, q = np.array([0.5, 0.3, 0.2], np.float32), np.array([0.4, 0.3, 0.3], np.float32)
        assert likeness(np.log(p), np.log(q), "classify") == pytest.approx(0.9)


def test_attention_is_found_by_its_softmax(fp32: BuiltArtifact) -> None:
    with no_telemetry():
        import openvino.opset13 as ops
        from openvino import Model
    scores = ops.parameter([1, 4, 4], np.float32)
    attention = Model([ops.softmax(scores, 2)], [scores], "attention")
    assert has_attention(operators(attention))
    assert not has_attention(operators(model_of(fp32)))


def operators(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ops()]
