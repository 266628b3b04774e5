"""A student's `ood` head: what it computes, what it is fitted on, and who gets one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from dermedge.data.table import read_table
from dermedge.models import TrainedModel, load_model_folder
from dermedge.models.network import Network
from dermedge.models.ood import (
    LEAST_VARIANCE,
    OOD,
    UNUSUAL,
    FeatureDistance,
    fit_distance,
    fit_foreign,
)
from dermedge.train.finetune import FinetuneOptions
from dermedge.train.ood import DRAWN, read_foreign
from dermedge.train.samples import read_samples
from dermedge.train.views import Frames
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.preprocess import preprocess
from support import small


def normal(count: int, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Return features whose directions have very different variances."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1)))
    return drawn * torch.logspace(1, -1, width) @ turn + 3


class TestDistance:
    def test_it_is_the_mahalanobis_distance_of_probabilistic_pca(self) -> None:
        train, images, axes = normal(500), normal(20, seed=2) * 2, 4
        found = fit_distance(train, axes)(images)[:, 0].numpy()
        centre = train.numpy().astype(np.float64).mean(0)
        variances, directions = np.linalg.eigh(np.cov(train.numpy().astype(np.float64).T))
        variances, directions = variances[::-1].copy(), directions[:, ::-1]
        variances[axes:] = variances[axes:].mean()
        inverse = directions @ np.diag(1 / variances) @ directions.T
        offsets = images.numpy() - centre
        expected = np.sqrt(np.einsum("nd,de,ne->n", offsets, inverse, offsets) / train.shape[1])
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_training_images_score_about_1(self) -> None:
        train = normal(2000)
        assert fit_distance(train)(train).square().mean().item() == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize("count", [1, 2, 20])
    def test_few_images_give_finite_scores(self, count: int) -> None:
        score = fit_distance(normal(count))(normal(9, seed=3))
        assert torch.isfinite(score).all()
        assert (score > 0).all()

    def test_equal_features_do_not_divide_by_zero(self) -> None:
        head = fit_distance(torch.ones(50, 6))
        assert torch.isfinite(head(torch.full((1, 6), 2.0))).all()
        assert head(torch.ones(1, 6)).item() == pytest.approx(0, abs=1e-3)

    def test_a_direction_without_variance_cannot_dominate(self) -> None:
        train = normal(400)
        train[:, 0] = 0
        head = fit_distance(train, axes=2)
        assert head.scale.item() ** -2 / 12 >= LEAST_VARIANCE * train.var(0).mean().item() * 0.9

    def test_the_same_features_give_the_same_head(self) -> None:
        first, second = (fit_distance(normal(300)).state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_nothing_in_it_is_trained(self) -> None:
        assert list(FeatureDistance(8).parameters()) == []


class TestClassifier:
    def test_known_foreign_images_score_higher_and_others_keep_their_distance(self) -> None:
        train, val = normal(800), normal(400, seed=4)
        # Along one axis, where the distance shows little of it.
        turn = torch.linalg.eigh(torch.cov(train.T))
        shift = turn.eigenvectors[:, 3] * turn.eigenvalues[3].sqrt() * 3
        foreign, unknown = normal(300, seed=5) + shift, normal(300, seed=6) - shift
        head, plain = fit_distance(train), fit_distance(train)
        fit_foreign(head, train, val, foreign)
        limit, before = head(val).quantile(0.95), plain(val).quantile(0.95)
        seen = normal(300, seed=7) + shift
        assert (head(seen) > limit).float().mean() > (plain(seen) > before).float().mean() + 0.3
        assert (head(unknown) >= plain(unknown) - 1e-5).all()
        torch.testing.assert_close(head(unknown).median(), plain(unknown).median())

    def test_the_classifier_varies_as_much_on_val_as_the_distance(self) -> None:
        train, val = normal(800), normal(401, seed=4)
        head = fit_distance(train)
        spread = head(val).quantile(UNUSUAL) - head(val).median()
        fit_foreign(head, train, val, normal(200, seed=5) + 2)
        known = ((val - head.centre) * head.scale) @ head.foreign + head.bias
        torch.testing.assert_close(known.median(), torch.tensor(0.0), atol=1e-4, rtol=0)
        torch.testing.assert_close(known.quantile(UNUSUAL), spread, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("count", [1, 2, 20])
    def test_few_or_equal_images_give_finite_scores(self, count: int) -> None:
        for train in (normal(count), torch.ones(count, 12)):
            head = fit_distance(train)
            fit_foreign(head, train, train, normal(5, seed=2))
            assert torch.isfinite(head(normal(9, seed=3))).all()

    def test_a_folder_from_before_them_scores_as_before(self) -> None:
        old, head = fit_distance(normal(300)), FeatureDistance(12)
        weights = {k: v for k, v in old.state_dict().items() if k not in ("foreign", "bias")}
        fit_foreign(head, normal(300), normal(300), normal(50) + 1)
        head.load_state_dict(weights, strict=True)
        assert torch.equal(head(normal(9)), old(normal(9)))
        assert "foreign" not in weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.data_set(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a student that was trained with the task."""
    out = tmp_path_factory.mktemp("trained") / "student"
    train(data, out)
    return out


def train(data: Path, out: Path, **changes: object) -> TrainedModel:
    options = {"backbone": small.EXPORTED, "backbone_args": {}, "role": "student", "ood": True}
    return small.train(data, out, **{**options, **changes})


def own_features(network: Network, data: Path, model: TrainedModel) -> torch.Tensor:
    samples, _ = read_samples(data, model.spec.tasks)
    frames = Frames(samples.paths, model.spec.preprocess)
    rows = [torch.from_numpy(frames.centred(int(row))) for row in samples.rows("train")]
    with torch.no_grad():
        return network.features(torch.stack(rows))


def test_a_student_scores_how_foreign_an_image_is(data: Path, folder: Path) -> None:
    model = load_model_folder(folder)
    assert model.spec.tasks[-1] == OOD
    expected = fit_distance(own_features(model.module, data, model)).state_dict()
    head = model.module.heads["ood"].state_dict()
    for name in ("centre", "axes", "scale"):
        torch.testing.assert_close(head[name], expected[name], rtol=1e-3, atol=1e-4)
    assert head["foreign"].abs().sum() > 0
    assert model.spec.lineage["ood"] == {"drawn": len(DRAWN), "tables": []}
    with torch.no_grad():
        score = model.module(small.pixels(3))["ood"]
    assert score.shape == (3, 1)


def test_a_finished_run_is_returned_with_the_task(data: Path, folder: Path) -> None:
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    again = train(data, folder)
    assert again.spec.tasks[-1] == OOD
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("changes", [{"role": "teacher"}, {"ood": False}])
def test_a_teacher_has_no_such_task(data: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    model = train(data, tmp_path / "model", **changes)
    assert OOD not in model.spec.tasks
    assert "ood" not in model.module.heads


def test_a_distilled_student_has_statistics_of_its_own(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    """The teacher's head describes the teacher's features, even at equal width."""
    student = small.learn(
        folder, data, tmp_path / "out", backbone=small.EXPORTED, init="auto", ood=True
    )
    assert [task.kind for task in student.spec.tasks].count("ood") == 1
    features = own_features(student.module, data, student)
    head = student.module.heads["ood"]
    torch.testing.assert_close(head.centre, features.mean(0), rtol=1e-3, atol=1e-4)
    taught = load_model_folder(folder).module.heads["ood"]
    assert not torch.allclose(head.centre, taught.centre)


def test_a_student_without_the_task_learns_from_a_teacher_with_it(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    student = small.learn(folder, data, tmp_path / "out", backbone=small.EXPORTED, ood=False)
    assert OOD not in student.spec.tasks


def shifted(data: Path, folder: Path, modality: str = "", count: int = 24) -> Path:
    """Write a table with the negatives of some images of a data set."""
    folder.mkdir()
    frame = read_table(data).frame.head(count)
    for name in frame["image"]:
        with Image.open(data / name) as image:
            negative = ImageChops.invert(image.convert("RGB"))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        negative.save(folder / name)
    rows = [f"{Path(name).stem},{name},{modality},train" for name in frame["image"]]
    (folder / "metadata.csv").write_text("\n".join(["image_id,image,modality,split", *rows]))
    return folder


def test_images_of_a_table_are_flagged_and_recorded(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    table = shifted(data, tmp_path / "clinic", "clinical")
    model = train(data, tmp_path / "out", foreign=[table])
    recorded = model.spec.lineage["ood"]["tables"]
    assert [(one["name"], one["images"], one["modalities"]) for one in recorded] == [
        ("clinic", 24, {"clinical": 24})
    ]
    head = model.module.heads["ood"]
    assert head.foreign.abs().sum() > 0
    plain = load_model_folder(folder).module.heads["ood"]
    images = [table / name for name in read_table(table).frame["image"]]
    pixels = torch.from_numpy(
        np.stack([preprocess(path, model.spec.preprocess) for path in images])
    )
    with torch.no_grad():
        features = model.module.features(pixels)
        assert (
            head(features).median()
            > fit_distance(own_features(model.module, data, model))(features).median()
        )
    assert plain.foreign.abs().sum() > 0
    with pytest.raises(UsageError, match="already holds another run"):
        train(data, tmp_path / "out")
    # The same cells with another image are other foreign images.
    Image.new("RGB", (64, 48), "red").save(images[0])
    with pytest.raises(UsageError, match="already holds another run"):
        train(data, tmp_path / "out", foreign=[table])


def test_tables_of_foreign_images_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="are also in the training data"):
        train(data, tmp_path / "same", foreign=[data])
    table = shifted(data, tmp_path / "clinic")
    for changes in ({"role": "teacher"}, {"ood": False}):
        with pytest.raises(UsageError, match="only a student with the task ood"):
            train(data, tmp_path / "other", foreign=[table], **changes)
    damaged = shifted(data, tmp_path / "damaged")
    (damaged / read_table(damaged).frame["image"].iloc[3]).write_bytes(b"no image")
    with pytest.raises(DataError, match="data check"):
        train(data, tmp_path / "other", foreign=[damaged])
    (table / "metadata.csv").write_text(
        (table / "metadata.csv").read_text().replace(",train", ",test")
    )
    with pytest.raises(DataError, match="no train rows to fit the OOD score on"):
        train(data, tmp_path / "other", foreign=[table])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("given", [False, True])
def test_a_model_of_dermoscopic_images_alone_asks_for_clinical_ones(
    given: bool, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples, _ = read_samples(data, ())
    dermoscopic = replace(samples, modalities=np.full(len(samples.paths), "dermoscopic"))
    foreign = [shifted(data, tmp_path / "clinic", "clinical")] if given else []
    read_foreign(FinetuneOptions(foreign=foreign), dermoscopic, fits=True)
    warned = "clinical photographs. Give a table of clinical photographs with --foreign." in (
        caplog.text
    )
    assert warned != given
    caplog.clear()
    read_foreign(FinetuneOptions(), samples, fits=True)
    read_foreign(FinetuneOptions(), dermoscopic, fits=False)
    assert not caplog.text
