"""The forest plot of a parity report: what the artifact lost overall, for each group and for each diagnosis."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dermedge.report.plots import Ticks, node
from dermedge.report.text import COLUMNS, interval, low_high, number, percent_fine
from dermedge_export.parity.gate import MINIMUM_CASES
from dermedge_runtime.report import Interval

MIDDLE = 17  # pixels from the top of a line, whose height is in report.css
STEPS = (1, 2, 5, 10)
TICKS = 6
NARROWEST = 0.001  # a scale shows at least so large a loss, else nothing lost would fill the plot


@dataclass(frozen=True)
class Scale:
    """An axis across table cells: each row draws its own line, as wide as the cell, so that words stay text."""

    low: float
    high: float
    ticks: Ticks

    def axis(self, says: str = "Scale of the losses below, left of zero is a gain") -> Markup:
        """Ticks with their values in percent, for the row above the lines."""
        parts = [self._tick(value, top=15) for value, _ in self.ticks]
        parts += [
            node("text", text, x=self._at(value), y=11, class_="tick middle")
            for value, text in self.ticks
        ]
        ends = f"{self.ticks[0][1]} to {self.ticks[-1][1]} %"
        return self._drawing(parts, f"{says}: from {ends}.", "axis")

    def line(self, value: Interval, *, allowed: float | None, class_: str, says: str) -> Markup:
        """A point with its interval, over a band from zero to what is allowed; an end beyond the scale has no stop."""
        parts = []
        if allowed:
            parts.append(
                node(
                    "rect",
                    x=self._at(0),
                    y=0,
                    width=self._share(allowed),
                    height="100%",
                    class_="band",
                )
            )
        parts += [self._tick(tick) for tick, _ in self.ticks]
        if value.low is not None and value.high is not None:
            ends = {"x1": self._at(value.low), "x2": self._at(value.high)}
            parts.append(node("line", y1=MIDDLE, y2=MIDDLE, class_="whisker", **ends))
            inside = [end for end in (value.low, value.high) if self.low <= end <= self.high]
            parts += [
                node("line", x1=self._at(end), x2=self._at(end), y1=12, y2=22, class_="whisker")
                for end in inside
            ]
        if value.value is not None:
            parts.append(node("circle", cx=self._at(value.value), cy=MIDDLE, r=4, class_="dot"))
        return self._drawing(parts, says, class_)

    def _tick(self, value: float, top: int = 0) -> Markup:
        name = "grid" if value else "zero"
        return node("line", x1=self._at(value), x2=self._at(value), y1=top, y2="100%", class_=name)

    def _at(self, value: float) -> str:
        return f"{100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low):.2f}%"

    def _share(self, length: float) -> str:
        return f"{100 * length / (self.high - self.low):.2f}%"

    def _drawing(self, parts: Iterable[Markup], says: str, class_: str) -> Markup:
        return node(
            "svg", *parts, role="img", aria_label=says, class_=f"plot strip {class_}".rstrip()
        )


@dataclass(frozen=True)
class Row:
    """One line: balanced accuracy (for a diagnosis: recall) on both sides, and its loss as a share of the student's.

    `few` marks fewer than 100 cases, which are too few to judge; `plot` is its line in the drawing.
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
    """Rows under a heading; `allowed` is the loss that the gate allows them, None where it judges none."""

    heading: str
    allowed: float | None
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Forest:
    """The whole plot: an axis above rows that all share its scale."""

    axis: Markup
    sections: tuple[Section, ...]


def forest(parity: Mapping[str, Any], names: Mapping[str, str]) -> Forest | None:
    """The forest plot of `reports/parity.json`; None where it compares nothing that was labelled.

    Args:
        parity: the report; what older ones lack is left out.
        names: what people call each diagnosis.
    """
    sections = [section for section in _sections(parity, names) if section.rows]
    rows = [row for section in sections for row in section.rows if row.loss.value is not None]
    if not rows:
        return None
    allowed = [section.allowed for section in sections if section.allowed is not None]
    shared = _scale([row for row in rows if not row.few] or rows, allowed)
    return Forest(shared.axis(), tuple(_drawn(section, shared) for section in sections))


def _sections(parity: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Section]:
    limits = {str(limit.get("metric")): limit for limit in _entries(parity, "limits")}
    overall = limits.get("balanced_accuracy", {})
    if interval(overall.get("loss")).value is not None:
        sides = {side: {"value": overall.get(side)} for side in ("reference", "candidate")}
        yield Section(
            "All images", number(overall.get("allowed")), (_row("Overall", {**overall, **sides}),)
        )
    groups: dict[str, list[Row]] = {column: [] for column in COLUMNS}
    for group in _entries(parity, "subgroups"):
        groups.setdefault(str(group.get("column")), []).append(_row(str(group.get("value")), group))
    worst = number(limits.get("worst_subgroup", {}).get("allowed"))
    for column, rows in groups.items():
        yield Section(COLUMNS.get(column, column), worst, tuple(rows))
    classes = [(str(part.get("value")), part) for part in _entries(parity, "classes")]
    yield Section(
        "Diagnosis (its recall)",
        None,
        tuple(_row(names.get(label, label), part) for label, part in classes),
    )


def _entries(parity: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    return [entry for entry in parity.get(key) or () if isinstance(entry, Mapping)]


def _row(name: str, part: Mapping[str, Any]) -> Row:
    cases = int(number(part.get("cases")) or 0)
    reference, candidate, loss = (
        interval(part.get(key)) for key in ("reference", "candidate", "loss")
    )
    return Row(name, cases, reference, candidate, loss, cases < MINIMUM_CASES)


def _scale(rows: Iterable[Row], allowed: Iterable[float]) -> Scale:
    """A scale that holds every interval, and the allowed losses on both sides of zero."""
    return scale([*allowed, *known_ends(row.loss for row in rows)])


def known_ends(intervals: Iterable[Interval]) -> Iterator[float]:
    """All that is known of them."""
    for found in intervals:
        yield from (end for end in (found.value, found.low, found.high) if end is not None)


def scale(values: Iterable[float], *, signed: bool = True) -> Scale:
    """A scale from zero that holds all values, by their size; a signed one has as much on both sides of zero."""
    most = max([NARROWEST, *map(abs, values)]) * 1.08
    step = next(step for step in _steps(most) if (2 if signed else 1) * most / step <= TICKS)
    first = -math.floor(most / step) if signed else 0
    ticks = [index * step for index in range(first, math.floor(most / step) + 1)]
    digits = max(0, -math.floor(math.log10(step * 100) + 1e-9))
    low = -most if signed else 0.0
    return Scale(low, most, tuple((tick, f"{100 * tick:.{digits}f}") for tick in ticks))


def _steps(most: float) -> Iterator[float]:
    """1, 2, 5, 10, 20 ... of the order of magnitude below `most`."""
    base = 10.0 ** (math.floor(math.log10(most)) - 1)
    while True:
        yield from (base * step for step in STEPS[:-1])
        base *= STEPS[-1]


def _drawn(section: Section, shared: Scale) -> Section:
    return Section(
        section.heading,
        section.allowed,
        tuple(_plotted(row, section, shared) for row in section.rows),
    )


def _plotted(row: Row, section: Section, shared: Scale) -> Row:
    if row.loss.value is None:
        return row
    over = section.allowed is not None and row.loss.value > section.allowed
    allowed = "" if section.allowed is None else f", {percent_fine(section.allowed)} allowed"
    few = ", too few cases to judge" if row.few else ""
    ends = low_high(row.loss, "percent_fine")
    says = f"{section.heading}, {row.name}: loss {percent_fine(row.loss.value)}, 95 % interval {ends}{allowed}{few}."
    plot = shared.line(
        row.loss,
        allowed=section.allowed,
        class_="few" if row.few else "over" if over else "",
        says=says,
    )
    return Row(row.name, row.cases, row.reference, row.candidate, row.loss, row.few, plot)
