"""Compare a model's groups by skin type and sex, and with randomly assigned groups."""

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

COMPARED_COLUMNS = ("fitzpatrick", "sex")
# Pairs, as in DDI (Daneshjou et al., Science Advances 8, 2022): a single skin type
# often has too few cases to compare.
SKIN_PAIRS = {"I": "I-II", "II": "I-II", "III": "III-IV", "IV": "III-IV", "V": "V-VI", "VI": "V-VI"}
# With 30 cases a share has a 95 % interval of up to 36 points; with fewer cases the
# interval is too wide to show anything.
MINIMUM_CASES = 30
# With fewer than 5 cases, a single image changes a recall by more than 20 points.
MINIMUM_PER_CLASS = 5
# Scores of equal groups may differ in the last bits of a float64.
SMALLEST_GAP = 1e-9
BALANCED, MALIGNANT = "balanced_accuracy", "malignant_balanced_accuracy"
Array = NDArray[Any]
Codes = NDArray[np.intp]
Recalls = Mapping[tuple[str, str], Floats]


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
    """Compare a model's groups by skin type and by sex.

    Args:
        labels: Class [N] of each image, -1 if unknown.
        predicted: Predicted class [N] of each image.
        classes: Number of classes.
        subgroups: Text [N] by column, "" if unknown. Columns other than `fitzpatrick`
            and `sex` are ignored.
        clusters: Lesion or patient [N] of each image.
        positive: 1 for malignant, 0 for benign, NaN if unknown [N].
        decision: True [N] for the images that the model calls malignant.
        replicates: Number of bootstrap replicates, and of random assignments of groups.
        seed: Random seed for both.

    Returns:
        One comparison for each column that is known for at least one image with a known
        class. If too few are known to compare anything, it lists the insufficient
        groups.

    Raises:
        DataError: The arrays differ in length.

    Source: equalised odds of Hardt, Price and Srebro, Equality of Opportunity in
    Supervised Learning, NeurIPS 2016; chance by a permutation test, Good, Permutation,
    Parametric and Bootstrap Tests of Hypotheses, 2005.

    Examples:
        >>> import numpy as np
        >>> labels = np.tile([0, 1], 60)
        >>> sex = np.repeat(["female", "male"], 60)
        >>> predicted = np.where(sex == "male", 0, labels)
        >>> (comparison,) = fairness(
        ...     labels, predicted, 2, {"sex": sex}, np.arange(120), replicates=100
        ... )
        >>> comparison.worst, comparison.gap.value
        ('male', 0.5)
        >>> comparison.gap.value > comparison.chance_high
        True
    """
    _check_lengths(
        len(labels),
        subgroups,
        predicted=predicted,
        clusters=clusters,
        positive=positive,
        decision=decision,
    )
    diagnosis = _Classification(np.asarray(labels), np.asarray(predicted), classes)
    plans = _make_plans(subgroups, diagnosis, _classify_malignancy(positive, decision))
    if not plans:
        return ()
    # All recalls share one bootstrap, so that a gap and its scores come from the same
    # replicates.
    compared = {
        (plan.column, kind): recalls
        for plan in plans
        for kind, recalls in (("score", plan.score), ("odds", plan.odds))
        if recalls is not None
    }
    drawn = metrics.bootstrap(
        clusters,
        {key: group_recalls.recalls for key, group_recalls in compared.items()},
        replicates=replicates,
        seed=seed,
    )
    by_chance = {
        # Each comparison has its own random stream, so that its permutations are
        # independent of those of the others.
        key: group_recalls.permute_groups(np.asarray(clusters), replicates, (seed, place))
        for place, (key, group_recalls) in enumerate(compared.items())
        if group_recalls.comparable
    }
    known = np.asarray(positive) if positive is not None else np.full(len(labels), np.nan)
    return tuple(_compare(plan, drawn, by_chance, known) for plan in plans)


@dataclass(frozen=True, eq=False)
class _Classification:
    """True classes [N], -1 if unknown, and predicted classes [N]."""

    truth: Array
    predicted: Array
    classes: int


@dataclass(frozen=True, eq=False)
class _GroupRecalls:
    """Recalls by group, of the diagnoses or of malignant against benign.

    `codes` [N] indexes `groups`, -1 for an image of no group. `compared` are the
    classes with enough cases in every group.
    """

    classification: _Classification
    groups: tuple[str, ...]
    codes: Codes
    compared: tuple[int, ...]

    @property
    def comparable(self) -> bool:
        """True if at least two groups share at least two classes."""
        return len(self.groups) >= 2 and len(self.compared) >= 2

    def rows(self, group: int) -> Codes:
        """Return the indices of a group's images with a known class."""
        return np.flatnonzero((self.codes == group) & (self.classification.truth >= 0))

    def recalls(self, weights: Floats) -> Floats:
        """Compute recalls [..., G, K] by group and class from weights [..., N]."""
        classification = self.classification
        by_group = np.empty((*weights.shape[:-1], len(self.groups), classification.classes))
        for group in range(len(self.groups)):
            rows = self.rows(group)
            by_group[..., group, :] = metrics.recalls(
                classification.truth[rows],
                classification.predicted[rows],
                classification.classes,
                weights[..., rows],
            )
        return by_group

    def scores(self, recalls: Floats) -> Floats:
        """Average recalls over the compared classes, [..., G]."""
        compared = recalls[..., list(self.compared)]
        # A replicate may hold no case of a class in one group. The class is then left
        # out for all groups, else the groups of this replicate would average different
        # classes.
        return metrics.mean_of_known(
            np.where(np.isnan(compared).any(-2, keepdims=True), np.nan, compared)
        )

    def permute_groups(self, clusters: Array, times: int, seed: Sequence[int]) -> Floats:
        """Compute recalls [times, G, K] with the groups assigned at random.

        Images of one lesion or patient stay in one group, and each group keeps about as
        many cases of each class as it has. Only the members of the groups change.
        """
        rng, classes = np.random.default_rng(seed), self.classification.classes
        rows = np.flatnonzero((self.codes >= 0) & (self.classification.truth >= 0))
        truth = self.classification.truth[rows]
        hit = truth == self.classification.predicted[rows]
        # The unit that is permuted is a lesion or patient within its group, not an
        # image: permuting single images would break up correlated ones and make chance
        # look small.
        owners = np.stack(
            [np.unique(clusters[rows], return_inverse=True)[1].ravel(), self.codes[rows]], axis=1
        )
        units, unit = np.unique(owners, axis=0, return_inverse=True)
        # Columns 0 to K-1 count a unit's images by class, K to 2K-1 its correct ones.
        # The counts are additive, so a permutation costs sums and no pass over the
        # images.
        counts = np.zeros((len(units), 2 * classes))
        np.add.at(counts, (unit.ravel(), truth), 1)
        np.add.at(counts, (unit.ravel()[hit], truth[hit] + classes), 1)
        # Permuting within the most frequent class of a unit keeps the prevalence of
        # each class in each group. Else a gap could come from the mix of diagnoses
        # alone.
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
    """Groups and classes to compare by one column.

    `score` gives the metric and the gap, `odds` the true and false positive rates. The
    two differ, because `score` may compare diagnoses, but `odds` always compares
    malignant with benign.
    """

    column: str
    metric: str
    score: _GroupRecalls
    odds: _GroupRecalls | None
    insufficient: Mapping[str, int]
    unknown: int


def _check_lengths(count: int, subgroups: Mapping[str, Array], **columns: Array | None) -> None:
    for name, column in {**columns, **subgroups}.items():
        if column is not None and len(column) != count:
            raise DataError(
                f"Column {name!r} has {len(column)} rows for {count} labels. Give one row per "
                "label."
            )


def _classify_malignancy(positive: Floats | None, decision: Array | None) -> _Classification | None:
    if positive is None or decision is None:
        return None
    known = np.isfinite(positive)
    return _Classification(
        np.where(known, np.nan_to_num(positive), -1).astype(np.int64),
        np.asarray(decision, np.int64),
        2,
    )


def _make_plans(
    subgroups: Mapping[str, Array], diagnosis: _Classification, malignancy: _Classification | None
) -> list[_Plan]:
    """Plan a comparison for each column that is known for at least one image."""
    plans = []
    for column in COMPARED_COLUMNS:
        groups = np.asarray(subgroups.get(column, ()), str)
        if column == "fitzpatrick":
            groups = np.array([SKIN_PAIRS.get(value, value) for value in groups.tolist()], str)
        plan = _make_plan(column, groups, diagnosis, malignancy) if groups.size else None
        if plan is not None:
            plans.append(plan)
    return plans


def _make_plan(
    column: str, groups: Array, diagnosis: _Classification, malignancy: _Classification | None
) -> _Plan | None:
    """Plan a comparison by diagnosis, or by malignancy if too few diagnoses are shared.

    Returns:
        The plan, None if no image with a known class has a known group.
    """
    plans: list[_Plan] = []
    for metric, classification in ((BALANCED, diagnosis), (MALIGNANT, malignancy)):
        if classification is None:
            continue
        known = classification.truth >= 0
        cases = {
            name: int((known & (groups == name)).sum())
            for name in sorted(set(groups[known].tolist()) - {""})
        }
        if not cases:
            continue
        large = [name for name, count in cases.items() if count >= MINIMUM_CASES]
        small = {name: count for name, count in cases.items() if count < MINIMUM_CASES}
        score = _make_group_recalls(classification, groups, large)
        # Equalised odds always compares malignant with benign, for the same groups as
        # the score.
        odds = _make_group_recalls(malignancy, groups, large) if malignancy is not None else None
        unknown = int((known & (groups == "")).sum())
        plans.append(_Plan(column, metric, score, odds, small, unknown))
    return next((plan for plan in plans if plan.score.comparable), plans[0] if plans else None)


def _make_group_recalls(
    classification: _Classification, groups: Array, names: Sequence[str]
) -> _GroupRecalls:
    """Index the images by group; find the classes with enough cases in every group."""
    codes = np.full(len(groups), -1)
    counts = np.zeros((len(names), classification.classes), int)
    for place, name in enumerate(names):
        codes[groups == name] = place
        counts[place] = np.bincount(
            classification.truth[(groups == name) & (classification.truth >= 0)],
            minlength=classification.classes,
        )
    # `all` over no group would be True for every class.
    enough = (counts >= MINIMUM_PER_CLASS).all(axis=0) & bool(names)
    shared = tuple(np.flatnonzero(enough).tolist())
    return _GroupRecalls(classification, tuple(names), codes, shared)


def _compare(plan: _Plan, drawn: Recalls, by_chance: Recalls, malignant: Floats) -> Fairness:
    """Compute gap and equalised odds of one plan from recalls and their replicates."""
    group_recalls, key = plan.score, (plan.column, "score")
    everyone = np.ones(len(group_recalls.codes))
    scores = group_recalls.scores(group_recalls.recalls(everyone))
    replicas = group_recalls.scores(drawn[key])
    gap, chance, high = Interval(None), None, None
    if group_recalls.comparable:
        gap = metrics.interval(_spread(scores), _spread(replicas))
        chance, high = _chance_quantiles(_spread(group_recalls.scores(by_chance[key])))
    odds, odds_chance, odds_high = None, None, None
    if plan.odds is not None and plan.odds.comparable:
        key = (plan.column, "odds")
        odds = metrics.interval(
            _odds_difference(plan.odds.recalls(everyone)), _odds_difference(drawn[key])
        )
        odds_chance, odds_high = _chance_quantiles(_odds_difference(by_chance[key]))
    differ = (gap.value or 0) > SMALLEST_GAP
    worst = group_recalls.groups[int(scores.argmin())] if differ else None
    return Fairness(
        column=plan.column,
        metric=plan.metric,
        classes=group_recalls.compared,
        groups=dict(_group_scores(plan, scores, replicas, drawn, malignant)),
        insufficient=plan.insufficient,
        unknown=plan.unknown,
        worst=worst,
        gap=gap,
        chance=chance,
        chance_high=high,
        equalised_odds=odds,
        equalised_odds_chance=odds_chance,
        equalised_odds_chance_high=odds_high,
    )


def _group_scores(
    plan: _Plan, scores: Floats, replicas: Floats, drawn: Recalls, malignant: Floats
) -> Iterator[tuple[str, GroupScore]]:
    """Yield each group of a plan with its scores."""
    group_recalls, odds = plan.score, plan.odds
    for place, name in enumerate(group_recalls.groups):
        tpr, fpr = Interval(None), Interval(None)
        if odds is not None:
            # Recall of benign is the specificity, so the false positive rate is its
            # rest.
            specificity, sensitivity = odds.recalls(np.ones(len(group_recalls.codes)))[place]
            replicated = drawn[plan.column, "odds"][:, place]
            tpr = metrics.interval(sensitivity, replicated[:, 1])
            fpr = metrics.interval(1 - specificity, 1 - replicated[:, 0])
        yield (
            name,
            GroupScore(
                cases=len(group_recalls.rows(place)),
                malignant=int(((group_recalls.codes == place) & (malignant == 1)).sum()),
                score=metrics.interval(scores[place], replicas[:, place]),
                tpr=tpr,
                fpr=fpr,
            ),
        )


def _spread(values: Floats) -> Floats:
    """Compute the maximum minus the minimum over the last axis."""
    return np.asarray(values.max(-1) - values.min(-1))


def _odds_difference(recalls: Floats) -> Floats:
    """Compute the equalised-odds difference from recalls [..., G, 2].

    The last axis is benign, malignant. The difference is the larger of the differences
    between groups in FPR and in TPR.
    """
    return np.asarray(_spread(np.swapaxes(recalls, -1, -2)).max(-1))


def _chance_quantiles(differences: Floats) -> tuple[float | None, float | None]:
    """Compute the median and the 95th percentile of differences by chance.

    The 95th percentile is the limit of a one-sided permutation test at the 5 % level.
    Differences that are undefined in a permutation are left out.
    """
    defined = differences[np.isfinite(differences)]
    if not len(defined):
        return None, None
    median, high = np.quantile(defined, [0.5, 0.95])
    return float(median), float(high)
