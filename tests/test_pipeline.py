"""`run`: the whole way, in one folder, each stage once."""

import json
from contextlib import contextmanager

import pytest

from dermedge.data import generate
from dermedge.pipeline import Recipe, run
from dermedge.train import Schedule
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.verify import verify

SCHEDULE = Schedule(epochs=1, batch_size=16)
RECIPE = Recipe(
    backbone="resnet10t",
    backbone_args={"channels": (8, 16, 24, 32), "stem_width": 8},
    student="resnet10t",
    student_args={"channels": (8, 8, 16, 16), "stem_width": 8},
    student_stages=None,
    size=32,
    name="tiny",
    views=1,
    teacher_schedule=SCHEDULE,
    student_schedule=SCHEDULE,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "lesions"
    generate(folder, count=120, size=(64, 48))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "out"


class Shown:
    """What a console would have shown."""

    def __init__(self):
        self.titles, self.notes = [], []

    @contextmanager
    def stage(self, title):
        self.titles.append(title)
        yield lambda done, total, note: self.notes.append(note)


def test_the_whole_way_leaves_a_verified_bundle_and_a_report(data, out):
    shown = Shown()
    report = run(data, out, recipe=RECIPE, show=shown.stage)

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
    assert any("teacher looks" in note for note in shown.notes)


def test_a_second_run_does_no_stage_again(data, out):
    first = (out / "tiny-cpu.dermedge" / "manifest.json").stat().st_mtime_ns
    shown = Shown()
    report = run(data, out, recipe=RECIPE, show=shown.stage)
    assert report.skipped == ("teacher", "student", "export")
    assert (out / "tiny-cpu.dermedge" / "manifest.json").stat().st_mtime_ns == first
    assert not any("epoch" in note for note in shown.notes)


def test_other_data_in_the_same_folder_are_refused(tmp_path, out):
    other = tmp_path / "other"
    generate(other, count=60, seed=5, size=(64, 48))
    bundle = (out / "tiny-cpu.dermedge" / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        run(other, out, recipe=RECIPE)
    assert (out / "tiny-cpu.dermedge" / "manifest.json").read_bytes() == bundle


def test_data_with_errors_are_refused_before_anything_is_trained(tmp_path):
    broken = tmp_path / "broken"
    generate(broken, count=40, size=(64, 48))
    next((broken / "images").iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="dermedge data check"):
        run(broken, tmp_path / "out", recipe=RECIPE)
    assert not (tmp_path / "out" / "teacher").exists()


def test_an_unknown_target_is_refused_at_once(data, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'cpu'"):
        run(data, tmp_path / "out", target="cpuu", recipe=RECIPE)
    assert not (tmp_path / "out").exists()
