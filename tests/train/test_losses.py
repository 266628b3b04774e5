from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from dermedge.train.losses import (
    adjusted_cross_entropy,
    cumulative_cross_entropy,
    dice_cross_entropy,
    distillation_loss,
    masked_binary_cross_entropy,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)

RNG = np.random.default_rng(3)
STUDENT, TEACHER = (RNG.normal(0, 2, (5, 4)) for _ in range(2))


def logits(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_of_softened_classes_times_the_temperature_squared(
    temperature: float,
) -> None:
    student = logits(STUDENT)
    loss = soft_cross_entropy(student, torch.tensor(TEACHER), temperature)
    p, log_p = softmax(TEACHER / temperature, axis=1), log_softmax(TEACHER / temperature, axis=1)
    log_q = log_softmax(STUDENT / temperature, axis=1)
    assert loss.item() == pytest.approx(
        temperature**2 * (p * (log_p - log_q)).sum(1).mean(), rel=1e-12
    )
    loss.backward()
    by_hand = temperature * (softmax(STUDENT / temperature, axis=1) - p) / len(STUDENT)
    np.testing.assert_allclose(student.grad.numpy(), by_hand, atol=1e-12)


def test_equal_distributions_have_no_loss_and_no_gradient() -> None:
    student = logits(TEACHER + RNG.normal(size=(5, 1)))  # softmax does not see a constant
    loss = soft_cross_entropy(student, torch.tensor(TEACHER), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), 0, atol=1e-12)


def test_cross_entropy_is_adjusted_by_the_class_frequencies() -> None:
    student, labels = logits(STUDENT), torch.tensor([0, -1, 3, 1, -1])
    log_prior = np.log([0.7, 0.2, 0.06, 0.04])
    loss = adjusted_cross_entropy(student, labels, torch.tensor(log_prior))
    known, rows = [0, 2, 3], [0, 3, 1]
    adjusted = STUDENT + log_prior
    assert loss.item() == pytest.approx(
        -log_softmax(adjusted[known], axis=1)[range(3), rows].mean(), rel=1e-12
    )
    loss.backward()
    expected = np.zeros_like(STUDENT)
    expected[known] = (softmax(adjusted[known], axis=1) - np.eye(4)[rows]) / 3
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-12)


def test_rows_without_malignancy_do_not_count() -> None:
    student = logits(STUDENT[:, :1])
    targets = torch.tensor([1.0, float("nan"), 0.0, float("nan"), 1.0], dtype=torch.float64)
    loss = masked_binary_cross_entropy(student, targets)
    probability = 1 / (1 + np.exp(-STUDENT[[0, 2, 4], 0]))
    truth = np.array([1, 0, 1])
    by_hand = -np.log(np.where(truth == 1, probability, 1 - probability)).mean()
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(
        student.grad.numpy()[[0, 2, 4], 0], (probability - truth) / 3, atol=1e-12
    )
    assert not student.grad[[1, 3]].any()


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    student = logits(STUDENT)
    unlabelled, unknown = torch.full((5,), -1), torch.full((5,), float("nan"))
    loss = (
        adjusted_cross_entropy(student, unlabelled, torch.zeros(4))
        + masked_binary_cross_entropy(student[:, :1], unknown)
        + cumulative_cross_entropy(student, unlabelled)
        + cumulative_cross_entropy(student, unknown)
        + dice_cross_entropy(student.view(5, 1, 2, 2), torch.full((5, 2, 2), float("nan")))
    )
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_malignancy_is_distilled_from_the_teachers_probability() -> None:
    student, teacher = logits(STUDENT[:, :1]), torch.tensor(TEACHER[:, :1])
    loss = soft_binary_cross_entropy(student, teacher)
    target, guess = (1 / (1 + np.exp(-values[:, 0])) for values in (TEACHER, STUDENT))
    assert loss.item() == pytest.approx(
        -(target * np.log(guess) + (1 - target) * np.log(1 - guess)).mean(), rel=1e-12
    )
    agreeing = logits(TEACHER[:, :1])
    soft_binary_cross_entropy(agreeing, teacher).backward()
    np.testing.assert_allclose(agreeing.grad.numpy(), 0, atol=1e-12)


def cross_entropy(logit: float, target: float) -> float:
    return float(np.logaddexp(0, logit) - target * logit)


@pytest.mark.parametrize("unknown", [-1, float("nan")])
def test_severity_is_the_sum_of_its_binary_losses_over_known_rows(unknown: float) -> None:
    student, levels = logits(STUDENT), torch.tensor([0, unknown, 4, 2, unknown])
    loss = cumulative_cross_entropy(student, levels)
    above = {0: [0, 0, 0, 0], 2: [1, 1, 1, 1], 3: [1, 1, 0, 0]}  # y > 0, y > 1, y > 2, y > 3
    by_hand = [sum(map(cross_entropy, STUDENT[row], answers)) for row, answers in above.items()]
    assert loss.item() == pytest.approx(np.mean(by_hand), rel=1e-6)
    loss.backward()
    assert not student.grad[[1, 4]].any()
    assert student.grad[[0, 2, 3]].all()


class TestMasks:
    def test_the_mask_loss_is_pixel_cross_entropy_plus_dice(self) -> None:
        maps = torch.tensor(RNG.normal(0, 2, (3, 1, 2, 2)), dtype=torch.float32, requires_grad=True)
        masks = torch.tensor(
            [[[1.0, 0.0], [0.25, 1.0]], [[float("nan")] * 2] * 2, [[0.0, 0.0], [0.0, 0.0]]]
        )
        loss = dice_cross_entropy(maps, masks)
        z, inside = (
            values.detach().double().numpy().reshape(3, 4)[[0, 2]] for values in (maps, masks)
        )
        pixels = np.mean(
            [cross_entropy(a, b) for a, b in zip(z.ravel(), inside.ravel(), strict=True)]
        )
        p = 1 / (1 + np.exp(-z))
        overlap = (2 * (p * inside).sum(1) + 1) / ((p + inside).sum(1) + 1)
        assert loss.item() == pytest.approx(pixels + np.mean(1 - overlap), rel=1e-5)
        loss.backward()
        assert not maps.grad[1].any()

    def test_a_finer_mask_is_averaged_to_the_grid_of_the_logits(self) -> None:
        maps = torch.tensor(RNG.normal(0, 2, (1, 1, 2, 2)))
        fine = torch.zeros(1, 4, 4)
        fine[0, :2, :2], fine[0, 3, 2] = 1, 1
        coarse = torch.tensor([[[1.0, 0.0], [0.0, 0.25]]])
        assert dice_cross_entropy(maps, fine).item() == pytest.approx(
            dice_cross_entropy(maps, coarse).item()
        )
        assert dice_cross_entropy(maps, fine).item() != pytest.approx(
            dice_cross_entropy(maps, fine.flip(2)).item()
        )

    def test_the_right_mask_has_no_loss(self) -> None:
        mask = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        right = (mask[:, None] * 2 - 1) * 40
        assert dice_cross_entropy(right, mask).item() == pytest.approx(0, abs=1e-6)
        assert dice_cross_entropy(-right, mask).item() > 40


@pytest.mark.parametrize("kind", ["classify", "binary", "ordinal", "segment"])
def test_equal_outputs_have_the_least_loss_and_no_gradient(kind: Any) -> None:
    shape = (5, 1, 2, 2) if kind == "segment" else (5, 1) if kind == "binary" else (5, 4)
    teacher = torch.tensor(TEACHER.ravel()[: np.prod(shape)].reshape(shape))
    agreeing, other = (
        logits(values.ravel()[: np.prod(shape)].reshape(shape)) for values in (TEACHER, STUDENT)
    )
    least, more = (distillation_loss(kind, student, teacher, 2.0) for student in (agreeing, other))
    least.backward()
    np.testing.assert_allclose(agreeing.grad.numpy(), 0, atol=1e-12)
    assert more > least + 0.1


def test_the_outputs_of_an_ordinal_task_are_summed() -> None:
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    each = [
        soft_binary_cross_entropy(student[:, k : k + 1], teacher[:, k : k + 1]).item()
        for k in range(4)
    ]
    assert distillation_loss("ordinal", student, teacher, 2.0).item() == pytest.approx(sum(each))


def test_embeddings_of_any_width_are_compared_by_similarities_between_images() -> None:
    wide = torch.nn.functional.normalize(torch.tensor(TEACHER), dim=1)
    turn = torch.linalg.qr(torch.tensor(RNG.normal(size=(6, 6)))).Q[:4]
    assert distillation_loss("embed", wide @ turn, wide, 2.0).item() == pytest.approx(0, abs=1e-12)
    assert distillation_loss("embed", (wide @ turn).flip(0), wide, 2.0).item() > 0.01
