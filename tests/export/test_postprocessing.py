"""Test the fit of temperatures and thresholds."""

import json

import numpy as np
import pytest
from scipy.special import expit, softmax

from dermedge_export.evaluation.postprocessing import (
    TEMPERATURES,
    fit_postprocessing,
    fit_temperature,
    fit_threshold,
)
from dermedge_export.evaluation.predictions import Predictions, malignancy_scores
from dermedge_runtime.decode import decode
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Label, Preprocess, Spec, Task

LABELS = (
    Label("nv", "naevus", False),
    Label("mel", "melanoma", True),
    Label("akiec", "akiec", None),
)
DIAGNOSIS = Task("diagnosis", "classify", LABELS)
BOTH = Spec("both", "1", (DIAGNOSIS, Task("malignancy", "binary")), Preprocess(32))
ONLY_DIAGNOSIS = Spec("one", "1", (DIAGNOSIS,), Preprocess(32))


def sampled(temperature, n=4000, seed=0):
    """Logits, and labels that follow softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3.0, size=(n, 3)).astype(np.float32)
    chances = softmax(logits / temperature, axis=1).cumsum(axis=1)
    return logits, (rng.random((n, 1)) > chances).sum(axis=1).clip(0, 2)


def table(n=400, seed=0):
    logits, labels = sampled(2.0, n, seed)
    malignant = np.array([0.0, 1.0, np.nan])[labels]
    binary = (logits[:, 1:2] - logits[:, :1]).astype(np.float32)
    groups = np.array([str(i) for i in range(n)])
    return Predictions(
        tuple(groups), {"diagnosis": logits, "malignancy": binary}, labels, malignant, groups
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature):
    logits, labels = sampled(temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.08)


def test_temperature_minimises_the_likelihood():
    logits, labels = sampled(2.0, 300)

    def loss(t):
        return -np.log(softmax(logits.astype(float) / t, axis=1)[np.arange(300), labels]).mean()

    fitted = fit_temperature(logits, labels)
    assert all(loss(fitted) <= loss(t) for t in np.geomspace(0.05, 20, 400))


def test_binary_temperature_is_recovered():
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=4, size=(6000, 1))
    labels = rng.random(6000) < expit(logits[:, 0] / 2.5)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.08)


def test_temperature_stays_in_range_for_perfect_and_for_useless_logits():
    perfect = fit_temperature(np.array([[4.0, 0.0], [0.0, 4.0]]), np.array([0, 1]))
    useless = fit_temperature(np.array([[90.0, 0.0], [0.0, 90.0]]), np.array([1, 0]))
    assert perfect == pytest.approx(TEMPERATURES[0], rel=0.01)
    assert useless == pytest.approx(TEMPERATURES[1], rel=0.01)


def test_unknown_labels_and_broken_logits_are_left_out():
    logits, labels = sampled(2.0, 500)
    dirty = np.concatenate([logits, [[9.0, 0.0, 0.0], [np.nan, 0.0, 0.0]]])
    assert fit_temperature(dirty, np.concatenate([labels, [-1, 2]])) == fit_temperature(
        logits, labels
    )
    with pytest.raises(DataError, match="labelled"):
        fit_temperature(logits, np.full(500, -1))


@pytest.mark.parametrize("positives", [1, 2, 9, 10, 11, 30, 70, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threshold_is_the_highest_that_finds_nine_of_ten(positives, dtype):
    rng = np.random.default_rng(positives)
    scores = rng.random(positives + 50).astype(dtype)
    malignant = np.array([1.0] * positives + [0.0] * 40 + [np.nan] * 10)
    threshold = fit_threshold(scores, malignant)
    found = scores[:positives]
    assert (found >= threshold).mean() >= 0.9
    assert (found.astype(np.float32) >= np.float64(threshold)).mean() >= 0.9
    next_higher = found[found >= threshold].min() + 1e-6
    assert (found >= next_higher).mean() < 0.9
    assert json.loads(json.dumps(threshold)) == threshold
    assert 0 <= threshold <= 1


def test_threshold_is_not_one_image_too_low_by_rounding():
    scores = np.arange(1, 101) / 101  # 0.07 * 100 is 7.000000000000001
    assert (scores >= fit_threshold(scores, np.ones(100), sensitivity=0.07)).sum() == 7


def test_threshold_with_ties_and_without_malignant_images():
    assert fit_threshold(np.full(20, 0.3), np.ones(20)) == pytest.approx(0.3, rel=1e-5)
    assert fit_threshold(np.array([0.0, 0.0]), np.ones(2)) == 0.0
    assert fit_threshold(np.array([0.3, 0.4]), np.array([0.0, np.nan])) is None


@pytest.mark.parametrize("spec", [BOTH, ONLY_DIAGNOSIS], ids=lambda spec: spec.name)
def test_decode_uses_the_fitted_postprocessing(spec):
    predictions = table()
    fitted = fit_postprocessing(predictions, spec)
    assert set(fitted) == {task.name for task in spec.tasks}
    assert all(post.temperature == pytest.approx(2.0, rel=0.3) for post in fitted.values())
    decided = [
        decode(
            {name: output[row] for name, output in predictions.outputs.items()}, spec, fitted
        ).decision
        != "benign"
        for row in np.flatnonzero(predictions.malignant == 1)
    ]
    assert 0.9 <= np.mean(decided) < 0.92


@pytest.mark.parametrize("spec", [BOTH, ONLY_DIAGNOSIS], ids=lambda spec: spec.name)
def test_scores_of_a_table_equal_those_of_decode(spec):
    predictions = table(20)
    fitted = fit_postprocessing(predictions, spec)
    scores = malignancy_scores(predictions, spec, fitted)
    for row in range(20):
        single = decode(
            {name: output[row] for name, output in predictions.outputs.items()}, spec, fitted
        )
        assert scores[row] == pytest.approx(single.malignancy, abs=1e-12)


def test_tasks_without_labels_are_not_fitted():
    known = table()
    blank = Predictions(
        known.image_ids,
        known.outputs,
        np.full(400, -1),
        np.full(400, np.nan),
        known.groups,
        known.subgroups,
    )
    fitted = fit_postprocessing(blank, BOTH)
    assert all(post.temperature is None and post.threshold is None for post in fitted.values())
