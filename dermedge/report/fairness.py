"""Groups of people beside each other: how good the model is for each, and whether they differ by more than chance."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from dermedge.evaluation.fairness import BALANCED, MALIGNANT
from dermedge.evaluation.fairness_text import exceeds_chance, summarize
from dermedge.evaluation.report import Fairness, GroupScore
from dermedge.report.forest import Scale, known_ends, scale
from dermedge.report.text import COLUMNS, interval, low_high, number, points
from dermedge_runtime.report import Interval

METRICS = {
    BALANCED: "balanced accuracy",
    MALIGNANT: "balanced accuracy of malignant against benign",
}


@dataclass(frozen=True)
class Difference:
    """A difference between groups beside what chance shows; `over` marks one that is more than that."""

    name: str
    value: Interval
    chance: float | None
    chance_high: float | None
    over: bool
    plot: Markup | None = None


@dataclass(frozen=True)
class Comparison:
    """Groups by one column under its name for people; `remarks` are sentences, the answer first."""

    heading: str
    metric: str
    groups: Mapping[str, GroupScore]
    insufficient: Mapping[str, int]
    worst: str | None
    differences: tuple[Difference, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Comparisons:
    """All of them; their differences share one axis, None where there are none."""

    axis: Markup | None
    parts: tuple[Comparison, ...]


def comparisons(
    found: Iterable[Fairness], labels: Sequence[str], names: Mapping[str, str]
) -> Comparisons:
    """What the page shows of an evaluation's fairness.

    Args:
        found: the comparisons.
        labels: the model's classes.
        names: what people call them.
    """
    known = [(part, list(_differences(part))) for part in found]
    differences = [difference for _, rows in known for difference in rows]
    shared = None
    if differences:
        highs = [difference.chance_high or 0.0 for difference in differences]
        shared = scale(
            [*highs, *known_ends(difference.value for difference in differences)], signed=False
        )
    parts = [
        Comparison(
            heading=COLUMNS.get(part.column, part.column),
            metric=METRICS.get(part.metric, part.metric),
            groups=part.groups,
            insufficient=part.insufficient,
            worst=part.worst,
            differences=tuple(
                _plotted(row, COLUMNS.get(part.column, part.column), shared)
                for row in rows
                if shared
            ),
            remarks=tuple(summarize(part, labels, names)),
        )
        for part, rows in known
    ]
    axis = (
        shared.axis("Scale of the differences between groups below, in points") if shared else None
    )
    return Comparisons(axis, tuple(parts))


def _differences(part: Fairness) -> Iterator[Difference]:
    odds = part.equalised_odds
    for name, value, chance, high in (
        (
            f"Gap in {METRICS.get(part.metric, part.metric)}",
            part.gap,
            part.chance,
            part.chance_high,
        ),
        ("Equalised odds", odds, part.equalised_odds_chance, part.equalised_odds_chance_high),
    ):
        measured = interval(value)
        if measured.value is not None:
            yield Difference(
                name,
                measured,
                number(chance),
                number(high),
                exceeds_chance(measured.value, number(high)),
            )


def _plotted(row: Difference, heading: str, shared: Scale) -> Difference:
    by_chance = "" if row.chance_high is None else f", up to {points(row.chance_high)} by chance"
    value = f"{points(row.value.value)}, 95 % interval {low_high(row.value, 'points')}"
    says = f"{heading}, {row.name}: {value}{by_chance}."
    plot = shared.line(
        row.value, allowed=row.chance_high, class_="over" if row.over else "", says=says
    )
    return replace(row, plot=plot)
