"""Severity and segmentation, learned and distilled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import cohen_kappa_score, mean_absolute_error

from dermedge.data.masks import output_grid, read_mask
from dermedge.data.table import read_table
from dermedge.models import TrainedModel, load_model_folder
from dermedge.models.backbone import Backbone
from dermedge.models.network import POOLED
from dermedge.models.new_spec import make_spec
from dermedge.train.distillation_batches import distillation_batches
from dermedge.train.fill_teacher_cache import fill_teacher_cache
from dermedge.train.loop import Schedule
from dermedge.train.samples import read_samples
from dermedge.train.supervision import training_target
from dermedge.train.teacher_cache import TeacherCache
from dermedge.train.teacher_member import Member
from dermedge.train.teachers import Teacher
from dermedge.train.training_data import TrainingData
from dermedge.train.views import Frames
from dermedge_export.evaluation.metrics import dice
from dermedge_runtime.decode import ordinal_level, segment_mask
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Preprocess, Task
from support import small
from support.small import EXPORTED, SIZE, edited, flat, learn, pixels, train
from support.tables import shared
from train.test_finetune import record

SHORT = Schedule(epochs=1, batch_size=16)
LONG = Schedule(epochs=20, batch_size=16, lr=1e-2, patience=20, ema_decay=0.9)
SMALL = {"backbone": EXPORTED, "stages": 3}  # a map of 4 x 4 where the image is 64 x 64
QUICK = {"backbone": EXPORTED, "backbone_args": {}, "schedule": SHORT}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.many_tasks_folder(tmp_path_factory.getbasetemp())


def predict_split(
    model: TrainedModel, data: Path, split: str
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    table = read_table(data).select_split(split)
    frames = Frames([table.path(image) for image in table.frame["image"]], model.spec.preprocess)
    seen = torch.stack([torch.from_numpy(frames.centred(row)) for row in range(len(table))])
    with torch.no_grad():
        return table.frame, {name: output.numpy() for name, output in model.module(seen).items()}


def test_the_recorded_metrics_equal_those_of_decoded_predictions(
    data: Path, everything: Path
) -> None:
    model = load_model_folder(everything)
    assert [task.kind for task in model.spec.tasks] == ["classify", "binary", "ordinal", "segment"]
    frame, outputs = predict_split(model, data, "val")
    found = record(everything)["metrics"]
    assert found["score"] == found["balanced_accuracy"]
    names = [label.id for label in model.spec.tasks[2].labels]
    truth = [names.index(f"{level:.0f}") for level in frame["severity"]]
    levels = [ordinal_level(row.tolist()) for row in outputs["severity"]]
    assert found["severity_mae"] == pytest.approx(mean_absolute_error(truth, levels))
    assert found["severity_kappa"] == pytest.approx(
        cohen_kappa_score(truth, levels, weights="quadratic")
    )
    grid = output_grid(model.spec.preprocess)
    overlaps = []
    for mask, logits in zip(frame["mask"], outputs["lesion"], strict=True):
        inside, guess = read_mask(data / mask, grid), segment_mask(logits[0], grid.size, 1.0, 0.5)
        overlaps.append(2 * (inside & guess).sum() / (inside.sum() + guess.sum()))
    assert found["dice"] == pytest.approx(np.mean(overlaps))


def best(folder: Path, score: str) -> float:
    return max(epoch[score] for epoch in record(folder)["history"])


def overlap(model: TrainedModel, data: Path, shift: int) -> float:
    """Return the mean Dice of train predictions with the masks `shift` rows away."""
    frame, outputs = predict_split(model, data, "train")
    masks = np.stack(
        [read_mask(data / mask, output_grid(model.spec.preprocess)) for mask in frame["mask"]]
    )
    return float(dice(np.roll(masks, shift, axis=0), outputs["lesion"][:, 0] >= 0).mean())


def test_severity_and_masks_are_learned(data: Path, tmp_path: Path) -> None:
    wanted = ("severity", "segmentation")
    model = train(
        data, tmp_path / "out", tasks=wanted, size=64, backbone_args={}, schedule=LONG, **SMALL
    )
    assert best(tmp_path / "out", "dice") > 0.5
    assert best(tmp_path / "out", "severity_kappa") > 0.5
    assert overlap(model, data, 0) > overlap(model, data, 7) + 0.1


def test_a_student_learns_all_tasks_of_its_teacher(
    data: Path, everything: Path, tmp_path: Path
) -> None:
    student = learn(everything, data, tmp_path / "student", schedule=LONG, init="none", **SMALL)
    assert student.spec.tasks == load_model_folder(everything).spec.tasks
    assert overlap(student, data, 0) > overlap(student, data, 7) + 0.1
    assert {"severity_kappa", "severity_mae", "malignant_auroc"} <= set(
        record(tmp_path / "student")["metrics"]
    )


def test_targets_are_those_of_their_rows(data: Path) -> None:
    samples, tasks = read_samples(data, wanted=small.TASKS)
    tasks += (Task("features", "embed"), Task("biopsy", "binary"))
    table, rows = read_table(data).frame, np.array([7, 0, 31, 12])
    masks = np.random.default_rng(0).random((4, 8, 8), np.float32)
    targets = [training_target(task, tasks, samples, rows, masks) for task in tasks]
    for task, found, column in ((tasks[0], targets[0], "dx"), (tasks[2], targets[2], "severity")):
        ids = [task.labels[index].id for index in found.tolist()]
        assert ids == [
            value if column == "dx" else f"{value:.0f}" for value in table[column].iloc[rows]
        ]
    assert targets[1].tolist() == table["malignant"].iloc[rows].tolist()
    assert torch.equal(targets[3], torch.from_numpy(masks))
    assert all(found.isnan().all() for found in targets[4:])


class Redness(torch.nn.Module):
    """A network that segments pixels in which red exceeds green."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor, extra: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        redder = (image[..., 0].float() - image[..., 1].float() > 60).float()
        lesion = (torch.nn.functional.avg_pool2d(redder[:, None], 4) - 0.5) * self.weight
        return {"lesion": lesion, POOLED: image[:, 0, 0].float()}


def test_image_mask_and_teachers_mask_get_the_same_symmetry(tmp_path: Path) -> None:
    """The discs lie off the centre, so that every symmetry changes the image."""
    y, x = np.mgrid[:48, :64]
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for row, (down, right) in enumerate([(16, 20), (30, 40), (14, 44), (33, 22), (20, 40)]):
        inside = (y - down) ** 2 + (x - right) ** 2 < 80
        pixels = np.where(inside[..., None], (220, 20, 20), (90, 90, 90)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{row}.png")
        Image.fromarray(inside).save(tmp_path / "masks" / f"{row}.png")
    frame = pd.DataFrame({"image_id": list("abcde"), "split": ["train"] * 4 + ["val"]})
    frame["image"], frame["mask"] = (
        [f"{kind}/{row}.png" for row in range(5)] for kind in ("images", "masks")
    )
    frame.to_csv(tmp_path / "metadata.csv", index=False)
    samples, tasks = read_samples(tmp_path, wanted=["segmentation"])
    spec = make_spec("red", tasks, Preprocess(64), {})
    training = TrainingData.prepare(samples, spec, batch_size=4, seed=0)
    red = TrainedModel(Redness(), spec, Backbone("red"))  # type: ignore[arg-type]
    teacher = Teacher(spec, (Member(red, tmp_path, "red"),))
    cache = TeacherCache.open(tmp_path / "cache", samples, teacher, views=2, masked=True)
    fill_teacher_cache(cache, training.train)
    turns = 0
    for epoch in range(6):
        for image, mask, teacher in distillation_batches(training, cache, epoch):
            seen = red.module(image)["lesion"]
            assert (seen - teacher).abs().max() < 1e-6
            assert (seen[:, 0] + 0.5 - mask).abs().mean() < 0.03
            turns += int((seen - seen.flip(3)).abs().sum((1, 2, 3)).gt(1).sum())
    assert turns > 12


def test_all_heads_of_a_teacher_are_copied(data: Path, everything: Path, tmp_path: Path) -> None:
    slow = Schedule(epochs=1, batch_size=16, lr=1e-9)
    copied = learn(everything, data, tmp_path / "copy", schedule=slow, **SMALL)
    own, taught = (
        model.module.heads.state_dict() for model in (copied, load_model_folder(everything))
    )
    for name, weights in taught.items():
        torch.testing.assert_close(own[name], weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "score"),
    [
        (("malignancy", "severity"), "balanced_accuracy"),
        (("severity", "segmentation"), "severity_kappa"),
        (("segmentation",), "dice"),
    ],
)
def test_the_first_supervised_task_gives_the_score(
    data: Path, tmp_path: Path, wanted: tuple[str, ...], score: str
) -> None:
    model = train(data, tmp_path / "out", tasks=wanted, **QUICK)
    assert len(model.spec.tasks) == len(wanted)
    found = record(tmp_path / "out")["metrics"]
    assert found["score"] == found[score]


def test_a_table_with_severity_only_is_trainable(data: Path, tmp_path: Path) -> None:
    faces = edited(data, tmp_path / "faces", lambda frame: frame.assign(dx="acne", malignant=""))
    model = train(faces, tmp_path / "out", **QUICK)
    assert [task.name for task in model.spec.tasks] == ["severity"]
    assert set(record(tmp_path / "out")["metrics"]) == {
        "loss",
        "score",
        "severity_kappa",
        "severity_mae",
    }


def test_rows_without_level_or_mask_are_left_out(data: Path, tmp_path: Path) -> None:
    def fewer(frame: pd.DataFrame) -> pd.DataFrame:
        gone = frame.index % 3 == 0
        return frame.assign(
            severity=frame["severity"].mask(gone, ""), mask=frame["mask"].mask(gone, "")
        )

    model = train(
        edited(data, tmp_path / "fewer", fewer), tmp_path / "out", tasks=small.TASKS, **QUICK
    )
    assert np.isfinite(record(tmp_path / "out")["metrics"]["dice"])
    assert all(torch.isfinite(value).all() for value in model.module.state_dict().values())


def test_any_label_may_be_missing_and_the_weights_of_the_tasks_are_learned(
    data: Path, tmp_path: Path
) -> None:
    def fewer(frame: pd.DataFrame) -> pd.DataFrame:
        columns = ("dx", "malignant", "severity", "mask")
        gone = {name: frame[name].mask(frame.index % 5 == k, "") for k, name in enumerate(columns)}
        return frame.assign(**gone)

    table = edited(data, tmp_path / "fewer", fewer)
    options = {"tasks": (*small.TASKS, "embedding"), "task_weights": "uncertainty", **QUICK}
    model = train(table, tmp_path / "out", **options)
    run = record(tmp_path / "out")
    weights = [run["history"][-1][f"weight_{task.name}"] for task in model.spec.tasks[:4]]
    assert len({1.0, *weights}) == 5
    assert run["settings"]["task_weights"] == "uncertainty"
    with torch.no_grad():
        vectors = model.module(small.pixels(3, model.spec.preprocess.size))["features"]
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_an_embedding_alone_cannot_be_trained_on_labels(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column for the model's tasks \(features\)"):
        train(data, tmp_path / "out", tasks=("embedding",), **QUICK)
    assert not (tmp_path / "out").exists()


def test_empty_val_masks_are_not_a_success(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = edited(data, tmp_path / "some", lambda frame: frame)
    frame = read_table(copy).frame
    val = [copy / mask for mask in frame["mask"][frame["split"] == "val"]]
    for path in val[1:]:
        path.unlink()  # the file is a hard link to the original
        Image.new("1", (64, 48)).save(path)
    train(copy, tmp_path / "out", tasks=("segmentation",), **QUICK)
    found = record(tmp_path / "out")["metrics"]
    grid = output_grid(Preprocess(SIZE))
    assert read_mask(val[0], grid).any()
    assert 0 <= found["mask_false_alarms"] <= 1
    assert f"{len(val) - 1} of {len(val)} val masks are empty" in caplog.text
    val[0].unlink()
    Image.new("1", (64, 48)).save(val[0])
    with pytest.raises(DataError, match=f"All {len(val)} masks of the val rows are empty"):
        train(copy, tmp_path / "none", tasks=("segmentation",), **QUICK)


def test_changed_masks_make_another_run_only_with_segmentation(data: Path, tmp_path: Path) -> None:
    changed = edited(data, tmp_path / "changed", lambda frame: frame)
    for tasks, name in ((("segmentation",), "masked"), (("severity",), "graded")):
        train(data, tmp_path / name, tasks=tasks, **QUICK)
    mask = changed / "masks" / "D000004.png"
    content = mask.read_bytes()
    mask.unlink()
    mask.write_bytes((changed / "masks" / "D000005.png").read_bytes())
    assert mask.read_bytes() != content
    with pytest.raises(UsageError, match="--overwrite"):
        train(changed, tmp_path / "masked", tasks=("segmentation",), **QUICK)
    train(changed, tmp_path / "graded", tasks=("severity",), **QUICK)
    assert "masks" not in record(tmp_path / "graded")["settings"]


@pytest.mark.parametrize(
    ("tasks", "edit", "message"),
    [
        (
            ("malignancy",),
            lambda frame, val: frame["malignant"].mask(val, "0"),
            "both malignant and benign",
        ),
        (
            ("severity",),
            lambda frame, val: frame["severity"].mask(val, "1"),
            "fewer than two of the model's levels",
        ),
        (
            ("segmentation",),
            lambda frame, val: frame["mask"].mask(val, ""),
            "No val row has a mask",
        ),
    ],
)
def test_a_val_split_that_cannot_rank_epochs_is_refused(
    data: Path, tmp_path: Path, tasks: tuple[str, ...], edit: Any, message: str
) -> None:
    column = {"malignancy": "malignant", "severity": "severity", "segmentation": "mask"}[tasks[0]]
    bad = edited(
        data,
        tmp_path / "bad",
        lambda frame: frame.assign(**{column: edit(frame, (frame["split"] == "val").to_numpy())}),
    )
    with pytest.raises(DataError, match=message):
        train(bad, tmp_path / "out", tasks=tasks, **QUICK)
    assert not (tmp_path / "out").exists()


def test_a_side_that_is_no_multiple_of_4_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="divisible by 4, not 34"):
        train(data, tmp_path / "out", tasks=("segmentation",), size=34, **QUICK)
    assert not (tmp_path / "out").exists()


def test_one_epoch_on_real_masks_learns_a_segmentation(tmp_path: Path) -> None:
    source = shared("ham10000")
    frame = pd.read_csv(source / "metadata.csv", dtype=str, keep_default_na=False)
    rows = frame.groupby("lesion_id").head(1).head(96)
    rows = rows.assign(split=["train" if row % 3 else "val" for row in range(len(rows))])
    for path in [*rows["image"], *rows["mask"]]:
        (tmp_path / "ham" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "ham" / path).symlink_to(source / path)
    rows.to_csv(tmp_path / "ham" / "metadata.csv", index=False)
    schedule = Schedule(epochs=1, batch_size=4, lr=1e-2, ema_decay=0.5)
    wanted = ("diagnosis", "segmentation")
    train(
        tmp_path / "ham",
        tmp_path / "out",
        tasks=wanted,
        size=64,
        backbone_args={},
        schedule=schedule,
        **SMALL,
    )
    assert record(tmp_path / "out")["metrics"]["dice"] > 0.4


def test_naming_the_default_tasks_gives_the_same_run(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    named = train(data, tmp_path / "named", tasks=("malignancy", "diagnosis"))
    old, images = load_model_folder(teacher), pixels(2, SIZE)
    assert record(tmp_path / "named")["fingerprint"] == record(teacher)["fingerprint"]
    with torch.no_grad():
        assert torch.equal(flat(named.module(images)), flat(old.module(images)))
