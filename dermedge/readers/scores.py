"""Compute the metrics of readers for many weightings of the cases at once.

The crossed bootstrap and the jackknife both weight cases: a replicate counts a case
several times or not at all, and the jackknife counts all cases but one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dermedge.readers.cells import malignancy
from dermedge.readers.study import Study, Texts
from dermedge_export.evaluation.metrics import Floats

METRICS = ("accuracy", "balanced_accuracy", "sensitivity", "specificity", "auc")
"""Metrics of a study, in the order of the reports."""


class Score(Protocol):
    """A metric of several readings of the same cases.

    Attributes:
        counted: True [C] for the cases that the metric counts.

    Examples:
        >>> score: Score = MeanScore(np.array([[1.0, 0.0]]), np.array([0, 0]))
        >>> score.at(np.ones((1, 2))).tolist()
        [[0.5]]
    """

    counted: NDArray[np.bool_]

    def at(self, weights: Floats) -> Floats:
        """Return the metric for weights of the cases.

        Args:
            weights: How often each case counts, [B, C].

        Returns:
            [B, ...] with the leading shape of the readings; NaN where it is undefined.
        """
        ...


class MeanScore:
    """The mean of values over cases, averaged over classes of cases.

    With one class this is accuracy, sensitivity or specificity. With the true labels as
    classes it is balanced accuracy.

    Examples:
        >>> score = MeanScore(np.array([1.0, 1.0, 0.0]), np.array([0, 0, 1]))
        >>> score.at(np.ones((1, 3))).tolist()
        [0.5]
    """

    def __init__(self, values: Floats, classes: NDArray[np.intp]) -> None:
        """Take the values [..., C] and the class of each case [C], -1 for none."""
        self.counted = classes >= 0
        self._shape = values.shape[:-1]
        flat = values.reshape(-1, values.shape[-1]).T
        self._parts = [
            (classes == each, np.ascontiguousarray(flat[classes == each]))
            for each in np.unique(classes[self.counted])
        ]

    def at(self, weights: Floats) -> Floats:
        """Return the metric [B, ...] for weights [B, C] of the cases."""
        width = int(np.prod(self._shape))
        total, classes = np.zeros((len(weights), width)), np.zeros((len(weights), 1))
        for members, values in self._parts:
            part = weights[:, members]
            count = part.sum(1, keepdims=True)
            # A replicate may hold no case of a class; it then averages over the others.
            total += np.divide(part @ values, count, out=np.zeros_like(total), where=count > 0)
            classes += count > 0
        mean = np.divide(total, classes, out=np.full_like(total, np.nan), where=classes > 0)
        scores: Floats = mean.reshape(len(weights), *self._shape)
        return scores


class AreaScore:
    """The area under the empirical ROC curve of ratings of malignancy.

    It is the probability that a malignant case is rated above a benign one; a tie
    counts one half.

    Examples:
        >>> score = AreaScore(np.array([0.1, 0.4, 0.9]), np.array([0.0, 1.0, 1.0]))
        >>> score.at(np.ones((1, 3))).tolist()
        [1.0]
    """

    def __init__(self, ratings: Floats, malignant: Floats) -> None:
        """Take the ratings [..., C], and 1, 0 or NaN for each case [C]."""
        self.counted = np.isfinite(malignant)
        self._positive, self._negative = malignant == 1, malignant == 0
        self._shape = ratings.shape[:-1]
        flat = ratings.reshape(-1, ratings.shape[-1])
        difference = flat[:, self._positive, None] - flat[:, None, self._negative]
        self._wins = 0.5 * (np.sign(difference) + 1)

    def at(self, weights: Floats) -> Floats:
        """Return the area [B, ...] for weights [B, C] of the cases."""
        above, below = weights[:, self._positive], weights[:, self._negative]
        pairs = above.sum(1) * below.sum(1)
        won = [((above @ wins) * below).sum(1) for wins in self._wins]
        with np.errstate(invalid="ignore", divide="ignore"):
            area = np.stack(won, 1) / pairs[:, None]
        scores: Floats = area.reshape(len(weights), *self._shape)
        return scores

    @property
    def placements(self) -> tuple[Floats, Floats]:
        """Share of pairs that each malignant case wins, [J, n1], and each benign, [J, n0]."""
        return self._wins.mean(2), self._wins.mean(1)


def make_scores(study: Study, answers: Texts, ratings: Floats) -> dict[str, Score]:
    """Return the metrics that are defined for some readings of a study.

    Args:
        study: The study; its truth is compared.
        answers: Answered labels, [..., C].
        ratings: Ratings of malignancy, [..., C]; NaN if there are none.

    Returns:
        Scores by the names of `METRICS`. `auc` needs all ratings, and `sensitivity` and
        `specificity` need malignant and benign cases.

    Examples:
        >>> from dermedge.readers.simulate import draw_study
        >>> study = draw_study(readers=3, cases=20)
        >>> list(make_scores(study, study.answers, rate(study)))
        ['accuracy', 'balanced_accuracy', 'sensitivity', 'specificity', 'auc']
    """
    return dict(_list_scores(study, answers, ratings))


def _list_scores(study: Study, answers: Texts, ratings: Floats) -> Iterator[tuple[str, Score]]:
    correct = (answers == study.truth).astype(np.float64)
    yield "accuracy", MeanScore(correct, np.zeros(len(study.cases), np.intp))
    classes = np.unique(study.truth, return_inverse=True)[1]
    if classes.max() > 0:
        yield "balanced_accuracy", MeanScore(correct, classes)
    called = _call(answers)
    for name, status in (("sensitivity", 1.0), ("specificity", 0.0)):
        counted = study.malignant == status
        if counted.any() and (study.malignant == 1 - status).any():
            # An answer that may be either is neither called malignant nor benign.
            hits = (called == status).astype(np.float64)
            yield name, MeanScore(hits, np.where(counted, 0, -1))
    both = {0.0, 1.0} <= set(study.malignant.tolist())
    if both and np.isfinite(ratings[..., np.isfinite(study.malignant)]).all():
        yield "auc", AreaScore(ratings, study.malignant)


def rate(study: Study) -> Floats:
    """Return the readers' ratings of malignancy: the signed confidence, [2, R, C].

    It is the confidence if the answer is malignant, and minus the confidence if it is
    benign. It is NaN without a confidence, or for an answer that may be either.

    Examples:
        >>> from dermedge.readers.simulate import draw_study
        >>> rate(draw_study(readers=3, cases=20)).shape
        (2, 3, 20)
    """
    ratings: Floats = (2 * _call(study.answers) - 1) * study.confidence
    return ratings


def _call(answers: Texts) -> Floats:
    """Return 1, 0 or NaN for answers that are malignant, benign or may be either."""
    labels, index = np.unique(answers, return_inverse=True)
    called = np.array([malignancy(str(label)) for label in labels])
    return called[index].reshape(answers.shape)


@dataclass(frozen=True)
class Replicates:
    """Weights of readers and cases in the replicates of a crossed bootstrap.

    Readers and cases are drawn independently, both with replacement. Each replicate
    holds as many malignant and as many benign cases as the study. A single reader is
    not resampled: the intervals then hold for that reader only.

    Attributes:
        readers: How often each reader was drawn, [B, R].
        cases: How often each case was drawn, [B, C].

    Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993. Gallas,
    Bandos, Samuelson and Wagner, A framework for random-effects ROC analysis, Commun.
    Stat. Theory Methods 38 (2009): this bootstrap overestimates the variance slightly.

    Examples:
        >>> draws = Replicates.draw(3, np.array([1.0, 1.0, 0.0, 0.0]), 100, seed=0)
        >>> draws.readers.shape, set(draws.cases[:, :2].sum(1).tolist())
        ((100, 3), {2.0})
    """

    readers: Floats
    cases: Floats

    @classmethod
    def draw(cls, readers: int, strata: Floats, count: int, seed: int) -> "Replicates":
        """Draw the weights.

        Args:
            readers: Number of readers.
            strata: Stratum of each case, [C]; NaN is a stratum too.
            count: Number of replicates.
            seed: Random seed.
        """
        rng = np.random.default_rng(seed)
        drawn = np.ones((count, readers))
        if readers > 1:
            drawn = rng.multinomial(readers, np.full(readers, 1 / readers), count).astype(float)
        cases = np.zeros((count, len(strata)))
        for stratum in np.unique(strata):
            members = np.isnan(strata) if np.isnan(stratum) else strata == stratum
            size = int(members.sum())
            cases[:, members] = rng.multinomial(size, np.full(size, 1 / size), count)
        return cls(drawn, cases)

    def over_readers(self, values: Floats) -> Floats:
        """Return the mean of [B, ..., R] over the drawn readers, [B, ...]."""
        weights = self.readers.reshape(len(self.readers), *([1] * (values.ndim - 2)), -1)
        mean: Floats = (values * weights).sum(-1) / weights.sum(-1)
        return mean

    def share(self, hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> Floats:
        """Return the share of hits among some readings, [B].

        Args:
            hits: True for the readings to count, [R, C].
            among: True for the readings to divide by, [R, C].
        """
        with np.errstate(invalid="ignore"):
            part: Floats = self.total(hits & among) / self.total(among)
        return part

    def total(self, values: NDArray[np.bool_] | Floats) -> Floats:
        """Return the weighted sum of [R, C] in each replicate, [B]."""
        total: Floats = ((self.readers @ values.astype(np.float64)) * self.cases).sum(1)
        return total
