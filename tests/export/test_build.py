"""Test the build, the gate and the cache of engines on a device."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import folder_bytes
from dermedge_export.build import build_engine
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext, module_runner
from dermedge_export.evaluation.predictions import Predictions, Run
from dermedge_export.exporters.tensorrt.export import export_tensorrt
from dermedge_export.parity.reference import reference_file
from dermedge_export.synthetic.golden import golden_cases
from dermedge_export.target import JETSON
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.errors import BundleError, DataError, EngineError, GateError, UsageError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.golden import golden_files
from dermedge_runtime.report import REFERENCE_REPORT
from dermedge_runtime.tensorrt.api import TensorRt
from dermedge_runtime.tensorrt.engine_cache import cache_folder, record_path
from dermedge_runtime.tensorrt.runtime import TensorRtRuntime
from support import fake_tensorrt, toy_onnx

COUNT = 240
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Lesions:
    """A table's test split; labelled by the student, with one in seven labels wrong."""

    tensors: Sequence[Array]
    name: str = "lesions"

    def digests(self, split: str) -> list[str]:
        assert split == "test"
        return [sha256_hex(tensor.tobytes()) for tensor in self.tensors]

    def predictions(self, split: str, run: Run) -> Predictions:
        names = tuple(self.digests(split))
        student = fake_tensorrt.toy_run(toy_onnx.graph())(np.stack(self.tensors))
        labels = student["diagnosis"].argmax(axis=1)
        labels[::7] = (labels[::7] + 1) % 3
        return Predictions(
            image_ids=names,
            outputs=dict(run(np.stack(self.tensors))),
            labels=labels.astype(np.int64),
            malignant=(labels > 0).astype(np.float64),
            groups=np.array(names),
            subgroups={"sex": np.where(np.arange(len(names)) % 2, "male", "female")},
        )


@pytest.fixture(scope="module")
def lesions() -> Lesions:
    """Tinted noise, because the toy network distinguishes little more than colours."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 255, (COUNT, 48, 48, 3)) * rng.uniform(0.1, 1, (COUNT, 1, 1, 3))
    return Lesions(list(pixels.astype(np.uint8)))


@pytest.fixture(scope="module")
def reference(lesions: Lesions) -> bytes:
    student = lesions.predictions("test", fake_tensorrt.toy_run(toy_onnx.graph()))
    assert len(set(student.labels.tolist())) == 3
    return reference_file(
        student, lesions.digests("test"), toy_onnx.POSTPROCESSING, "test of lesions"
    )


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, reference: bytes) -> Bundle:
    return fake_tensorrt.bundle(
        tmp_path_factory.mktemp("device") / "skin.dermedge", files={REFERENCE_REPORT: reference}
    )


@pytest.fixture
def bundle(tmp_path: Path, pristine: Bundle) -> Bundle:
    return Bundle.open(shutil.copytree(pristine.path, tmp_path / "skin.dermedge"))


@pytest.fixture
def machine() -> TensorRt:
    return fake_tensorrt.machine()


def recorded(bundle: Bundle) -> Any:
    return json.loads(record_path(bundle.path).read_bytes())


def more_of_the_first_class(values: Array) -> Array:
    return values + np.array([0.45, 0, 0], np.float32)[: values.shape[1]]


class TestPassing:
    def test_an_engine_that_agrees_with_the_student_passes_and_is_used(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        before = folder_bytes(bundle.path)
        report = build_engine(bundle, images=lesions, machine=machine)
        assert (report.status, report.verify.status, report.parity.status) == (
            "passed",
            "passed",
            "passed",
        )
        assert (report.parity.basis, report.parity.cases) == ("test of lesions", COUNT)
        assert report.parity.engine == "tensorrt 10.3.0"
        assert report.parity.hardware == "Orin (fake), SM 87"
        assert report.parity.agreement["max_abs"] > 0, "fp16 is not fp32"
        assert dict(report.precision.counts) == {"fp16": 3}
        assert folder_bytes(bundle.path) == before
        assert TensorRtRuntime.open(bundle, machine=machine)

    def test_the_record_holds_the_report_and_the_facts_of_the_device(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        report = build_engine(bundle, images=lesions, machine=machine)
        found = recorded(bundle)
        assert found == json.loads(json.dumps(report.to_json()))
        assert (found["schema"], found["bundle"], found["status"]) == (
            "dermedge.device/1",
            bundle.id,
            "passed",
        )
        assert found["engine"]["key"]["onnx"] == bundle.files["model.onnx"]
        assert found["engine"]["key"]["flags"] == {
            "batch": 1,
            "strongly_typed": True,
            "tf32": False,
            "workspace_mb": None,
        }
        engine = next(cache_folder(bundle.path).glob("*.engine"))
        assert found["engine"]["sha256"] == sha256_hex(engine.read_bytes())
        assert found["device"]["gpu"] == "Orin (fake)"
        assert found["device"]["sm"] == "87"
        assert found["latency"]["count"] == 30

    def test_without_images_golden_cases_alone_are_compared_and_do_not_pass_the_gate(
        self, bundle: Bundle, machine: TensorRt
    ) -> None:
        report = build_engine(bundle, machine=machine)
        assert (report.status, report.parity.cases) == ("insufficient", len(bundle.golden()))
        assert report.parity.basis == "6 golden cases (no labels: agreement only)"
        assert TensorRtRuntime.open(bundle, machine=machine)

    def test_only_the_images_on_this_device_are_compared(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        stranger = np.full_like(lesions.tensors[0], 200)
        some = replace(
            lesions, tensors=[stranger, *lesions.tensors[:104:-1], *lesions.tensors[:100]]
        )
        report = build_engine(bundle, images=some, machine=machine)
        assert report.parity.cases == COUNT - 5
        assert (
            report.parity.basis == "235 images of test of lesions (5 more are not on this device)"
        )
        assert report.parity.agreement["max_abs"] < 0.1, "each image is held against its own answer"


class TestRefusal:
    def test_an_engine_that_fails_the_gate_is_recorded_and_not_used(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        machine.trt.miscompile = more_of_the_first_class
        with pytest.raises(
            GateError, match=r"top1_agreement: .*skin\.device\.json.*--allow-parity-failure"
        ):
            build_engine(bundle, images=lesions, machine=machine)
        assert recorded(bundle)["status"] == "failed"
        assert recorded(bundle)["verify"]["status"] == "passed"
        with pytest.raises(EngineError, match="failed its gate"):
            TensorRtRuntime.open(bundle, machine=machine)

    def test_an_allowed_failure_is_recorded_and_the_engine_is_used(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        machine.trt.miscompile = more_of_the_first_class
        report = build_engine(bundle, images=lesions, allow_parity_failure=True, machine=machine)
        assert report.status == "failed"
        assert recorded(bundle)["allowed_failures"][0].startswith("top1_agreement")
        assert TensorRtRuntime.open(bundle, machine=machine)

    def test_a_rebuilt_engine_that_passes_is_used(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        right, machine.trt.miscompile = machine.trt.miscompile, more_of_the_first_class
        with pytest.raises(GateError):
            build_engine(bundle, images=lesions, machine=machine)
        machine.trt.miscompile = right
        assert (
            build_engine(bundle, images=lesions, rebuild=True, machine=machine).status == "passed"
        )
        assert TensorRtRuntime.open(bundle, machine=machine)

    @pytest.mark.parametrize(
        "miscompile",
        [lambda v: v * np.float32(np.nan), lambda v: v + 1],
        ids=["not finite", "another model"],
    )
    def test_an_engine_that_does_not_verify_is_never_used(
        self,
        bundle: Bundle,
        machine: TensorRt,
        lesions: Lesions,
        miscompile: Callable[[Array], Array],
    ) -> None:
        machine.trt.miscompile = miscompile
        with pytest.raises(
            BundleError, match=r"not the model that was exported \(engine: .*skin\.device\.json"
        ):
            build_engine(bundle, images=lesions, allow_parity_failure=True, machine=machine)
        assert recorded(bundle)["status"] == "failed"
        assert recorded(bundle)["allowed_failures"] == []
        with pytest.raises(EngineError, match="failed its gate"):
            TensorRtRuntime.open(bundle, machine=machine)

    def test_an_engine_that_silently_computes_in_fp32_is_refused(self, bundle: Bundle) -> None:
        with pytest.raises(
            EngineError, match=r"asked for in fp16, but no layer computes in fp16 \(3 in fp32\)"
        ):
            build_engine(bundle, machine=fake_tensorrt.machine("11.4.0.106", forgets_types=True))
        assert not record_path(bundle.path).exists()

    def test_images_without_predictions_of_the_student_are_refused(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        strangers = replace(lesions, tensors=[tensor ^ 1 for tensor in lesions.tensors])
        with pytest.raises(
            DataError, match=r"None of the 240 test images of lesions is one of test of lesions"
        ):
            build_engine(bundle, images=strangers, machine=machine)

    def test_wrong_arguments_are_refused_before_a_build(
        self, bundle: Bundle, machine: TensorRt, lesions: Lesions
    ) -> None:
        silent = replace(
            bundle,
            files={
                name: digest for name, digest in bundle.files.items() if name != REFERENCE_REPORT
            },
        )
        with pytest.raises(
            UsageError, match=r"has no predictions of its student.*Leave --data out"
        ):
            build_engine(silent, images=lesions, machine=machine)
        other = replace(bundle, artifact=replace(bundle.artifact, format="onnx"))
        with pytest.raises(UsageError, match="needs no engine: its onnx artifact runs as it is"):
            build_engine(other, machine=machine)
        assert machine.trt.builds == []


class TestCache:
    def test_an_engine_is_built_once(self, bundle: Bundle, machine: TensorRt) -> None:
        first = build_engine(bundle, machine=machine)
        assert build_engine(bundle.path, machine=machine).engine == first.engine
        assert len(machine.trt.builds) == 1

    def test_a_rebuild_ignores_the_timing_cache(self, bundle: Bundle, machine: TensorRt) -> None:
        build_engine(bundle, machine=machine)
        build_engine(bundle, workspace_mb=64, machine=machine)
        build_engine(bundle, rebuild=True, machine=machine)
        assert [bool(build["timings"]) for build in machine.trt.builds] == [False, True, False]
        assert [build["workspace"] for build in machine.trt.builds] == [None, 64 << 20, None]

    @pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"half"), Path.unlink])
    @pytest.mark.parametrize("suffix", ["engine", "json"])
    def test_a_damaged_or_lost_engine_is_built_again(
        self, bundle: Bundle, machine: TensorRt, damage: Callable[[Path], None], suffix: str
    ) -> None:
        build_engine(bundle, machine=machine)
        damage(next(cache_folder(bundle.path).glob(f"*.{suffix}")))
        notes: list[str] = []
        assert build_engine(bundle, machine=machine, step=notes.append).status == "insufficient"
        assert len(machine.trt.builds) == 2
        assert any("building again" in note for note in notes) or damage is Path.unlink
        assert TensorRtRuntime.open(bundle, machine=machine)

    @pytest.mark.parametrize(("version", "sm"), [("11.4.0.106", "87"), ("10.3.0", "89")])
    def test_another_device_or_tensorrt_gets_an_engine_of_its_own(
        self, bundle: Bundle, machine: TensorRt, version: str, sm: str
    ) -> None:
        build_engine(bundle, machine=machine)
        other = fake_tensorrt.machine(version, sm=sm)
        build_engine(bundle, machine=other)
        assert len(other.trt.builds) == 1
        assert len(list(cache_folder(bundle.path).glob("*.engine"))) == 2
        assert TensorRtRuntime.open(bundle, machine=other)


@pytest.mark.slow
def test_an_exported_jetson_artifact_is_built_in_int8_and_verifies(
    tmp_path: Path,
) -> None:
    import torch

    from dermedge.models import Network, TrainedModel
    from dermedge.models.network import Backbone

    torch.manual_seed(5)
    spec, backbone = toy_onnx.spec(64), Backbone("test_resnet")
    student = TrainedModel(Network(backbone, spec.tasks).eval(), spec, backbone)
    context = ExportContext(student, lambda: synthetic_calibration(spec.preprocess, 32))
    built = export_tensorrt(context, JETSON, Candidate("int8+fp16", "tensorrt", "minmax"))
    assert built.simulation is not None
    golden = golden_cases(spec, module_runner(student.module), built.simulation.run, {})
    bundle = write_bundle(
        tmp_path / "skin.dermedge",
        spec=spec,
        artifact=built.artifact,
        postprocessing={},
        tolerance={task.name: 0.05 for task in spec.tasks},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={**built.files, **golden_files(golden)},
    )
    report = build_engine(bundle, machine=fake_tensorrt.machine("11.4.0.106"))
    assert report.verify.status == "passed"
    assert report.precision.counts["int8"] >= 10
    # The very dark and bright golden images are outside the calibrated ranges.
    assert 0 < report.parity.agreement["max_abs"] < 0.1
