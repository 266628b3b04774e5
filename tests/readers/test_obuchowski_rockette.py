"""Obuchowski-Rockette gives the published values, and equals other tests where it must.

The published values are of the study of Van Dyke et al. (1993): 5 readers, 114 cases, two
kinds of MRI. They were printed by OR-DBM MRMC 2.51 (University of Iowa), whose output
RJafroc keeps as tests/testthat/goodValues361/Iowa/VanDyke.txt, and by MRMCaov, in its user
guide (github.com/brian-j-smith/MRMCaov, docs/jss/MRMCaov.tex).
"""

import numpy as np
import pytest
from scipy import stats

from dermedge.readers.obuchowski_rockette import (
    ErrorCovariances,
    compare_conditions,
    delong_covariance,
    estimate_covariances,
    jackknife_covariance,
)
from dermedge.readers.scores import AreaScore, MeanScore

AREAS = np.array(
    [
        [0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066],
        [0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169],
    ]
)
JACKKNIFE = ErrorCovariances(
    *(0.0008022883, 0.0003466137, 0.0003440748, 0.0002390284),
    ((0.0010141028, 0.0004839618), (0.0005904738, 0.0002041879)),
)
DETECTED = np.array([[40, 35, 37, 42, 31], [44, 37, 41, 45, 40]])
"""Detected cases of 45 by each reader with a rating of at least 3."""


def ends(interval) -> tuple[float, float]:
    return interval.low, interval.high


def test_the_three_analyses_of_areas_with_the_jackknife_are_the_published_ones() -> None:
    result = compare_conditions(AREAS, JACKKNIFE)
    assert result.reader_variance == pytest.approx(0.0015349993, abs=1e-9)
    assert result.interaction_variance == pytest.approx(0.0002004025, abs=1e-9)
    random, readers, cases = result.random, result.fixed_readers, result.fixed_cases
    assert random.difference.value == pytest.approx(0.04380032, abs=1e-7)
    assert random.statistic == pytest.approx(4.46, abs=0.005)
    assert random.df == pytest.approx(15.26, abs=0.005)
    assert random.p == pytest.approx(0.0517, abs=5e-5)
    assert ends(random.difference) == pytest.approx((-0.00036, 0.08796), abs=5e-6)
    assert ends(random.unaided) == pytest.approx((0.82522360, 0.96885048), abs=1e-7)
    assert ends(random.aided) == pytest.approx((0.89413783, 0.98753689), abs=1e-7)
    assert (readers.statistic, readers.df) == (pytest.approx(5.475953, abs=1e-5), None)
    assert readers.p == pytest.approx(0.01927984, abs=1e-7)
    assert ends(readers.difference) == pytest.approx((0.00711473, 0.08048591), abs=1e-7)
    assert ends(readers.unaided) == pytest.approx((0.84943008, 0.94464399), abs=1e-7)
    assert ends(readers.aided) == pytest.approx((0.90795637, 0.97371835), abs=1e-7)
    assert (cases.statistic, cases.df) == (pytest.approx(8.704, abs=5e-4), 4)
    assert cases.p == pytest.approx(0.04195875, abs=1e-7)
    assert ends(cases.difference) == pytest.approx((0.00258042, 0.08502022), abs=1e-7)
    assert ends(cases.unaided) == pytest.approx((0.8280981, 0.9659760), abs=1e-6)


def test_areas_with_delongs_covariances_are_the_published_ones() -> None:
    delong = ErrorCovariances(
        *(0.0007921325, 0.0003420090, 0.0003395265, 0.0002358497),
        ((0.0, 0.0004775239), (0.0, 0.0002015292)),
    )
    test = compare_conditions(AREAS, delong).random
    assert test.statistic == pytest.approx(4.484854, abs=2e-5)
    assert test.df == pytest.approx(15.06611, abs=2e-5)
    assert test.p == pytest.approx(0.05123303, abs=1e-6)
    assert ends(test.difference) == pytest.approx((-0.0002665519, 0.0878671960), abs=1e-7)
    assert ends(test.unaided) == pytest.approx((0.8253461, 0.9687280), abs=1e-6)


def test_sensitivity_is_the_published_one() -> None:
    sensitivity = ErrorCovariances(
        *(0.0023681257, 0.0009943883, 0.0010145903, 0.0006604938),
        ((0.0, 0.001646465), (0.0, 0.000382716)),
    )
    test = compare_conditions(DETECTED / 45, sensitivity).random
    assert test.statistic == pytest.approx(6.689493, abs=1e-5)
    assert test.df == pytest.approx(15.71732, abs=1e-4)
    assert test.p == pytest.approx(0.02008822, abs=1e-7)
    assert ends(test.difference) == pytest.approx((0.0175185, 0.1780371), abs=1e-6)
    assert ends(test.aided) == pytest.approx((0.8328691, 1.0), abs=1e-6)


def test_the_jackknife_gives_the_published_error_variance_of_sensitivity() -> None:
    # The variance depends on the number of detected cases only, not on which ones. 69
    # cases without the disease do not count.
    hits = (np.arange(45) < DETECTED[:, :, None]).astype(float)
    values = np.concatenate([hits, np.zeros((2, 5, 69))], axis=2)
    score = MeanScore(values, np.repeat([0, -1], [45, 69]))
    assert estimate_covariances(score).variance == pytest.approx(0.0023681257, abs=1e-10)


def draw_ratings(readers: int = 4, cases: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    malignant = (np.arange(cases) % 3 == 0).astype(float)
    ratings = rng.integers(0, 5, (2, readers, cases)) + rng.integers(0, 3, cases) + 2 * malignant
    return ratings.astype(float), malignant


def area(ratings: np.ndarray, malignant: np.ndarray) -> float:
    above, below = ratings[malignant == 1], ratings[malignant == 0]
    wins = [(a > b) + 0.5 * (a == b) for a in above for b in below]
    return float(np.mean(wins))


def test_the_area_and_its_jackknife_are_those_of_plain_loops() -> None:
    ratings, malignant = draw_ratings(readers=2)
    score = AreaScore(ratings, malignant)
    flat = ratings.reshape(4, -1)
    found = score.at(np.ones((1, len(malignant))))[0].ravel()
    assert found == pytest.approx([area(each, malignant) for each in flat])
    without = np.array(
        [
            [area(np.delete(each, case), np.delete(malignant, case)) for each in flat]
            for case in range(len(malignant))
        ]
    )
    expected = (len(malignant) - 1) * np.cov(without.T, ddof=0)
    assert jackknife_covariance(score) == pytest.approx(expected)


def test_one_reader_gives_delongs_test_of_two_correlated_areas() -> None:
    ratings, malignant = draw_ratings(readers=1)
    score = AreaScore(ratings, malignant)
    theta = score.at(np.ones((1, len(malignant))))[0]
    result = compare_conditions(theta, estimate_covariances(score))
    above, below = ratings[:, 0, malignant == 1], ratings[:, 0, malignant == 0]
    psi = (above[:, :, None] > below[:, None]) + 0.5 * (above[:, :, None] == below[:, None])
    of_cases = psi.mean(2)[1] - psi.mean(2)[0], psi.mean(1)[1] - psi.mean(1)[0]
    error = sum(np.var(each, ddof=1) / len(each) for each in of_cases) ** 0.5
    z = (theta[1, 0] - theta[0, 0]) / error
    assert result.fixed_readers.statistic == pytest.approx(z**2)
    assert result.fixed_readers.p == pytest.approx(2 * stats.norm.sf(abs(z)))
    assert (result.random, result.fixed_cases) == (None, None)


def test_without_variance_of_cases_it_is_the_paired_t_test_of_readers() -> None:
    none = ErrorCovariances(0.0, 0.0, 0.0, 0.0, ((0.0, 0.0), (0.0, 0.0)))
    result = compare_conditions(AREAS, none)
    expected = stats.ttest_rel(AREAS[1], AREAS[0])
    for test in (result.random, result.fixed_cases):
        assert test.p == pytest.approx(expected.pvalue)
        assert test.df == pytest.approx(4)
        assert ends(test.difference) == pytest.approx(tuple(expected.confidence_interval()))


def test_delong_and_the_jackknife_agree_in_a_large_study() -> None:
    rng = np.random.default_rng(2)
    malignant = np.arange(400) % 2.0
    ratings = rng.normal(size=(2, 2, 400)) + rng.normal(size=400) + malignant
    score = AreaScore(ratings, malignant)
    assert delong_covariance(score) == pytest.approx(jackknife_covariance(score), rel=0.02)


def test_equal_readings_have_no_test_and_no_interval() -> None:
    hits = np.ones((2, 3, 8))
    score = MeanScore(hits, np.zeros(8, int))
    result = compare_conditions(np.ones((2, 3)), estimate_covariances(score))
    assert (result.random.p, result.random.difference.low) == (None, None)
    assert result.random.difference.value == 0
