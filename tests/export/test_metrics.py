"""Test metrics against scikit-learn and by hand, and the bootstrap."""

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    mean_absolute_error,
    recall_score,
    roc_auc_score,
)

from dermedge_export.evaluation import metrics

K = 4


@pytest.fixture
def case():
    """Make labels, tied scores and weights of replicates; one has lost a class."""
    rng = np.random.default_rng(3)
    labels = rng.integers(K, size=120)
    logits = rng.normal(size=(120, K)).round(1) + 1.2 * np.eye(K)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    weights = rng.poisson(1.0, size=(6, 120)).astype(float)
    weights[5, labels == 2] = 0
    return labels, probabilities, weights


def test_point_values_equal_scikit_learn(case):
    labels, probabilities, _ = case
    predicted = probabilities.argmax(1)
    assert metrics.accuracy(labels, predicted) == pytest.approx(accuracy_score(labels, predicted))
    assert metrics.balanced_accuracy(labels, predicted, K) == pytest.approx(
        balanced_accuracy_score(labels, predicted)
    )
    assert metrics.macro_auroc(labels, probabilities) == pytest.approx(
        roc_auc_score(labels, probabilities, multi_class="ovr")
    )
    np.testing.assert_array_equal(
        metrics.confusion(labels, predicted, K), confusion_matrix(labels, predicted)
    )


def test_weighted_values_equal_scikit_learn_in_every_replicate(case):
    labels, probabilities, weights = case
    predicted = probabilities.argmax(1)
    score = probabilities[:, 1].round(1)
    found = {
        "accuracy": metrics.accuracy(labels, predicted, weights),
        "balanced": metrics.balanced_accuracy(labels, predicted, K, weights),
        "auroc": metrics.auroc(labels == 1, score, weights),
        "confusion": metrics.confusion(labels, predicted, K, weights),
    }
    for r, w in enumerate(weights):
        present = np.unique(labels[w > 0])
        assert found["accuracy"][r] == pytest.approx(
            accuracy_score(labels, predicted, sample_weight=w)
        )
        assert found["auroc"][r] == pytest.approx(
            roc_auc_score(labels == 1, score, sample_weight=w)
        )
        assert found["balanced"][r] == pytest.approx(
            recall_score(labels, predicted, labels=present, average="macro", sample_weight=w)
        )
        np.testing.assert_allclose(
            found["confusion"][r],
            confusion_matrix(labels, predicted, sample_weight=w, labels=range(K)),
        )


def test_weights_mean_repetition(case):
    labels, probabilities, weights = case
    positive, score = labels == 1, probabilities[:, 1]
    for metric in (
        lambda y, p, s, q, w: metrics.ece(y, q, w),
        lambda y, p, s, q, w: metrics.macro_auroc(y, q, w),
        lambda y, p, s, q, w: metrics.sensitivity(p, s, 0.3, w),
        lambda y, p, s, q, w: metrics.specificity(p, s, 0.3, w),
    ):
        times = weights[0].astype(int)
        repeated = [
            np.repeat(column, times, axis=0) for column in (labels, positive, score, probabilities)
        ]
        assert metric(labels, positive, score, probabilities, weights)[0] == pytest.approx(
            float(metric(*repeated, None))
        )


def test_a_class_without_a_case_is_left_out_of_means():
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    assert metrics.balanced_accuracy(labels, predicted, 3) == 0.75
    np.testing.assert_array_equal(metrics.recalls(labels, predicted, 3), [0.5, 1.0, np.nan])
    vanished = np.array([[1.0, 1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(metrics.balanced_accuracy(labels, predicted, 3, vanished), [0.5])


def test_undefined_metrics_are_nan_not_an_error():
    nothing = np.zeros(0, int)
    assert np.isnan(metrics.accuracy(nothing, nothing))
    assert np.isnan(metrics.auroc(nothing, nothing.astype(float)))
    assert np.isnan(metrics.auroc(np.array([True, True]), np.array([0.1, 0.2])))
    assert np.isnan(metrics.sensitivity(np.array([False]), np.array([0.4]), 0.5))


def test_sensitivity_counts_a_score_on_the_threshold_as_malignant():
    positive, scores = np.array([True, True, False, False]), np.array([0.5, 0.4, 0.5, 0.1])
    assert metrics.sensitivity(positive, scores, 0.5) == 0.5
    assert metrics.specificity(positive, scores, 0.5) == 0.5


def test_ece_by_hand():
    # Two images at .8 with one right, two at .6 with both right:
    # (2 |.5 - .8| + 2 |1 - .6|) / 4.
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    assert metrics.ece(np.array([0, 1, 0, 0]), probabilities) == pytest.approx(0.35)


def test_confidence_bins_are_closed_above():
    np.testing.assert_array_equal(
        metrics.confidence_bins(np.array([0.0, 0.2, 0.6, 0.601, 1.0])), [0, 2, 8, 9, 14]
    )


def test_dice_by_hand():
    mask = np.zeros((3, 4, 4), bool)
    mask[0, :2], mask[1, :2] = True, True
    predicted = np.zeros_like(mask)
    predicted[0, 1:3] = True
    np.testing.assert_allclose(metrics.dice(mask, predicted), [0.5, 0.0, np.nan])


def test_levels_are_compared_as_scikit_learn_does(case):
    levels, probabilities, weights = case
    predicted = probabilities.argmax(1)
    kappa, distance = (
        cohen_kappa_score(levels, predicted, weights="quadratic"),
        mean_absolute_error(levels, predicted),
    )
    assert metrics.quadratic_weighted_kappa(levels, predicted) == pytest.approx(kappa)
    assert metrics.mean_absolute_error(levels, predicted) == pytest.approx(distance)
    found = metrics.quadratic_weighted_kappa(levels, predicted, weights)
    distances = metrics.mean_absolute_error(levels, predicted, weights)
    for r, w in enumerate(weights):
        assert found[r] == pytest.approx(
            cohen_kappa_score(
                levels, predicted, weights="quadratic", sample_weight=w, labels=range(K)
            )
        )
        assert distances[r] == pytest.approx(
            mean_absolute_error(levels, predicted, sample_weight=w)
        )


def test_kappa_is_undefined_for_one_level_and_defined_with_one_other():
    same = np.full(1000, 3)
    assert np.isnan(metrics.quadratic_weighted_kappa(same, same))
    assert np.isnan(metrics.quadratic_weighted_kappa(same[:0], same[:0]))
    stray = np.append(same[1:], 4)
    assert metrics.quadratic_weighted_kappa(stray, stray) == pytest.approx(1)
    assert metrics.quadratic_weighted_kappa(stray, same) == pytest.approx(0)


def test_agreement_by_hand():
    a = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    b = np.array([[0.0, 2.0], [6.0, 8.0], [0.0, 0.0]])
    np.testing.assert_allclose(metrics.logit_cosine(a, b), [0.0, 1.0, 1.0])
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    np.testing.assert_allclose(
        metrics.kl_divergence(p, q), [0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0.0], atol=1e-12
    )
    assert metrics.top1_agreement(np.array([1, 2, 3]), np.array([1, 2, 0])) == pytest.approx(2 / 3)


def _mean(values):
    return {"mean": lambda weights: metrics.weighted_mean(values, weights)}


def test_more_photographs_of_the_same_lesions_do_not_narrow_the_interval():
    hit = np.random.default_rng(0).random(60) < 0.7
    lesions = np.array([f"lesion-{i:02}" for i in range(60)])
    cached = metrics.bootstrap(lesions, _mean(hit), seed=1)["mean"]
    tenfold = metrics.bootstrap(np.repeat(lesions, 10), _mean(np.repeat(hit, 10)), seed=1)["mean"]
    np.testing.assert_allclose(cached, tenfold)
    as_if_independent = metrics.bootstrap(np.arange(600), _mean(np.repeat(hit, 10)), seed=1)["mean"]
    assert as_if_independent.std() < cached.std() / 2
    assert cached.std() == pytest.approx(hit.std() / np.sqrt(60), rel=0.15)


def test_bootstrap_is_seeded_and_independent_of_its_chunks(monkeypatch):
    values, groups = np.arange(40.0), np.arange(40) // 3
    whole = metrics.bootstrap(groups, _mean(values), replicates=50)["mean"]
    assert whole.shape == (50,)
    np.testing.assert_array_equal(
        whole, metrics.bootstrap(groups, _mean(values), replicates=50)["mean"]
    )
    assert not np.array_equal(
        whole, metrics.bootstrap(groups, _mean(values), replicates=50, seed=1)["mean"]
    )
    monkeypatch.setattr(metrics, "CHUNK", 40 * 7)
    np.testing.assert_array_equal(
        whole, metrics.bootstrap(groups, _mean(values), replicates=50)["mean"]
    )


def test_paired_bootstrap_covers_the_true_difference():
    """Most 95 % intervals hold the true difference of two models on these images."""
    rng, inside, trials = np.random.default_rng(5), 0, 200
    for trial in range(trials):
        lesions = np.repeat(np.arange(120), 2)
        hard = rng.random(120)[lesions]
        first = hard < 0.8
        second = np.where(rng.random(240) < 0.15, rng.random(240) < 0.5, first)
        gap = {
            "gap": lambda w, a=first, b=second: (
                metrics.weighted_mean(a, w) - metrics.weighted_mean(b, w)
            )
        }
        found = metrics.interval(
            first.mean() - second.mean(),
            metrics.bootstrap(lesions, gap, replicates=200, seed=trial)["gap"],
        )
        inside += found.low <= 0.15 * (0.8 - 0.5) <= found.high
    assert 0.89 <= inside / trials <= 0.99


def test_one_group_gives_no_interval():
    drawn = metrics.bootstrap(np.array(["a", "a"]), _mean(np.array([0.0, 1.0])), replicates=20)[
        "mean"
    ]
    found = metrics.interval(0.5, drawn)
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_an_interval_needs_half_of_the_replicates():
    replicates = np.array([0.1, 0.2, 0.3, np.nan])
    assert metrics.interval(0.2, replicates).low == pytest.approx(0.105)
    assert metrics.interval(0.2, np.array([0.1, np.nan, np.nan])).low is None
    assert metrics.interval(float("nan"), replicates).value is None
