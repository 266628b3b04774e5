"""Export, run and evaluate models that grade, segment and embed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from conftest import toy_content
from dermedge.data.masks import decode_mask, read_mask
from dermedge.data.table import read_table
from dermedge.evaluation.report import EvaluationReport
from dermedge.models import Network, TrainedModel, save_model_folder
from dermedge.models.network import Backbone
from dermedge.models.new_spec import make_spec
from dermedge.workflows.debug_parity import debug_parity
from dermedge.workflows.evaluate import evaluate
from dermedge.workflows.export import export
from dermedge_export.context import ExportContext
from dermedge_export.evaluation.postprocessing import fit_mask_threshold
from dermedge_export.evaluation.predictions import Predictions, decode_table, ordinal_levels
from dermedge_export.options import ExportOptions
from dermedge_export.quality_limits import LESION_LIMITS
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import ordinal_level
from dermedge_runtime.errors import DataError
from dermedge_runtime.model import load
from dermedge_runtime.spec import Label, Postprocessing, Preprocess, Spec, Task
from dermedge_runtime.verify import verify
from support import small
from support.command import dermedge

FP32 = ExportOptions(precision="fp32")
KINDS = (
    toy_content()["spec"].tasks[0],
    Task("malignancy", "binary"),
    Task(
        "severity", "ordinal", tuple(Label(str(level), f"severity {level}") for level in range(4))
    ),
    Task("lesion", "segment"),
    Task("features", "embed"),
)


@pytest.mark.parametrize(
    "tasks", [KINDS, KINDS[2:4]], ids=["all five kinds", "nothing to classify"]
)
def test_a_student_of_any_kinds_is_exported_and_verified_without_data(
    tasks: tuple[Task, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    backbone = Backbone(small.EXPORTED)
    spec = make_spec("kinds", tasks, Preprocess(64), {})
    student = TrainedModel(Network(backbone, tasks).eval(), spec, backbone)
    save_model_folder(student, tmp_path / "student")
    bundle = export(tmp_path / "student", "cpu", tmp_path / "out", options=FP32)
    assert verify(Bundle.open(bundle.path)).status == "passed"
    assert Bundle.open(bundle.path).quality == LESION_LIMITS  # 64 px are too few for the others
    images = small.pixels(3, 64)
    with torch.no_grad():
        expected = student.module(images)
    with load(bundle) as model:
        for row in range(3):
            found = model.run(images[row : row + 1].numpy())
            assert set(found) == {task.name for task in tasks}
            for name, output in found.items():
                np.testing.assert_allclose(output, expected[name][row : row + 1].numpy(), atol=1e-4)
        prediction = model.predict(images[0].numpy())
    assert prediction.severity == ordinal_level(expected["severity"][0].tolist())
    assert prediction.mask is None  # no threshold was fitted
    assert (prediction.embedding is not None) == (len(tasks) == 5)


def kinds_folder(folder: Path) -> TrainedModel:
    """Write a student with a task of every kind into a folder, and return it."""
    torch.manual_seed(0)
    backbone = Backbone(small.EXPORTED)
    spec = make_spec("kinds", KINDS, Preprocess(64), {"data": {"name": "lesions"}})
    student = TrainedModel(Network(backbone, KINDS).eval(), spec, backbone)
    save_model_folder(student, folder)
    return student


def test_some_tasks_alone_are_exported_beside_the_bundle_of_all(tmp_path: Path) -> None:
    student = kinds_folder(tmp_path / "student")
    ran = dermedge(
        *("export", tmp_path / "student", "--target", "cpu", "--precision", "fp32"),
        *("--task", "lesion", "--task", "diagnosis"),
    )
    assert ran.code == 0, ran.err
    whole = export(tmp_path / "student", "cpu", tmp_path, options=FP32)
    bundle = Bundle.open(tmp_path / "kinds-diagnosis-lesion-cpu.dermedge")
    assert bundle.id != whole.id
    assert "tasks_left_out" not in whole.spec.lineage
    # In the student's order, with a record of the others.
    names = {"diagnosis", "lesion"}
    assert [task.name for task in bundle.spec.tasks] == ["diagnosis", "lesion"]
    assert bundle.spec.lineage["tasks_left_out"] == ["malignancy", "severity", "features"]
    assert bundle.spec.lineage["data"] == {"name": "lesions"}
    assert set(bundle.postprocessing) == set(bundle.tolerance) == names
    assert all(set(case.expected) == set(case.reference) == names for case in bundle.golden())
    assert "features" not in bundle.read("modelcard.md").decode()
    graph = onnx.load_model_from_string(bundle.read("model.onnx")).graph
    assert {output.name for output in graph.output} == names
    assert not any("heads.severity" in weights.name for weights in graph.initializer)
    images = small.pixels(1, 64)
    with load(bundle) as model, torch.no_grad():
        found, expected = model.run(images.numpy()), student.module(images)
    assert set(found) == names
    for name, output in found.items():
        np.testing.assert_allclose(output, expected[name].numpy(), atol=1e-4)
    report = debug_parity(bundle, tmp_path / "student")
    assert (report.first, set(report.outputs)) == (None, names)


def test_an_unknown_task_is_refused_with_the_students_own(tmp_path: Path) -> None:
    kinds_folder(tmp_path / "student")
    ran = dermedge("export", tmp_path / "student", "--target", "cpu", "--task", "severty")
    assert ran.code == 2
    assert ran.err == (
        "Error: The model 'kinds' has no task 'severty'. Choose from its tasks: diagnosis, "
        "malignancy, severity, lesion, features.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_mask_head_on_tokens_supports_a_dynamic_batch() -> None:
    backbone = Backbone("test_vit", {"img_size": 64})
    student = TrainedModel(
        Network(backbone, KINDS).eval(), make_spec("open", KINDS, Preprocess(64), {}), backbone
    )
    session = onnxruntime.InferenceSession(ExportContext(student, dynamic_batch=True).graph(18))
    images = small.pixels(3, 64)
    found = session.run([task.name for task in KINDS], {"image": images.numpy()})
    with torch.no_grad():
        for task, output in zip(KINDS, found, strict=True):
            np.testing.assert_allclose(output, student.module(images)[task.name].numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    student = small.many_tasks_folder(tmp_path_factory.getbasetemp())
    return export(student, "cpu", tmp_path_factory.mktemp("out"), data=data, options=FP32)


@pytest.fixture(scope="module")
def report(data: Path, bundle: Bundle) -> EvaluationReport:
    return evaluate(bundle, data, split="all", replicates=100)


def predicted(bundle: Bundle, data: Path, frame: pd.DataFrame) -> list[Any]:
    with load(bundle) as model:
        return [model.predict(data / image, exact=True) for image in frame["image"]]


def test_evaluate_measures_the_severity_that_the_device_predicts(
    data: Path, bundle: Bundle, report: EvaluationReport
) -> None:
    table = read_table(data).frame
    predictions = predicted(bundle, data, table)
    names = [label.id for label in bundle.spec.tasks[2].labels]
    truth = np.array([names.index(f"{level:.0f}") for level in table["severity"]])
    found = np.array([prediction.severity for prediction in predictions])
    metrics = report.overall.metrics
    assert metrics["severity_mae"].value == pytest.approx(mean_absolute_error(truth, found))
    assert metrics["severity_kappa"].value == pytest.approx(
        cohen_kappa_score(truth, found, weights="quadratic")
    )
    assert (
        metrics["severity_kappa"].low
        < metrics["severity_kappa"].value
        < metrics["severity_kappa"].high
    )
    female = next(group.scores for group in report.subgroups if group.value == "female")
    rows = (table["sex"] == "female").to_numpy()
    assert 0 < rows.sum() < len(rows)
    assert female.metrics["severity_mae"].value == pytest.approx(
        mean_absolute_error(truth[rows], found[rows])
    )


def test_evaluate_measures_the_masks_that_the_device_draws(
    data: Path, bundle: Bundle, report: EvaluationReport
) -> None:
    table = read_table(data).frame
    fitted = bundle.postprocessing["lesion"].threshold
    assert fitted is not None
    overlaps = []
    for mask, prediction in zip(table["mask"], predicted(bundle, data, table), strict=True):
        inside = read_mask(data / mask, bundle.spec.preprocess)
        overlaps.append(
            2 * (inside & prediction.mask).sum() / (inside.sum() + prediction.mask.sum())
        )
    found = report.overall.metrics["dice"]
    assert found.value == pytest.approx(
        np.mean(overlaps), abs=0.03
    )  # the report's grid is four times coarser
    assert found.low < found.value < found.high
    rows = (table["sex"] == "female").to_numpy()
    female = next(group.scores for group in report.subgroups if group.value == "female")
    assert female.metrics["dice"].value == pytest.approx(
        np.mean(np.array(overlaps)[rows]), abs=0.03
    )


def test_the_command_line_shows_what_the_model_does_and_nothing_else(
    data: Path, bundle: Bundle, tmp_path: Path
) -> None:
    image = data / read_table(data).frame["image"].iloc[0]
    shown = dermedge("predict", bundle.path, image).out
    with load(bundle) as model:
        prediction = model.predict(image)
    assert all(word in shown for word in ("diagnosis", "malignancy", "severity", "lesion covers"))
    assert f"severity {bundle.spec.tasks[2].labels[prediction.severity].id}" in shown
    assert f"{prediction.mask.mean():.1%}" in shown

    torch.manual_seed(0)
    backbone = Backbone(small.EXPORTED)
    spec = make_spec("grades", KINDS[2:4], Preprocess(64), {})
    save_model_folder(
        TrainedModel(Network(backbone, KINDS[2:4]).eval(), spec, backbone), tmp_path / "student"
    )
    other = export(tmp_path / "student", "cpu", tmp_path / "out", options=FP32).path
    shown = dermedge("predict", other, image).out
    assert "severity" in shown
    assert "diagnosis" not in shown
    measured = dermedge(
        "evaluate", other, "--data", data, "--split", "all", "--replicates", "20"
    ).out
    assert all(
        word in measured
        for word in ("severity_kappa", "severity_mae", "dice", "severity kappa", "Dice")
    )
    assert "The model predicts no classes" in measured
    for word in ("accuracy", "class ", "AUROC"):
        assert word not in measured


def test_rows_without_level_or_mask_do_not_count(
    data: Path, bundle: Bundle, tmp_path: Path
) -> None:
    def edit(frame: pd.DataFrame) -> pd.DataFrame:
        gone = frame.index % 2 == 0
        return frame.assign(
            severity=frame["severity"].mask(gone, ""), mask=frame["mask"].mask(gone, "")
        )

    half = evaluate(
        bundle, small.edited(data, tmp_path / "half", edit), split="all", replicates=20
    ).overall.metrics
    kept = small.edited(data, tmp_path / "kept", lambda frame: frame[frame.index % 2 == 1])
    alone = evaluate(bundle, kept, split="all", replicates=20).overall.metrics
    for name in ("severity_mae", "severity_kappa", "dice"):
        assert half[name].value == pytest.approx(alone[name].value)
    empty = small.edited(
        data, tmp_path / "empty", lambda frame: frame.drop(columns=["severity", "mask"])
    )
    assert not {"severity_mae", "severity_kappa", "dice"} & set(
        evaluate(bundle, empty, split="all", replicates=20).overall.metrics
    )


def test_a_model_without_such_tasks_reads_no_mask(
    data: Path, toy_bundle_path: Path, tmp_path: Path, monkeypatch
) -> None:
    from dermedge_runtime import model

    monkeypatch.setitem(model.RUNTIMES, "fake", "conftest:FakeRuntime")
    broken = small.edited(data, tmp_path / "broken", lambda frame: frame)
    for mask in (broken / "masks").iterdir():
        mask.unlink()
    assert (
        "dice" not in evaluate(toy_bundle_path, broken, split="all", replicates=20).overall.metrics
    )


def redrawn(data: Path, out: Path, draw: Callable[[int, np.ndarray], np.ndarray]) -> Path:
    """Return a copy of a data set with other masks, drawn from number and lesion."""
    copy = small.edited(data, out, lambda frame: frame)
    for number, path in enumerate(sorted((copy / "masks").iterdir())):
        inside = decode_mask(path)
        path.unlink()  # the file is a hard link to the original
        Image.fromarray(draw(number, inside)).save(path)
    return copy


def test_the_encoding_of_masks_does_not_change_the_dice_coefficient(
    data: Path, bundle: Bundle, report: EvaluationReport, tmp_path: Path
) -> None:
    deep = redrawn(data, tmp_path / "deep", lambda _, inside: inside.astype(np.uint16))
    found = evaluate(bundle, deep, split="all", replicates=20).overall
    assert found.metrics["dice"].value == report.overall.metrics["dice"].value
    assert (found.empty_masks, found.false_alarms) == (0, 0)
    white = redrawn(data, tmp_path / "white", lambda _, inside: ~inside)
    with pytest.raises(DataError, match="lesion and background swapped"):
        evaluate(bundle, white, split="all", replicates=20)


def test_empty_masks_are_counted_and_are_no_success(
    data: Path, bundle: Bundle, tmp_path: Path
) -> None:
    rest = small.edited(data, tmp_path / "rest", lambda frame: frame[frame.index >= 3])
    some = redrawn(data, tmp_path / "some", lambda n, inside: inside & (n >= 3))
    alone, found = (evaluate(bundle, path, split="all", replicates=20) for path in (rest, some))
    assert found.overall.metrics["dice"].value == alone.overall.metrics["dice"].value
    assert found.overall.empty_masks == 3
    assert found.warnings[-1].startswith("3 masks are empty and do not count in the Dice coeff")
    assert f"predicts a lesion for {found.overall.false_alarms} of them" in found.warnings[-1]
    none = redrawn(data, tmp_path / "none", lambda _, inside: inside & False)
    blank = evaluate(bundle, none, split="all", replicates=20).overall
    assert blank.metrics["dice"].value is None
    assert blank.empty_masks == 80


def test_a_missing_mask_is_named(data: Path, bundle: Bundle, tmp_path: Path) -> None:
    broken = small.edited(data, tmp_path / "broken", lambda frame: frame)
    (broken / "masks" / "D000003.png").unlink()
    with pytest.raises(DataError, match=r"D000003\.png"):
        evaluate(bundle, broken, split="all", replicates=20)


SPEC = Spec("two", "1", KINDS[2:4], Preprocess(16))


def table(**changes: Any) -> Predictions:
    rng = np.random.default_rng(0)
    names = np.array([str(row) for row in range(6)])
    outputs = {
        "severity": np.sort(rng.normal(0, 2, (6, 3)))[:, ::-1].astype(np.float32),
        "lesion": rng.normal(0, 2, (6, 1, 4, 4)).astype(np.float32),
    }
    unknown = np.full(6, -1)
    return Predictions(tuple(names), outputs, unknown, np.full(6, np.nan), names, **changes)


class TestTables:
    def test_a_table_decodes_levels_as_one_row_does(self) -> None:
        logits = np.random.default_rng(1).normal(0, 1, (200, 4)).astype(np.float32)
        assert ordinal_levels(logits).tolist() == [ordinal_level(row.tolist()) for row in logits]
        assert len(set(ordinal_levels(logits).tolist())) == 5

    def test_only_known_rows_are_compared(self) -> None:
        masks = np.random.default_rng(2).integers(0, 2, (6, 4, 4)).astype(np.int8)
        masks[[1, 2]] = -1
        some = table(levels=np.array([0, -1, 3, 2, -1, 1]), masks=masks)
        found = decode_table(some, SPEC, {})
        assert found.graded is not None
        assert found.outlined is not None
        assert found.graded.rows.tolist() == [True, False, True, True, False, True]
        assert found.graded.predicted.tolist() == ordinal_levels(some.outputs["severity"]).tolist()
        assert found.outlined.rows.tolist() == [True, False, False, True, True, True]
        inside = some.outputs["lesion"][[0, 3, 4, 5], 0] >= 0
        truth = masks[[0, 3, 4, 5]] == 1
        by_hand = 2 * (inside & truth).sum((1, 2)) / (inside.sum((1, 2)) + truth.sum((1, 2)))
        np.testing.assert_allclose(found.outlined.dice[[0, 3, 4, 5]], by_hand)
        part = decode_table(some.rows(np.array([0, 1, 3])), SPEC, {})
        assert part.graded is not None
        assert part.graded.levels.tolist() == [0, -1, 2]

    def test_an_empty_mask_has_no_dice_coefficient(self) -> None:
        masks = np.zeros((6, 4, 4), np.int8)
        masks[:2, 1:3], masks[5] = 1, -1
        some = table(masks=masks)
        some.outputs["lesion"][:] = -9
        some.outputs["lesion"][[0, 3], :, 1:3] = 9
        found = decode_table(some, SPEC, {}).outlined
        assert found is not None
        np.testing.assert_equal(found.dice, [1, 0, np.nan, np.nan, np.nan, np.nan])
        assert found.rows.tolist() == [True, True, False, False, False, False]
        assert found.empty.tolist() == [False, False, True, True, True, False]
        assert np.flatnonzero(found.false_alarms).tolist() == [3]

    def test_masks_use_the_fitted_threshold(self) -> None:
        some = table(masks=np.ones((6, 4, 4), np.int8))
        loose, strict = (
            decode_table(some, SPEC, {"lesion": Postprocessing(threshold=threshold)}).outlined
            for threshold in (0.1, 0.9)
        )
        assert loose is not None
        assert strict is not None
        assert (loose.dice > strict.dice).all()

    def test_nothing_is_compared_without_labels_or_outputs(self) -> None:
        blank = decode_table(table(), SPEC, {})
        unknown = decode_table(
            table(levels=np.full(6, -1), masks=np.full((6, 4, 4), -1, np.int8)), SPEC, {}
        )
        for found in (blank, unknown):
            assert found.graded is not None
            assert found.outlined is not None
            assert not found.graded.rows.any()
            assert not found.outlined.rows.any()
        known = table(levels=np.zeros(6, np.int64), masks=np.ones((6, 4, 4), np.int8))
        silent = decode_table(replace(known, outputs={}), SPEC, {})
        assert silent.graded is silent.outlined is None

    def test_columns_of_another_length_are_refused(self) -> None:
        with pytest.raises(DataError, match="'levels' has 5 rows for 6 images"):
            table(levels=np.zeros(5, np.int64))


class TestMaskThreshold:
    def test_the_best_overlap_wins(self) -> None:
        likely = np.array([[[0.1, 0.22], [0.3, 0.9]], [[0.05, 0.1], [0.35, 0.24]]])
        masks = np.array([[[0, 0], [1, 1]], [[0, 0], [1, 0]]])
        assert fit_mask_threshold(likely, masks) == pytest.approx(0.3)

    def test_among_equal_thresholds_the_closest_to_a_half_is_fitted(self) -> None:
        assert fit_mask_threshold(np.array([[[0.01, 0.99]]]), np.array([[[0, 1]]])) == 0.5

    def test_unknown_and_broken_rows_do_not_count(self) -> None:
        likely = np.array([[[0.3, 0.1]], [[0.9, 0.9]], [[np.nan, 0.9]]])
        masks = np.array([[[1, 0]], [[-1, -1]], [[1, 1]]])
        assert fit_mask_threshold(likely, masks) == pytest.approx(0.3)
        assert fit_mask_threshold(likely[1:], masks[1:]) is None
