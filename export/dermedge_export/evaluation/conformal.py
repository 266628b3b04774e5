"""Fit conformal sets, and compute them for tables as `dermedge_runtime.decode` does."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_runtime.spec import Conformal, Postprocessing, Spec

Array = NDArray[Any]

# Candidates for the choice by `fit_conformal`: of equal ones the first is chosen.
# docs/benchmarks.md compares them on HAM10000.
METHODS = (
    Conformal("lac", 0.9, ()),
    Conformal("aps", 0.9, ()),
    *(Conformal("raps", 0.9, (), penalty, free) for penalty in (0.01, 0.1, 0.3) for free in (1, 2)),
)
FOLDS = 5
# A device may compute a score in float32. The image that gives the quantile then still
# has a score of at most the quantile.
MARGIN = 1e-6


def conformal_scores(probabilities: Array, conformal: Conformal) -> NDArray[np.float64]:
    """Return the conformal score of each label; a label is in the set up to its quantile.

    Args:
        probabilities: Class probabilities [N, K].
        conformal: Method and its parameters; the quantiles are not used.

    Returns:
        Scores, float64 [N, K].

    Example:
        >>> aps = Conformal("aps", 0.9, (None, None, None))
        >>> conformal_scores(np.array([[0.25, 0.5, 0.25]]), aps).tolist()
        [[0.75, 0.5, 1.0]]

    Source: see `dermedge_runtime.decode.conformal_set`.
    """
    if conformal.method == "lac":
        return np.asarray(1.0 - probabilities, np.float64)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1).cumsum(axis=1)
    if conformal.method == "raps":
        ranks = np.arange(1, probabilities.shape[1] + 1)
        ranked = ranked + conformal.penalty * np.maximum(0, ranks - conformal.free)
    scores = np.empty(probabilities.shape)
    np.put_along_axis(scores, order, ranked, axis=1)
    return scores


def conformal_sets(probabilities: Array, conformal: Conformal) -> NDArray[np.bool_]:
    """Return which labels are in the set of each image, bool [N, K].

    Args:
        probabilities: Class probabilities [N, K]; rows with NaN have the labels without
            a quantile only.
        conformal: Fitted method and quantiles.

    Example:
        >>> lac = Conformal("lac", 0.9, (0.6, 0.6, None))
        >>> conformal_sets(np.array([[0.5, 0.3, 0.2]]), lac).tolist()
        [[True, False, True]]
    """
    quantiles = [np.inf if value is None else value for value in conformal.quantiles]
    sets = conformal_scores(probabilities, conformal) <= quantiles
    missing = np.array([value is None for value in conformal.quantiles])
    return np.asarray(sets | missing)


def fit_conformal(
    probabilities: Array, labels: Array, groups: Array, coverage: float
) -> Conformal | None:
    """Fit class-conditional conformal sets with the method of the smallest sets.

    Every method has the asked coverage of each label, so the smallest sets are the most
    useful ones. Sets are measured on images that did not fit their quantiles: the rows
    are divided into 5 folds of whole groups. Then all rows fit the quantiles.

    Args:
        probabilities: Class probabilities [N, K], with the temperature applied.
        labels: True classes [N]; rows with -1 or NaN probabilities are left out.
        groups: Lesion or patient of each image [N].
        coverage: Share of the images of each label whose set holds that label.

    Returns:
        The fitted sets; a label with fewer than `needed_images(coverage)` images has no
        quantile. None without a labelled image.

    Example:
        >>> likely = np.linspace(0.05, 0.95, 19)
        >>> probabilities = np.stack([likely, 1 - likely], axis=1)
        >>> fitted = fit_conformal(probabilities, np.zeros(19, int), np.arange(19), 0.9)
        >>> fitted.method, round(fitted.quantiles[0], 3), fitted.quantiles[1]
        ('lac', 0.9, None)

    Source: Vovk, Conditional Validity of Inductive Conformal Predictors, ACML 2012.
    """
    rows = (labels >= 0) & np.isfinite(probabilities).all(axis=1)
    if not rows.any():
        return None
    likely, truth, members = probabilities[rows], labels[rows], groups[rows]
    folds = conformal_folds(members)
    methods = [replace(method, coverage=coverage) for method in METHODS]
    sizes = [measure_set_size(likely, truth, folds, method) for method in methods]
    return _with_quantiles(likely, truth, methods[int(np.argmin(sizes))])


def measure_set_size(probabilities: Array, labels: Array, folds: Array, method: Conformal) -> float:
    """Measure the mean size of cross-fitted sets; every label has the same weight.

    Args:
        probabilities: Class probabilities [N, K].
        labels: True classes [N].
        folds: Fold of each image [N]; its quantiles are fitted on the other folds.
        method: Method, its parameters and the coverage.
    """
    sets = cross_fitted_sets(probabilities, labels, folds, method)
    return float(np.mean([sets[labels == k].sum(axis=1).mean() for k in set(labels.tolist())]))


def cross_fitted_sets(
    probabilities: Array, labels: Array, folds: Array, method: Conformal
) -> NDArray[np.bool_]:
    """Return the sets of images that did not fit their own quantiles, bool [N, K].

    Args:
        probabilities: Class probabilities [N, K].
        labels: True classes [N].
        folds: Fold of each image [N].
        method: Method, its parameters and the coverage.
    """
    sets = np.ones(probabilities.shape, bool)
    for fold in set(folds.tolist()):
        held = folds == fold
        fitted = _with_quantiles(probabilities[~held], labels[~held], method)
        sets[held] = conformal_sets(probabilities[held], fitted)
    return sets


def conformal_quantile(scores: Array, coverage: float) -> float | None:
    """Return the score that a new image stays below with a probability of `coverage`.

    It is the score of rank ceil((N + 1) coverage), raised by one part in a million.

    Args:
        scores: Scores of N images.
        coverage: Probability, between 0 and 1.

    Returns:
        The quantile, or None for fewer than `needed_images(coverage)` images.

    Example:
        >>> conformal_quantile(np.arange(1, 20) / 20, 0.9)
        0.900001
        >>> conformal_quantile(np.arange(8) / 8, 0.9) is None
        True
    """
    # 0.9 * 10 may be 9.000000000000002, whose ceiling is one too high.
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(np.sort(scores)[rank - 1]) + MARGIN if rank <= len(scores) else None


def needed_images(coverage: float) -> int:
    """Return the number of images of one label that a quantile needs.

    Example:
        >>> needed_images(0.9), needed_images(0.95)
        (9, 19)
    """
    return math.ceil(1 / (1 - coverage) - 1e-9) - 1


def describe_unfitted(spec: Spec, postprocessing: Mapping[str, Postprocessing]) -> tuple[str, ...]:
    """Return a warning for labels that have no conformal quantile; () if all have one.

    Args:
        spec: Tasks and labels of the model.
        postprocessing: Fitted values by task.

    Example:
        >>> from dermedge_runtime.spec import Label, Preprocess, Task
        >>> task = Task("diagnosis", "classify", (Label("nv", "Naevus"), Label("df", "DF")))
        >>> fitted = {"diagnosis": Postprocessing(conformal=Conformal("lac", 0.9, (0.5, None)))}
        >>> describe_unfitted(Spec("toy", "1", (task,), Preprocess(32)), fitted)[0]
        'Conformal sets of 90 % coverage need 9 validation images of each label; df has fewer...'
    """
    warnings = []
    for task in spec.tasks:
        conformal = postprocessing.get(task.name, Postprocessing()).conformal
        if conformal is None or None not in conformal.quantiles:
            continue
        few = [
            label.id
            for label, quantile in zip(task.labels, conformal.quantiles, strict=True)
            if quantile is None
        ]
        verb, them = ("has", "It is") if len(few) == 1 else ("have", "They are")
        warnings.append(
            f"Conformal sets of {100 * conformal.coverage:.4g} % coverage need "
            f"{needed_images(conformal.coverage)} validation images of each label; "
            f"{', '.join(few)} {verb} fewer. {them} in every set until you add such images."
        )
    return tuple(warnings)


def conformal_folds(groups: Array) -> NDArray[np.int64]:
    """Divide whole groups at random into 5 folds of about the same number of groups.

    Args:
        groups: Lesion or patient of each image [N].

    Returns:
        Fold of each image, int64 [N].
    """
    names, index = np.unique(groups, return_inverse=True)
    return np.asarray(np.random.default_rng(0).permutation(len(names))[index] % FOLDS)


def _with_quantiles(probabilities: Array, labels: Array, method: Conformal) -> Conformal:
    scores = conformal_scores(probabilities, method)
    quantiles = (
        conformal_quantile(scores[labels == k, k], method.coverage)
        for k in range(probabilities.shape[1])
    )
    return replace(method, quantiles=tuple(quantiles))
