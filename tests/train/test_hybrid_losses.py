"""Compare the losses of hybrid pretraining with their definitions and with released values.

tests/data/dermino_losses.npz holds random inputs, and the values that the released code of
DermINO (github.com/zxq-kd/DermINO, commit f17a420) computes for them on a CPU.
"""

from pathlib import Path

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

RELEASED = Path(__file__).parents[1] / "data" / "dermino_losses.npz"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).float()


class TestReleasedValues:
    """Inputs of 4 images with 2 global and 3 local crops, 64 outputs, 24 classes."""

    @pytest.fixture
    def case(self) -> dict[str, Tensor]:
        with np.load(RELEASED) as arrays:
            return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}

    def assign(self, case: dict[str, Tensor], logits: str) -> Tensor:
        return sinkhorn_knopp(case[logits], float(case["teacher_temperature"]))

    @pytest.mark.parametrize(
        ("logits", "assignments"),
        [
            ("teacher_class_logits", "teacher_assignments"),
            ("teacher_patch_logits", "patch_assignments"),
        ],
    )
    def test_sinkhorn_knopp(self, case: dict[str, Tensor], logits: str, assignments: str) -> None:
        torch.testing.assert_close(
            self.assign(case, logits), case[assignments], rtol=1e-5, atol=3e-7
        )

    def test_dino_loss(self, case: dict[str, Tensor]) -> None:
        loss = dino_loss(
            torch.stack(case["student_global_logits"].chunk(2)),
            torch.stack(case["student_local_logits"].chunk(3)),
            torch.stack(self.assign(case, "teacher_class_logits").chunk(2)),
            float(case["student_temperature"]),
        )
        torch.testing.assert_close(loss, case["dino_loss"], rtol=1e-6, atol=0)

    def test_ibot_loss(self, case: dict[str, Tensor]) -> None:
        mask = case["patch_mask"]
        weight = (1 / mask.sum(1, keepdim=True).clamp_min(1)).expand_as(mask)[mask]
        loss = ibot_loss(
            case["student_patch_logits"],
            self.assign(case, "teacher_patch_logits"),
            weight,
            len(mask),
            float(case["student_temperature"]),
        )
        torch.testing.assert_close(loss, case["ibot_loss"], rtol=1e-6, atol=0)

    def test_koleo_loss(self, case: dict[str, Tensor]) -> None:
        first, second = (koleo_loss(crop) for crop in case["features"].chunk(2))
        expected = case["koleo_loss_sum_of_two_crops"]
        torch.testing.assert_close(first + second, expected, rtol=1e-5, atol=0)

    def test_label_loss(self, case: dict[str, Tensor]) -> None:
        known = case["label_known"]
        allowed = case["label_allowed_by_source"][case["label_source"]] & known[:, None]
        loss = label_loss(
            case["label_logits"],
            case["label_targets"].repeat(2, 1),
            allowed.repeat(2, 1),
            2 * known.sum().float(),
        )
        torch.testing.assert_close(loss, case["label_loss"], rtol=1e-6, atol=0)


class TestSinkhornKnopp:
    def test_rows_are_probabilities_and_prototypes_are_used_equally(self) -> None:
        prefer_first = F.one_hot(torch.zeros(64, dtype=torch.long), 8)
        logits = normal(64, 8) + 3 * prefer_first
        found = sinkhorn_knopp(logits, 0.5, rounds=50)
        assert torch.allclose(found.sum(1), torch.ones(64), atol=1e-5)
        assert torch.allclose(found.sum(0), torch.full((8,), 8.0), atol=1e-3)
        assert not torch.allclose(F.softmax(logits / 0.5, 1).sum(0), torch.full((8,), 8.0), atol=10)

    def test_the_result_equals_the_published_iteration(self) -> None:
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


def test_dino_compares_every_crop_with_every_other_global_crop() -> None:
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


def test_ibot_counts_every_crop_once_for_any_number_of_masked_patches() -> None:
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

    def test_the_gradient_pushes_two_close_features_apart(self) -> None:
        features = torch.tensor([[1.0, 0.01], [1.0, -0.01], [-1.0, 0.0]], requires_grad=True)
        koleo_loss(features).backward()
        assert features.grad is not None
        step = features.detach() - 1e-4 * features.grad
        assert (step[0] - step[1]).norm() > (features[0] - features[1]).norm()


class TestLabelLoss:
    TARGETS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0]])
    ALLOWED = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])

    def test_only_allowed_entries_and_labelled_samples_count(self) -> None:
        logits = normal(3, 3)
        entries = F.binary_cross_entropy_with_logits(logits, self.TARGETS.float(), reduction="none")
        expected = (entries[0, :2].mean() + entries[1].mean()) / 2
        assert torch.allclose(
            label_loss(logits, self.TARGETS, self.ALLOWED, torch.tensor(2.0)), expected
        )

    def test_a_batch_without_labels_is_zero_and_has_a_gradient(self) -> None:
        logits = normal(3, 3).requires_grad_()
        loss = label_loss(
            logits, self.TARGETS, torch.zeros(3, 3, dtype=torch.bool), torch.tensor(0.0)
        )
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()
