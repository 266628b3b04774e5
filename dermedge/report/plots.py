"""Plots as inline SVG. Colours and fonts are the page's (`report.css`), so they follow its light and dark theme."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from dermedge.evaluation.report import ReliabilityBin
from dermedge.report.text import METRICS, Named, decimal, interval, milliseconds, number, percent
from dermedge_runtime.report import Interval

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]

UNIT: Ticks = tuple((tick / 4, ("0", "0.25", "0.5", "0.75", "1")[tick]) for tick in range(5))
LINES = 4
LABEL_GAP = 14.0


def node(name: str, *children: object, **attributes: object) -> Markup:
    """An SVG or HTML element; text and attributes are escaped, and `_` in an attribute's name stands for `-`."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{words}>{''.join(escape(child) for child in children)}</{name}>")


@dataclass(frozen=True)
class Frame:
    """Where data land in a drawing: its size and margins in pixels, and the ranges of both axes."""

    x: Point = (0.0, 1.0)
    y: Point = (0.0, 1.0)
    width: float = 360.0
    height: float = 320.0
    left: float = 46.0
    right: float = 14.0
    top: float = 12.0
    bottom: float = 44.0

    def at(self, x: float, y: float) -> Point:
        """Pixels of a point; what lies outside the ranges is put on the border."""
        across = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0])
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        inner = self.width - self.left - self.right, self.height - self.top - self.bottom
        return round(self.left + across * inner[0], 1), round(
            self.height - self.bottom - up * inner[1], 1
        )

    def line(self, *points: Point, class_: str) -> Markup:
        """A line through points."""
        return node("polyline", points=_pixels(self.at(*point) for point in points), class_=class_)

    def axes(self, x: Ticks, y: Ticks, x_name: str, y_name: str) -> list[Markup]:
        """Grid, ticks and names."""
        parts = []
        for value, text in y:
            left, right = self.at(self.x[0], value), self.at(self.x[1], value)
            parts.append(node("polyline", points=_pixels((left, right)), class_="grid"))
            parts.append(_text(left[0] - 6, left[1] + 4, text, "tick end"))
        for value, text in x:
            at = self.at(value, self.y[0])
            parts.append(_text(at[0], at[1] + 16, text, "tick middle"))
        middle = self.at(sum(self.x) / 2, sum(self.y) / 2)
        base = self.at(self.x[0], self.y[0])[1]
        parts.append(_text(middle[0], base + 34, x_name, "axis middle"))
        turned = f"rotate(-90 11 {middle[1]})"
        parts.append(
            node("text", y_name, x=11, y=middle[1], class_="axis middle", transform=turned)
        )
        return parts

    def drawing(self, parts: Iterable[Markup], says: str) -> Markup:
        """The whole picture, with what it says for those who do not see it."""
        box = f"0 0 {self.width:g} {self.height:g}"
        return node("svg", *parts, viewBox=box, role="img", aria_label=says, class_="plot")


def reliability(bins: Sequence[ReliabilityBin], ece: Interval | None) -> Markup | None:
    """Accuracy by stated confidence, a disc per bin as large as its share, above how many images each bin holds."""
    known = [(part, number(part.confidence), number(part.accuracy)) for part in bins if part.count]
    discs = [(part, c, a) for part, c, a in known if c is not None and a is not None]
    if not discs:
        return None
    frame, strip = Frame(height=330, bottom=98), Frame(height=330, top=246, bottom=44)
    most = max(part.count for part, _, _ in discs)
    parts = [*frame.axes((), UNIT, "", "accuracy"), frame.line((0, 0), (1, 1), class_="ideal")]
    parts += strip.axes(UNIT, (), "confidence in the first diagnosis", "images")
    parts += [frame.line((c, c), (c, a), class_="gap") for _, c, a in discs]
    for part, c, a in discs:
        x, y = frame.at(c, a)
        said = f"{part.count:,} images: confidence {percent(c)}, accuracy {percent(a)}"
        radius = round(3 + 6 * (part.count / most) ** 0.5, 1)
        parts.append(node("circle", node("title", said), cx=x, cy=y, r=radius, class_="dot"))
    for part, _, _ in discs:
        (left, top), (right, base) = strip.at(part.low, part.count / most), strip.at(part.high, 0)
        size = {
            "width": max(1.0, round(right - left - 1.5, 1)),
            "height": max(1.0, round(base - top, 1)),
        }
        parts.append(
            node(
                "rect", node("title", f"{part.count:,} images"), x=left, y=top, class_="bar", **size
            )
        )
    x, y = frame.at(0.97, 0.86)
    parts.append(_text(x, y, "perfect", "note end", transform=f"rotate(-40 {x} {y})"))
    error = interval(ece).value
    return frame.drawing(
        parts,
        f"Reliability diagram of {sum(part.count for part, _, _ in discs):,} images in {len(discs)} bins; "
        f"the mean gap between confidence and accuracy (ECE) is {decimal(error)}.",
    )


def roc(
    corners: Sequence[Point],
    auroc: Interval | None,
    threshold: float | None,
    sensitivity: object,
    specificity: object,
) -> Markup | None:
    """True against false positive rate of malignant against benign; the bundle's threshold is a marked point."""
    points = list(dict.fromkeys((round(x, 3), round(y, 3)) for x, y in corners))
    if len(points) < 2:
        return None
    frame = Frame(height=330)
    found, cleared = interval(sensitivity), interval(specificity)
    parts = frame.axes(
        UNIT, UNIT, "benign called malignant (1 - specificity)", "malignant found (sensitivity)"
    )
    parts.append(
        node(
            "polygon",
            points=_pixels(frame.at(*p) for p in [*points, (1, 0), (0, 0)]),
            class_="under",
        )
    )
    parts.append(frame.line((0, 0), (1, 1), class_="ideal"))
    parts.append(frame.line(*points, class_="line a"))
    says = f"ROC curve of malignant against benign, area {decimal(interval(auroc).value)}"
    if found.value is not None and cleared.value is not None:
        parts += _operating_point(frame, found, cleared, threshold)
        says += f"; at the threshold {percent(found.value)} are found and {percent(cleared.value)} are cleared"
    return frame.drawing(parts, says + ".")


def _operating_point(
    frame: Frame, found: Interval, cleared: Interval, threshold: float | None
) -> list[Markup]:
    at = (1 - (cleared.value or 0), found.value or 0)
    parts = []
    if found.low is not None and found.high is not None:
        parts.append(frame.line((at[0], found.low), (at[0], found.high), class_="whisker"))
    if cleared.low is not None and cleared.high is not None:
        parts.append(
            frame.line((1 - cleared.high, at[1]), (1 - cleared.low, at[1]), class_="whisker")
        )
    x, y = frame.at(*at)
    parts.append(node("circle", cx=x, cy=y, r=5.5, class_="point"))
    right = at[0] < 0.55
    x, side = (x + 14, "note") if right else (x - 14, "note end")
    y = min(max(y + 26, 40), frame.height - frame.bottom - 36)
    words = (
        f"threshold {decimal(threshold)}",
        f"finds {percent(found.value)}",
        f"clears {percent(cleared.value)}",
    )
    return parts + [_text(x, y + 15 * row, word, side) for row, word in enumerate(words)]


def history(epochs: Sequence[Mapping[str, object]], best: int | None) -> Markup | None:
    """Validation metrics by epoch; the epoch whose weights were kept is marked. Loss is left to the table."""
    names = {key: None for epoch in epochs for key in epoch if key not in ("loss", "score")}
    series = {
        name: [
            (step, value)
            for step, epoch in enumerate(epochs, 1)
            if (value := number(epoch.get(name))) is not None
        ]
        for name in names
    }
    series = {
        name: line
        for name, line in series.items()
        if line and all(0 <= value <= 1 for _, value in line)
    }
    series = dict(list(series.items())[:LINES])
    if not series:
        return None
    low = min(value for line in series.values() for _, value in line)
    low = int(low * 5) / 5
    last = max(2, len(epochs))
    frame = Frame(x=(1, last), y=(low, 1), width=390, height=240, left=34, right=140)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if last / s <= 9)
    across = [(float(t), str(t)) for t in range(1, len(epochs) + 1) if t == 1 or t % step == 0]
    up = [
        (tick / 10, f"{tick / 10:g}") for tick in range(round(low * 10), 11, 1 if low >= 0.6 else 2)
    ]
    parts = frame.axes(across, up, "epoch", "")
    if best is not None and 0 <= best < len(epochs):
        parts.append(frame.line((best + 1, low), (best + 1, 1), class_="best"))
        parts.append(
            _text(
                frame.at(best + 1, low)[0] - 5, frame.at(best + 1, low)[1] - 6, "kept", "tick end"
            )
        )
    for mark, (name, line) in zip("abcd", series.items(), strict=False):
        parts.append(frame.line(*line, class_=f"line {mark}"))
        for point in line if len(line) < 30 else line[-1:]:
            x, y = frame.at(*point)
            said = f"epoch {point[0]}: {_named(name)} {decimal(point[1])}"
            parts.append(
                node("circle", node("title", said), cx=x, cy=y, r=2.5, class_=f"mark {mark}")
            )
    parts += _line_labels(frame, series)
    said = ", ".join(f"{_named(name)} {decimal(line[-1][1])}" for name, line in series.items())
    return frame.drawing(
        parts, f"Validation metrics over {len(epochs)} epochs, at the end: {said}."
    )


def _line_labels(frame: Frame, series: Mapping[str, Sequence[tuple[int, float]]]) -> list[Markup]:
    """The name and last value of every line at its end, moved apart where they would touch."""
    parts, floor = [], frame.height - frame.bottom + 4
    ends = sorted(
        (frame.at(*line[-1])[1] + 4, mark, name)
        for mark, (name, line) in zip("abcd", series.items(), strict=False)
    )
    rows = [y for y, _, _ in ends]
    for index in range(1, len(rows)):
        rows[index] = max(rows[index], rows[index - 1] + LABEL_GAP)
    for index in reversed(range(len(rows))):
        rows[index] = min(
            rows[index], floor if index == len(rows) - 1 else rows[index + 1] - LABEL_GAP
        )
    x = frame.width - frame.right + 8
    for y, (_, mark, name) in zip(rows, ends, strict=True):
        parts.append(
            _text(x, round(y, 1), f"{_named(name)} {series[name][-1][1]:.2f}", f"label {mark}")
        )
    return parts


def sustained(medians: Sequence[float]) -> Markup | None:
    """Median time of each tenth of a sustained run; a rise is throttling."""
    known = [value for value in map(number, medians) if value is not None]
    if len(known) < 2:
        return None
    top = max(known) * 1.25 or 1.0
    frame = Frame(x=(1, len(known)), y=(0, top), width=390, height=140, left=56, right=20)
    up = [(0.0, "0"), (top / 1.25, milliseconds(top / 1.25))]
    parts = frame.axes([(1, "start"), (len(known), "end")], up, "sustained run", "")
    parts.append(frame.line(*enumerate(known, 1), class_="line a"))
    said = f"Median time in a sustained run: {milliseconds(known[0])} at its start, {milliseconds(known[-1])} at its end."
    return frame.drawing(parts, said)


def _named(name: str) -> str:
    return METRICS.get(name, Named(name.replace("_", " "))).name


def _pixels(points: Iterable[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _text(x: float, y: float, text: str, class_: str, **more: object) -> Markup:
    return node("text", text, x=round(x, 1), y=round(y, 1), class_=class_, **more)
