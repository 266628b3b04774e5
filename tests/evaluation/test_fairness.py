"""Test fairness comparisons by tables counted by hand, and by chance."""

from dataclasses import replace

import numpy as np
import pytest

from dermedge.cli.evaluate import show_fairness
from dermedge.evaluation.fairness import fairness
from dermedge.evaluation.fairness_text import summarize
from dermedge_runtime.errors import DataError
from dermedge_runtime.report import Interval

NAMES = ("nv", "mel", "akiec")


def table(*rows):
    """Return labels, predictions, groups and clusters of (times, label, predicted, group).

    Every image is its own lesion.
    """
    columns = [
        np.repeat([row[column] for row in rows], [row[0] for row in rows]) for column in (1, 2, 3)
    ]
    return (*columns, np.arange(sum(row[0] for row in rows)).astype(str))


def compared(
    labels, predicted, groups, clusters, *, column="sex", classes=2, malignant=True, **options
):
    """Compare the groups of a table whose class 1 is malignant."""
    known = (
        {"positive": np.where(labels < 0, np.nan, labels == 1), "decision": predicted == 1}
        if malignant
        else {}
    )
    (found,) = fairness(
        labels,
        predicted,
        classes,
        {column: groups},
        clusters,
        **{"replicates": 200} | known | options,
    )
    return found


# Men: 8 of 10 malignant detected, 6 of 30 false alarms. Women: 12 of 20 and 4 of 40.
COUNTED = table(
    *((8, 1, 1, "male"), (2, 1, 0, "male"), (6, 0, 1, "male"), (24, 0, 0, "male")),
    *((12, 1, 1, "female"), (8, 1, 0, "female"), (4, 0, 1, "female"), (36, 0, 0, "female")),
)


def patients(rng, *, count, worse=0.0, dark=0.15):
    """Draw patients whose recall depends on the class; dark skin loses `worse`.

    Malignancy is rarer in dark skin.
    """
    groups = rng.choice(
        ["I", "II", "III", "IV", "V", "VI"], count, p=[*[(1 - dark) / 4] * 4, dark / 2, dark / 2]
    )
    darker = np.isin(groups, ["V", "VI"])
    labels = np.where(rng.random(count) < np.where(darker, 0.25, 0.4), 1, rng.choice([0, 2], count))
    hit = rng.random(count) < np.where(labels == 1, 0.6, 0.85) - worse * darker
    return labels, np.where(hit, labels, (labels + 1) % 3), groups, np.arange(count).astype(str)


def test_rates_gap_and_equalised_odds_are_those_counted_by_hand():
    found = compared(*COUNTED)
    men, women = found.groups["male"], found.groups["female"]
    assert (men.cases, men.malignant, women.cases, women.malignant) == (40, 10, 60, 20)
    assert (men.tpr.value, men.fpr.value) == pytest.approx((8 / 10, 6 / 30))
    assert (women.tpr.value, women.fpr.value) == pytest.approx((12 / 20, 4 / 40))
    assert men.score.value == pytest.approx((8 / 10 + 24 / 30) / 2)
    assert women.score.value == pytest.approx((12 / 20 + 36 / 40) / 2)
    assert found.gap.value == pytest.approx(0.80 - 0.75)
    # The difference in TPR is 0.2, larger than the 0.1 in FPR.
    assert found.equalised_odds.value == pytest.approx(0.2)
    assert (found.column, found.metric, found.classes, found.worst) == (
        "sex",
        "balanced_accuracy",
        (0, 1),
        "female",
    )
    assert (found.insufficient, found.unknown) == ({}, 0)
    for interval in (men.score, women.tpr, men.fpr, found.equalised_odds):
        assert interval.low < interval.value < interval.high


def test_equalised_odds_include_false_alarms_if_sensitivities_are_equal():
    found = compared(
        *table(
            *((20, 1, 1, "male"), (5, 0, 1, "male"), (15, 0, 0, "male")),
            *((20, 1, 1, "female"), (15, 0, 1, "female"), (5, 0, 0, "female")),
        )
    )
    assert found.equalised_odds.value == pytest.approx(0.5)


def test_skin_types_are_compared_in_pairs():
    labels, predicted, _, clusters = table(
        (30, 0, 0, ""), (30, 1, 0, ""), (30, 0, 1, ""), (30, 1, 1, "")
    )
    single = np.resize(["I", "II", "III", "IV", "V", "VI"], 120)
    found = compared(labels, predicted, single, clusters, column="fitzpatrick")
    assert {name: group.cases for name, group in found.groups.items()} == {
        "I-II": 40,
        "III-IV": 40,
        "V-VI": 40,
    }
    pairs = compared(
        labels, predicted, np.resize(["I-II", "V-VI"], 120), clusters, column="fitzpatrick"
    )
    assert list(pairs.groups) == ["I-II", "V-VI"]


@pytest.mark.parametrize("images", [1, 3])
def test_the_gap_of_equal_groups_is_as_large_as_chance(images):
    gaps, chances, above = [], [], 0
    for seed in range(40):
        rows = [
            np.repeat(column, images) for column in patients(np.random.default_rng(seed), count=300)
        ]
        found = compared(
            *rows, column="fitzpatrick", classes=3, malignant=False, replicates=100, seed=seed
        )
        gaps.append(found.gap.value)
        chances.append(found.chance)
        above += found.gap.value > found.chance_high
        # A gap is a maximum minus a minimum, so it is above 0 even for equal groups.
        assert found.gap.value > 0
    assert np.mean(gaps) == pytest.approx(np.mean(chances), rel=0.2)
    assert above <= 6


def test_random_groups_keep_the_prevalence_of_malignancy():
    rows = table(
        *((50, 1, 1, "male"), (50, 1, 0, "male"), (100, 0, 0, "male")),
        *((3, 1, 1, "female"), (2, 1, 0, "female"), (195, 0, 0, "female")),
    )
    # With five malignant cases and a recall of one half, one of 16 draws finds none or all.
    # With fifty cases, no draw would.
    assert compared(*rows, replicates=500).chance_high > 0.15


def test_a_real_difference_exceeds_chance():
    rows = patients(np.random.default_rng(0), count=900, worse=0.3)
    found = compared(*rows, column="fitzpatrick", classes=3)
    assert found.worst == "V-VI"
    assert found.gap.value > 2 * found.chance_high
    assert 0 < found.chance < found.chance_high
    assert (
        found.equalised_odds.value
        > found.equalised_odds_chance_high
        > found.equalised_odds_chance
        > 0
    )


def test_the_seed_determines_the_result():
    first, second, other = (compared(*COUNTED, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first.gap != other.gap
    assert first.chance_high is not None


def test_more_images_of_the_same_lesions_do_not_narrow_intervals():
    labels, predicted, groups, clusters = patients(np.random.default_rng(2), count=400)
    once = compared(labels, predicted, groups, clusters, column="fitzpatrick", classes=3)
    more = [np.repeat(column, 4) for column in (labels, predicted, groups, clusters)]
    again = compared(*more, column="fitzpatrick", classes=3)
    counted = compared(*more[:3], np.arange(1600).astype(str), column="fitzpatrick", classes=3)
    for found in (
        lambda part: part.gap.value,
        lambda part: part.gap.high,
        lambda part: part.equalised_odds.low,
    ):
        assert found(again) == pytest.approx(found(once))
    assert again.chance_high == pytest.approx(once.chance_high)
    # Counted as separate lesions, the same images narrow both.
    assert counted.chance_high < 0.7 * once.chance_high
    assert counted.gap.high - counted.gap.low < 0.7 * (once.gap.high - once.gap.low)


def test_images_of_unknown_group_form_no_group_and_are_counted():
    labels, predicted, groups, _ = COUNTED
    # As in PAD-UFES-20, all images without a group are benign, and predicted benign.
    lost = np.concatenate([groups, np.full(50, "")])
    more = [np.concatenate([column, np.zeros(50, int)]) for column in (labels, predicted)]
    found = compared(*more, lost, np.arange(150).astype(str))
    assert found.unknown == 50
    assert list(found.groups) == ["female", "male"]
    assert (found.gap.value, found.equalised_odds.value) == pytest.approx((0.05, 0.2))
    assert any("50 images" in sentence for sentence in summarize(found, NAMES))
    assert (
        fairness(more[0], more[1], 2, {"sex": np.full(150, ""), "site": lost}, np.arange(150)) == ()
    )
    assert fairness(more[0], more[1], 2, {}, np.arange(150)) == ()


def test_images_of_unknown_class_are_ignored():
    labels, predicted, groups, clusters = COUNTED
    found = compared(np.where(np.arange(100) % 50 == 0, -1, labels), predicted, groups, clusters)
    assert sum(group.cases for group in found.groups.values()) == 98


def test_small_groups_are_listed_and_not_compared():
    labels, predicted, groups, clusters = table(
        (29, 0, 1, "VI"), (29, 1, 0, "I"), (31, 0, 0, "I"), (40, 1, 1, "III")
    )
    found = compared(labels, predicted, groups, clusters, column="fitzpatrick")
    assert found.insufficient == {"V-VI": 29}
    assert set(found.groups) == {"I-II", "III-IV"}
    assert any(
        "V-VI 29" in sentence and "30 images" in sentence for sentence in summarize(found, NAMES)
    )
    alone = compared(*table((100, 0, 0, "male"), (100, 1, 1, "male"), (20, 1, 0, "female")))
    assert alone.insufficient == {"female": 20}
    assert (alone.worst, alone.gap, alone.chance, alone.equalised_odds) == (
        None,
        Interval(None),
        None,
        None,
    )
    assert alone.groups["male"].tpr.value == 1
    assert next(summarize(alone, NAMES)).startswith(
        "By sex, groups cannot be compared. Only one group has 30 or more images"
    )
    nobody = compared(*table((20, 0, 0, "male"), (20, 1, 0, "female")))
    assert nobody.groups == {}
    assert nobody.insufficient == {"female": 20, "male": 20}
    assert "No group has 30 or more images" in next(summarize(nobody, NAMES))


def test_a_diagnosis_that_a_group_lacks_is_left_out_for_all_groups():
    rows = table(
        *((30, 0, 0, "male"), (30, 1, 1, "male"), (30, 2, 0, "male")),
        *((30, 0, 0, "female"), (30, 1, 1, "female"), (4, 2, 0, "female")),
    )
    found = compared(*rows, classes=3)
    assert found.classes == (0, 1)
    assert {name: group.score.value for name, group in found.groups.items()} == {
        "female": 1,
        "male": 1,
    }
    assert (found.gap.value, found.worst) == (0, None)
    sentences = list(summarize(found, NAMES, {"akiec": "Keratosis"}))
    assert sentences[0] == "By sex, all groups have the same score."
    assert any("fewer than 5 images of them: Keratosis." in sentence for sentence in sentences)


def test_groups_without_shared_diagnoses_are_compared_as_malignant_or_benign():
    labels, predicted, groups, clusters = COUNTED
    # Each sex has its own diagnoses.
    apart = np.where(groups == "male", labels, labels + 2)
    malignancy = {"positive": (labels == 1).astype(float), "decision": predicted == 1}
    found = compared(apart, predicted, groups, clusters, classes=4, malignant=False, **malignancy)
    assert (found.metric, found.classes) == ("malignant_balanced_accuracy", (0, 1))
    assert found.gap.value == pytest.approx(0.05)
    assert any("malignant or benign" in sentence for sentence in summarize(found, NAMES))
    unknown = compared(np.full(100, -1), predicted, groups, clusters, malignant=False, **malignancy)
    assert unknown == found
    nothing = compared(apart, predicted, groups, clusters, classes=4, malignant=False)
    assert nothing.gap == Interval(None)
    assert "share fewer than two diagnoses" in next(summarize(nothing, NAMES))


def test_equalised_odds_need_malignant_and_benign_cases_in_every_group():
    few = [(30, 0, 0, "female"), (4, 1, 1, "female"), (30, 2, 2, "female")]
    found = compared(
        *table((30, 0, 0, "male"), (30, 1, 0, "male"), (30, 2, 2, "male"), *few), classes=3
    )
    assert found.gap.value is not None
    assert (
        found.equalised_odds,
        found.equalised_odds_chance,
        found.equalised_odds_chance_high,
    ) == (None, None, None)
    assert any("not measured" in sentence for sentence in summarize(found, NAMES))
    undecided = compared(*COUNTED, malignant=False)
    assert undecided.gap.value == pytest.approx(0.05)
    assert undecided.equalised_odds is None
    assert undecided.groups["male"].tpr == Interval(None)


def test_columns_of_another_length_are_refused():
    labels, predicted, groups, clusters = COUNTED
    with pytest.raises(DataError, match="'sex' has 99 rows for 100 labels"):
        fairness(labels, predicted, 2, {"sex": groups[1:]}, clusters)
    with pytest.raises(DataError, match="'decision' has 1 rows"):
        compared(labels, predicted, groups, clusters, decision=np.array([True]))


def test_the_summary_compares_the_gap_with_chance(capsys):
    found = compared(*COUNTED)
    inside = replace(found, gap=Interval(0.05, 0.01, 0.2), chance=0.04, chance_high=0.123)
    beyond = replace(inside, chance_high=0.049)
    said = next(summarize(inside, NAMES))
    assert said == (
        "By sex, the worst group is female: 5.0 points below the best group. With randomly "
        "assigned groups, the gap is 4.0 points (median); one in twenty exceeds 12.3 points. The "
        "gap may be chance. This does not show that the model is equally accurate for all groups."
    )
    assert "The gap is larger than chance explains." in next(summarize(beyond, NAMES))
    show_fairness((inside,), NAMES)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.strip().startswith("sex"))
    assert row.split()[1:5] == ["female", "0.050", "(0.010-0.200)", "0.040"]
    assert "0.200" in row
    assert said in lines
    show_fairness((), NAMES)
    assert "No image with a known class has a skin type or a sex" in capsys.readouterr().out
