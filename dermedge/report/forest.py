"""Draw the forest plot of a parity report: losses overall, by group and by diagnosis.

Each row draws its own SVG line in a table cell. Names and numbers stay text, so readers
can select them, screen readers can read them, and a phone can wrap them. `plots` gives
the reasons to draw SVG without a plotting library.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from dermedge.report.plots import Ticks, node
from dermedge.report.text import (
    COLUMN_TITLES,
    finite_number,
    interval_ends,
    percent_fine,
    read_interval,
)
from dermedge_export.parity.gate import MINIMUM_CASES
from dermedge_runtime.report import Interval

# Pixels from the top of a line, whose height is set in report.css.
MIDDLE = 17
STEPS = (1, 2, 5, 10)
MOST_TICKS = 6
# Smallest range of a scale. Without it, a negligible loss would fill the plot.
NARROWEST = 0.001


@dataclass(frozen=True)
class Scale:
    """Axis that the rows of a table share; each row draws a line as wide as its cell.

    Attributes:
        low: Value at the left end.
        high: Value at the right end.
        ticks: Values with their labels.

    Examples:
        >>> make_scale([0.02, -0.01]).ticks[0]
        (-0.02, '-2')
    """

    low: float
    high: float
    ticks: Ticks

    def axis(self, label: str = "Scale of the losses below; left of zero is a gain") -> Markup:
        """Draw the ticks with their values in percent, for the row above the lines.

        Args:
            label: Description of the axis for screen readers.
        """
        parts = [self._tick(value, top=15) for value, _ in self.ticks]
        parts += [
            node("text", text, x=self._position(value), y=11, class_="tick middle")
            for value, text in self.ticks
        ]
        ends = f"{self.ticks[0][1]} to {self.ticks[-1][1]} %"
        return self._drawing(parts, f"{label}: from {ends}.", "axis")

    def line(self, value: Interval, *, allowed: float | None, class_: str, label: str) -> Markup:
        """Draw a point with its interval, over a band from zero to the allowed value.

        An interval that reaches beyond the scale has no stop at that end.

        Args:
            value: The point and its interval.
            allowed: End of the band; None draws no band.
            class_: CSS class of the line.
            label: Description of the line for screen readers.
        """
        parts = []
        if allowed:
            band = {"x": self._position(0), "width": self._length(allowed)}
            parts.append(node("rect", y=0, height="100%", class_="band", **band))
        parts += [self._tick(tick) for tick, _ in self.ticks]
        if value.low is not None and value.high is not None:
            ends = {"x1": self._position(value.low), "x2": self._position(value.high)}
            parts.append(node("line", y1=MIDDLE, y2=MIDDLE, class_="whisker", **ends))
            # A stop at the border would show a wrong end of the interval.
            inside = [end for end in (value.low, value.high) if self.low <= end <= self.high]
            for end in inside:
                x = self._position(end)
                parts.append(node("line", x1=x, x2=x, y1=12, y2=22, class_="whisker"))
        if value.value is not None:
            x = self._position(value.value)
            parts.append(node("circle", cx=x, cy=MIDDLE, r=4, class_="dot"))
        return self._drawing(parts, label, class_)

    def _tick(self, value: float, top: int = 0) -> Markup:
        x, name = self._position(value), "grid" if value else "zero"
        return node("line", x1=x, x2=x, y1=top, y2="100%", class_=name)

    def _position(self, value: float) -> str:
        inside = min(max(value, self.low), self.high)
        return f"{100 * (inside - self.low) / (self.high - self.low):.2f}%"

    def _length(self, length: float) -> str:
        return f"{100 * length / (self.high - self.low):.2f}%"

    def _drawing(self, parts: Iterable[Markup], label: str, class_: str) -> Markup:
        return node(
            "svg", *parts, role="img", aria_label=label, class_=f"plot strip {class_}".rstrip()
        )


@dataclass(frozen=True)
class Row:
    """One line of the plot: a group or a diagnosis.

    Attributes:
        name: Name of the group or diagnosis.
        cases: Number of its images.
        reference: Balanced accuracy of the student; for a diagnosis, its recall or the
            coverage of its conformal sets.
        candidate: The same metric of the artifact.
        loss: Loss as a share of the student's value; for coverage, in points.
        few: True for fewer than 100 cases, too few to decide.
        plot: Line of the drawing.

    Examples:
        >>> Row("VI", 12, Interval(0.8), Interval(0.7), Interval(0.125), few=True).few
        True
    """

    name: str
    cases: int
    reference: Interval
    candidate: Interval
    loss: Interval
    few: bool
    plot: Markup | None = None


@dataclass(frozen=True)
class Section:
    """Rows under a heading.

    Attributes:
        heading: Heading.
        allowed: Loss that the gate allows; None for rows that it does not limit.
        rows: The rows.

    Examples:
        >>> Section("Sex", 0.02, ()).allowed
        0.02
    """

    heading: str
    allowed: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Forest:
    """The plot: an axis above sections of rows that share its scale.

    Examples:
        >>> Forest(make_scale([0.02]).axis(), ()).sections
        ()
    """

    axis: Markup
    sections: tuple[Section, ...]


def draw_forest(parity: Mapping[str, Any], names: Mapping[str, str]) -> Forest | None:
    """Draw the forest plot of a parity report.

    Args:
        parity: Content of `reports/parity.json`. Fields that older reports lack are
            left out.
        names: Display name of each diagnosis.

    Returns:
        The plot, None if the report compares no labelled images.

    Examples:
        >>> loss = {"value": 0.01, "low": -0.01, "high": 0.03}
        >>> sex = {"column": "sex", "value": "male", "cases": 200, "loss": loss}
        >>> forest = draw_forest({"subgroups": [sex]}, {})
        >>> forest.sections[0].heading, forest.sections[0].rows[0].name
        ('Sex', 'male')
    """
    sections = [section for section in _read_sections(parity, names) if section.rows]
    rows = [row for section in sections for row in section.rows if row.loss.value is not None]
    if not rows:
        return None
    # Wide intervals of few cases would shrink all others, so they do not set the scale.
    decisive = [row for row in rows if not row.few] or rows
    allowed = [section.allowed for section in sections if section.allowed is not None]
    scale = make_scale([*allowed, *interval_values(row.loss for row in decisive)])
    return Forest(scale.axis(), tuple(_draw_section(section, scale) for section in sections))


def _read_sections(parity: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Section]:
    limits = {str(limit.get("metric")): limit for limit in _read_objects(parity, "limits")}
    overall = limits.get("balanced_accuracy", {})
    if read_interval(overall.get("loss")).value is not None:
        sides = {side: {"value": overall.get(side)} for side in ("reference", "candidate")}
        allowed = finite_number(overall.get("allowed"))
        yield Section("All images", allowed, (_make_row("Overall", {**overall, **sides}),))
    groups: dict[str, list[Row]] = {column: [] for column in COLUMN_TITLES}
    for group in _read_objects(parity, "subgroups"):
        row = _make_row(str(group.get("value")), group)
        groups.setdefault(str(group.get("column")), []).append(row)
    worst = finite_number(limits.get("worst_subgroup", {}).get("allowed"))
    for column, rows in groups.items():
        yield Section(COLUMN_TITLES.get(column, column), worst, tuple(rows))
    covered = finite_number(limits.get("worst_label_coverage", {}).get("allowed"))
    for key, heading, allowed in (
        ("classes", "Diagnosis (its recall)", None),
        ("coverage", "Diagnosis (coverage of its conformal sets)", covered),
    ):
        labelled = [(str(part.get("value")), part) for part in _read_objects(parity, key)]
        made = (_make_row(names.get(label, label), part) for label, part in labelled)
        yield Section(heading, allowed, tuple(made))


def _read_objects(parity: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [entry for entry in parity.get(key) or () if isinstance(entry, Mapping)]


def _make_row(name: str, part: Mapping[str, Any]) -> Row:
    cases = int(finite_number(part.get("cases")) or 0)
    reference, candidate, loss = (
        read_interval(part.get(key)) for key in ("reference", "candidate", "loss")
    )
    return Row(name, cases, reference, candidate, loss, cases < MINIMUM_CASES)


def interval_values(intervals: Iterable[Interval]) -> Iterator[float]:
    """Yield the known values and ends of intervals.

    Examples:
        >>> list(interval_values([Interval(0.1, None, 0.2), Interval(None)]))
        [0.1, 0.2]
    """
    for interval in intervals:
        ends = (interval.value, interval.low, interval.high)
        yield from (end for end in ends if end is not None)


def make_scale(values: Iterable[float], *, signed: bool = True) -> Scale:
    """Make a scale that holds all values.

    Args:
        values: The values, as shares.
        signed: Extend the scale equally on both sides of zero; otherwise from zero up.

    Examples:
        >>> [label for _, label in make_scale([0.04], signed=False).ticks]
        ['0', '1', '2', '3', '4']
    """
    most = max([NARROWEST, *map(abs, values)]) * 1.08
    step = next(
        step for step in _tick_steps(most) if (2 if signed else 1) * most / step <= MOST_TICKS
    )
    first = -math.floor(most / step) if signed else 0
    ticks = [index * step for index in range(first, math.floor(most / step) + 1)]
    digits = max(0, -math.floor(math.log10(step * 100) + 1e-9))
    low = -most if signed else 0.0
    return Scale(low, most, tuple((tick, f"{100 * tick:.{digits}f}") for tick in ticks))


def _tick_steps(most: float) -> Iterator[float]:
    """Yield 1, 2, 5, 10, 20 ... times the order of magnitude below `most`."""
    # One order of magnitude lower than `most`, so that a step with few ticks is among
    # them.
    base = 10.0 ** (math.floor(math.log10(most)) - 1)
    while True:
        yield from (base * step for step in STEPS[:-1])
        base *= STEPS[-1]


def _draw_section(section: Section, scale: Scale) -> Section:
    return replace(section, rows=tuple(_draw_row(row, section, scale) for row in section.rows))


def _draw_row(row: Row, section: Section, scale: Scale) -> Row:
    if row.loss.value is None:
        return row
    over = section.allowed is not None and row.loss.value > section.allowed
    allowed = "" if section.allowed is None else f", {percent_fine(section.allowed)} allowed"
    few = ", too few cases" if row.few else ""
    ends = interval_ends(row.loss, "percent_fine")
    label = (
        f"{section.heading}, {row.name}: loss {percent_fine(row.loss.value)}, 95 % interval "
        f"{ends}{allowed}{few}."
    )
    class_ = "few" if row.few else "over" if over else ""
    plot = scale.line(row.loss, allowed=section.allowed, class_=class_, label=label)
    return replace(row, plot=plot)
