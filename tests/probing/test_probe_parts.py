"""Test the parts of a probe: draws, nearest neighbours, linear layers, scores."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.probing.knn import measure_retrieval, vote
from dermedge.probing.linear import LinearRecipe, class_probabilities, fit_linear
from dermedge.probing.scores import (
    Bootstrap,
    bootstrap_intervals,
    macro_f1,
    predict_classes,
    score_masks,
    score_probabilities,
)
from dermedge.probing.task import draw_fraction, make_probe_task
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.spec import Preprocess, Spec, Task
from support.untrained import coloured, data_set

SPEC = Spec("any", "1", (Task("embedding", "embed"),), Preprocess(32))


# -- draws of labels


def pool(seed=0):
    """Draw 600 lesions of one to three images, of three classes, one of them rare."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 4, 600)
    labels = rng.choice(3, 600, p=(0.7, 0.27, 0.03))
    return np.repeat(labels, sizes), np.repeat([f"g{i}" for i in range(600)], sizes)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.5])
def test_a_draw_takes_whole_groups_and_its_fraction_of_every_class(fraction):
    labels, groups = pool()
    rows = draw_fraction(labels, groups, fraction, seed=3)
    assert set(groups[rows]).isdisjoint(np.delete(groups, rows))
    for label, count in enumerate(np.bincount(labels)):
        drawn, wanted = int((labels[rows] == label).sum()), max(1, round(fraction * count))
        # The last lesion may add two images more than the fraction.
        assert wanted <= drawn <= wanted + 2


def test_a_draw_holds_the_rarest_class_even_if_its_fraction_is_less_than_one_image():
    labels = np.array([0] * 200 + [1])
    rows = draw_fraction(labels, np.array([f"g{i}" for i in range(201)]), 0.01, seed=0)
    assert (labels[rows] == 1).sum() == 1
    assert (labels[rows] == 0).sum() == 2


def test_a_class_that_shares_all_lesions_with_a_rarer_one_is_drawn():
    labels, groups = np.array([0, 1, 0, 1, 0]), np.array(["a", "a", "b", "b", "a"])
    rows = draw_fraction(labels, groups, 0.01, seed=0)
    assert set(labels[rows]) == {0, 1}


def test_a_draw_depends_on_the_seed_and_not_on_the_order_of_rows():
    labels, groups = pool()
    first = draw_fraction(labels, groups, 0.1, seed=1)
    shuffled = np.random.default_rng(5).permutation(len(labels))
    again = draw_fraction(labels[shuffled], groups[shuffled], 0.1, seed=1)
    assert sorted(shuffled[again]) == first.tolist()
    assert draw_fraction(labels, groups, 0.1, seed=2).tolist() != first.tolist()


def test_a_fraction_of_one_draws_all_labels():
    labels, groups = pool()
    assert draw_fraction(labels, groups, 1.0, seed=0).tolist() == list(range(len(labels)))


# -- tasks


def test_a_narrower_diagnosis_counts_as_the_class_that_covers_it(tmp_path):
    rows = coloured(36)
    for row in rows:
        row["dx"] = "sk" if row["split"] == "test" and row["dx"] == "bkl" else row["dx"]
    rows.append(rows[-1] | {"dx": "vasc", "colour": "nv", "split": "test"})
    task = make_probe_task(
        "diagnosis", with_split(read_table(data_set(tmp_path / "data", rows))), SPEC
    )
    assert task.classes == ("nv", "mel", "bkl")
    test = task.select("test")
    assert set(zip(test.table.frame["dx"], test.labels.tolist(), strict=True)) == {
        ("nv", 0),
        ("mel", 1),
        ("sk", 2),
    }
    assert task.count_unlabelled("test") == 1


def test_a_task_with_one_label_in_train_is_refused(tmp_path):
    rows = [
        row | {"severity": 2 if row["split"] == "train" else row["severity"]}
        for row in coloured(36)
    ]
    table = with_split(read_table(data_set(tmp_path / "data", rows)))
    with pytest.raises(DataError, match="1 different labels in the column 'severity'"):
        make_probe_task("severity", table, SPEC)
    with pytest.raises(DataError, match="0 different labels in the column 'mask'"):
        make_probe_task("segment", table, SPEC)


# -- nearest neighbours

AROUND = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0]], np.float32)
OF = np.array([0, 0, 1, 1, 2])


def test_nearest_neighbours_ignore_the_length_of_features():
    shares = vote(
        AROUND, OF, np.array([[10, 0.5], [0.01, 0.3], [-7, 0.1]], np.float32), 3, neighbours=2
    )
    assert shares.argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(shares.sum(1), 1)


def test_votes_are_weighted_by_similarity_as_published():
    query = np.array([[1, 0]], np.float32)
    similarity = AROUND @ query[0] / np.linalg.norm(AROUND, axis=1)
    weight = np.exp(similarity / 0.07)
    nearest = np.argsort(-similarity)[:3]
    expected = [weight[nearest][OF[nearest] == k].sum() / weight[nearest].sum() for k in range(3)]
    np.testing.assert_allclose(vote(AROUND, OF, query, 3, neighbours=3)[0], expected, rtol=1e-5)


def test_more_neighbours_than_images_use_all_images():
    assert vote(AROUND, OF, AROUND, 3, neighbours=99).shape == (5, 3)


def test_retrieval_metrics_agree_with_a_ranking_by_hand():
    found = measure_retrieval(
        AROUND, OF, np.array([[1, 0.02], [1, 0.02], [1, 0.02]], np.float32), np.array([0, 1, 3])
    )
    # The ranking is 0 0 1 1 2: class 1 is third and fourth, class 3 is missing.
    assert found["hit_at_1"].tolist() == [1, 0, 0]
    assert found["hit_at_5"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(found["mean_average_precision"], [1, (1 / 3 + 2 / 4) / 2, np.nan])


# -- linear layers


def blobs(labels, noise=0.3, width=16):
    """Draw features whose direction is the label."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, width))
    return (centres[labels] + rng.normal(0, noise, (len(labels), width))).astype(np.float32)


@pytest.mark.parametrize(("kind", "classes"), [("classify", 3), ("binary", 2)])
def test_a_linear_layer_learns_labels_but_not_shuffled_ones(kind, classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=600)
    features = blobs(labels)
    train, test = slice(0, 400), slice(400, None)
    right = fit_linear(kind, classes, features[train], labels[train])(features[test]).argmax(1)
    assert (right == labels[test]).mean() > 0.98
    wrong = fit_linear(kind, classes, features[train], rng.permutation(labels[train]))(
        features[test]
    ).argmax(1)
    assert (wrong == labels[test]).mean() < 1 / classes + 0.2


def test_an_ordinal_layer_finds_levels_along_a_direction():
    levels = np.random.default_rng(0).integers(4, size=800)
    rng = np.random.default_rng(2)
    features = (np.outer(levels, rng.normal(size=16)) + rng.normal(0, 0.3, (800, 16))).astype(
        np.float32
    )
    found = fit_linear(
        "ordinal", 4, features[:600], levels[:600], recipe=LinearRecipe(200, 128, 2e-2)
    )(features[600:])
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    guess = (1 - found.cumsum(1)[:, :-1] > 0.5).sum(1)
    assert np.abs(guess - levels[600:]).mean() < 0.15


def test_crossing_exceedances_are_decoded_as_on_a_device():
    found = class_probabilities("ordinal", np.array([[1.0, 3.0, -1.0]]))
    above = 1 / (1 + np.exp([-1.0, -1.0, 1.0]))
    np.testing.assert_allclose(found, [[1 - above[0], 0, above[1] - above[2], above[2]]])


def test_the_same_seed_gives_the_same_layer_and_keeps_the_generator_state():
    import torch

    labels = np.random.default_rng(0).integers(3, size=300)
    features = blobs(labels)
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    first, again, other = (
        fit_linear("classify", 3, features, labels, seed=s)(features) for s in (0, 0, 1)
    )
    assert torch.rand(1) == expected
    assert (first == again).all()
    assert (first != other).any()


def test_normalising_helps_small_features():
    labels = np.random.default_rng(0).integers(3, size=600)
    small = blobs(labels) * 1e-3
    left = fit_linear("classify", 3, small[:400], labels[:400])(small[400:])
    made = fit_linear("classify", 3, small[:400], labels[:400], normalise=True)(small[400:])
    assert (made.argmax(1) == labels[400:]).mean() > 0.98
    assert (
        -np.log(made[np.arange(200), labels[400:]]).mean()
        < -np.log(left[np.arange(200), labels[400:]]).mean() / 2
    )


def test_constant_features_cause_no_division_by_zero():
    labels = np.array([0, 1] * 20)
    features = np.concatenate([blobs(labels), np.full((40, 2), 7, np.float32)], axis=1)
    assert np.isfinite(fit_linear("classify", 2, features, labels, normalise=True)(features)).all()


def test_a_layer_whose_weights_are_not_finite_is_refused():
    labels = np.array([0, 1] * 20)
    with pytest.raises(DataError, match=r"not finite at the end of a linear probe\. Lower --lr"):
        fit_linear("classify", 2, blobs(labels), labels, recipe=LinearRecipe(5, 8, 1e39))


@pytest.mark.parametrize(
    "wrong", [(0, 256, 5e-3), (50, 1, 5e-3), (50, 256, 0.0), (50, 256, float("nan"))]
)
def test_a_recipe_that_trains_nothing_is_refused(wrong):
    with pytest.raises(UsageError, match="train nothing"):
        LinearRecipe(*wrong)


# -- scores

BOOTSTRAP = Bootstrap(200, 0)


def part(tmp_path, name, count=90):
    task = make_probe_task(
        name, with_split(read_table(data_set(tmp_path / "data", coloured(count)))), SPEC
    )
    return task, task.select("test")


def test_scores_of_a_diagnosis_agree_with_scikit_learn(tmp_path):
    task, test = part(tmp_path, "diagnosis")
    shares = np.random.default_rng(0).dirichlet(np.ones(3), len(test))
    found = score_probabilities(task, test, shares, threshold=None, bootstrap=BOOTSTRAP)
    guess = shares.argmax(1)
    assert found.metrics["macro_f1"].value == pytest.approx(
        f1_score(test.labels, guess, average="macro")
    )
    assert found.metrics["accuracy"].value == pytest.approx((guess == test.labels).mean())
    assert found.recall["mel"].value == pytest.approx((guess[test.labels == 1] == 1).mean())
    assert all(each.low <= each.value <= each.high for each in found.metrics.values())


def test_scores_of_a_severity_agree_with_scikit_learn(tmp_path):
    task, test = part(tmp_path, "severity")
    shares = np.random.default_rng(0).dirichlet(np.ones(3) / 2, len(test))
    found = score_probabilities(task, test, shares, threshold=None, bootstrap=BOOTSTRAP).metrics
    guess = predict_classes(task, shares, None)
    assert found["mean_absolute_error"].value == pytest.approx(np.abs(guess - test.labels).mean())
    kappa = cohen_kappa_score(test.labels, guess, weights="quadratic")
    assert found["quadratic_weighted_kappa"].value == pytest.approx(kappa)


def test_the_metrics_of_published_code_stand_beside_ours(tmp_path):
    rng = np.random.default_rng(0)
    task, test = part(tmp_path, "severity")
    shares = rng.dirichlet(np.ones(3) / 2, len(test))
    found = score_probabilities(task, test, shares, threshold=None, bootstrap=BOOTSTRAP).metrics
    guess = predict_classes(task, shares, None)
    assert found["macro_f1"].value == pytest.approx(f1_score(test.labels, guess, average="macro"))
    expected = roc_auc_score(test.labels, shares, multi_class="ovr")
    assert found["macro_auroc"].value == pytest.approx(expected)

    task, test = part(tmp_path / "two", "malignancy")
    shares = rng.dirichlet(np.ones(2), len(test))
    found = score_probabilities(task, test, shares, threshold=0.3, bootstrap=BOOTSTRAP).metrics
    guess = shares[:, 1] >= 0.3
    assert found["macro_f1"].value == pytest.approx(f1_score(test.labels, guess, average="macro"))
    assert found["accuracy"].value == pytest.approx((guess == test.labels).mean())


def test_a_malignancy_is_scored_at_its_threshold(tmp_path):
    task, test = part(tmp_path, "malignancy")
    malignant = np.random.default_rng(0).uniform(size=len(test))
    shares = np.stack([1 - malignant, malignant], axis=1)
    found = score_probabilities(task, test, shares, threshold=0.3, bootstrap=BOOTSTRAP).metrics
    sensitivity, specificity = (
        (malignant[test.labels == 1] >= 0.3).mean(),
        (malignant[test.labels == 0] < 0.3).mean(),
    )
    assert found["sensitivity"].value == pytest.approx(sensitivity)
    assert found["specificity"].value == pytest.approx(specificity)
    assert found["balanced_accuracy"].value == pytest.approx((sensitivity + specificity) / 2)


def test_macro_f1_counts_the_classes_that_scikit_learn_counts():
    labels = np.array([0, 0, 1, 1])
    for guess in ([0, 2, 1, 1], [0, 1, 1, 1], [2, 2, 2, 2]):
        expected = f1_score(labels, guess, average="macro")
        assert macro_f1(labels, np.array(guess), 4, np.ones(4)) == pytest.approx(expected)


def test_intervals_resample_lesions_not_images():
    values = np.repeat([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0], 25)
    measures = {"mean": lambda w: (w @ values) / w.sum(-1)}
    apart = bootstrap_intervals(measures, np.arange(200).astype(str), BOOTSTRAP)["mean"]
    together = bootstrap_intervals(measures, np.repeat(np.arange(8), 25).astype(str), BOOTSTRAP)[
        "mean"
    ]
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_scores_of_masks_agree_with_pixels_counted_by_hand():
    # Two images of 100 pixels. First: a lesion of 40 pixels, 30 of them predicted, and 10
    # predicted outside. Second: no lesion, and none predicted.
    counts = np.array([[[50, 70], [30, 50]], [[100, 100], [0, 0]]])
    lesion = np.array([True, False])
    found = score_masks(counts, lesion, np.array(["a", "b"]), BOOTSTRAP)
    assert found["dice"].value == pytest.approx(60 / 80)
    assert found["jaccard"].value == pytest.approx(30 / 50)
    assert found["mean_iou"].value == pytest.approx((150 / 170 + 30 / 50) / 2)
    assert found["pixel_accuracy"].value == pytest.approx(180 / 200)
