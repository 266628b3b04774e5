"""Stored views: reused, extended, checked, and equal to what is computed."""

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dermedge.data.draw import draw_data_set
from dermedge.train import fill_teacher_cache as filling
from dermedge.train import teacher_cache
from dermedge.train.fill_teacher_cache import fill_teacher_cache
from dermedge.train.loop import Schedule
from dermedge.train.samples import Samples, read_samples
from dermedge.train.teacher_cache import TeacherCache
from dermedge.train.teacher_member import Member
from dermedge.train.teachers import Teacher, load_teacher
from dermedge.train.view_store import ViewStore
from dermedge_runtime.errors import DataError, DermedgeError
from support import small
from support.small import edited, learn
from train.test_teachers import LESION, MALIGNANCY, untrained

SHORT = Schedule(epochs=1, batch_size=16)


class Ran:
    """Counts the views that teachers run on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.views, run = 0, Member.run

        def counted(member: Member, pixels: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
            # A single black image measures the size of the outputs.
            self.views += len(pixels) if pixels.any() else 0
            return run(member, pixels, **options)

        monkeypatch.setattr(Member, "run", counted)

    def since(self) -> int:
        views, self.views = self.views, 0
        return views


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ran]:
    return Ran(monkeypatch)


def fill(folder: Path, data: Path, teacher: Path | Teacher, **changes: Any) -> TeacherCache:
    loaded = teacher if isinstance(teacher, Teacher) else load_teacher(teacher)
    samples, _ = read_samples(data, loaded.spec.tasks)
    options = {"views": 2, **changes}
    cache = TeacherCache.open(folder, samples, loaded, **options)
    fill_teacher_cache(cache, samples.rows("train"))
    return cache


def train_rows(samples: Samples) -> int:
    return len(samples.rows("train"))


def test_stored_outputs_are_those_of_the_teacher_on_the_stored_pixels(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    cache = fill(tmp_path, data, teacher, maps=True)
    rows = cache.samples.rows("train")[::7]
    for view in (0, 1):
        pixels, masks, outputs = cache.read(rows, view, ["embedding", "map"])
        assert masks is None
        computed = cache.teacher.run(pixels, maps=True)
        assert outputs.keys() == computed.keys()
        for name, values in computed.items():
            np.testing.assert_allclose(outputs[name], values, rtol=2e-3, atol=2e-3, err_msg=name)
    other, _, _ = cache.read(rows, 0)
    assert (pixels != other).any()


def test_a_student_of_another_size_gets_the_same_view_and_the_same_outputs(
    data: Path, teacher: Path, tmp_path: Path, ran: Ran
) -> None:
    same = fill(tmp_path, data, teacher)
    loaded = load_teacher(teacher)
    ran.since()
    half = fill(tmp_path, data, loaded.fit_to(loaded.spec.tasks, 16))
    assert ran.since() == 0
    rows = same.samples.rows("train")[:6]
    (large, _, first), (little, _, second) = same.read(rows, 1), half.read(rows, 1)
    assert little.shape[1:] == (16, 16, 3)
    means = large.reshape(6, 16, 2, 16, 2, 3).mean((2, 4))
    assert np.abs(means - little).mean() < 6
    np.testing.assert_array_equal(first["diagnosis"], second["diagnosis"])


class TestReuse:
    def test_runs_share_a_cache(self, data: Path, teacher: Path, tmp_path: Path, ran: Ran) -> None:
        changes = {"teacher_cache": tmp_path / "cache", "views": 2, "schedule": SHORT}
        learn(teacher, data, tmp_path / "a", **changes)
        assert ran.since() > 0
        learn(teacher, data, tmp_path / "b", seed=5, **changes)
        assert ran.since() == 0
        learn(teacher, data, tmp_path / "c", teacher_cache=None, views=2, schedule=SHORT)
        shared, own = (tmp_path / name / "weights.safetensors" for name in "ac")
        assert shared.read_bytes() == own.read_bytes()

    def test_only_new_images_and_new_views_are_computed(
        self, data: Path, teacher: Path, tmp_path: Path, ran: Ran
    ) -> None:
        def drop(frame: pd.DataFrame) -> pd.DataFrame:
            return frame.drop(frame.index[frame["split"] == "train"][:4])

        fewer = edited(data, tmp_path / "fewer", drop)
        count = train_rows(fill(tmp_path / "cache", fewer, teacher).samples)
        assert ran.since() == 2 * count
        fill(tmp_path / "cache", data, teacher)
        assert ran.since() == 2 * 4
        fill(tmp_path / "cache", data, teacher, views=3)
        assert ran.since() == count + 4

    def test_other_weights_are_another_cache(
        self, data: Path, teacher: Path, tmp_path: Path, ran: Ran
    ) -> None:
        first = fill(tmp_path, data, teacher)
        ran.since()
        other = small.train(data, tmp_path / "other", schedule=SHORT)
        assert other.metrics
        fill(tmp_path, data, tmp_path / "other")
        assert ran.since() == 2 * train_rows(first.samples)

    def test_another_mask_of_the_same_image_is_another_view(
        self, data: Path, tmp_path: Path
    ) -> None:
        base = untrained(tmp_path / "base", LESION, size=64)
        table = tmp_path / "table"
        draw_data_set(table, count=12, seed=3, size=(64, 48))
        frame = pd.read_csv(table / "metadata.csv", dtype=str, keep_default_na=False)
        small.write(table, frame.assign(split=["train"] * 10 + ["val"] * 2))
        cache = fill(tmp_path / "cache", table, base, masked=True)
        _, before, _ = cache.read(cache.samples.rows("train"), 0)
        masks = [table / name for name in frame["mask"]]
        masks[0].write_bytes(masks[1].read_bytes())
        cache = fill(tmp_path / "cache", table, base, masked=True)
        _, after, _ = cache.read(cache.samples.rows("train"), 0)
        assert before is not None and after is not None
        assert [bool((a != b).any()) for a, b in zip(before, after, strict=True)] == (
            [True] + [False] * 9
        )


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_chunk_is_computed_again(
    data: Path,
    teacher: Path,
    tmp_path: Path,
    ran: Ran,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    cache = fill(tmp_path, data, teacher)
    rows = cache.samples.rows("train")
    before = cache.read(rows, 1)
    ran.since()
    path = sorted(cache.outputs[0].folder.glob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    kept = {"flip": content, "cut": content[:-100], "empty": b""}[damage]
    path.write_bytes(kept)
    again = fill(tmp_path, data, teacher).read(rows, 1)
    assert 0 < ran.since() < 2 * len(rows)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(again[2]["diagnosis"], before[2]["diagnosis"])


def test_a_full_disk_is_named_before_the_work(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Ran
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(filling.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(DermedgeError, match=r"needs .* GB, but .* --views"):
        fill(tmp_path, data, teacher)
    assert ran.since() == 0


def test_a_second_teacher_needs_the_space_of_its_outputs_only(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels are most of the cache, and are stored already."""
    cache = fill(tmp_path / "cache", data, teacher)
    pixels = sum(path.stat().st_size for path in cache.pixels.folder.iterdir())
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(filling.shutil, "disk_usage", lambda path: usage(1, 1, pixels // 2))
    other = untrained(tmp_path / "other", MALIGNANCY, seed=5)
    fill(tmp_path / "cache", data, other)


def test_progress_counts_every_stored_view_once(data: Path, teacher: Path, tmp_path: Path) -> None:
    both = load_teacher([teacher, untrained(tmp_path / "other", MALIGNANCY, seed=5)])
    samples, _ = read_samples(data, both.spec.tasks)
    cache = TeacherCache.open(tmp_path / "cache", samples, both, views=2)
    seen: list[tuple[int, int]] = []
    rows = samples.rows("train")
    fill_teacher_cache(cache, rows, lambda done, total, note: seen.append((done, total)))
    done = [one for one, _ in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (3 * 2 * len(rows), 3 * 2 * len(rows))


def test_other_augmentation_is_another_cache(
    data: Path, teacher: Path, tmp_path: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, data, teacher)
    assert ran.since() > 0
    make = teacher_cache.make_augmentation

    class Other:
        def to_dict(self) -> dict[str, Any]:
            described = make(32).to_dict()
            described["transform"]["transforms"][0]["scale"] = (0.5, 1.0)
            return described

    monkeypatch.setattr(teacher_cache, "make_augmentation", lambda size: Other())
    fill(tmp_path, data, teacher)
    assert ran.since() > 0


def test_a_teacher_without_finite_outputs_is_named(
    data: Path, teacher: Path, tmp_path: Path
) -> None:
    broken = load_teacher(teacher)
    with torch.no_grad():
        broken.members[0].model.module.heads["malignancy"].bias.fill_(float("nan"))
    with pytest.raises(DataError, match=r"malignancy of the teacher .* is NaN or infinite"):
        fill(tmp_path, data, broken)


def test_two_processes_may_fill_one_store(tmp_path: Path) -> None:
    first, second = ViewStore(tmp_path, {"k": 1}), ViewStore(tmp_path, {"k": 1})
    arrays = {"x": np.arange(4, dtype=np.float16)}
    first.add(["a", "b"], (0, 1), arrays)
    second.add(["b", "c"], (0, 1), {"x": np.array([2, 3, 4, 5], np.float16)})
    both = ViewStore(tmp_path, {"k": 1})
    assert both.missing("abc", 2) == {}
    assert both.read("cab", 1, ["x"])["x"].tolist() == [5, 1, 3]
    assert ViewStore(tmp_path, {"k": 2}).missing("a", 1) == {"a": (0,)}
