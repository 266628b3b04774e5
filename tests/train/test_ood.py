"""A student's `ood` head: what it computes, what it is fitted on, and who gets one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dermedge.models import TrainedModel, load_model_folder
from dermedge.models.network import Network
from dermedge.models.ood import LEAST_VARIANCE, OOD, FeatureDistance, fit_distance
from dermedge.train.samples import read_samples
from dermedge.train.views import Frames
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
    for name, values in expected.items():
        torch.testing.assert_close(head[name], values, rtol=1e-3, atol=1e-4)
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
