import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermedge.data import read_table
from dermedge.train.samples import Frames, Views, ahead, derive_tasks, read_samples
from dermedge_runtime.errors import DataError
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Preprocess
from train.small import SIZE, edited, in_process

KEYS = [(row, number) for row in (0, 1, 5, 9) for number in (0, 1, 7)]


def views(data: Path, seed: int = 4) -> Views:
    samples, _ = read_samples(data)
    return Views(Frames(samples.paths, Preprocess(SIZE)), samples.image_ids, seed)


def save_views(data: Path, out: Path) -> None:
    made = views(data)
    np.save(out, np.stack([made.view(*key) for key in reversed(KEYS)])[::-1])


@pytest.fixture(scope="module")
def expected(data: Path) -> np.ndarray:
    made = views(data)
    return np.stack([made.view(*key) for key in KEYS])


class TestViews:
    def test_they_do_not_depend_on_order_thread_or_process(
        self, data: Path, expected: np.ndarray, tmp_path: Path
    ) -> None:
        made = views(data)
        np.random.seed(1)  # noqa: NPY002  the global generators of others must not reach in
        made.view(7, 3)
        with ThreadPoolExecutor(3) as pool:
            threaded = list(pool.map(lambda key: made.view(*key), [*KEYS[::-1], *KEYS]))
        np.testing.assert_array_equal(threaded[: len(KEYS)][::-1], expected)
        np.testing.assert_array_equal(threaded[len(KEYS) :], expected)
        assert in_process(save_views, data, tmp_path / "views.npy") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "views.npy"), expected)

    def test_they_depend_on_seed_number_and_image(self, data: Path, expected: np.ndarray) -> None:
        assert len(np.unique(expected.reshape(len(KEYS), -1), axis=0)) == len(KEYS)
        other = views(data, seed=5)
        assert all((other.view(*key) != pixels).any() for key, pixels in zip(KEYS, expected, strict=True))

    def test_an_images_views_do_not_depend_on_its_row(self, data: Path, expected: np.ndarray, tmp_path: Path) -> None:
        turned = edited(data, tmp_path / "turned", lambda frame: frame.iloc[::-1])
        again = views(turned)
        last = len(again.image_ids) - 1
        np.testing.assert_array_equal([again.view(last - row, number) for row, number in KEYS], expected)

    def test_they_show_the_lesion_in_other_framings(self, data: Path, expected: np.ndarray) -> None:
        assert expected.shape == (len(KEYS), SIZE, SIZE, 3)
        assert expected.dtype == np.uint8
        originals = views(data).frames
        for (row, _), view in zip(KEYS, expected, strict=True):
            assert np.abs(view.mean((0, 1)) - originals.centred(row).mean((0, 1))).max() < 60


class TestFrames:
    def test_a_photograph_is_kept_small(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        photograph = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize((1000, 750))
        photograph.save(tmp_path / "large.jpg")
        frames = Frames([tmp_path / "large.jpg"], Preprocess(SIZE))
        frame = frames[0]
        assert frame.shape == (round(1.15 * SIZE), round(1.15 * SIZE * 4 / 3), 3)
        (tmp_path / "large.jpg").unlink()
        assert frames[0] is frame

    def test_a_small_picture_is_not_enlarged(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "small.png")
        np.testing.assert_array_equal(Frames([tmp_path / "small.png"], Preprocess(SIZE))[0], pixels)

    def test_validation_sees_the_contracted_preprocessing(self, data: Path) -> None:
        samples, _ = read_samples(data)
        spec = Preprocess(SIZE, fit="pad", background=(9, 8, 7))
        expected = preprocess(samples.paths[3].read_bytes(), spec, exact=True)
        np.testing.assert_array_equal(Frames(samples.paths, spec).centred(3), expected)

    def test_a_bad_image_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.jpg"
        path.write_bytes(b"\xff\xd8\xff nothing more")
        frames = Frames([path], Preprocess(SIZE))
        with pytest.raises(DataError, match=r"broken\.jpg.*dermedge data check"):
            frames[0]
        with pytest.raises(DataError, match=r"broken\.jpg.*dermedge data check"):
            frames.centred(0)


class TestRows:
    def test_labels_are_mapped_up_the_taxonomy(self, data: Path, tmp_path: Path) -> None:
        def finer(frame: pd.DataFrame) -> pd.DataFrame:
            val = frame.index[frame["split"] == "val"]
            frame.loc[val[:5], "dx"] = ["sk", "mel_in_situ", "scc", "", "hemangioma"]
            frame.loc[val[:5], "malignant"] = ["", "0", "1", "", ""]
            return frame

        samples, tasks = read_samples(edited(data, tmp_path / "finer", finer))
        names = [label.id for label in tasks[0].labels]
        rows = samples.rows("val")[:5]
        assert [names[label] if label >= 0 else None for label in samples.labels[rows]] == [
            "bkl",
            "mel",
            None,
            None,
            "vasc",
        ]
        np.testing.assert_array_equal(samples.malignant[rows], [0, 0, 1, np.nan, 0])

    def test_rows_keep_their_files_and_splits(self, data: Path) -> None:
        samples, _ = read_samples(data)
        frame = read_table(data).frame
        assert samples.image_ids == tuple(frame["image_id"])
        assert [path.stem for path in samples.paths] == list(samples.image_ids)
        assert {name: len(samples.rows(name)) for name in ("train", "val", "test")} == dict(
            frame["split"].value_counts()
        )

    def test_a_missing_image_is_named(self, data: Path, tmp_path: Path) -> None:
        copy = edited(data, tmp_path / "copy", lambda frame: frame)
        (copy / "images" / "D000017.jpg").unlink()
        with pytest.raises(DataError, match=r"images/D000017\.jpg"):
            read_samples(copy)

    def test_given_tasks_are_kept(self, data: Path, tmp_path: Path) -> None:
        _, tasks = read_samples(data)
        fewer = edited(data, tmp_path / "fewer", lambda frame: frame[frame["dx"].isin(["mel", "df"])])
        samples, kept = read_samples(fewer, tasks)
        assert kept is tasks
        names = [label.id for label in tasks[0].labels]
        assert {names[label] for label in samples.labels} == {"mel", "df"}


def frame(dx: list[str], malignant: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"dx": dx, "malignant": malignant})


class TestTasks:
    def test_labels_stand_in_the_taxonomys_order_with_what_it_knows(self) -> None:
        one = derive_tasks(frame(["vasc", "", "mel", "akiec", "nv"], [0, np.nan, 1, np.nan, 0]), "t")
        other = derive_tasks(frame(["nv", "mel", "vasc", "akiec"], [0, 1, 0, np.nan]), "t")
        assert one == other
        assert [(label.id, label.malignant) for label in one[0].labels] == [
            ("nv", False),
            ("mel", True),
            ("akiec", None),
            ("vasc", False),
        ]
        assert one[0].labels[1].codes == {"icd11": "2C30"}

    def test_malignancy_is_a_task_where_both_answers_occur(self) -> None:
        both = derive_tasks(frame(["nv", "mel"], [0, 1]), "t")
        assert [(task.name, task.kind) for task in both] == [("diagnosis", "classify"), ("malignancy", "binary")]
        benign = derive_tasks(frame(["nv", "df"], [0, 0]), "t")
        assert [task.name for task in benign] == ["diagnosis"]

    def test_one_diagnosis_cannot_be_told_apart(self) -> None:
        with pytest.raises(DataError, match="lesions have 1 diagnoses, two are needed"):
            derive_tasks(frame(["nv", "nv", ""], [0, 0, np.nan]), "lesions")


class TestAhead:
    def test_results_come_in_order_and_only_a_few_wait(self) -> None:
        made: list[int] = []
        results = ahead(lambda key: made.append(key) or key * key, range(50), depth=3)
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
        assert len(made) <= 5 + 4
        assert list(results) == [n * n for n in range(5, 50)]

    def test_an_error_reaches_the_reader_and_leaving_early_ends_the_thread(self) -> None:
        def make(key: int) -> int:
            if key == 2:
                raise DataError("the third is broken")
            return key

        results = ahead(make, range(9))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(DataError, match="the third"):
            next(results)
        before = threading.active_count()
        endless: Iterator[int] = ahead(lambda key: key, range(1000))
        next(endless)
        endless.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
