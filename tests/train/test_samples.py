from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dermedge.data.table import read_table
from dermedge.models import Network
from dermedge.models.backbone import Backbone
from dermedge.models.new_spec import make_spec
from dermedge.train.samples import read_samples
from dermedge.train.tasks import derive_tasks
from dermedge.train.training_data import TrainingBatch, TrainingData, make_val_score
from dermedge.train.views import Frames, Masks, Views
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Preprocess
from support.small import SIZE, edited, in_process

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
    def test_views_do_not_depend_on_order_thread_or_process(
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

    def test_views_depend_on_seed_number_and_image(self, data: Path, expected: np.ndarray) -> None:
        assert len(np.unique(expected.reshape(len(KEYS), -1), axis=0)) == len(KEYS)
        other = views(data, seed=5)
        assert all(
            (other.view(*key) != pixels).any() for key, pixels in zip(KEYS, expected, strict=True)
        )

    def test_an_images_views_do_not_depend_on_its_row(
        self, data: Path, expected: np.ndarray, tmp_path: Path
    ) -> None:
        turned = edited(data, tmp_path / "turned", lambda frame: frame.iloc[::-1])
        again = views(turned)
        last = len(again.image_ids) - 1
        np.testing.assert_array_equal(
            [again.view(last - row, number) for row, number in KEYS], expected
        )

    def test_views_show_different_crops_of_the_lesion(
        self, data: Path, expected: np.ndarray
    ) -> None:
        assert expected.shape == (len(KEYS), SIZE, SIZE, 3)
        assert expected.dtype == np.uint8
        originals = views(data).frames
        for (row, _), view in zip(KEYS, expected, strict=True):
            assert np.abs(view.mean((0, 1)) - originals.centred(row).mean((0, 1))).max() < 60


class TestMemory:
    def test_a_small_budget_gives_the_same_batches_and_scores(
        self, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table, tasks = read_samples(data, wanted=("diagnosis", "segmentation"))
        spec = make_spec("memory", tasks, Preprocess(SIZE), {})
        network = Network(Backbone("test_efficientnet"), tasks).eval()

        def run() -> tuple[TrainingData, list[TrainingBatch], dict[str, float]]:
            prepared = TrainingData.prepare(table, spec, batch_size=16, seed=0)
            batches = [batch for epoch in (0, 1) for batch in prepared.labelled_batches(epoch)]
            return prepared, batches, dict(make_val_score(prepared)(network))

        _, expected, score = run()
        budget = 10 * 3 * SIZE * SIZE
        monkeypatch.setattr("dermedge.train.views.FRAME_BYTES", budget)
        prepared, batches, other = run()
        assert prepared.masks is not None
        kept = [*prepared.frames._kept.values(), *prepared.masks._kept.values()]
        assert kept
        assert sum(array.nbytes for array in kept) <= budget
        assert other == score
        assert len(batches) == len(expected) == 6
        for batch, same in zip(batches, expected, strict=True):
            for tensor, equal in zip(batch, same, strict=True):
                torch.testing.assert_close(tensor, equal, rtol=0, atol=0, equal_nan=True)

    def test_a_view_with_a_mask_beyond_the_budget_decodes_its_image_once(
        self, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table, _ = read_samples(data)
        frames = Frames(table.paths, Preprocess(SIZE), capacity=0)
        decoded: list[int] = []
        decode = Frames._decode

        def count(self: Frames, row: int) -> np.ndarray:
            decoded.append(row)
            return decode(self, row)

        monkeypatch.setattr(Frames, "_decode", count)
        views = Views(frames, table.image_ids, 0, Masks(table.masks, frames))
        for row in (0, 1, 0):
            views.masked_view(row, 0)
        assert decoded == [0, 1, 0]


class TestFrames:
    def test_a_photograph_is_reduced(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        photograph = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize(
            (1000, 750)
        )
        photograph.save(tmp_path / "large.jpg")
        frames = Frames([tmp_path / "large.jpg"], Preprocess(SIZE))
        frame = frames[0]
        assert frame.shape == (round(1.15 * SIZE), round(1.15 * SIZE * 4 / 3), 3)
        (tmp_path / "large.jpg").unlink()
        assert frames[0] is frame

    def test_a_small_image_is_not_enlarged(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "small.png")
        np.testing.assert_array_equal(Frames([tmp_path / "small.png"], Preprocess(SIZE))[0], pixels)

    def test_validation_uses_the_exact_preprocessing(self, data: Path) -> None:
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
        fewer = edited(
            data, tmp_path / "fewer", lambda frame: frame[frame["dx"].isin(["mel", "df"])]
        )
        samples, kept = read_samples(fewer, tasks)
        assert kept is tasks
        names = [label.id for label in tasks[0].labels]
        assert {names[label] for label in samples.labels} == {"mel", "df"}


def frame(
    dx: list[str], malignant: list[float], severity: float = np.nan, mask: str = ""
) -> pd.DataFrame:
    return pd.DataFrame({"dx": dx, "malignant": malignant, "severity": severity, "mask": mask})


class TestTasks:
    def test_labels_have_the_order_and_the_codes_of_the_taxonomy(self) -> None:
        one = derive_tasks(
            frame(["vasc", "", "mel", "akiec", "nv"], [0, np.nan, 1, np.nan, 0]), "t"
        )
        other = derive_tasks(frame(["nv", "mel", "vasc", "akiec"], [0, 1, 0, np.nan]), "t")
        assert one == other
        assert [(label.id, label.malignant) for label in one[0].labels] == [
            ("nv", False),
            ("mel", True),
            ("akiec", None),
            ("vasc", False),
        ]
        assert one[0].labels[1].codes == {"icd11": "2C30"}

    def test_malignancy_is_a_task_if_malignant_and_benign_rows_occur(self) -> None:
        both = derive_tasks(frame(["nv", "mel"], [0, 1]), "t")
        assert [(task.name, task.kind) for task in both] == [
            ("diagnosis", "classify"),
            ("malignancy", "binary"),
        ]
        benign = derive_tasks(frame(["nv", "df"], [0, 0]), "t")
        assert [task.name for task in benign] == ["diagnosis"]

    def test_a_single_diagnosis_is_not_a_task(self) -> None:
        with pytest.raises(
            DataError, match=r"lesions have 1 diagnoses, two are needed.*no task can be derived"
        ):
            derive_tasks(frame(["nv", "nv", ""], [0, 0, np.nan]), "lesions")
        either = derive_tasks(frame(["nv", "nv", ""], [0, 1, np.nan]), "lesions")
        assert [task.name for task in either] == ["malignancy"]

    def test_severity_is_a_task_if_it_is_wanted_or_alone(self) -> None:
        both = frame(["nv", "mel", "nv", "nv"], [0, 1, 0, 0]).assign(severity=[3, 1, np.nan, 10])
        assert [task.name for task in derive_tasks(both, "t")] == ["diagnosis", "malignancy"]
        severity = derive_tasks(both, "t", ["severity", "malignancy"])[1]
        assert (severity.name, severity.kind) == ("severity", "ordinal")
        assert [label.id for label in severity.labels] == ["1", "3", "10"]
        faces = both.assign(dx="acne", malignant=0.0)
        assert derive_tasks(faces, "t") == (severity,)

    def test_segmentation_is_a_task_only_if_it_is_wanted(self) -> None:
        masked = frame(["nv", "mel"], [0, 1], mask="a.png")
        assert [task.kind for task in derive_tasks(masked, "t")] == ["classify", "binary"]
        found = derive_tasks(masked, "t", ("segmentation", "diagnosis"))
        assert [(task.name, task.kind) for task in found] == [
            ("diagnosis", "classify"),
            ("lesion", "segment"),
        ]

    @pytest.mark.parametrize(
        ("wanted", "error", "message"),
        [
            (
                ["diagnosis", "severity"],
                DataError,
                "t have 0 levels of severity.*leave the task 'severity' out",
            ),
            (["segmentation"], DataError, "t have no mask"),
            (
                ["diagnosis", "lesion"],
                UsageError,
                "lesion cannot be learned\\. Choose from diagnosis, malignancy",
            ),
            ([], UsageError, "No task cannot be learned"),
        ],
    )
    def test_a_wanted_task_without_labels_is_refused(
        self, wanted: list[str], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            derive_tasks(frame(["nv", "mel"], [0, 1]), "t", wanted)


def disc(
    folder: Path, name: str, centre: tuple[float, float], size: tuple[int, int]
) -> tuple[Path, Path]:
    """A picture that is red inside a disc, and the disc's mask."""
    y, x = np.mgrid[: size[0], : size[1]]
    inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (min(size) / 5) ** 2
    pixels = np.where(inside[..., None], (200, 20, 20), (90, 90, 90)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(inside).save(folder / f"{name}-mask.png")
    return folder / f"{name}.png", folder / f"{name}-mask.png"


class TestMasks:
    @pytest.fixture
    def masks(self, tmp_path: Path) -> Masks:
        files = [
            disc(tmp_path, "wide", (40, 90), (120, 160)),
            disc(tmp_path, "tall", (100, 50), (200, 100)),
        ]
        frames = Frames([image for image, _ in files] + [files[0][0]], Preprocess(64))
        return Masks([*(mask for _, mask in files), None], frames)

    def red(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[..., 0].astype(int) - pixels[..., 1] > 60

    def test_a_view_and_its_mask_have_the_same_crop_and_symmetry(self, masks: Masks) -> None:
        made = Views(masks.frames, ["a", "b", "c"], 0, masks)
        for row in (0, 1):
            for number in range(24):
                pixels, share = made.masked_view(row, number)
                seen = self.red(pixels).reshape(16, 4, 16, 4).mean((1, 3))
                assert share.shape == (16, 16)
                assert np.abs(share - seen).mean() < 0.02, (row, number)

    def test_a_mask_does_not_change_the_view(self, masks: Masks) -> None:
        with_masks, without = Views(masks.frames, "abc", 3, masks), Views(masks.frames, "abc", 3)
        for number in range(8):
            np.testing.assert_array_equal(
                with_masks.masked_view(0, number)[0], without.view(0, number)
            )
            np.testing.assert_array_equal(with_masks.view(0, number), without.view(0, number))

    def test_a_row_without_a_mask_has_none_in_any_view(self, masks: Masks) -> None:
        pixels, share = Views(masks.frames, "abc", 0, masks).masked_view(2, 0)
        assert self.red(pixels).any()
        assert np.isnan(share).all()
        assert np.isnan(masks.centred(2)).all()

    @pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
    def test_the_mask_for_validation_matches_the_preprocessed_image(
        self, masks: Masks, fit: str
    ) -> None:
        masks.frames.spec = Preprocess(64, fit=fit)  # type: ignore[arg-type]
        for row in (0, 1):
            seen = self.red(masks.frames.centred(row)).reshape(16, 4, 16, 4).mean((1, 3))
            found = masks.centred(row)
            assert set(np.unique(found)) == {0, 1}
            assert ((found == 1) != (seen >= 0.5)).mean() < 0.02

    def test_a_mask_of_another_shape_is_named(self, masks: Masks, tmp_path: Path) -> None:
        Image.new("1", (90, 120)).save(tmp_path / "wide-mask.png")
        with pytest.raises(
            DataError,
            match=r"wide-mask\.png cannot be used: it is 90x120, but its image is 160x120",
        ):
            masks.framed(0)
        (tmp_path / "tall-mask.png").unlink()
        with pytest.raises(DataError, match=r"tall-mask\.png.*Repair the file, or empty its cell"):
            masks.centred(1)

    def test_rows_keep_their_masks_and_levels(self, data: Path, tmp_path: Path) -> None:
        def fewer(table: pd.DataFrame) -> pd.DataFrame:
            table.loc[[0, 1], "mask"] = ""
            table.loc[[2, 3], "severity"] = ["", "77"]
            table.loc[3, "split"] = "val"
            return table

        samples, tasks = read_samples(
            edited(data, tmp_path / "fewer", fewer), wanted=["severity", "segmentation"]
        )
        assert samples.masks[:2] == (None, None)
        assert samples.masks[2] == tmp_path / "fewer" / "masks" / "D000002.png"
        ids = [label.id for label in tasks[0].labels]
        table = read_table(tmp_path / "fewer").frame
        known = table["severity"].notna() & (table["severity"] != 77)
        assert samples.severity[[2, 3]].tolist() == [-1, -1]
        assert [ids[level] for level in samples.severity[known]] == [
            f"{v:.0f}" for v in table["severity"][known]
        ]
        before = samples.masks_digest
        (tmp_path / "fewer" / "masks" / "D000002.png").unlink()
        with pytest.raises(DataError, match=r"D000002\.png cannot be read"):
            _ = samples.masks_digest
        disc(tmp_path, "D", (9, 9), (48, 64))[1].rename(
            tmp_path / "fewer" / "masks" / "D000002.png"
        )
        assert samples.masks_digest != before


def test_a_row_with_several_diagnoses_makes_no_class_and_teaches_what_covers_them(
    data: Path, tmp_path: Path
) -> None:
    def doubt(frame: pd.DataFrame) -> pd.DataFrame:
        rows = frame.index[frame["dx"] == "nv"][:2]
        frame.loc[rows[0], "dx"] = "nv;psoriasis"
        frame.loc[rows[1], "dx"] = "nv;blue_nevus"
        return frame

    changed = edited(data, tmp_path / "lesions", doubt)
    frame, plain = read_table(changed).frame, read_samples(data)[0]
    samples, tasks = read_samples(changed)
    assert tasks == read_samples(data)[1]
    unknown, covered = (
        samples.labels[frame["dx"] == dx] for dx in ("nv;psoriasis", "nv;blue_nevus")
    )
    assert unknown.tolist() == [-1]
    assert covered.tolist() == plain.labels[frame["dx"] == "nv"][:1].tolist()
