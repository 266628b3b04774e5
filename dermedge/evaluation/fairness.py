"""For whom a model is worse: its groups by skin type and by sex compared, with what chance alone would show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge.evaluation.report import Fairness as Fairness
from dermedge.evaluation.report import GroupScore as GroupScore
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.errors import DataError
from dermedge_runtime.report import Interval

COLUMNS = ("fitzpatrick", "sex")
# Pairs, as in DDI (Daneshjou et al., Science Advances 8, 2022): single types often have too few cases to compare.
SKIN_PAIRS = {"I": "I-II", "II": "I-II", "III": "III-IV", "IV": "III-IV", "V": "V-VI", "VI": "V-VI"}
# Of 30 cases a share has a 95 % interval of up to 36 points; of fewer it is wider still and shows nothing.
MINIMUM_CASES = 30
# A recall over fewer than 5 cases moves by more than 20 points with a single image.
MINIMUM_PER_CLASS = 5
ROUNDING = 1e-9
BALANCED, MALIGNANT = "balanced_accuracy", "malignant_balanced_accuracy"
Array = NDArray[Any]
Codes = NDArray[np.intp]


def fairness(
    labels: Array,
    predicted: Array,
    classes: int,
    subgroups: Mapping[str, Array],
    clusters: Array,
    *,
    positive: Floats | None = None,
    decision: Array | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> tuple[Fairness, ...]:
    """Compares a model's groups by skin type and by sex.

    Args:
        labels: the class [N] of each image, -1 where unknown.
        predicted: the class [N] that the model gives it.
        classes: how many there are.
        subgroups: text [N] by column, "" where unknown; others than `fitzpatrick` and `sex` are passed over.
        clusters: the lesion or patient [N] of each image.
        positive: whether it is malignant [N]: 1, 0 or NaN where unknown.
        decision: whether the model calls it malignant [N].
        replicates: of the bootstrap, and how often groups are dealt out at random.
        seed: of both.

    Returns:
        One for each column that is known of at least one image with a known answer, also where too few are known to
        compare anything: then it says who is insufficient.

    Raises:
        DataError: the columns differ in length.

    Source: equalised odds of Hardt, Price and Srebro, Equality of Opportunity in Supervised Learning, NeurIPS 2016;
    chance by a permutation test, Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005.
    """
    _check_lengths(
        len(labels),
        subgroups,
        predicted=predicted,
        clusters=clusters,
        positive=positive,
        decision=decision,
    )
    diagnosis = _Answers(np.asarray(labels), np.asarray(predicted), classes)
    malignancy = _malignancy(positive, decision)
    plans = []
    for column in COLUMNS:
        groups = np.asarray(subgroups.get(column, ()), str)
        if column == "fitzpatrick":
            groups = np.array([SKIN_PAIRS.get(value, value) for value in groups.tolist()], str)
        plan = _plan(column, groups, diagnosis, malignancy) if groups.size else None
        if plan is not None:
            plans.append(plan)
    if not plans:
        return ()
    sides = {
        (plan.column, side): measured
        for plan in plans
        for side, measured in (("score", plan.score), ("odds", plan.odds))
        if measured is not None
    }
    drawn = metrics.bootstrap(
        clusters,
        {key: side.recalls for key, side in sides.items()},
        replicates=replicates,
        seed=seed,
    )
    dealt = {
        key: side.dealt(np.asarray(clusters), replicates, (seed, place))
        for place, (key, side) in enumerate(sides.items())
        if _comparable(side)
    }
    known = np.asarray(positive) if positive is not None else np.full(len(labels), np.nan)
    return tuple(_compared(plan, drawn, dealt, known) for plan in plans)


@dataclass(frozen=True, eq=False)
class _Answers:
    """What is true [N], -1 where unknown, and what the model says [N]."""

    truth: Array
    predicted: Array
    classes: int


@dataclass(frozen=True, eq=False)
class _Side:
    """Recalls by group: of `answers`, over images whose group is one of `groups`; `codes` [N] indexes it, -1 for no
    group. `compared` are the classes that every group has enough cases of.
    """

    answers: _Answers
    groups: tuple[str, ...]
    codes: Codes
    compared: tuple[int, ...]

    def rows(self, group: int) -> Codes:
        """The images of a group that count."""
        return np.flatnonzero((self.codes == group) & (self.answers.truth >= 0))

    def recalls(self, weights: Floats) -> Floats:
        """Recall [..., G, K] of each group and class; weights are over all images."""
        found, answers = (
            np.empty((*weights.shape[:-1], len(self.groups), self.answers.classes)),
            self.answers,
        )
        for group in range(len(self.groups)):
            rows = self.rows(group)
            truth, predicted = answers.truth[rows], answers.predicted[rows]
            found[..., group, :] = metrics.recalls(
                truth, predicted, answers.classes, weights[..., rows]
            )
        return found

    def scores(self, recalls: Floats) -> Floats:
        """Mean recall [..., G] over the compared classes; one that a group lacks in a replicate counts for no group."""
        compared = recalls[..., list(self.compared)]
        return metrics.mean_of_known(
            np.where(np.isnan(compared).any(-2, keepdims=True), np.nan, compared)
        )

    def dealt(self, clusters: Array, times: int, seed: Sequence[int]) -> Floats:
        """Recalls [times, G, K] with the groups dealt out at random among the lesions or patients of a class.

        Images of one lesion or patient stay in one group, and each group keeps about as many cases of each class as it
        has: only who they belong to changes.
        """
        answers, rng = self.answers, np.random.default_rng(seed)
        classes, rows = answers.classes, np.flatnonzero((self.codes >= 0) & (answers.truth >= 0))
        truth, hit = answers.truth[rows], answers.truth[rows] == answers.predicted[rows]
        owners = np.stack(
            [np.unique(clusters[rows], return_inverse=True)[1].ravel(), self.codes[rows]], axis=1
        )
        units, unit = np.unique(owners, axis=0, return_inverse=True)
        counts = np.zeros(
            (len(units), 2 * classes)
        )  # of each unit: its images by class, then those that are right
        np.add.at(counts, (unit.ravel(), truth), 1)
        np.add.at(counts, (unit.ravel()[hit], truth[hit] + classes), 1)
        strata = counts[:, :classes].argmax(axis=1)
        sums = np.zeros((times, len(self.groups), 2 * classes))
        step = max(1, metrics.CHUNK // max(1, len(units)))
        for stratum in (np.flatnonzero(strata == k) for k in range(classes)):
            for first in range(0, times, step):
                part = sums[first : first + step]
                codes = rng.permuted(
                    np.tile(units[stratum, 1].astype(np.int16), (len(part), 1)), axis=1
                )
                for group in range(len(self.groups)):
                    part[:, group] += (codes == group) @ counts[stratum]
        return metrics.ratio(sums[..., classes:], sums[..., :classes])


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is compared by one column."""

    column: str
    metric: str
    score: _Side
    odds: _Side | None
    insufficient: Mapping[str, int]
    unknown: int


def _check_lengths(count: int, subgroups: Mapping[str, Array], **columns: Array | None) -> None:
    for name, column in {**columns, **subgroups}.items():
        if column is not None and len(column) != count:
            raise DataError(
                f"Column {name!r} has {len(column)} rows for {count} labels; give one each."
            )


def _malignancy(positive: Floats | None, decision: Array | None) -> _Answers | None:
    if positive is None or decision is None:
        return None
    known = np.isfinite(positive)
    return _Answers(
        np.where(known, np.nan_to_num(positive), -1).astype(np.int64),
        np.asarray(decision, np.int64),
        2,
    )


def _plan(
    column: str, groups: Array, diagnosis: _Answers, malignancy: _Answers | None
) -> _Plan | None:
    """By diagnosis where its classes can be compared, else by malignancy; None where no group is known."""
    found: list[_Plan] = []
    for metric, answers in ((BALANCED, diagnosis), (MALIGNANT, malignancy)):
        if answers is None:
            continue
        known = answers.truth >= 0
        cases = {
            name: int((known & (groups == name)).sum())
            for name in sorted(set(groups[known].tolist()) - {""})
        }
        if not cases:
            continue
        score = _side(
            answers, groups, [name for name, count in cases.items() if count >= MINIMUM_CASES]
        )
        few = {name: count for name, count in cases.items() if count < MINIMUM_CASES}
        odds = _side(malignancy, groups, score.groups) if malignancy is not None else None
        found.append(_Plan(column, metric, score, odds, few, int((known & (groups == "")).sum())))
    return next((plan for plan in found if _comparable(plan.score)), found[0] if found else None)


def _side(answers: _Answers, groups: Array, judged: Sequence[str]) -> _Side:
    codes = np.full(len(groups), -1)
    counts = np.zeros((len(judged), answers.classes), int)
    for place, name in enumerate(judged):
        codes[groups == name] = place
        counts[place] = np.bincount(
            answers.truth[(groups == name) & (answers.truth >= 0)], minlength=answers.classes
        )
    enough = (
        (counts >= MINIMUM_PER_CLASS).all(axis=0) if judged else np.zeros(answers.classes, bool)
    )
    return _Side(answers, tuple(judged), codes, tuple(np.flatnonzero(enough).tolist()))


def _comparable(side: _Side) -> bool:
    return len(side.groups) >= 2 and len(side.compared) >= 2


def _compared(
    plan: _Plan,
    drawn: Mapping[tuple[str, str], Floats],
    dealt: Mapping[tuple[str, str], Floats],
    malignant: Floats,
) -> Fairness:
    side, key = plan.score, (plan.column, "score")
    everyone = np.ones(len(side.codes))
    scores, replicas = side.scores(side.recalls(everyone)), side.scores(drawn[key])
    gap, chance, high = Interval(None), None, None
    if _comparable(side):
        gap = metrics.interval(_spread(scores), _spread(replicas))
        chance, high = _by_chance(_spread(side.scores(dealt[key])))
    odds, odds_chance, odds_high = None, None, None
    if plan.odds is not None and _comparable(plan.odds):
        key = (plan.column, "odds")
        odds = metrics.interval(_odds(plan.odds.recalls(everyone)), _odds(drawn[key]))
        odds_chance, odds_high = _by_chance(_odds(dealt[key]))
    return Fairness(
        column=plan.column,
        metric=plan.metric,
        classes=side.compared,
        groups=dict(_groups(plan, scores, replicas, drawn, malignant)),
        insufficient=plan.insufficient,
        unknown=plan.unknown,
        worst=side.groups[int(scores.argmin())] if (gap.value or 0) > ROUNDING else None,
        gap=gap,
        chance=chance,
        chance_high=high,
        equalised_odds=odds,
        equalised_odds_chance=odds_chance,
        equalised_odds_chance_high=odds_high,
    )


def _groups(
    plan: _Plan,
    scores: Floats,
    replicas: Floats,
    drawn: Mapping[tuple[str, str], Floats],
    malignant: Floats,
) -> Iterator[tuple[str, GroupScore]]:
    side, odds = plan.score, plan.odds
    for place, name in enumerate(side.groups):
        tpr, fpr = Interval(None), Interval(None)
        if odds is not None:
            cleared, found = odds.recalls(np.ones(len(side.codes)))[place]
            replicated = drawn[plan.column, "odds"][:, place]
            tpr = metrics.interval(found, replicated[:, 1])
            fpr = metrics.interval(1 - cleared, 1 - replicated[:, 0])
        yield (
            name,
            GroupScore(
                cases=len(side.rows(place)),
                malignant=int(((side.codes == place) & (malignant == 1)).sum()),
                score=metrics.interval(scores[place], replicas[:, place]),
                tpr=tpr,
                fpr=fpr,
            ),
        )


def _spread(values: Floats) -> Floats:
    """The largest less the smallest over the last axis."""
    return np.asarray(values.max(-1) - values.min(-1))


def _odds(recalls: Floats) -> Floats:
    """The larger of the differences between groups in FPR and TPR, from recalls [..., G, 2] of benign and malignant."""
    return np.asarray(_spread(np.swapaxes(recalls, -1, -2)).max(-1))


def _by_chance(dealt: Floats) -> tuple[float | None, float | None]:
    """Median and 95th percentile."""
    defined = dealt[np.isfinite(dealt)]
    if not len(defined):
        return None, None
    median, high = np.quantile(defined, [0.5, 0.95])
    return float(median), float(high)
