"""Test the fit of conformal sets and of the score from which an image is malignant."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from dermedge_export.evaluation.conformal import (
    METHODS,
    conformal_quantile,
    conformal_scores,
    conformal_sets,
    cross_fitted_sets,
    describe_unfitted,
    fit_conformal,
    measure_set_size,
    needed_images,
)
from dermedge_export.evaluation.postprocessing import (
    FitOptions,
    fit_postprocessing,
    fit_rule_in,
)
from dermedge_export.evaluation.predictions import Predictions, decode_table
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Conformal, Label, Postprocessing, Preprocess, Spec, Task

LABELS = (Label("nv", "naevus", False), Label("mel", "melanoma", True), Label("df", "df", False))
LAC = Conformal("lac", 0.9, ())
SPEC = Spec("toy", "1", (Task("diagnosis", "classify", LABELS),), Preprocess(32))


def sampled(counts, seed=0, noise=2.0):
    """Return logits of classes with these numbers of images, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(0, noise, (len(labels), 3)) + 3 * np.eye(3)[labels]
    return logits.astype(np.float32), labels


def table(counts, seed=0):
    logits, labels = sampled(counts, seed)
    names = np.arange(len(labels)).astype(str)
    malignant = (labels == 1).astype(float)
    return Predictions(tuple(names), {"diagnosis": logits}, labels, malignant, names)


def likelihoods(counts, seed=0):
    logits, labels = sampled(counts, seed)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize(
    ("images", "coverage", "rank"),
    [(9, 0.9, 9), (19, 0.9, 18), (20, 0.9, 19), (100, 0.9, 91), (19, 0.95, 19), (99, 0.95, 95)],
)
def test_the_quantile_has_the_rank_of_the_finite_sample_correction(images, coverage, rank):
    scores = np.random.default_rng(1).permutation(images) + 1.0
    assert conformal_quantile(scores, coverage) == pytest.approx(rank, abs=1e-5)
    assert conformal_quantile(scores, coverage) > rank


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_a_quantile_needs_as_many_images_as_it_says(coverage):
    needed = needed_images(coverage)
    assert conformal_quantile(np.zeros(needed), coverage) is not None
    assert conformal_quantile(np.zeros(needed - 1), coverage) is None


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.method}-{m.penalty}-{m.free}")
def test_every_method_covers_each_label_of_new_images(method):
    likely, labels = likelihoods((300, 200, 60))
    fitted = cover(likely, labels, method)
    new, truth = likelihoods((4000, 4000, 4000), seed=1)
    sets = conformal_sets(new, fitted)
    # The coverage of one fit follows a beta distribution: its standard deviation is .038
    # for 60 images.
    for label, within in enumerate((0.05, 0.06, 0.1)):
        assert sets[truth == label, label].mean() == pytest.approx(0.9, abs=within)


def cover(likely, labels, method):
    scores = conformal_scores(likely, method)
    quantiles = [conformal_quantile(scores[labels == k, k], 0.9) for k in range(3)]
    return replace(method, quantiles=tuple(quantiles))


def test_the_method_with_the_smallest_sets_on_other_folds_is_chosen():
    likely, labels = likelihoods((400, 200, 100))
    groups = np.arange(len(labels))
    fitted = fit_conformal(likely, labels, groups, 0.8)
    folds = np.random.default_rng(7).integers(0, 5, len(labels))
    sizes = {
        (method.method, method.penalty, method.free): measure_set_size(
            likely, labels, folds, replace(method, coverage=0.8)
        )
        for method in METHODS
    }
    chosen = (fitted.method, fitted.penalty, fitted.free)
    assert sizes[chosen] <= min(sizes.values()) + 0.02
    assert fitted.coverage == 0.8
    assert sizes["aps", 0.0, 0] > min(sizes.values()) + 0.05  # the methods do differ


def test_no_image_fits_its_own_sets_when_methods_are_compared():
    # One image of label 1 is far from the other nine: its own score is the quantile of
    # all ten, but not of the nine others.
    likely = np.tile([0.5, 0.5], (20, 1))
    likely[19] = [0.99, 0.01]
    labels = np.repeat([0, 1], 10)
    folds = np.arange(20) % 10
    assert not cross_fitted_sets(likely, labels, folds, LAC)[19, 1]
    assert conformal_sets(likely, fit_conformal(likely, labels, folds, 0.9))[19, 1]


def test_a_rare_label_is_in_every_set_and_a_warning_counts_the_images_it_needs():
    val = table((60, 40, 8))
    fitted = fit_postprocessing(val, SPEC)
    quantiles = fitted["diagnosis"].conformal.quantiles
    assert quantiles[2] is None and None not in quantiles[:2]
    assert decode_table(val, SPEC, fitted).sets[:, 2].all()
    (warning,) = describe_unfitted(SPEC, fitted)
    assert "90 % coverage need 9 validation images of each label; df has fewer" in warning
    more = fit_postprocessing(val, SPEC, FitOptions(coverage=0.98))
    assert "98 % coverage need 49 validation images" in describe_unfitted(SPEC, more)[0]
    assert "mel, df have fewer" in describe_unfitted(SPEC, more)[0]
    assert describe_unfitted(SPEC, fit_postprocessing(table((60, 40, 9)), SPEC)) == ()
    assert describe_unfitted(SPEC, {}) == ()


def test_sets_and_decisions_follow_the_asked_sensitivity_and_coverage():
    val = table((500, 300, 200))
    for target in (0.8, 0.95):
        fitted = fit_postprocessing(val, SPEC, FitOptions(sensitivity=target, coverage=target))
        decoded = decode_table(val, SPEC, fitted)
        scores, malignant = decoded.scores, val.malignant == 1
        assert (scores[malignant] >= decoded.threshold).mean() == pytest.approx(target, abs=0.01)
        assert (scores[~malignant] < decoded.rule_in).mean() >= target - 1e-9
        assert decoded.threshold <= decoded.rule_in <= 1
        for label in range(3):
            covered = decoded.sets[val.labels == label, label].mean()
            assert target <= covered < target + 0.02


def test_rule_in_is_never_below_the_threshold_and_needs_benign_images():
    scores, benign = np.arange(1, 20) / 20, np.zeros(19)
    assert fit_rule_in(scores, benign, 0.95, 0.9) == 0.95
    assert fit_rule_in(np.ones(19), benign, 0.5, 0.9) == 1.0
    assert fit_rule_in(scores, np.where(scores < 0.42, 0.0, np.nan), 0.1, 0.9) is None


def test_unlabelled_and_broken_rows_do_not_count():
    likely, labels = likelihoods((50, 40, 30))
    groups = np.arange(120)
    fitted = fit_conformal(likely, labels, groups, 0.9)
    more = np.concatenate([likely, np.full((5, 3), np.nan), np.full((7, 3), 1 / 3)])
    unknown = np.concatenate([labels, np.zeros(5, int), np.full(7, -1)])
    assert fit_conformal(more, unknown, np.arange(132), 0.9).quantiles == pytest.approx(
        fitted.quantiles, nan_ok=True
    )
    assert fit_conformal(likely, np.full(120, -1), groups, 0.9) is None


def test_a_bundle_accepts_every_fit():
    for counts in ((60, 40, 8), (0, 30, 30), (3, 3, 3)):
        fitted = fit_postprocessing(table(counts), SPEC)["diagnosis"]
        data = {
            "threshold": fitted.threshold,
            "rule_in": fitted.rule_in,
            "conformal": {**vars(fitted.conformal), "quantiles": [*fitted.conformal.quantiles]},
        }
        read = Postprocessing.from_json(data)
        read.check_task(SPEC.tasks[0], SPEC.malignancy)
        assert read.conformal == fitted.conformal


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 90])
def test_targets_outside_0_to_1_are_refused(value):
    with pytest.raises(UsageError, match=f"coverage {value} is not between"):
        FitOptions(coverage=value)
    with pytest.raises(UsageError, match=f"sensitivity {value} is not between"):
        FitOptions(sensitivity=value)


class _Likelihoods(ClassifierMixin, BaseEstimator):
    """A fitted classifier for mapie, whose features are the probabilities."""

    classes_ = np.arange(3)

    def fit(self, features, _labels):
        return self

    def predict_proba(self, features):
        return features

    def predict(self, features):
        return features.argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset has less labels")
def test_lac_sets_agree_with_mapie():
    mapie = pytest.importorskip("mapie.classification")
    likely, labels = likelihoods((50, 40, 30))
    sets = conformal_sets(
        new := likelihoods((100, 100, 100), seed=1)[0], cover(likely, labels, LAC)
    )
    # mapie has no class-conditional sets: one of its models per label gives them.
    for label in range(3):
        oracle = mapie.SplitConformalClassifier(
            _Likelihoods(), confidence_level=0.9, conformity_score="lac", prefit=True
        )
        oracle.conformalize(likely[labels == label], labels[labels == label])
        theirs = oracle.predict_set(new)[1][:, label, 0]
        np.testing.assert_array_equal(sets[:, label], theirs)


def test_aps_scores_agree_with_mapie():
    # mapie subtracts a random share of the label's own probability from this sum.
    aps = pytest.importorskip("mapie.conformity_scores").APSConformityScore
    likely, labels = likelihoods((50, 40, 30))
    theirs, _ = aps.get_true_label_cumsum_proba(labels, likely, np.arange(3))
    scores = conformal_scores(likely, Conformal("aps", 0.9, ()))
    np.testing.assert_allclose(scores[np.arange(120), labels], theirs[:, 0], atol=1e-12)


def test_raps_scores_equal_those_computed_by_hand():
    raps = Conformal("raps", 0.9, (), penalty=0.1, free=1)
    scores = conformal_scores(np.array([[0.2, 0.5, 0.2, 0.1]]), raps)
    # Ranks 2, 1, 3 and 4: the tie keeps the order of the labels.
    assert scores[0] == pytest.approx([0.7 + 0.1, 0.5, 0.9 + 0.2, 1.0 + 0.3])
