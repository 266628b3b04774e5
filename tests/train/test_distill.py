import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dermedge.data.draw import draw_data_set
from dermedge.data.table import digests, read_table
from dermedge.models import Network, load_model_folder
from dermedge.models.initialize import narrow
from dermedge.train.distill_recipe import RECIPES, DistillRecipe, Term
from dermedge.train.distillation_batches import apply_symmetry
from dermedge.train.loop import Schedule
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import sha256_file, sha256_hex
from dermedge_runtime.model import load
from support.small import (
    EXPORTED,
    NARROW,
    SIZE,
    die,
    edited,
    export_model,
    flat,
    in_process,
    learn,
    pixels,
    train,
)

SHORT = Schedule(epochs=1, batch_size=16)


def weights(folder: Path) -> str:
    return sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def record(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "run.json").read_text("utf-8"))
    return data


@pytest.fixture(scope="module")
def student(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("distilled") / "student"
    learn(teacher, data, out)
    return out


class TestResult:
    def test_the_student_is_smaller_and_has_the_teachers_tasks_and_preprocessing(
        self, teacher: Path, data: Path, student: Path
    ) -> None:
        model, master = load_model_folder(student), load_model_folder(teacher)
        assert {path.name for path in student.iterdir()} == {
            "run.json",
            "split.csv",
            "student.json",
            "weights.safetensors",
        }
        assert model.role == "student"
        assert model.spec.tasks == master.spec.tasks
        assert model.spec.preprocess == master.spec.preprocess
        assert model.backbone.name == NARROW
        assert model.metrics["parameters"] == sum(p.numel() for p in model.module.parameters())
        assert model.metrics["parameters"] < master.metrics["parameters"]
        assert model.split == master.split
        with torch.no_grad():
            assert flat(model.module(pixels(3))).shape == (3, 7)

    def test_the_lineage_names_the_teacher(self, teacher: Path, student: Path) -> None:
        lineage = load_model_folder(student).spec.lineage
        assert lineage["teacher"]["weights"] == weights(teacher)
        assert lineage["teacher"]["backbone"] == "timm mobilenetv2_050"
        assert lineage["student"]["init"] == f"teacher, sha256 {weights(teacher)}"
        assert lineage["data"]["licences"] == ["CC0-1.0"]

    def test_the_run_record_holds_the_settings_of_distillation(
        self, teacher: Path, student: Path
    ) -> None:
        run = record(student)
        assert run["finished"] is True
        assert run["command"] == "distill"
        settings = {name: run["settings"][name] for name in ("recipe", "views", "teacher")}
        recipe = RECIPES["hinton"].to_json()
        assert settings == {"recipe": recipe, "views": 2, "teacher": weights(teacher)}
        assert load_model_folder(student).spec.lineage["student"]["recipe"] == recipe
        assert run["teacher_val"] == record(teacher)["metrics"]

    def test_the_student_starts_from_the_pruned_teacher(
        self, teacher: Path, data: Path, tmp_path: Path
    ) -> None:
        still = replace(SHORT, lr=1e-12)
        model = learn(teacher, data, tmp_path / "pruned", views=1, schedule=still)
        master = load_model_folder(teacher)
        expected = Network(replace(master.backbone, name=NARROW), master.spec.tasks)
        narrow(master, expected, SIZE)
        for (name, one), other in zip(
            model.module.named_parameters(), expected.parameters(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7, msg=name)
        other = learn(
            teacher, data, tmp_path / "other", backbone="test_resnet", views=1, schedule=still
        )
        assert other.spec.lineage["student"]["init"] == "random"


def test_a_truncated_student_is_saved_and_loaded(teacher: Path, data: Path, tmp_path: Path) -> None:
    made = learn(teacher, data, tmp_path / "short", stages=3, views=1, schedule=SHORT)
    loaded = load_model_folder(tmp_path / "short")
    assert loaded.backbone.stages == 3
    assert loaded.spec.lineage["student"]["init"].startswith("teacher")
    assert loaded.metrics["parameters"] < 0.2 * load_model_folder(teacher).metrics["parameters"]
    images = pixels(2)
    with torch.no_grad():
        assert torch.equal(flat(loaded.module(images)), flat(made.module(images)))
    with pytest.raises(UsageError, match="--overwrite"):
        learn(teacher, data, tmp_path / "short", stages=4, views=1, schedule=SHORT)
    with pytest.raises(UsageError, match="stages to keep, not 9"):
        learn(teacher, data, tmp_path / "none", stages=9, views=1, schedule=SHORT)
    assert not (tmp_path / "none").exists()


def killed_distillation(
    teacher: Path, data: Path, out: Path, stage: str, place: int, seed: int
) -> None:
    def progress(done: int, total: int, note: str) -> None:
        if note.startswith(stage) and done >= place:
            die()

    learn(teacher, data, out, seed=seed, progress=progress)


class TestKill:
    def test_a_resumed_run_reuses_the_teachers_outputs_and_ends_with_the_same_weights(
        self, teacher: Path, data: Path, student: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "student"
        # The second of two chunks has its pixels, but not the teacher's outputs.
        assert in_process(killed_distillation, teacher, data, out, "teacher", 180, 0) == -9
        seen = {path: path.stat().st_mtime_ns for path in (out / "cache").glob("*/*.safetensors")}
        assert len(seen) == 3
        assert in_process(killed_distillation, teacher, data, out, "epoch", 5, 0) == -9
        assert len(list((out / "cache").glob("*/*.safetensors"))) == 4
        assert {path: path.stat().st_mtime_ns for path in seen} == seen
        assert record(out)["finished"] is False
        with pytest.raises(DataError):
            load_model_folder(out)
        notes: list[str] = []
        learn(teacher, data, out, progress=lambda done, total, note: notes.append(note))
        assert notes
        assert not [note for note in notes if note.startswith("teacher")]
        assert weights(out) == weights(student)
        assert record(out)["finished"] is True
        assert not (out / "cache").exists()

    def test_cached_outputs_of_another_run_are_not_used(
        self, teacher: Path, data: Path, student: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "student"
        assert in_process(killed_distillation, teacher, data, out, "epoch", 1, 5) == -9
        assert list((out / "cache").glob("*/*.safetensors"))
        with pytest.raises(UsageError, match="--overwrite"):
            learn(teacher, data, out)
        learn(teacher, data, out, overwrite=True)
        assert weights(out) == weights(student)

    def test_a_finished_run_is_returned(self, teacher: Path, data: Path, student: Path) -> None:
        before = (student / "run.json").read_bytes()
        notes: list[str] = []
        learn(teacher, data, student, progress=lambda done, total, note: notes.append(note))
        assert notes == []
        assert (student / "run.json").read_bytes() == before


@pytest.fixture(scope="module")
def further(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 12 new images, and of six from train, val and test of the main table."""
    folder = tmp_path_factory.mktemp("further") / "clinic"
    draw_data_set(folder, count=12, seed=77, size=(64, 48))
    frame = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False).assign(
        licence="CC-BY-NC-4.0"
    )
    main = read_table(data).frame
    for split in ("train", "val", "test"):
        for image in main.loc[main["split"] == split, "image"].iloc[:2]:
            name = f"images/{split}-{Path(image).name}"
            shutil.copy(data / image, folder / name)
            frame.loc[len(frame)] = {
                **frame.iloc[0],
                "image_id": name,
                "image": name,
                "patient_id": name,
            }
    frame.assign(mask="").to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def taught(
    teacher: Path, data: Path, further: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("taught") / "student"
    learn(teacher, data, out, unlabelled=[further], views=1, schedule=SHORT)
    return out


class TestUnlabelled:
    def test_new_images_are_trained_on_but_no_test_image(
        self, data: Path, further: Path, taught: Path
    ) -> None:
        main, model = read_table(data), load_model_folder(taught)
        files = digests(main)
        held_out = {
            files[name] for name in main.frame.loc[main.frame["split"] == "test", "image_id"]
        }
        new = set(digests(read_table(further))) - set(files)
        assert len(new) == 12
        assert new <= set(model.training_images)
        assert not held_out & set(model.training_images)
        counts = pd.Series([split for _, _, split in model.split]).value_counts()
        expected = main.frame["split"].value_counts()
        assert counts.to_dict() == {**expected.to_dict(), "train": expected["train"] + 12}
        origin = model.spec.lineage["data"]
        assert origin["licences"] == ["CC-BY-NC-4.0", "CC0-1.0"]
        (unlabelled,) = origin["unlabelled"]
        assert unlabelled["name"] == "clinic"
        assert unlabelled["digest"] == record(taught)["settings"]["data"][1]

    def test_labels_of_unlabelled_tables_are_not_read(
        self, teacher: Path, data: Path, further: Path, taught: Path, tmp_path: Path
    ) -> None:
        lies = edited(
            further, tmp_path / "lies", lambda frame: frame.assign(dx="mel", malignant="0")
        )
        learn(teacher, data, tmp_path / "out", unlabelled=[lies], views=1, schedule=SHORT)
        assert weights(tmp_path / "out") == weights(taught)
        learn(teacher, data, tmp_path / "without", views=1, schedule=SHORT)
        assert weights(tmp_path / "without") != weights(taught)

    def test_a_missing_table_is_named(self, teacher: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere"):
            learn(teacher, data, tmp_path / "out", unlabelled=[tmp_path / "nowhere"])
        assert not (tmp_path / "out").exists()


def test_without_the_term_of_the_labels_they_have_no_effect(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    def lie(frame: pd.DataFrame) -> pd.DataFrame:
        chosen = frame["split"] == "train"
        return frame.assign(dx=frame["dx"].where(~chosen, "df"))

    lies = edited(data, tmp_path / "lies", lie)
    alike = {}
    for share in (1.0, 0.5):
        recipe = DistillRecipe("some", (Term("kl", share), Term("labels", 1 - share)))
        found = []
        for table in (data, lies):
            out = tmp_path / f"{table.name}-{share}"
            learn(teacher, table, out, recipe=recipe, views=1, schedule=SHORT)
            found.append(weights(out))
        alike[share] = found[0] == found[1]
    assert alike == {1.0: True, 0.5: False}


def test_the_full_recipe_trains_on_the_embedding_and_keeps_no_projector(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    full = DistillRecipe("all", (*RECIPES["full"].terms, Term("map", 0.5)), mixup=0.2)
    options = {"views": 1, "schedule": replace(SHORT, epochs=2), "backbone": EXPORTED}
    tasks = ("diagnosis", "malignancy", "embedding")
    made = learn(teacher, data, tmp_path / "out", recipe=full, tasks=tasks, **options)
    assert [task.name for task in made.spec.tasks] == ["diagnosis", "malignancy", "features"]
    expected = Network(made.backbone, made.spec.tasks).state_dict()
    assert list(made.module.state_dict()) == list(expected)
    with torch.no_grad():
        vectors = made.module(pixels(3))["features"]
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    found = record(tmp_path / "out")
    whitening = found["whitening"]
    master = load_model_folder(teacher).module.backbone
    assert whitening["width"] == master.num_features_out >= whitening["components"] > 0
    assert len(whitening["sha256"]) == 64
    assert found["teacher"] == weights(teacher)
    assert len(found["views"]["outputs"]) == 1
    losses = [epoch["loss"] for epoch in found["history"]]
    assert np.isfinite(losses).all()
    with pytest.raises(UsageError, match=r"recipe\.mixup is 0\.2 there and 0\.0 here|recipe"):
        learn(teacher, data, tmp_path / "out", recipe="features", tasks=tasks, **options)


class TestUntrainedOutputs:
    """An output that no term of the recipe trains would be random in silence."""

    def test_a_task_of_the_teacher_needs_a_term_of_logits(
        self, teacher: Path, data: Path, tmp_path: Path
    ) -> None:
        recipe = DistillRecipe("angles only", (Term("angles"), Term("mask")))
        with pytest.raises(
            UsageError, match=r"'angles only' trains diagnosis, malignancy\. Add a term: labels"
        ):
            learn(teacher, data, tmp_path / "out", recipe=recipe)
        assert not (tmp_path / "out").exists()

    def test_a_task_that_no_teacher_has_needs_the_term_of_labels(
        self, teacher: Path, data: Path, tmp_path: Path
    ) -> None:
        options = {"tasks": ["diagnosis", "severity"], "recipe": DistillRecipe("kl", (Term("kl"),))}
        with pytest.raises(UsageError, match=r"'kl' trains severity"):
            learn(teacher, data, tmp_path / "out", **options)

    def test_the_map_of_an_embedding_needs_a_term_of_the_embedding(
        self, teacher: Path, data: Path, tmp_path: Path
    ) -> None:
        options = {"tasks": ["diagnosis", "embedding"], "embedding_width": 7}
        with pytest.raises(UsageError, match=r"'hinton' trains features"):
            learn(teacher, data, tmp_path / "out", **options)
        with pytest.raises(UsageError, match=r"no embedding to give the width 7"):
            learn(teacher, data, tmp_path / "out", tasks=["diagnosis"], embedding_width=7)


def test_an_embedding_of_a_given_width_is_trained_saved_and_exported(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    options = {"tasks": ["diagnosis", "embedding"], "embedding_width": 7, "recipe": "features"}
    out = tmp_path / "out"
    made = learn(teacher, data, out, backbone=EXPORTED, views=1, schedule=SHORT, **options)
    model, images = load_model_folder(out), pixels(3)
    with torch.no_grad():
        vectors = model.module(images)["features"]
        torch.testing.assert_close(vectors, made.module(images)["features"])
    assert vectors.shape == (3, 7)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    settings = record(out)["settings"]
    assert settings["embedding_width"] == 7
    bundle = export_model(model, "cpu", tmp_path / "small.dermedge", precision="fp32")
    with load(bundle) as opened:
        embedding = opened.predict(images[0].numpy()).embedding
    np.testing.assert_allclose(embedding, vectors[0].numpy(), atol=1e-4)


def test_training_images_of_the_teacher_count_as_training_images(
    teacher: Path, data: Path, tmp_path: Path
) -> None:
    """Otherwise a student could be evaluated on its teacher's training images."""

    def resplit(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame.index[frame["split"] == "train"][:3], "split"] = "test"
        return frame

    other = edited(data, tmp_path / "other", resplit)
    table = read_table(data)
    files = digests(table)
    moved = [
        files[name] for name in table.frame.loc[table.frame["split"] == "train", "image_id"][:3]
    ]
    distilled = learn(teacher, other, tmp_path / "distilled", init="none", views=1, schedule=SHORT)
    pruned = train(
        other,
        tmp_path / "pruned",
        backbone=NARROW,
        init=str(teacher),
        role="student",
        schedule=SHORT,
    )
    for model in (distilled, pruned):
        assert set(moved) <= set(model.training_images)
    alone = train(other, tmp_path / "alone", backbone=NARROW, schedule=SHORT)
    assert not set(moved) & set(alone.training_images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "hintn"}, "Unknown recipe 'hintn'"),
        ({"views": 0}, "at least one view"),
        ({"backbone": None}, "--backbone"),
        ({"backbone": "mobilenetv2_035x"}, "timm has no model"),
        ({"backbone": "test_resnet", "init": "the teacher"}, "differ in more than width"),
        ({"name": "a/b"}, "cannot name a model"),
    ],
)
def test_invalid_arguments_are_refused(
    teacher: Path, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "init" in changes:
        changes = {**changes, "init": str(teacher)}
    with pytest.raises(UsageError, match=message):
        learn(teacher, data, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_the_recorded_settings_keep_their_names_and_order(student: Path, teacher: Path) -> None:
    """A changed form would change the digest by which finished runs are found."""
    settings = record(student)["settings"]
    assert list(settings) == [
        "data",
        "teacher",
        "backbone",
        "init",
        "spec",
        "recipe",
        "views",
        "balance",
        "schedule",
        "seed",
    ]
    assert settings["teacher"] == settings["init"] == sha256_file(teacher / "weights.safetensors")
    assert settings["views"] == 2
    identity = canonical_json({"command": "distill", **settings})
    assert record(student)["fingerprint"] == sha256_hex(identity)


def test_a_missing_teacher_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither student\.json nor teacher\.json"):
        learn(tmp_path, data, tmp_path / "out")


def test_there_are_eight_different_symmetries_of_the_square() -> None:
    image = np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3)
    turns = [apply_symmetry(image, turn) for turn in range(8)]
    assert len({turn.tobytes() for turn in turns}) == 8
    np.testing.assert_array_equal(turns[0], image)
    for turn in turns:
        assert turn.flags.c_contiguous
        np.testing.assert_array_equal(turn[2, 2], image[2, 2])
        assert {tuple(pixel) for pixel in turn.reshape(-1, 3)} == {
            tuple(pixel) for pixel in image.reshape(-1, 3)
        }
        corners = [tuple(turn[at]) for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
        assert set(corners) == {tuple(image[at]) for at in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
