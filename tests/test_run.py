"""`run` does every stage once, in one folder."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from dermedge.data.draw import draw_data_set
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.models import student_presets
from dermedge.train.hybrid.recipe import PRESETS
from dermedge.workflows import run as module
from dermedge.workflows.evaluate import evaluate
from dermedge.workflows.run import RunOptions, default_pretrain_epochs, run
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import sha256_file
from dermedge_runtime.verify import verify

OPTIONS = RunOptions(
    backbone="resnet10t",
    backbone_args={"channels": (8, 16, 24, 32), "stem_width": 8},
    student="resnet10t",
    student_args={"channels": (8, 8, 16, 16), "stem_width": 8},
    size=32,
    name="tiny",
    views=1,
    epochs=1,
    student_epochs=1,
    batch_size=16,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "lesions"
    draw_data_set(folder, count=120, size=(64, 48))
    return folder


class Shown:
    """A stand-in for the console that records what is shown."""

    def __init__(self):
        self.titles, self.notes = [], []

    @contextmanager
    def stage(self, title):
        self.titles.append(title)
        yield lambda done, total, note: self.notes.append(note)


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    """Run once; return the folder, the report and what was shown."""
    out, shown = tmp_path_factory.mktemp("run") / "out", Shown()
    return out, run(data, out, options=OPTIONS, show=shown.stage), shown


@pytest.fixture
def out(first):
    return first[0]


def test_a_run_leaves_a_verified_bundle_and_a_report(first):
    out, report, shown = first
    assert verify(report.bundle).status == "passed"
    assert report.verified == "passed"
    bundle = Bundle.open(report.bundle)
    assert bundle.spec.name == "tiny"
    assert bundle.postprocessing["diagnosis"].temperature is not None
    assert bundle.spec.lineage["data"]["name"] == "lesions"
    # The gate asked the test split, and the page shows what evaluate measured on it.
    assert bundle.parity["host"]["cases"] == report.evaluation.overall.cases
    page = (out / "report.html").read_text("utf-8")
    assert bundle.id[:12] in page
    assert json.loads((out / "evaluation.json").read_text("utf-8"))["split"] == "test"
    # The student has never seen a file that it is judged on.
    assert report.evaluation.trained_on == ()
    assert any("teacher runs" in note for note in shown.notes)


def test_a_second_run_does_no_stage_again(data, out):
    first = (out / "tiny-cpu.dermedge" / "manifest.json").stat().st_mtime_ns
    shown = Shown()
    report = run(data, out, options=OPTIONS, show=shown.stage)
    assert report.skipped == ("teacher", "student", "export")
    assert (out / "tiny-cpu.dermedge" / "manifest.json").stat().st_mtime_ns == first
    assert not any("epoch" in note for note in shown.notes)


def test_the_default_student_is_that_of_the_target(data, out, monkeypatch):
    asked = []

    def stop(teacher, data, out, options, **others):
        asked.append(options)
        raise UsageError("stop")

    monkeypatch.setattr(module, "distill", stop)
    options = replace(OPTIONS, student=None, student_args=None)
    for target, student in (("android-onnx", "mobilenetv2_050"), ("cpu", None)):
        if student:
            monkeypatch.setitem(student_presets.DEFAULTS, "android", student)
        with pytest.raises(UsageError, match="stop"):
            run(data, out, target=target, options=options)
    assert [each.backbone for each in asked] == ["mobilenetv2_050", "tf_efficientnet_lite0"]
    assert module.DEFAULT_BACKBONE == "tf_efficientnet_lite0"


def test_a_teacher_is_pretrained_on_further_tables_first_and_all_know_of_it(data, tmp_path):
    further, out = tmp_path / "further", tmp_path / "out"
    draw_data_set(further, count=40, seed=5, size=(64, 48))
    changes = {
        "steps": 2,
        "batch_size": 8,
        "local_size": 32,
        "outputs": 16,
        "hidden": 16,
        "bottleneck": 8,
    }
    options = replace(
        OPTIONS,
        pretrain_epochs=1,
        pretrain_recipe=replace(PRESETS["mobile"], **changes),
        pretrain_on=(further,),
    )
    shown = Shown()
    report = run(data, out, options=options, show=shown.stage)

    assert shown.titles[1:3] == ["pretrain the teacher", "train the teacher"]
    ran = json.loads((out / "pretrained" / "run.json").read_text("utf-8"))
    assert (ran["settings"]["backbone"]["name"], ran["settings"]["recipe"]["size"]) == (
        "resnet10t",
        32,
    )
    assert ran["sources"]["procedural"]["images"] > len(
        with_split(read_table(data)).select_split("train")
    )
    started = json.loads((out / "teacher" / "run.json").read_text("utf-8"))["settings"]["init"]
    assert started == sha256_file(out / "pretrained" / "weights.safetensors")
    page = (out / "report.html").read_text("utf-8")
    assert "Pretraining: resnet10t" in page
    assert "Losses of the last epoch" in page
    # What the pretraining has seen, the student has learned from too.
    assert evaluate(report.bundle, data, replicates=20).trained_on == ()
    assert len(evaluate(report.bundle, further, split="train", replicates=20).trained_on) > 20
    assert run(data, out, options=options).skipped == (
        "pretraining",
        "teacher",
        "student",
        "export",
    )


def test_by_default_only_published_weights_of_a_cnn_are_pretrained_further(out, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file({"one": torch.zeros(1)}, weights, {"architecture": "mobilenetv2_100"})
    assert default_pretrain_epochs(None, str(weights)) == PRESETS["mobile"].epochs > 0
    assert default_pretrain_epochs("mobilenetv2_100", "hub") == PRESETS["mobile"].epochs
    assert default_pretrain_epochs("vit_tiny_patch16_224", "hub") == 0
    assert default_pretrain_epochs("mobilenetv2_100", "none") == 0
    assert default_pretrain_epochs(None, str(out / "teacher")) == 0
    with pytest.raises(
        UsageError, match="is neither 'none', 'hub', a safetensors file nor a model folder"
    ):
        default_pretrain_epochs("mobilenetv2_100", str(tmp_path / "nothing"))


def test_other_data_in_the_same_folder_are_refused(tmp_path, out):
    other = tmp_path / "other"
    draw_data_set(other, count=60, seed=5, size=(64, 48))
    bundle = (out / "tiny-cpu.dermedge" / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        run(other, out, options=OPTIONS)
    assert (out / "tiny-cpu.dermedge" / "manifest.json").read_bytes() == bundle


def test_data_with_errors_are_refused_before_anything_is_trained(tmp_path):
    broken = tmp_path / "broken"
    draw_data_set(broken, count=40, size=(64, 48))
    next((broken / "images").iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="dermedge data check"):
        run(broken, tmp_path / "out", options=OPTIONS)
    assert not (tmp_path / "out" / "teacher").exists()


def test_an_unknown_target_is_refused_at_once(data, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'cpu'"):
        run(data, tmp_path / "out", target="cpuu", options=OPTIONS)
    assert not (tmp_path / "out").exists()
