"""Prepare fairness comparisons for the page: groups, differences and chance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from dermedge.evaluation.fairness import BALANCED, MALIGNANT
from dermedge.evaluation.fairness_text import exceeds_chance, summarize
from dermedge.evaluation.report import Fairness, GroupScore
from dermedge.report.forest import Scale, interval_values, make_scale
from dermedge.report.text import (
    COLUMN_TITLES,
    finite_number,
    interval_ends,
    points,
    read_interval,
)
from dermedge_runtime.report import Interval

SCORE_NAMES = {
    BALANCED: "balanced accuracy",
    MALIGNANT: "balanced accuracy of malignant against benign",
}


@dataclass(frozen=True)
class Difference:
    """Difference between groups, with the differences that chance produces.

    Attributes:
        name: Name of the difference.
        value: The difference with its interval.
        chance: Median difference between randomly assigned groups.
        chance_high: 95th percentile of these.
        over: True if the difference is above `chance_high`.
        plot: Line of the drawing.

    Examples:
        >>> Difference("Gap", Interval(0.3), 0.05, 0.11, over=True).over
        True
    """

    name: str
    value: Interval
    chance: float | None
    chance_high: float | None
    over: bool
    plot: Markup | None = None


@dataclass(frozen=True)
class Comparison:
    """Comparison of groups by one column, as the page shows it.

    Attributes:
        heading: Name of the column for people.
        metric: Name of the metric for people.
        groups: Scores by group.
        insufficient: Number of cases of each group with too few cases.
        worst: Group with the lowest score.
        differences: Gap and equalised odds.
        remarks: Sentences, the main result first.

    Examples:
        >>> Comparison("Sex", "balanced accuracy", {}, {}, None, (), ()).heading
        'Sex'
    """

    heading: str
    metric: str
    groups: Mapping[str, GroupScore]
    insufficient: Mapping[str, int]
    worst: str | None
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a page, with the axis that their differences share.

    The axis is None if nothing could be compared.

    Examples:
        >>> Comparisons(None, ()).parts
        ()
    """

    axis: Markup | None
    parts: tuple[Comparison, ...]


def make_comparisons(
    fairness: Iterable[Fairness], labels: Sequence[str], names: Mapping[str, str]
) -> Comparisons:
    """Prepare an evaluation's fairness comparisons for the page.

    Args:
        fairness: The comparisons.
        labels: The model's classes.
        names: Display name of each class.

    Examples:
        >>> import numpy as np
        >>> from dermedge.evaluation.fairness import fairness
        >>> labels, sex = np.tile([0, 1], 60), np.repeat(["female", "male"], 60)
        >>> predicted = np.where(sex == "male", 0, labels)
        >>> by_sex = fairness(labels, predicted, 2, {"sex": sex}, np.arange(120))
        >>> (comparison,) = make_comparisons(by_sex, ("nv", "mel"), {}).parts
        >>> comparison.worst, comparison.differences[0].over
        ('male', True)
    """
    measured = [(part, list(_list_differences(part))) for part in fairness]
    differences = [difference for _, rows in measured for difference in rows]
    scale = None
    if differences:
        # One scale for all differences, so that they can be compared between columns.
        highs = [difference.chance_high or 0.0 for difference in differences]
        values = interval_values(difference.value for difference in differences)
        scale = make_scale([*highs, *values], signed=False)
    parts = []
    for part, rows in measured:
        heading = COLUMN_TITLES.get(part.column, part.column)
        parts.append(
            Comparison(
                heading=heading,
                metric=SCORE_NAMES.get(part.metric, part.metric),
                groups=part.groups,
                insufficient=part.insufficient,
                worst=part.worst,
                differences=tuple(_draw_difference(row, heading, scale) for row in rows if scale),
                remarks=tuple(summarize(part, labels, names)),
            )
        )
    axis = None
    if scale is not None:
        axis = scale.axis("Scale of the differences between groups below, in points")
    return Comparisons(axis, tuple(parts))


def _list_differences(part: Fairness) -> Iterator[Difference]:
    """Yield the measured differences: the gap and the equalised odds."""
    gap = f"Gap in {SCORE_NAMES.get(part.metric, part.metric)}"
    for name, value, chance, high in (
        (gap, part.gap, part.chance, part.chance_high),
        (
            "Equalised odds",
            part.equalised_odds,
            part.equalised_odds_chance,
            part.equalised_odds_chance_high,
        ),
    ):
        measured = read_interval(value)
        if measured.value is not None:
            chance_high = finite_number(high)
            over = exceeds_chance(measured.value, chance_high)
            yield Difference(name, measured, finite_number(chance), chance_high, over)


def _draw_difference(row: Difference, heading: str, scale: Scale) -> Difference:
    by_chance = "" if row.chance_high is None else f", up to {points(row.chance_high)} by chance"
    value = f"{points(row.value.value)}, 95 % interval {interval_ends(row.value, 'points')}"
    label = f"{heading}, {row.name}: {value}{by_chance}."
    plot = scale.line(
        row.value, allowed=row.chance_high, class_="over" if row.over else "", label=label
    )
    return replace(row, plot=plot)
