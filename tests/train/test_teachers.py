"""Teachers: one model, or several whose calibrated probabilities are averaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dermedge.data.table import read_table
from dermedge.evaluation.table_predictions import preprocess_table
from dermedge.models import Network, TrainedModel, load_model_folder, save_model_folder
from dermedge.models.backbone import Backbone
from dermedge.models.network import LAST_MAP, POOLED
from dermedge.models.new_spec import make_preprocess, make_spec
from dermedge.train.ensemble import make_ensemble
from dermedge.train.loop import Schedule
from dermedge.train.teachers import load_teacher
from dermedge.train.whitening import Whitening
from dermedge_export.evaluation.postprocessing import fit_temperature
from dermedge_runtime.activations import sigmoid, softmax
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Label, Task
from support.small import EXPORTED, SIZE, learn, pixels

LABELS = ("nv", "mel", "bcc")
MALIGNANCY = Task("malignancy", "binary")
LESION = Task("lesion", "segment")
SHORT = Schedule(epochs=1, batch_size=16)


def diagnosis(*ids: str) -> Task:
    return Task("diagnosis", "classify", tuple(Label(name, name) for name in ids))


def untrained(
    folder: Path, *tasks: Task, seed: int = 0, size: int = SIZE, fit: str = "crop"
) -> Path:
    """Write a model with random weights and large logits."""
    torch.manual_seed(seed)
    backbone = Backbone(EXPORTED)
    network = Network(backbone, tasks)
    with torch.no_grad():
        for weights in network.heads.parameters():
            weights.mul_(40)
    spec = make_spec(folder.name, tasks, make_preprocess(size, fit), {})
    save_model_folder(TrainedModel(network, spec, backbone, "teacher"), folder)
    return folder


def with_temperatures(folder: Path, members: dict[Path, dict[str, float]]) -> Path:
    folder.mkdir()
    entries = [
        {"folder": f"../{path.name}", "temperatures": values} for path, values in members.items()
    ]
    data = {"schema": "dermedge.ensemble/1", "members": entries}
    (folder / "ensemble.json").write_text(json.dumps(data))
    return folder


def run(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = load_model_folder(folder).module(torch.from_numpy(images))
    return {name: output.numpy() for name, output in outputs.items()}


IMAGES = pixels(5).numpy()


def test_an_ensemble_is_the_mean_of_its_members_calibrated_probabilities(tmp_path: Path) -> None:
    tasks = (diagnosis(*LABELS), MALIGNANCY, LESION)
    first, second = (untrained(tmp_path / name, *tasks, seed=k) for k, name in enumerate("ab"))
    temperatures = {
        first: {"diagnosis": 2.0, "malignancy": 0.5},
        second: {"diagnosis": 0.7, "malignancy": 3.0},
    }
    outputs = load_teacher(with_temperatures(tmp_path / "both", temperatures)).run(IMAGES)
    own = {folder: run(folder, IMAGES) for folder in temperatures}
    classes = np.mean(
        [softmax(own[f]["diagnosis"], t["diagnosis"]) for f, t in temperatures.items()], 0
    )
    np.testing.assert_allclose(softmax(outputs["diagnosis"]), classes, atol=1e-6)
    np.testing.assert_allclose(np.exp(outputs["diagnosis"]), classes, atol=1e-6)
    binary = np.mean(
        [sigmoid(own[f]["malignancy"] / t["malignancy"]) for f, t in temperatures.items()], 0
    )
    np.testing.assert_allclose(sigmoid(outputs["malignancy"]), binary, atol=1e-6)
    masks = np.mean([sigmoid(own[f]["lesion"]) for f in temperatures], 0)
    np.testing.assert_allclose(sigmoid(outputs["lesion"]), masks, atol=1e-6)
    assert outputs[POOLED].shape[1] == 2 * load_model_folder(first).module.backbone.num_features_out


def test_one_teacher_keeps_its_logits(tmp_path: Path) -> None:
    folder = untrained(tmp_path / "one", diagnosis(*LABELS), MALIGNANCY)
    outputs, own = load_teacher(folder).run(IMAGES), run(folder, IMAGES)
    for name, logits in own.items():
        np.testing.assert_allclose(outputs[name], logits, rtol=1e-5, atol=1e-5)


def test_maps_are_returned_on_demand_on_the_grid_of_the_first_teacher(tmp_path: Path) -> None:
    small = untrained(tmp_path / "small", MALIGNANCY, size=64)
    large = untrained(tmp_path / "large", MALIGNANCY, size=128, seed=1)
    teacher = load_teacher([small, large])
    images = pixels(2, 128).numpy()
    found = teacher.run(images, maps=True)[LAST_MAP]
    alone = load_teacher(small).run(images, maps=True)[LAST_MAP]
    assert found.shape == (2, 2 * alone.shape[1], *alone.shape[2:])
    np.testing.assert_allclose(found[:, : alone.shape[1]], alone)
    assert LAST_MAP not in teacher.run(images)


def test_a_task_is_averaged_over_the_teachers_that_have_it(tmp_path: Path) -> None:
    both = untrained(tmp_path / "both", diagnosis(*LABELS), MALIGNANCY)
    one = untrained(tmp_path / "one", diagnosis(*LABELS), seed=1)
    teacher = load_teacher([one, both])
    assert [task.name for task in teacher.spec.tasks] == ["diagnosis", "malignancy"]
    np.testing.assert_allclose(
        teacher.run(IMAGES)["malignancy"], run(both, IMAGES)["malignancy"], atol=1e-5
    )
    with pytest.raises(
        DataError, match=r"No teacher \(one, both\) has a task of the student \(lesion\)"
    ):
        teacher.fit_to((LESION,), SIZE)


class TestLabels:
    def test_finer_labels_are_summed_through_the_taxonomy(self, tmp_path: Path) -> None:
        coarse = untrained(tmp_path / "coarse", diagnosis(*LABELS))
        fine = untrained(
            tmp_path / "fine", diagnosis("bcc", "nodular_melanoma", "nv", "mel_in_situ"), seed=1
        )
        found = np.exp(load_teacher([coarse, fine]).run(IMAGES)["diagnosis"])
        p, q = (softmax(run(folder, IMAGES)["diagnosis"]) for folder in (coarse, fine))
        mapped = np.stack([q[:, 2], q[:, 1] + q[:, 3], q[:, 0]], 1)
        np.testing.assert_allclose(found, (p + mapped) / 2, atol=1e-6)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (("nv", "mel"), "the teacher does not know bcc"),
            (("nv", "mel", "bcc", "df"), "no student label covers df"),
            (("nv", "mel", "bcc", "class 7"), "no student label covers class 7"),
        ],
    )
    def test_labels_that_do_not_map_are_named(
        self, tmp_path: Path, labels: tuple[str, ...], message: str
    ) -> None:
        first = untrained(tmp_path / "first", diagnosis(*LABELS))
        second = untrained(tmp_path / "second", diagnosis(*labels), seed=1)
        with pytest.raises(DataError, match=f"teacher 'second'.*{message}"):
            load_teacher([first, second])


class TestBadInput:
    def test_other_preprocessing_than_size_is_refused(self, tmp_path: Path) -> None:
        first = untrained(tmp_path / "first", MALIGNANCY)
        second = untrained(tmp_path / "second", MALIGNANCY, seed=1, fit="pad")
        with pytest.raises(
            UsageError, match=r"'first' \(crop\) and 'second' \(pad\)|differ in the"
        ):
            load_teacher([first, second])

    def test_no_teacher_and_the_same_twice_are_refused(self, tmp_path: Path) -> None:
        folder = untrained(tmp_path / "one", MALIGNANCY)
        for folders, message in (([], "No teacher"), ([folder, folder], "given twice")):
            with pytest.raises(UsageError, match=message):
                load_teacher(folders)

    def test_a_member_with_other_weights_is_named(self, data: Path, tmp_path: Path) -> None:
        members = [untrained(tmp_path / f"m{k}", MALIGNANCY, seed=k) for k in range(2)]
        make_ensemble(members, data, tmp_path / "both")
        untrained(members[1], MALIGNANCY, seed=7)
        with pytest.raises(DataError, match="m1 have changed since"):
            load_teacher(tmp_path / "both")

    @pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "other/1", "members": [1]}', "{"])
    def test_a_damaged_ensemble_is_named(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "ensemble.json").write_text(text)
        with pytest.raises(DataError, match=r"ensemble\.json"):
            load_teacher(tmp_path)


@pytest.mark.parametrize("value", [0, -1.0, "2"])
def test_a_temperature_that_is_no_positive_number_is_refused(tmp_path: Path, value: Any) -> None:
    members = {untrained(tmp_path / name, MALIGNANCY): {"malignancy": value} for name in "ab"}
    with pytest.raises(DataError, match=r"ensemble\.json is not an ensemble"):
        load_teacher(with_temperatures(tmp_path / "both", members))


def test_an_ensemble_is_calibrated_on_val_and_moves_with_its_members(
    data: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    members = [
        untrained(home / f"m{k}", diagnosis("nv", "mel"), MALIGNANCY, seed=k) for k in range(2)
    ]
    ensemble = make_ensemble(members, data, home / "both")
    frame = read_table(data).select_split("val")
    for member in ensemble.members:
        spec = member.model.spec
        images = np.stack(list(preprocess_table(frame, spec.preprocess)))
        logits, malignant = member.run(images)["malignancy"], frame.frame["malignant"].to_numpy()
        expected = fit_temperature(logits, np.nan_to_num(malignant, nan=-1))
        assert member.temperatures["malignancy"] == pytest.approx(expected, rel=1e-6)
    assert 0 <= ensemble.metrics["balanced_accuracy"] <= 1
    with pytest.raises(UsageError, match="--overwrite"):
        make_ensemble(members, data, home / "both")
    shutil.move(home, tmp_path / "elsewhere")
    moved = load_teacher(tmp_path / "elsewhere" / "both")
    assert (moved.digest, moved.metrics) == (ensemble.digest, ensemble.metrics)
    assert moved.calibrated


def test_whitening_leaves_out_directions_without_variance() -> None:
    features = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32) * (9, 5, 1, 0.1, 0)
    white = Whitening.fit(features.astype(np.float32)).apply(features.astype(np.float32))
    assert white.shape == (400, 4)
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=1e-3)


def test_equal_features_cannot_be_whitened() -> None:
    with pytest.raises(DataError, match="same for all train images"):
        Whitening.fit(np.ones((5, 3), np.float32))


@pytest.fixture(scope="module")
def teachers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two teachers whose labels are those of the data set, one larger."""
    from dermedge.train.samples import read_samples

    _, tasks = read_samples(data)
    folder = tmp_path_factory.mktemp("teachers")
    return [
        untrained(folder / "small", *tasks, size=SIZE),
        untrained(folder / "large", *tasks, size=48, seed=1),
    ]


def small_student(teachers: Any, data: Path, out: Path, **changes: Any) -> TrainedModel:
    options = {"backbone": EXPORTED, "size": 40, "views": 2, "schedule": SHORT, **changes}
    return learn(teachers, data, out, **options)


class TestDistillation:
    def test_a_student_of_another_size_learns_from_two_teachers(
        self, teachers: list[Path], data: Path, tmp_path: Path
    ) -> None:
        student = small_student(teachers, data, tmp_path / "student")
        assert student.spec.preprocess == replace(
            load_model_folder(teachers[0]).spec.preprocess, size=40
        )
        origin = student.spec.lineage["teacher"]
        assert origin["weights"] == load_teacher(tmp_path / "student" / "ensemble").digest
        assert len(origin["members"]) == 2
        assert (
            "balanced_accuracy"
            in json.loads((tmp_path / "student" / "run.json").read_text())["teacher_val"]
        )

    def test_the_folder_of_an_ensemble_teaches_the_same(
        self, teachers: list[Path], data: Path, tmp_path: Path
    ) -> None:
        small_student(teachers, data, tmp_path / "listed")
        make_ensemble(teachers, data, tmp_path / "ensemble")
        small_student(tmp_path / "ensemble", data, tmp_path / "named")
        assert (tmp_path / "listed" / "weights.safetensors").read_bytes() == (
            tmp_path / "named" / "weights.safetensors"
        ).read_bytes()

    def test_named_tasks_take_the_labels_of_the_table(
        self, teachers: list[Path], data: Path, tmp_path: Path
    ) -> None:
        student = small_student(teachers[0], data, tmp_path / "one", tasks=["malignancy"])
        assert [task.name for task in student.spec.tasks] == ["malignancy"]
        with pytest.raises(DataError, match=r"No teacher .* has a task of the student .lesion"):
            small_student(teachers[0], data, tmp_path / "two", tasks=["segmentation"])
        assert not (tmp_path / "two").exists()

    def test_a_task_that_no_teacher_has_is_learned_from_labels(
        self, teachers: list[Path], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tasks = ["malignancy", "segmentation", "embedding"]
        changes = {"tasks": tasks, "stages": 3, "recipe": "standard"}
        student = small_student(teachers[0], data, tmp_path / "out", **changes)
        assert [task.kind for task in student.spec.tasks] == ["binary", "segment", "embed"]
        assert np.isfinite(student.metrics["val"]["loss"])
        assert "dice" in student.metrics["val"]
        assert "No teacher has lesion: learned from labels alone." in caplog.text

    def test_a_task_may_be_called_embedding(self, tmp_path: Path) -> None:
        """The teacher's features have another name, which no task can have."""
        folder = untrained(tmp_path / "one", MALIGNANCY, Task("embedding", "embed"))
        outputs = load_teacher(folder).run(IMAGES)
        np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=1), 1, atol=1e-5)
        assert not np.allclose(np.linalg.norm(outputs[POOLED], axis=1), 1)

    def test_a_teacher_without_a_label_of_the_table_is_refused(
        self, data: Path, tmp_path: Path
    ) -> None:
        teacher = untrained(tmp_path / "narrow", diagnosis("nv", "mel"))
        with pytest.raises(DataError, match="the teacher does not know"):
            small_student(teacher, data, tmp_path / "out", tasks=["diagnosis"])
        assert not (tmp_path / "out").exists()
