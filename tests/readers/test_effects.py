"""Drawn studies with known effects: the effects are found, and chance is not an effect."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dermedge.readers.changes import measure_changes, measure_shifts, measure_subgroups
from dermedge.readers.design import check_design
from dermedge.readers.logistic import fit_logistic
from dermedge.readers.paired import compare_readers, mcnemar
from dermedge.readers.plan import plan_readers
from dermedge.readers.rows import Rows
from dermedge.readers.scores import MeanScore, Replicates, make_scores, rate
from dermedge.readers.simulate import STRUCTURES, RoeMetz, draw_ratings, draw_rows, draw_study
from dermedge.readers.study import build_study
from dermedge_runtime.errors import UsageError


def altered(change, **options):
    """Draw a study, change its frame, and read it."""
    rows = draw_rows(**{"readers": 4, "cases": 40, "seed": 7, **options})
    return build_study(Rows(change(rows.frame), rows.where))


def draws_of(study, count: int = 200) -> Replicates:
    return Replicates.draw(len(study.readers), study.malignant, count, seed=0)


def follow_model(frame: pd.DataFrame) -> pd.DataFrame:
    aided = frame.condition == "aided"
    return frame.assign(answer=frame.answer.where(~aided, frame.model))


def test_readers_who_follow_the_model_have_full_automation_bias() -> None:
    study = altered(follow_model)
    changes = measure_changes(study, draws_of(study))
    rates = {name: value.value for name, value in changes.rates.items()}
    assert rates["automation_bias"] == rates["corrected"] == rates["switched"] == 1
    for change in changes.matrix:
        assert (change.aided_right == 0) == (change.model_right is False)
    assert sum(c.aided_right + c.aided_wrong for c in changes.matrix) == study.correct[0].size
    before, after = study.correct
    assert rates["gained"] == (after & ~before).sum() / (~before).sum()
    assert rates["lost"] == (~after & before).sum() / before.sum()


def test_readers_who_ignore_the_model_change_nothing() -> None:
    def ignore(frame: pd.DataFrame) -> pd.DataFrame:
        first = frame[frame.condition == "unaided"].set_index(["reader", "case"]).answer
        keys = pd.MultiIndex.from_frame(frame[["reader", "case"]])
        return frame.assign(answer=first.loc[keys].to_numpy())

    study = altered(ignore)
    rates = measure_changes(study, draws_of(study)).rates
    assert {value.value for name, value in rates.items() if name != "switched"} == {0.0}
    assert rates["switched"].value == 0
    assert mcnemar(*study.correct).p == 1


def test_times_and_confidence_shift_as_they_were_drawn() -> None:
    def shift(frame: pd.DataFrame) -> pd.DataFrame:
        aided = frame.condition == "aided"
        right = frame.model == frame.truth
        return frame.assign(
            seconds=np.where(aided, "5", "10"),
            confidence=np.where(aided & right, "70", np.where(aided, "40", "50")),
        )

    study = altered(shift)
    shifts = {each.name: each for each in measure_shifts(study, draws_of(study))}
    assert shifts["seconds"].change.value == pytest.approx(0.5)
    assert shifts["seconds"].unaided == pytest.approx(10)
    assert shifts["confidence, model right"].change.value == pytest.approx(20)
    assert shifts["confidence, model wrong"].change.value == pytest.approx(-10)
    assert shifts["seconds"].p == pytest.approx(2 / 2**4)


def test_the_gain_of_one_group_is_found_in_that_group_only() -> None:
    def residents_gain(frame: pd.DataFrame) -> pd.DataFrame:
        first = frame[frame.condition == "unaided"].set_index(["reader", "case"]).answer
        keys = pd.MultiIndex.from_frame(frame[["reader", "case"]])
        same = pd.Series(first.loc[keys].to_numpy(), frame.index)
        gain = (frame.reader_group == "resident") & (frame.condition == "aided")
        return frame.assign(answer=same.where(~gain, frame.truth))

    study = altered(residents_gain)
    groups = {
        each.value: each
        for each in measure_subgroups(study, draws_of(study))
        if each.column == "reader_group"
    }
    assert groups["specialist"].accuracy.difference.value == 0
    assert groups["resident"].accuracy.aided.value == 1
    assert groups["resident"].accuracy.difference.low > 0
    assert (groups["resident"].readers, groups["resident"].cases) == (2, 40)


def test_wilcoxon_and_its_effect_size_are_those_of_scipy() -> None:
    rng = np.random.default_rng(3)
    unaided = rng.normal(0.7, 0.1, 9)
    aided = unaided + rng.normal(0.05, 0.05, 9)
    test = compare_readers(unaided, aided)
    assert test.p == pytest.approx(stats.wilcoxon(aided - unaided).pvalue)
    z = stats.wilcoxon(aided - unaided, method="asymptotic").zstatistic
    assert test.effect == pytest.approx(abs(z) / 3)
    low, high = stats.ttest_rel(aided, unaided).confidence_interval()
    assert (test.mean_difference.low, test.mean_difference.high) == pytest.approx((low, high))


def test_wilcoxon_with_ties_is_the_exact_test_of_all_signs() -> None:
    differences = np.array([0.1, 0.1, 0.2, -0.1, 0.3, 0.2, 0.0, 0.1])
    test = compare_readers(np.zeros(8), differences)
    exact = stats.PermutationMethod(n_resamples=np.inf)
    changed = differences[differences != 0]
    assert test.p == pytest.approx(stats.wilcoxon(changed, method=exact).pvalue)
    many = np.random.default_rng(2).normal(0.2, 1.0, 60)
    expected = stats.wilcoxon(many, method="asymptotic").pvalue
    assert compare_readers(np.zeros(60), many).p == pytest.approx(expected)


def test_nobody_changed_is_no_effect_and_one_reader_no_test() -> None:
    same = np.array([0.5, 0.7, 0.9])
    # 0.1 + 0.2 is not 0.3 in floating point, but it is no difference.
    assert compare_readers(np.array([0.3, 0.5]), np.array([0.1 + 0.2, 0.5])).p == 1
    assert (compare_readers(same, same).p, compare_readers(same, same).effect) == (1, 0)
    assert compare_readers(same[:1], same[1:2]).p is None


@pytest.mark.parametrize(("gained", "lost", "method"), [(12, 3, "exact"), (30, 12, "chi-squared")])
def test_mcnemar_is_exact_when_small(gained: int, lost: int, method: str) -> None:
    before = np.repeat([False, True, True], [gained, lost, 50])
    after = np.repeat([True, False, True], [gained, lost, 50])
    test = mcnemar(before, after)
    assert (test.gained, test.lost, test.method) == (gained, lost, method)
    if method == "exact":
        assert test.p == pytest.approx(2 * stats.binom.cdf(lost, gained + lost, 0.5))
    else:
        assert test.p == pytest.approx(stats.chi2.sf((abs(gained - lost) - 1) ** 2 / 42, 1))


def draw_logistic(effect: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    readers, cases = np.meshgrid(range(12), range(60), indexing="ij")
    base = rng.normal(0, 0.5, 12)[readers] + rng.normal(0, 1.0, 60)[cases] + 0.5
    parts = []
    for aided in (0, 1):
        share = 1 / (1 + np.exp(-(base + effect * aided)))
        correct = rng.random(share.shape) < share
        parts.append(
            pd.DataFrame(
                {
                    "reader": readers.ravel(),
                    "case": cases.ravel(),
                    "aided": aided,
                    "correct": correct.ravel(),
                }
            )
        )
    return pd.concat(parts)


def test_the_logistic_regression_finds_the_drawn_odds_ratio_and_spreads() -> None:
    fit = fit_logistic(draw_logistic(np.log(2), seed=4))
    assert fit.odds_ratio.low < 2 < fit.odds_ratio.high
    assert fit.odds_ratio.high / fit.odds_ratio.low < 2
    assert 0.2 < fit.reader_sd < 1.0
    assert 0.6 < fit.case_sd < 1.5
    assert fit.readings == 1440
    assert fit == fit_logistic(draw_logistic(np.log(2), seed=4))


def test_the_logistic_regression_is_not_run_without_wrong_answers() -> None:
    readings = draw_logistic(0.0, seed=1)
    readings.loc[readings.aided == 1, "correct"] = True
    assert fit_logistic(readings) is None


def test_the_model_of_the_ratings_gives_the_expected_metrics() -> None:
    rng = np.random.default_rng(0)
    malignant = np.arange(4000) % 2.0
    structure = STRUCTURES["LH"]
    for metric in ("auc", "accuracy"):
        separations = tuple(structure.separation(value, metric) for value in (0.7, 0.8))
        ratings = draw_ratings(structure, separations, 60, malignant, rng)
        above, below = ratings[..., malignant == 1], ratings[..., malignant == 0]
        if metric == "auc":
            areas = stats.norm.cdf(
                (above.mean(-1) - below.mean(-1)) / np.sqrt(above.var(-1) + below.var(-1))
            )
            assert areas.mean(1) == pytest.approx([0.7, 0.8], abs=0.02)
        else:
            accuracy = ((ratings >= 0) == malignant).mean((1, 2))
            assert accuracy == pytest.approx([0.7, 0.8], abs=0.02)


def test_chance_is_significant_as_often_as_it_should_be() -> None:
    # Of 200 studies without an effect, 5 % are 10; 3 to 18 hold 99 % of the numbers.
    report = plan_readers([5], [60], unaided=0.8, aided=0.8, simulations=200, seed=1)
    assert 3 <= round(200 * report.studies[0].power.value) <= 18


def test_power_grows_with_readers_cases_and_effect() -> None:
    report = plan_readers([4, 12], [40, 160], aided=0.85, simulations=60, metric="accuracy")
    power = {(each.readers, each.cases): each.power.value for each in report.studies}
    assert power[4, 40] < power[12, 160]
    assert power[12, 40] <= power[12, 160]
    widths = {(each.readers, each.cases): each.width for each in report.studies}
    assert widths[12, 160] < widths[4, 160] < widths[4, 40]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"readers": [1], "cases": [40]}, "1 readers, 20 malignant and 20 benign"),
        ({"readers": [4], "cases": [10], "malignant": 0.1}, "1 malignant and 9 benign"),
        ({"readers": [4], "cases": [40], "aided": 1.0}, "The auc is 1."),
        ({"readers": [4], "cases": [40], "metric": "acuracy"}, "Did you mean 'accuracy'?"),
    ],
)
def test_an_impossible_plan_is_refused(options, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_readers(**options)


def test_replicates_keep_the_design_and_one_reader_is_not_resampled() -> None:
    strata = np.array([1.0, 1.0, 0.0, 0.0, 0.0, np.nan])
    draws = Replicates.draw(1, strata, 500, seed=0)
    assert (draws.readers == 1).all()
    for members, size in ((strata == 1, 2), (strata == 0, 3), (np.isnan(strata), 1)):
        assert (draws.cases[:, members].sum(1) == size).all()
    assert len(np.unique(Replicates.draw(3, strata, 500, seed=0).readers[:, 0])) > 2


def test_the_crossed_bootstrap_has_the_variance_of_readers_and_cases() -> None:
    # Values that depend on the reader or on the case only have known variances.
    rng = np.random.default_rng(1)
    for axis in (0, 1):
        effect = rng.normal(size=30)
        values = np.broadcast_to(effect[:, None] if axis == 0 else effect, (30, 30))
        draws = Replicates.draw(30, np.ones(30), 4000, seed=2)
        score = MeanScore(values.astype(float), np.zeros(30, int))
        means = draws.over_readers(score.at(draws.cases))
        assert means.var() == pytest.approx(effect.var() / 30, rel=0.1)


def test_every_metric_is_that_of_a_plain_loop() -> None:
    study = draw_study(readers=3, cases=30, seed=5)
    scores = make_scores(study, study.answers, rate(study))
    at = {name: score.at(np.ones((1, 30)))[0] for name, score in scores.items()}
    for condition in (0, 1):
        for reader in range(3):
            answers, truth = study.answers[condition, reader], study.truth
            sick = truth == "malignant"
            sensitivity = np.mean(answers[sick] == "malignant")
            specificity = np.mean(answers[~sick] == "benign")
            place = (condition, reader)
            assert at["accuracy"][place] == pytest.approx(np.mean(answers == truth))
            assert at["sensitivity"][place] == pytest.approx(sensitivity)
            assert at["specificity"][place] == pytest.approx(specificity)
            balanced = (sensitivity + specificity) / 2
            assert at["balanced_accuracy"][place] == pytest.approx(balanced)


CHECKS = {
    "unaided first": lambda f: f.assign(
        order=f.order.where(f.reader != "r01", 81 - f.order.astype(int)).astype(str)
    ),
    "randomised order": lambda f: f.assign(
        order=(f.case.str[1:].astype(int) + 40 * (f.condition == "aided")).astype(str)
    ),
    "wash-out": lambda f: f.assign(answered="2026-01-05T08:00:00Z"),
    "learning": lambda f: f.assign(
        answer=np.where(f.order.astype(int) % 40 < 20, f.truth, "benign")
    ),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_broken_design_is_warned_of(name: str) -> None:
    readers = {"readers": 6} if name == "learning" else {}
    study = altered(CHECKS[name], **readers)
    status = {check.name: check.status for check in check_design(study, 14)}
    assert status[name] == "warn"
    sound = check_design(draw_study(readers=4, cases=40, seed=7), 14)
    assert {check.status for check in sound} == {"passed"}


def test_checks_without_their_columns_are_not_run() -> None:
    study = altered(lambda frame: frame.drop(columns=["order", "answered"]))
    status = {check.name: check.status for check in check_design(study, 14)}
    assert status.pop("completeness") == "passed"
    assert set(status.values()) == {"not_run"}


def test_the_variances_of_the_structures_add_up() -> None:
    for structure in (*STRUCTURES.values(), RoeMetz()):
        parts = (structure.case, structure.condition_case, structure.reader_case, structure.error)
        assert sum(parts) == pytest.approx(1)
        assert min(parts) > 0
