r"""Measure coverage, false positives and power of the tests of `dermedge readers analyze`.

    OMP_NUM_THREADS=1 python tests/benchmarks/readers.py [--studies 500] [--fits 60]
    python tests/benchmarks/readers.py --van-dyke dataset02.csv

Studies are drawn by the model of Roe and Metz with a known difference of the areas under
the ROC curves, or of the accuracies. Every study is analysed by Obuchowski-Rockette, by the
crossed bootstrap and by Wilcoxon's test over readers. `--fits` studies are drawn from the
model of the logistic regression, and fitted. The tables are printed as Markdown.

`--van-dyke` analyses the ratings of Van Dyke et al. (1993) instead, for a comparison with
the published values in `tests/readers/test_obuchowski_rockette.py`. The file is
`tests/testthat/goodValues361/DfSaveDataFile/dataset02.csv` of github.com/dpc10ster/RJafroc.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from scipy import stats

from dermedge.readers.logistic import fit_logistic
from dermedge.readers.obuchowski_rockette import compare_conditions, estimate_covariances
from dermedge.readers.paired import compare_readers
from dermedge.readers.plan import make_score
from dermedge.readers.scores import AreaScore, MeanScore, Replicates
from dermedge.readers.simulate import STRUCTURES, draw_ratings
from dermedge_export.evaluation.metrics import interval

REPLICATES = 400
SIZES = ((5, 60), (12, 120))
ANALYSES = ("random", "fixed_readers", "fixed_cases", "bootstrap", "wilcoxon")
TITLES = {
    "random": "Obuchowski-Rockette, random readers and cases",
    "fixed_readers": "Obuchowski-Rockette, fixed readers",
    "fixed_cases": "Obuchowski-Rockette, fixed cases",
    "bootstrap": "crossed bootstrap",
    "wilcoxon": "Wilcoxon over readers, t interval",
}


def analyse(ratings, truth, metric: str, seed: int) -> Iterator[tuple[str, bool, object]]:
    """Yield each analysis, whether it is significant, and its interval of the difference."""
    score = make_score(ratings, truth, metric)
    theta = score.at(np.ones((1, len(truth))))[0]
    result = compare_conditions(theta, estimate_covariances(score))
    for name in ANALYSES[:3]:
        test = getattr(result, name)
        yield name, test.p is not None and test.p < 0.05, test.difference
    draws = Replicates.draw(ratings.shape[1], truth, REPLICATES, seed)
    mean = draws.over_readers(score.at(draws.cases))
    found = interval(theta[1].mean() - theta[0].mean(), mean[:, 1] - mean[:, 0])
    yield "bootstrap", found.low > 0 or found.high < 0, found
    test = compare_readers(*theta)
    yield "wilcoxon", test.p < 0.05, test.mean_difference


def measure(metric: str, structure: str, size: tuple[int, int], aided: float, studies: int):
    """Return the shares of significant studies, and of intervals that hold the truth."""
    readers, cases = size
    variances, truth = STRUCTURES[structure], np.arange(cases) % 2.0
    separations = tuple(variances.separation(value, metric) for value in (0.8, aided))
    rng = np.random.default_rng([readers, cases, round(1000 * aided)])
    significant = dict.fromkeys(ANALYSES, 0)
    covered = dict.fromkeys(ANALYSES, 0)
    for seed in range(studies):
        ratings = draw_ratings(variances, separations, readers, truth, rng)
        for name, found, value in analyse(ratings, truth, metric, seed):
            significant[name] += bool(found)
            covered[name] += value.low is None or value.low <= aided - 0.8 <= value.high
    return significant, covered


def measure_logistic(fits: int) -> tuple[int, int]:
    """Return the significant fits without an effect, and the intervals that hold the truth."""
    significant = covered = 0
    for seed in range(fits):
        rng = np.random.default_rng(seed)
        base = rng.normal(0, 0.5, (8, 1)) + rng.normal(0, 1.0, (1, 50)) + 0.5
        effect = np.log(2) * (seed % 2)
        parts = []
        for aided in (0, 1):
            correct = rng.random(base.shape) < 1 / (1 + np.exp(-(base + effect * aided)))
            reader, case = np.indices(base.shape)
            columns = {"reader": reader, "case": case, "correct": correct}
            frame = pd.DataFrame({name: each.ravel() for name, each in columns.items()})
            parts.append(frame.assign(aided=aided))
        odds = fit_logistic(pd.concat(parts)).odds_ratio
        significant += seed % 2 == 0 and not odds.low <= 1 <= odds.high
        covered += odds.low <= np.exp(effect) <= odds.high
    return significant, covered


def analyse_van_dyke(file: Path) -> None:
    """Print areas, covariances and the three analyses of the published example."""
    frame = pd.read_csv(file).sort_values(["modality", "reader", "case"])
    shape = tuple(frame[name].nunique() for name in ("modality", "reader", "case"))
    ratings = frame.rating.to_numpy(float).reshape(shape)
    truth = frame.truth.to_numpy(float).reshape(shape)[0, 0]
    detected = np.where(truth == 1, 0, -1)
    scores = {
        "area": AreaScore(ratings, truth),
        "sensitivity, rating of at least 3": MeanScore((ratings >= 3) * 1.0, detected),
    }
    for name, score in scores.items():
        theta = score.at(np.ones((1, len(truth))))[0]
        error = estimate_covariances(score)
        print(f"{name}\n  {theta.round(8).tolist()}\n  {error}")
        result = compare_conditions(theta, error)
        for analysis in ANALYSES[:3]:
            print(f"  {analysis}: {getattr(result, analysis)}")


def share(hits: int, trials: int) -> str:
    low, high = stats.binomtest(hits, trials).proportion_ci(method="wilson")
    return f"{hits / trials:.3f} ({low:.3f}-{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--fits", type=int, default=60)
    parser.add_argument("--van-dyke", type=Path)
    options = parser.parse_args()
    if options.van_dyke:
        analyse_van_dyke(options.van_dyke)
        return
    started = time.monotonic()
    print("| metric | variances | readers, cases | analysis | false positives | coverage | power |")
    print("|---|---|---|---|---|---|---|")
    for metric, structure in (("auc", "HL"), ("auc", "LH"), ("accuracy", "HL")):
        for size in SIZES:
            null, held = measure(metric, structure, size, 0.8, options.studies)
            power, shifted = measure(metric, structure, size, 0.87, options.studies)
            for name in ANALYSES:
                print(
                    f"| {metric} | {structure} | {size[0]}, {size[1]} | {TITLES[name]} | "
                    f"{share(null[name], options.studies)} | "
                    f"{share(held[name] + shifted[name], 2 * options.studies)} | "
                    f"{power[name] / options.studies:.3f} |",
                    flush=True,
                )
    if options.fits:
        significant, covered = measure_logistic(options.fits)
        print(
            f"\nLogistic regression, 8 readers, 50 cases: false positives "
            f"{share(significant, (options.fits + 1) // 2)}, coverage "
            f"{share(covered, options.fits)}."
        )
    print(f"\n{time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
