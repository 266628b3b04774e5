import ctypes
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import folder_bytes
from dermedge.data.table import digests, read_table, table_digest
from dermedge.models import load_model_folder
from dermedge.train.loop import FitResult, Schedule, fit
from dermedge.train.losses import adjusted_cross_entropy
from dermedge.train.samples import read_samples
from dermedge.train.training_data import TrainingData, make_val_score
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import to_json
from support import untrained
from support.small import (
    SCHEDULE,
    SIZE,
    WIDE,
    die,
    die_before,
    edited,
    flat,
    in_process,
    pixels,
    train,
)

SHORT = Schedule(epochs=1, batch_size=16)


def weights(folder: Path) -> str:
    return sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def record(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))
    return data


class TestResult:
    def test_the_folder_holds_the_model_and_its_record_only(
        self, data: Path, teacher: Path
    ) -> None:
        assert {path.name for path in teacher.iterdir()} == {
            "run.json",
            "split.csv",
            "teacher.json",
            "weights.safetensors",
        }
        run, table = record(teacher), read_table(data)
        assert run["finished"] is True
        assert run["command"] == "finetune"
        assert run["settings"]["data"] == table_digest(table)
        assert run["settings"]["seed"] == 0
        assert run["settings"]["backbone"]["name"] == WIDE
        assert run["settings"]["schedule"]["epochs"] == SCHEDULE.epochs
        assert run["settings"]["spec"]["preprocess"]["size"] == SIZE
        assert run["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert set(run["versions"]) >= {
            "dermedge",
            "timm",
            "numpy",
            "pillow",
            "albumentations",
            "python",
        }
        assert run["wall_seconds"] > 0
        assert len(run["history"]) == SCHEDULE.epochs
        best = max(run["history"], key=lambda epoch: epoch["balanced_accuracy"])
        assert run["metrics"] == best == run["history"][run["best_epoch"]]
        assert 0 <= best["balanced_accuracy"] <= 1
        assert set(best) >= {"accuracy", "malignant_auroc", "loss"}

    def test_the_recorded_settings_keep_their_names_and_order(
        self, data: Path, teacher: Path
    ) -> None:
        """A changed form would change the digest by which finished runs are found."""
        run, spec = record(teacher), load_model_folder(teacher).spec
        settings = {
            "data": table_digest(read_table(data)),
            "backbone": {
                "name": WIDE,
                "args": {"drop_path_rate": 0.2},
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
            "init": "none",
            "spec": to_json(replace(spec, lineage={})),
            "role": "teacher",
            "balance": True,
            "schedule": {
                "epochs": 3,
                "batch_size": 16,
                "lr": 0.002,
                "weight_decay": 0.02,
                "warmup": 1.0,
                "ema_decay": 0.998,
                "patience": 6,
                "precision": "32-true",
            },
            "seed": 0,
        }
        assert run["settings"] == settings
        assert list(run["settings"]) == list(settings)
        identity = canonical_json({"command": "finetune", **settings})
        assert run["fingerprint"] == sha256(identity).hexdigest()

    def test_the_model_gives_the_recorded_score(self, data: Path, teacher: Path) -> None:
        from dermedge.train.samples import read_samples
        from dermedge.train.views import Frames
        from dermedge_export.evaluation.metrics import balanced_accuracy

        model = load_model_folder(teacher)
        samples, tasks = read_samples(data)
        assert model.spec.tasks == tasks
        assert model.role == "teacher"
        rows = samples.rows("val")
        frames = Frames(samples.paths, model.spec.preprocess)
        with torch.no_grad():
            outputs = model.module(
                torch.stack([torch.from_numpy(frames.centred(row)) for row in rows])
            )
        assert {name: list(output.shape) for name, output in outputs.items()} == {
            "diagnosis": [len(rows), 6],
            "malignancy": [len(rows), 1],
        }
        score = balanced_accuracy(samples.labels[rows], outputs["diagnosis"].argmax(1).numpy(), 6)
        assert float(score) == pytest.approx(record(teacher)["metrics"]["balanced_accuracy"])
        assert model.metrics["val"] == record(teacher)["metrics"]

    def test_the_model_folder_keeps_the_digests_of_its_training_images(
        self, data: Path, teacher: Path
    ) -> None:
        table = read_table(data)
        files = digests(table)
        model = load_model_folder(teacher)
        expected = [
            (row.image_id, files[row.image_id], row.split) for row in table.frame.itertuples()
        ]
        assert list(model.split) == expected
        seen = table.frame.loc[table.frame["split"] != "test", "image_id"]
        assert model.training_images == tuple(sorted(files[list(seen)]))
        assert len(model.training_images) < len(table)

    def test_no_file_contains_a_path_of_this_machine(self, data: Path, teacher: Path) -> None:
        for name, content in folder_bytes(teacher).items():
            assert str(data.parent).encode() not in content, name


class TestRepetition:
    def test_the_same_seed_gives_the_same_weights(
        self, data: Path, teacher: Path, tmp_path: Path
    ) -> None:
        torch.manual_seed(99)
        torch.rand(7)
        train(data, tmp_path / "again")
        assert weights(tmp_path / "again") == weights(teacher)
        assert record(tmp_path / "again")["history"] == record(teacher)["history"]

    def test_a_finished_run_is_returned_without_training(self, data: Path, teacher: Path) -> None:
        before = folder_bytes(teacher)
        steps: list[int] = []
        model = train(data, teacher, progress=lambda done, total, note: steps.append(done))
        assert steps == []
        assert folder_bytes(teacher) == before
        images = pixels(2)
        with torch.no_grad():
            assert torch.equal(
                flat(model.module(images)), flat(load_model_folder(teacher).module(images))
            )

    def test_another_run_in_the_folder_is_refused_and_left_alone(
        self, data: Path, teacher: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(teacher, tmp_path / "teacher"))
        before = folder_bytes(folder)
        repaired = edited(data, tmp_path / "repaired", lambda frame: frame)
        image = repaired / "images" / "D000003.jpg"
        Image.open(image).rotate(180).save(tmp_path / "turned.jpg")
        shutil.move(tmp_path / "turned.jpg", image)
        for place, changes in [
            (data, {"seed": 1}),
            (data, {"size": 48}),
            (data, {"role": "student"}),
            (repaired, {}),
        ]:
            with pytest.raises(UsageError, match="--overwrite"):
                train(place, folder, **changes)
            assert folder_bytes(folder) == before

    def test_overwriting_leaves_only_the_new_run(
        self, data: Path, teacher: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(teacher, tmp_path / "teacher"))
        changes = {"seed": 1, "role": "student", "schedule": SHORT}
        train(data, folder, overwrite=True, **changes)
        train(data, tmp_path / "fresh", **changes)
        assert weights(folder) == weights(tmp_path / "fresh") != weights(teacher)
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in (tmp_path / "fresh").iterdir()
        }
        assert load_model_folder(folder).role == "student"

    def test_a_folder_with_other_files_is_refused(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "holiday.txt").write_text("photographs")
        with pytest.raises(UsageError, match="already holds something else"):
            train(data, tmp_path)
        with pytest.raises(UsageError, match="is a file"):
            train(data, tmp_path / "holiday.txt")
        assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def killed_training(data: Path, out: Path, place: str | int, time: int) -> None:
    if isinstance(place, str):
        die_before(place, time)
    train(data, out, progress=lambda done, total, note: die() if done == place else None)


def test_a_run_that_is_killed_several_times_ends_with_the_same_weights(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "teacher"
    steps = SCHEDULE.epochs * (
        (read_table(data).frame["split"] == "train").sum() // SCHEDULE.batch_size
    )
    places: list[tuple[str | int, int]] = [
        ("run.json", 1),  # the first write of all
        ("checkpoint.ckpt", 1),
        (steps // SCHEDULE.epochs + 2, 0),  # amid the second epoch
        (steps, 0),  # the last step
        ("teacher.json", 1),  # trained, and its weights are written
    ]
    for place, time in places:
        assert in_process(killed_training, data, out, place, time) == -9, place
        assert not (out / "teacher.json").exists()
        with pytest.raises(DataError, match=r"neither student\.json nor teacher\.json"):
            load_model_folder(out)
        if place != "run.json":
            assert record(out)["finished"] is False
    spent = record(out)["wall_seconds"]
    assert spent > 0
    steps_done: list[int] = []
    train(data, out, progress=lambda done, total, note: steps_done.append(done))
    assert steps_done == []
    assert weights(out) == weights(teacher)
    run = record(out)
    assert run["finished"] is True
    assert run["resumed_from"] == SCHEDULE.epochs
    assert run["history"] == record(teacher)["history"]
    assert run["wall_seconds"] >= spent
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        path.name for path in teacher.iterdir()
    }


def test_a_resumed_run_does_not_repeat_finished_epochs(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    out, half = (
        tmp_path / "teacher",
        (read_table(data).frame["split"] == "train").sum() // SCHEDULE.batch_size + 1,
    )
    assert in_process(killed_training, data, out, int(half), 0) == -9
    steps_done: list[int] = []
    train(data, out, progress=lambda done, total, note: steps_done.append(done))
    assert steps_done[0] == half
    assert record(out)["resumed_from"] == 1
    assert weights(out) == weights(teacher)


def test_training_from_python_does_not_tune_the_allocator(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the command line may tune the allocator, which is reached by `ctypes.CDLL(None)`."""
    opened: list[Any] = []
    load = ctypes.CDLL

    def watched(name: Any = None, *rest: Any, **options: Any) -> Any:
        opened.append(name)
        return load(name, *rest, **options)

    monkeypatch.setattr(ctypes, "CDLL", watched)
    train(data, tmp_path / "out", schedule=SHORT)
    assert None not in opened


class TestBadInput:
    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda frame: frame[frame["split"] != "val"], "no val rows"),
            (lambda frame: frame[frame["split"] != "train"], "no train rows"),
            (
                lambda frame: frame[frame["dx"] == "nv"].assign(severity=""),
                "have 1 diagnoses, two are needed",
            ),
            (
                lambda frame: frame.assign(dx=frame["dx"].where(frame["split"] != "val", "")),
                "No val row",
            ),
            (lambda frame: frame.drop(columns="image"), "no column 'image'"),
        ],
    )
    def test_a_table_without_the_needed_rows_or_labels_is_refused(
        self, data: Path, tmp_path: Path, edit: Any, message: str
    ) -> None:
        bad = edited(data, tmp_path / "bad", edit)
        with pytest.raises(DataError, match=message):
            train(bad, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"backbone": "mobilenetv2_o50"},
                "timm has no model 'mobilenetv2_o50'. Similar names: .*mobilenetv2_050",
            ),
            ({"backbone": None}, "--backbone"),
            ({"backbone_args": {"colour": "red"}}, "timm refuses"),
            ({"backbone": "vit_tiny_patch16_224"}, "does not take images of 32 x 32 pixels"),
            ({"init": "nowhere.safetensors"}, "--init 'nowhere.safetensors' is neither"),
            ({"size": 8}, "16 to 4096 pixels"),
            ({"fit": "zoom"}, "crop, pad or stretch"),
            ({"name": "my model"}, "'my model' cannot name a model"),
            ({"role": "pupil"}, "Unknown role 'pupil'. Use one of teacher, student"),
        ],
    )
    def test_invalid_arguments_are_refused(
        self, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            train(data, tmp_path / "out", **changes)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        "changes", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"precision": "17-bit"}]
    )
    def test_a_schedule_without_any_training_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Schedule(**changes)

    def test_a_broken_image_stops_the_run_and_leaves_it_unfinished(
        self, data: Path, tmp_path: Path
    ) -> None:
        bad = edited(data, tmp_path / "bad", lambda frame: frame)
        row = read_table(bad).frame.query("split == 'train'").iloc[0]
        (bad / row["image"]).unlink()
        (bad / row["image"]).write_bytes(b"\xff\xd8\xff")
        with pytest.raises(DataError, match=row["image"]):
            train(bad, tmp_path / "out")
        assert record(tmp_path / "out")["finished"] is False
        with pytest.raises(DataError):
            load_model_folder(tmp_path / "out")

    def test_metrics_that_are_undefined_on_val_are_left_out(
        self, data: Path, tmp_path: Path
    ) -> None:
        def benign(frame: pd.DataFrame) -> pd.DataFrame:
            return frame[(frame["split"] != "val") | frame["dx"].isin(["nv", "bkl", "df", "vasc"])]

        bad = edited(data, tmp_path / "benign", benign)
        train(bad, tmp_path / "out", schedule=SHORT)
        model = load_model_folder(tmp_path / "out")
        assert "malignant_auroc" not in model.metrics["val"]
        assert "balanced_accuracy" in model.metrics["val"]
        assert [task.name for task in model.spec.tasks] == ["diagnosis", "malignancy"]
        train(bad, tmp_path / "out", schedule=SHORT)


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: (folder / "weights.safetensors").unlink(),
            lambda folder: (folder / "weights.safetensors").write_bytes(
                (folder / "weights.safetensors").read_bytes()[:-100]
            ),
            lambda folder: (folder / "split.csv").unlink(),
            lambda folder: (folder / "split.csv").write_text("image_id,sha256,split\nonly one\n"),
            lambda folder: (folder / "teacher.json").write_text('{"schema": "dermedge.student/1"}'),
            lambda folder: (folder / "teacher.json").write_text('{"schema": "dermedge.student/9"}'),
            lambda folder: (folder / "teacher.json").write_text("[]"),
            lambda folder: (folder / "teacher.json").write_text(
                (folder / "teacher.json").read_text().replace('"role"', '"part"')
            ),
            lambda folder: (folder / "teacher.json").write_text("{"),
            lambda folder: (folder / "teacher.json").write_text(
                (folder / "teacher.json").read_text().replace(WIDE, "mobilenetv2_035")
            ),
            lambda folder: (folder / "teacher.json").unlink(),
        ],
    )
    def test_a_damaged_model_is_not_loaded(
        self, teacher: Path, tmp_path: Path, damage: Any
    ) -> None:
        folder = Path(shutil.copytree(teacher, tmp_path / "teacher"))
        damage(folder)
        with pytest.raises(DataError, match=str(folder)):
            load_model_folder(folder)

    def test_a_damaged_checkpoint_is_named(self, data: Path, tmp_path: Path) -> None:
        steps = (read_table(data).frame["split"] == "train").sum() // SCHEDULE.batch_size
        assert in_process(killed_training, data, tmp_path / "out", int(steps) + 1, 0) == -9
        (tmp_path / "out" / "checkpoint.ckpt").write_bytes(b"not a checkpoint")
        with pytest.raises(DataError, match=r"checkpoint\.ckpt is not a checkpoint"):
            train(data, tmp_path / "out")


class TestLoop:
    """The loop on one linear layer, with scores that the test chooses."""

    def fit(
        self, folder: Path, scores: Iterator[float], seen: list[torch.Tensor], **changes: Any
    ) -> Any:
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        x = torch.randn(8, 3)

        def score(average: torch.nn.Linear) -> dict[str, float]:
            seen.append(average.weight.detach().clone())
            return {"score": next(scores)}

        arguments = {
            "steps": 2,
            "batches": lambda epoch: [x, x],
            "loss": lambda model, batch: adjusted_cross_entropy(
                model(batch), (batch[:, 0] > 0).long(), torch.zeros(2)
            ),
            "schedule": Schedule(epochs=8, batch_size=8, lr=0.1, patience=2),
            "seed": 0,
            "fingerprint": "this",
        }
        return network, fit(network, score=score, folder=folder, **{**arguments, **changes})

    def test_training_stops_when_the_score_no_longer_rises_and_keeps_the_best_epoch(
        self, tmp_path: Path
    ) -> None:
        seen: list[torch.Tensor] = []
        network, fitted = self.fit(tmp_path, iter([0.5, 0.7, 0.6, 0.7, 0.9]), seen)
        assert isinstance(fitted, FitResult)
        assert [epoch["score"] for epoch in fitted.history] == [0.5, 0.7, 0.6, 0.7]
        assert fitted.best_epoch == 1
        assert fitted.metrics["score"] == 0.7
        assert torch.equal(network.weight, seen[1])
        assert not torch.equal(network.weight, seen[3])

    def test_all_epochs_run_while_the_score_rises(self, tmp_path: Path) -> None:
        _, fitted = self.fit(tmp_path, (n / 10 for n in range(9)), [])
        assert len(fitted.history) == 8
        assert fitted.best_epoch == 7
        assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]

    def test_another_runs_checkpoint_is_refused(self, tmp_path: Path) -> None:
        self.fit(tmp_path, iter([0.5] * 8), [])
        with pytest.raises(DataError, match="other settings or data"):
            self.fit(tmp_path, iter([0.5] * 8), [], fingerprint="that")

    def test_a_loss_that_is_not_finite_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"The loss became nan in epoch 1, step 1\. Lower --lr"):
            self.fit(
                tmp_path,
                iter([0.5]),
                [],
                loss=lambda model, batch: model(batch).sum() * float("nan"),
            )


class TestFrozenBackbone:
    def test_only_the_heads_are_trained_and_they_learn(self, tmp_path: Path) -> None:
        table = untrained.data_set(tmp_path / "table", untrained.coloured())
        data, start = table, untrained.teacher(tmp_path / "start")
        options = {
            "backbone": untrained.CNN,
            "backbone_args": {},
            "init": str(start),
            "freeze": True,
            "tasks": ["diagnosis", "severity"],
        }
        model = train(data, tmp_path / "probed", **options)
        images = pixels(3)
        with torch.no_grad():
            expected, found = (
                one.module.features(images) for one in (load_model_folder(start), model)
            )
        torch.testing.assert_close(found, expected)
        assert model.metrics["val"]["balanced_accuracy"] == 1
        assert model.metrics["val"]["severity_mae"] < 0.5
        loaded = load_model_folder(tmp_path / "probed")
        assert loaded.metrics["val"] == model.metrics["val"]
        assert {path.name for path in (tmp_path / "probed").iterdir()} == {
            "run.json",
            "split.csv",
            "teacher.json",
            "weights.safetensors",
        }
        calls: list[str] = []
        train(data, tmp_path / "probed", progress=lambda *call: calls.append(""), **options)
        assert calls == []

    def test_the_saved_network_gives_the_recorded_metrics(self, data: Path, tmp_path: Path) -> None:
        """The heads were fitted to standardised features, and must be folded."""
        tasks = ["diagnosis", "malignancy", "severity", "embedding"]
        model = train(data, tmp_path / "out", freeze=True, backbone_args={}, tasks=tasks)
        samples, _ = read_samples(data, model.spec.tasks)
        training = TrainingData.prepare(samples, model.spec, batch_size=16, seed=0)
        again = make_val_score(training)(load_model_folder(tmp_path / "out").module)
        assert again == pytest.approx(dict(model.metrics["val"]), abs=1e-6)

    def test_masks_are_refused(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--freeze"):
            train(data, tmp_path / "out", freeze=True, tasks=["diagnosis", "segmentation"])
        assert not (tmp_path / "out").exists()
