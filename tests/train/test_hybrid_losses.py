"""The terms of hybrid pretraining against their definitions, written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dermedge.train.hybrid.losses import (
    dino_loss,
    ibot_loss,
    koleo_loss,
    label_loss,
    sinkhorn_knopp,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


class TestSinkhornKnopp:
    def test_rows_are_probabilities_and_prototypes_are_used_equally(self) -> None:
        logits = normal(64, 8) + 3 * F.one_hot(
            torch.zeros(64, dtype=torch.long), 8
        )  # all prefer the first prototype
        found = sinkhorn_knopp(logits, 0.5, rounds=50)
        assert torch.allclose(found.sum(1), torch.ones(64), atol=1e-5)
        assert torch.allclose(found.sum(0), torch.full((8,), 8.0), atol=1e-3)
        assert not torch.allclose(F.softmax(logits / 0.5, 1).sum(0), torch.full((8,), 8.0), atol=10)

    def test_it_is_the_published_iteration(self) -> None:
        logits, temperature = normal(12, 5), 0.07
        q = torch.exp(logits.double() / temperature).T
        q /= q.sum()
        for _ in range(3):
            q /= q.sum(1, keepdim=True) * 5
            q /= q.sum(0, keepdim=True) * 12
        assert torch.allclose(sinkhorn_knopp(logits, temperature), (q * 12).T.float(), atol=1e-5)

    def test_large_logits_do_not_overflow(self) -> None:
        assert torch.isfinite(sinkhorn_knopp(1000 * normal(6, 4), 0.04)).all()

    def test_no_rows_give_no_rows(self) -> None:
        assert sinkhorn_knopp(torch.zeros(0, 4), 0.1).shape == (0, 4)


def test_dino_compares_every_crop_with_every_other_global_one() -> None:
    student, local = normal(2, 3, 6), normal(4, 3, 6, seed=1)
    target = F.softmax(normal(2, 3, 6, seed=2), -1)
    pairs = []
    for t in range(2):
        for s in range(6):
            if s != t:
                crop = student[s] if s < 2 else local[s - 2]
                pairs.append(-(target[t] * F.log_softmax(crop / 0.1, -1)).sum(-1).mean())
    assert len(pairs) == 10
    assert torch.allclose(dino_loss(student, local, target, 0.1), torch.stack(pairs).mean())


def test_ibot_counts_every_crop_once_however_many_patches_it_hides() -> None:
    student, target = normal(5, 4), F.softmax(normal(5, 4, seed=1), -1)
    each = -(target * F.log_softmax(student / 0.1, -1)).sum(-1)
    weight = torch.tensor([1.0, 0.25, 0.25, 0.25, 0.25])  # two masked crops of four
    expected = (each[0] + each[1:].mean()) / 4
    assert torch.allclose(ibot_loss(student, target, weight, 4, 0.1), expected)


class TestKoleo:
    def test_it_is_minus_the_mean_log_distance_to_the_nearest_other(self) -> None:
        features = normal(7, 3)
        unit = F.normalize(features, dim=1)
        distance = torch.cdist(unit, unit) + 10 * torch.eye(7)
        assert koleo_loss(features) == pytest.approx(
            float(-torch.log(distance.min(1).values).mean()), abs=1e-4
        )

    def test_it_pushes_two_close_features_apart(self) -> None:
        features = torch.tensor([[1.0, 0.01], [1.0, -0.01], [-1.0, 0.0]], requires_grad=True)
        koleo_loss(features).backward()
        assert features.grad is not None
        step = features.detach() - 1e-4 * features.grad
        assert (step[0] - step[1]).norm() > (features[0] - features[1]).norm()


class TestLabelLoss:
    TARGETS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    ALLOWED = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])

    def test_only_what_a_source_can_label_counts_and_only_labelled_samples(self) -> None:
        logits = normal(3, 3)
        entries = F.binary_cross_entropy_with_logits(logits, self.TARGETS.float(), reduction="none")
        expected = (entries[0, :2].mean() + entries[1].mean()) / 2
        assert torch.allclose(
            label_loss(logits, self.TARGETS, self.ALLOWED, torch.tensor(2.0)), expected
        )

    def test_a_batch_without_labels_costs_nothing_and_has_a_gradient(self) -> None:
        logits = normal(3, 3).requires_grad_()
        loss = label_loss(
            logits, self.TARGETS, torch.zeros(3, 3, dtype=torch.bool), torch.tensor(0.0)
        )
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()
