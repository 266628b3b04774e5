"""Each distillation loss against a closed form or an independent computation."""

from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from dermedge.train.distillation_losses import (
    OrthogonalProjector,
    cosine_distance,
    decoupled_divergence,
    decoupled_parts,
    map_distance,
    mask_divergence,
    relational_angle,
    relational_distance,
    standardise,
    standardised_divergence,
)
from dermedge.train.losses import adjusted_cross_entropy, dice_cross_entropy, soft_cross_entropy

RNG = np.random.default_rng(5)
STUDENT, TEACHER = (torch.tensor(RNG.normal(0, 2, (6, 4))) for _ in range(2))
LABELS = torch.tensor([0, 3, -1, 1, 2, -1])
Pair = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def smooth(difference: np.ndarray) -> float:
    size = np.abs(difference)
    return float(np.where(size < 1, size**2 / 2, size - 0.5).mean())


class TestStandardised:
    def test_it_is_the_divergence_of_rows_with_mean_0_and_variance_1(self) -> None:
        rows = [(z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True) / 3
                for z in (STUDENT.numpy(), TEACHER.numpy())]  # fmt: skip
        p, log_q = softmax(rows[1], axis=1), log_softmax(rows[0], axis=1)
        expected = 9 * (p * (np.log(p) - log_q)).sum(1).mean()
        assert standardised_divergence(STUDENT, TEACHER, 3.0).item() == pytest.approx(expected)

    def test_scale_and_shift_of_either_side_have_no_effect(self) -> None:
        plain = standardised_divergence(STUDENT, TEACHER, 2.0)
        changed = standardised_divergence(5 * STUDENT - 3, 0.5 * TEACHER + 40, 2.0)
        assert changed.item() == pytest.approx(plain.item(), rel=1e-5)
        assert soft_cross_entropy(5 * STUDENT, TEACHER, 2.0).item() != pytest.approx(plain.item())

    def test_equal_logits_have_a_finite_gradient(self) -> None:
        equal = torch.ones(2, 4, requires_grad=True)
        standardised_divergence(equal, TEACHER[:2].float(), 2.0).backward()
        assert equal.grad is not None
        assert equal.grad.isfinite().all()
        assert not standardise(equal).any()


class TestDecoupled:
    def test_the_parts_add_up_to_the_divergence(self) -> None:
        classes = torch.tensor([0, 3, 2, 1, 2, 0])
        first, second = decoupled_parts(STUDENT, TEACHER, classes)
        p, log_q = softmax(TEACHER.numpy(), axis=1), log_softmax(STUDENT.numpy(), axis=1)
        whole = (p * (np.log(p) - log_q)).sum(1)
        rest = 1 - p[range(6), classes]
        np.testing.assert_allclose(first.numpy() + rest * second.numpy(), whole, rtol=1e-9)

    def test_the_parts_are_divergences_of_two_and_of_the_other_classes(self) -> None:
        first, second = decoupled_parts(STUDENT, TEACHER, torch.tensor([2] * 6))
        p, q = softmax(TEACHER.numpy(), axis=1), softmax(STUDENT.numpy(), axis=1)
        two = [np.stack([v[:, 2], 1 - v[:, 2]], 1) for v in (p, q)]
        np.testing.assert_allclose(first, (two[0] * np.log(two[0] / two[1])).sum(1), rtol=1e-9)
        others = [np.delete(v, 2, 1) / (1 - v[:, 2:3]) for v in (p, q)]
        expected = (others[0] * np.log(others[0] / others[1])).sum(1)
        np.testing.assert_allclose(second, expected, rtol=1e-9)

    def test_a_row_without_a_label_takes_the_teachers_class(self) -> None:
        named = torch.where(LABELS >= 0, LABELS, TEACHER.argmax(1))
        losses = [decoupled_divergence(STUDENT, TEACHER, labels, 4.0) for labels in (LABELS, named)]
        assert losses[0] == losses[1]
        assert losses[0] != decoupled_divergence(STUDENT, TEACHER, named.flip(0), 4.0)

    def test_two_classes_have_no_other_classes(self) -> None:
        two = decoupled_divergence(STUDENT[:, :2], TEACHER[:, :2], LABELS.clamp(max=1), 2.0, beta=9)
        plain = soft_cross_entropy(STUDENT[:, :2], TEACHER[:, :2], 2.0)
        assert two.item() == pytest.approx(plain.item())

    def test_a_sure_teacher_gives_a_finite_loss(self) -> None:
        sure = torch.tensor([[500.0, 0.0, -500.0]])
        student = torch.tensor([[-500.0, 0.0, 500.0]], requires_grad=True)
        loss = decoupled_divergence(student, sure, torch.tensor([0]), 1.0)
        loss.backward()
        assert loss.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


class TestRelations:
    def test_distances_are_compared_in_multiples_of_their_mean(self) -> None:
        def relative(values: torch.Tensor) -> np.ndarray:
            pairs = combinations(values.numpy(), 2)
            distances = np.array([np.linalg.norm(a - b) for a, b in pairs])
            return distances / distances.mean()

        expected = smooth(relative(STUDENT) - relative(TEACHER[:, :3]))
        assert relational_distance(STUDENT, TEACHER[:, :3]).item() == pytest.approx(expected)

    def test_angles_are_compared_at_each_corner_of_each_triangle(self) -> None:
        def cosines(values: torch.Tensor) -> np.ndarray:
            rows, found = values.numpy(), []
            for j, i, k in product(range(len(rows)), repeat=3):
                one, other = rows[i] - rows[j], rows[k] - rows[j]
                size = np.linalg.norm(one) * np.linalg.norm(other)
                found.append(one @ other / size if size else 0.0)
            return np.array(found)

        expected = smooth(cosines(STUDENT) - cosines(TEACHER[:, :3]))
        assert relational_angle(STUDENT, TEACHER[:, :3]).item() == pytest.approx(expected)

    @pytest.mark.parametrize("loss", [relational_distance, relational_angle])
    def test_rotation_shift_and_scale_have_no_effect(self, loss: Pair) -> None:
        turn = torch.linalg.qr(torch.tensor(RNG.normal(size=(9, 9)))).Q[:4]
        assert loss(7 * STUDENT @ turn + 2, STUDENT).item() == pytest.approx(0, abs=1e-12)
        assert loss(STUDENT.flip(0), STUDENT) > 0.01

    @pytest.mark.parametrize("loss", [relational_distance, relational_angle])
    @pytest.mark.parametrize("rows", [1, 2, 3, 6])
    def test_equal_images_and_few_rows_give_finite_gradients(self, loss: Pair, rows: int) -> None:
        same = torch.ones(rows, 4, requires_grad=True)
        loss(same, TEACHER[:rows].float()).backward()
        assert same.grad is not None
        assert same.grad.isfinite().all()


class TestFeatures:
    @pytest.mark.parametrize(("width", "out"), [(3, 7), (7, 3), (4, 4)])
    def test_a_projector_is_orthogonal_before_and_after_a_step(self, width: int, out: int) -> None:
        torch.manual_seed(0)
        projector = OrthogonalProjector(width, out).double()
        optimizer = torch.optim.SGD(projector.parameters(), lr=0.5)
        goal = torch.rand(5, out, dtype=torch.float64)
        for _ in range(2):
            matrix = projector(torch.eye(width, dtype=torch.float64))
            small = matrix @ matrix.T if out >= width else matrix.T @ matrix
            torch.testing.assert_close(small, torch.eye(min(width, out), dtype=torch.float64))
            features = torch.rand(5, width, dtype=torch.float64)
            cosine_distance(projector(features), goal).backward()
            assert projector.weight.grad is not None
            assert projector.weight.grad.any()
            optimizer.step()

    def test_the_cosine_distance_is_one_minus_the_mean_cosine(self) -> None:
        one, other = STUDENT.numpy(), TEACHER.numpy()
        sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        expected = np.mean(1 - (one * other).sum(1) / sizes)
        assert cosine_distance(STUDENT, TEACHER).item() == pytest.approx(expected)

    def test_the_cells_of_a_finer_map_are_averaged_and_its_channels_standardised(self) -> None:
        features = torch.tensor(RNG.normal(size=(2, 3, 2, 2)))
        teacher = torch.tensor(RNG.normal(5, 2, size=(2, 3, 4, 4)))
        cells = teacher.numpy().reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
        mean, spread = cells.mean((0, 2, 3)), cells.std((0, 2, 3))
        distances = []
        for image, y, x in product(range(2), repeat=3):
            goal, own = (cells[image, :, y, x] - mean) / spread, features[image, :, y, x].numpy()
            distances.append(1 - goal @ own / np.linalg.norm(goal) / np.linalg.norm(own))
        assert map_distance(features, teacher).item() == pytest.approx(np.mean(distances), rel=1e-5)

    def test_a_mask_is_distilled_as_from_the_teachers_coverage(self) -> None:
        student, teacher = (torch.tensor(RNG.normal(size=(2, 1, 4, 4))) for _ in range(2))
        expected = dice_cross_entropy(student, teacher.sigmoid()[:, 0])
        assert mask_divergence(student, teacher).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_nearly_the_loss_of_float32(dtype: torch.dtype) -> None:
    losses: dict[str, Pair] = {
        "kl": lambda a, b: soft_cross_entropy(a, b, 2.0),
        "standardised": lambda a, b: standardised_divergence(a, b, 2.0),
        "dkd": lambda a, b: decoupled_divergence(a, b, LABELS, 4.0),
        "labels": lambda a, b: adjusted_cross_entropy(a, LABELS, torch.zeros(4)),
        "distances": relational_distance,
        "angles": relational_angle,
        "embedding": cosine_distance,
        "map": lambda a, b: map_distance(a[:, :, None, None], b[:, :, None, None]),
    }
    for name, loss in losses.items():
        # 300 is far above what float16 can square.
        student, teacher = (300 * STUDENT).to(dtype), (300 * TEACHER).to(dtype)
        value = loss(student, teacher)
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(loss(student.float(), teacher.float()).item()), name


def test_a_large_float16_map_without_masks_has_no_loss() -> None:
    """A float16 sum would overflow to infinity, and infinity times 0 is NaN."""
    logits = torch.full((8, 1, 64, 64), 60.0, dtype=torch.float16)
    assert dice_cross_entropy(logits, torch.full((8, 64, 64), float("nan"))) == 0
