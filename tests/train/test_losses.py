import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from dermedge.train.losses import (
    adjusted_cross_entropy,
    masked_binary_cross_entropy,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)

RNG = np.random.default_rng(3)
STUDENT, TEACHER = (RNG.normal(0, 2, (5, 4)) for _ in range(2))


def logits(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_is_the_divergence_of_softened_classes_times_the_temperature_squared(temperature: float) -> None:
    student = logits(STUDENT)
    loss = soft_cross_entropy(student, torch.tensor(TEACHER), temperature)
    p, log_p = softmax(TEACHER / temperature, axis=1), log_softmax(TEACHER / temperature, axis=1)
    log_q = log_softmax(STUDENT / temperature, axis=1)
    assert loss.item() == pytest.approx(temperature**2 * (p * (log_p - log_q)).sum(1).mean(), rel=1e-12)
    loss.backward()
    by_hand = temperature * (softmax(STUDENT / temperature, axis=1) - p) / len(STUDENT)
    np.testing.assert_allclose(student.grad.numpy(), by_hand, atol=1e-12)


def test_a_student_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    student = logits(TEACHER + RNG.normal(size=(5, 1)))  # softmax does not see a constant
    loss = soft_cross_entropy(student, torch.tensor(TEACHER), 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), 0, atol=1e-12)


def test_labels_are_learned_against_the_class_frequencies() -> None:
    student, labels = logits(STUDENT), torch.tensor([0, -1, 3, 1, -1])
    log_prior = np.log([0.7, 0.2, 0.06, 0.04])
    loss = adjusted_cross_entropy(student, labels, torch.tensor(log_prior))
    known, rows = [0, 2, 3], [0, 3, 1]
    adjusted = STUDENT + log_prior
    assert loss.item() == pytest.approx(-log_softmax(adjusted[known], axis=1)[range(3), rows].mean(), rel=1e-12)
    loss.backward()
    expected = np.zeros_like(STUDENT)
    expected[known] = (softmax(adjusted[known], axis=1) - np.eye(4)[rows]) / 3
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-12)


def test_malignancy_is_learned_where_it_is_known() -> None:
    student = logits(STUDENT[:, :1])
    targets = torch.tensor([1.0, float("nan"), 0.0, float("nan"), 1.0], dtype=torch.float64)
    loss = masked_binary_cross_entropy(student, targets)
    probability = 1 / (1 + np.exp(-STUDENT[[0, 2, 4], 0]))
    truth = np.array([1, 0, 1])
    by_hand = -np.log(np.where(truth == 1, probability, 1 - probability)).mean()
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(student.grad.numpy()[[0, 2, 4], 0], (probability - truth) / 3, atol=1e-12)
    assert not student.grad[[1, 3]].any()


def test_a_batch_without_any_label_teaches_nothing_and_breaks_nothing() -> None:
    student = logits(STUDENT)
    unlabelled, unknown = torch.full((5,), -1), torch.full((5,), float("nan"))
    loss = adjusted_cross_entropy(student, unlabelled, torch.zeros(4)) + masked_binary_cross_entropy(
        student[:, :1], unknown
    )
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


def test_malignancy_is_distilled_as_a_probability() -> None:
    student, teacher = logits(STUDENT[:, :1]), torch.tensor(TEACHER[:, :1])
    loss = soft_binary_cross_entropy(student, teacher)
    target, guess = (1 / (1 + np.exp(-values[:, 0])) for values in (TEACHER, STUDENT))
    assert loss.item() == pytest.approx(-(target * np.log(guess) + (1 - target) * np.log(1 - guess)).mean(), rel=1e-12)
    agreeing = logits(TEACHER[:, :1])
    soft_binary_cross_entropy(agreeing, teacher).backward()
    np.testing.assert_allclose(agreeing.grad.numpy(), 0, atol=1e-12)
