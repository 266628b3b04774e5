"""`evaluate` of model folders: the numbers of their export, without an export."""

from pathlib import Path

import pytest

from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.evaluation.report import EvaluationReport
from dermedge.models import load_model_folder
from dermedge.train.ensemble import make_ensemble
from dermedge.train.teachers import load_teacher
from dermedge.workflows.evaluate import evaluate
from dermedge_runtime.errors import BundleError, UsageError
from support import small


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())


@pytest.fixture
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.student_folder(tmp_path_factory.getbasetemp())


@pytest.fixture
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.teacher_folder(tmp_path_factory.getbasetemp())


def values(report: EvaluationReport) -> dict[str, float | None]:
    return {name: found.value for name, found in report.overall.metrics.items()}


def test_a_folder_has_the_numbers_of_its_fp32_export(
    data: Path, student: Path, tmp_path: Path
) -> None:
    model = load_model_folder(student)
    bundle = small.export_model(
        model,
        "cpu",
        tmp_path,
        data=TableEvaluationData(data, model.spec),
        training_images=model.training_images,
        precision="fp32",
        engine="onnxruntime",
        allow_parity_failure=True,
    )
    here, exported = (evaluate(one, data, split="all", replicates=20) for one in (student, bundle))
    assert values(here) == pytest.approx(values(exported), abs=2e-3, nan_ok=True)
    assert here.threshold == pytest.approx(exported.threshold, abs=1e-3)
    sets = [report.postprocessing["diagnosis"].conformal for report in (here, exported)]
    assert sets[0] == sets[1] or sets[0].quantiles == pytest.approx(sets[1].quantiles, abs=1e-3)
    assert here.trained_on == exported.trained_on
    assert here.warnings == exported.warnings
    assert here.model.engine.startswith("torch ")
    assert (here.model.target, here.model.precision) == ("torch", "fp32")


def test_an_ensemble_is_evaluated_by_the_mean_of_its_members(
    data: Path, student: Path, teacher: Path, tmp_path: Path
) -> None:
    make_ensemble([teacher, student], data, tmp_path / "both")
    report = evaluate(tmp_path / "both", data, split="test", replicates=20)
    both = load_teacher(tmp_path / "both")
    part = TableEvaluationData(data, both.spec)
    logits = part.predictions("test", both.run).outputs["diagnosis"]
    names = [both.spec.diagnosis.labels[k].id for k in logits.argmax(1)]
    assert [image.predicted for image in report.images] == names
    assert report.postprocessing["diagnosis"].temperature is not None
    assert report.trained_on == ()
    seen = evaluate(tmp_path / "both", data, split="train", replicates=20)
    assert len(seen.trained_on) == len(seen.images)
    assert "TRAINED ON" in seen.warnings[0]
    # Models of other weights are other models.
    assert report.model.bundle != evaluate(teacher, data, replicates=20).model.bundle


def test_without_val_rows_nothing_is_fitted_and_a_warning_says_so(
    data: Path, student: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def without_val(frame):
        return frame[frame["split"] != "val"]

    folder = small.edited(data, tmp_path / "rest", without_val)
    report = evaluate(student, folder, replicates=20)
    assert report.threshold is None
    assert all(fit.temperature is None for fit in report.postprocessing.values())
    assert "has no val rows, so temperature, thresholds and conformal sets" in caplog.text


def test_the_task_ood_of_a_student_is_evaluated(data: Path, tmp_path: Path) -> None:
    changes = {"backbone": small.EXPORTED, "backbone_args": {}, "role": "student", "ood": True}
    small.train(data, tmp_path / "student", **changes)
    report = evaluate(tmp_path / "student", data, split="val", replicates=20)
    assert values(report)["ood_flagged"] == pytest.approx(0.05, abs=0.05)


def test_options_that_do_not_fit(data: Path, student: Path) -> None:
    with pytest.raises(UsageError, match="is a model folder, which runs in torch and not in 'ov'"):
        evaluate(student, data, engine="ov")
    with pytest.raises(UsageError, match="threads is 0"):
        evaluate(student, data, threads=0)
    with pytest.raises(UsageError, match="Unknown split 'dev'"):
        evaluate(student, data, split="dev")
    with pytest.raises(BundleError):
        evaluate(data, data)
