"""`dermedge build`, without TensorRT and with a small fake of it."""

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dermedge.data.draw import draw_data_set
from dermedge.evaluation.export_data import TableEvaluationData
from dermedge_export.parity.reference import reference_file
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.report import REFERENCE_REPORT
from dermedge_runtime.tensorrt.api import TensorRt
from support import fake_tensorrt, toy_onnx
from support.command import TOY, dermedge, refused, snapshot


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of test rows only, and a bundle with its student's predictions."""
    folder = tmp_path_factory.mktemp("build")
    draw_data_set(folder / "lesions", count=104, seed=3, size=(64, 48))
    table = pd.read_csv(folder / "lesions" / "metadata.csv", dtype=str, keep_default_na=False)
    table.assign(split="test").to_csv(folder / "lesions" / "metadata.csv", index=False)
    images = TableEvaluationData(folder / "lesions", toy_onnx.spec())
    student = images.predictions("test", fake_tensorrt.toy_run(toy_onnx.graph()))
    reference = reference_file(
        student, images.digests("test"), toy_onnx.POSTPROCESSING, "test split of lesions"
    )
    fake_tensorrt.bundle(folder / "skin.dermedge", files={REFERENCE_REPORT: reference})
    return folder


@pytest.fixture
def bundle(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "skin.dermedge", tmp_path / "skin.dermedge"))


def record(bundle: Path) -> Any:
    return json.loads((bundle.parent / "skin.device.json").read_text("utf-8"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> TensorRt:
    device = fake_tensorrt.machine()
    monkeypatch.setattr(TensorRt, "open", classmethod(lambda cls, bundle: device))
    return device


def test_without_tensorrt_the_message_names_the_command_and_the_device(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    before = snapshot(bundle.parent)
    message = refused(dermedge("build", bundle), 4)
    assert f"On the Jetson, run `dermedge build {bundle}`" in message
    assert snapshot(bundle.parent) == before
    checked = dermedge("verify", bundle, "--engine", "onnxruntime")
    assert checked.code == 0, checked.err


def test_a_build_prints_the_engine_the_checks_and_the_gate(
    bundle: Path, place: Path, machine: TensorRt
) -> None:
    ran = dermedge("build", bundle, "--data", place / "lesions")
    assert ran.code == 0, ran.err
    for words in (
        "Orin (fake), SM 87, CUDA 12.6",
        "TensorRT 10.3.0",
        "3 in fp16",
        "macro_auroc",
        "test split of",
    ):
        assert words in ran.out
    assert sorted(path.name for path in bundle.parent.iterdir()) == [
        "skin.cache",
        "skin.dermedge",
        "skin.device.json",
    ]
    predicted = dermedge("predict", bundle, place / "lesions" / "images" / "D000000.jpg", "--json")
    assert predicted.code == 0, predicted.err
    assert "tensorrt 10.3.0" in predicted.out


def test_the_json_output_is_the_device_report(bundle: Path, place: Path, machine: TensorRt) -> None:
    ran = dermedge("build", bundle, "--data", place / "lesions", "--workspace", 64, "--json")
    assert ran.code == 0, ran.err
    assert ran.json() == record(bundle)
    assert ran.json()["engine"]["key"]["flags"]["workspace_mb"] == 64
    assert ran.json()["parity"]["cases"] == 104


def test_an_engine_that_lost_accuracy_is_exit_code_3(
    bundle: Path, place: Path, machine: TensorRt
) -> None:
    outputs = itertools.count()

    def wrong_beyond_the_golden_cases(values: Any) -> Any:
        return values if next(outputs) < golden else -values

    golden = 2 * len(Bundle.open(bundle).golden())
    machine.trt.miscompile = wrong_beyond_the_golden_cases
    assert "top1_agreement" in refused(dermedge("build", bundle, "--data", place / "lesions"), 3)
    assert record(bundle)["status"] == "failed"
    image = place / "lesions" / "images" / "D000000.jpg"
    assert "failed its gate" in refused(dermedge("predict", bundle, image), 1)
    outputs = itertools.count()
    allowed = dermedge("build", bundle, "--data", place / "lesions", "--allow-parity-failure")
    assert allowed.code == 0, allowed.err
    assert "Warning: allowed failure: top1_agreement" in allowed.err
    assert dermedge("predict", bundle, image).code == 0


def test_an_engine_that_does_not_verify_is_exit_code_5(bundle: Path, machine: TensorRt) -> None:
    machine.trt.miscompile = lambda values: -values
    assert "not the model that was exported" in refused(dermedge("build", bundle), 5)


def test_a_bundle_of_another_format_needs_no_engine(machine: TensorRt) -> None:
    assert "needs no engine" in refused(dermedge("build", TOY), 2)
    assert "no bundle at" in refused(dermedge("build", "nowhere.dermedge"), 2)


def test_predict_before_build_names_the_build_command(bundle: Path, machine: TensorRt) -> None:
    assert "`dermedge build" in refused(dermedge("predict", bundle, "image.jpg"), 1)
    assert Bundle.open(bundle).parity["device"]["status"] == "not_run"
