"""Draw plots as inline SVG.

We draw SVG ourselves instead of using a plotting library, for four reasons:

- Theme: colours and fonts come from `report.css`, so a plot follows the light and the
  dark theme and the print style. An image would have one theme.
- Security: the page's Content Security Policy allows no script and no external
  resource. Interactive plotting libraries need a script.
- Accessibility: each plot has a label for screen readers, its text stays text, and its
  points have tooltips.
- Reproducibility: the same input gives the same bytes, on any machine and with any
  version of other packages. Plotting libraries write dates, random ids and font paths.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from dermedge.evaluation.report import ReliabilityBin
from dermedge.report.text import (
    EVALUATION_METRICS,
    MetricText,
    decimal,
    finite_number,
    milliseconds,
    percent,
    read_interval,
)
from dermedge_runtime.report import Interval

Point = tuple[float, float]
Ticks = Sequence[tuple[float, str]]

UNIT: Ticks = tuple((tick / 4, ("0", "0.25", "0.5", "0.75", "1")[tick]) for tick in range(5))
MOST_LINES = 4
# Smallest distance between the labels of two lines, in pixels.
LABEL_GAP = 14.0


def node(name: str, *children: object, **attributes: object) -> Markup:
    """Write an SVG or HTML element. Text and attribute values are escaped.

    Args:
        name: Name of the element.
        children: Text, or elements that this function made.
        attributes: Attributes. `_` in a name becomes `-`, and a trailing `_` is
            dropped.

    Examples:
        >>> str(node("text", "a < b", class_="tick", aria_label="x"))
        '<text class="tick" aria-label="x">a &lt; b</text>'
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{words}>{''.join(escape(child) for child in children)}</{name}>")


@dataclass(frozen=True)
class Frame:
    """Coordinate system of a drawing.

    Attributes:
        x: Range of the horizontal axis.
        y: Range of the vertical axis.
        width: Width of the drawing in pixels.
        height: Height of the drawing in pixels.
        left: Left margin in pixels.
        right: Right margin in pixels.
        top: Top margin in pixels.
        bottom: Bottom margin in pixels.

    Examples:
        >>> Frame(left=0, right=0, top=0, bottom=0).at(0.5, 1.0)
        (180.0, 0.0)
    """

    x: Point = (0.0, 1.0)
    y: Point = (0.0, 1.0)
    width: float = 360.0
    height: float = 320.0
    left: float = 52.0
    right: float = 14.0
    top: float = 12.0
    bottom: float = 44.0

    def at(self, x: float, y: float) -> Point:
        """Return the pixel of a point; outside the ranges, that of the border."""
        across = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0])
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        inner = self.width - self.left - self.right, self.height - self.top - self.bottom
        return round(self.left + across * inner[0], 1), round(
            self.height - self.bottom - up * inner[1], 1
        )

    def line(self, *points: Point, class_: str) -> Markup:
        """Draw a line through points."""
        return node("polyline", points=_pixels(self.at(*point) for point in points), class_=class_)

    def axes(self, x: Ticks, y: Ticks, x_name: str, y_name: str) -> list[Markup]:
        """Draw the grid, the ticks and the names of both axes."""
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

    def drawing(self, parts: Iterable[Markup], label: str) -> Markup:
        """Wrap the parts into a picture, with a label for screen readers."""
        box = f"0 0 {self.width:g} {self.height:g}"
        return node("svg", *parts, viewBox=box, role="img", aria_label=label, class_="plot")


def reliability(bins: Sequence[ReliabilityBin], ece: Interval | None) -> Markup | None:
    """Draw the reliability diagram: accuracy by confidence, and images per bin.

    The area of a disc grows with the number of images of its bin.

    Args:
        bins: Bins of confidence.
        ece: Expected calibration error.

    Returns:
        The plot, None without images.

    Examples:
        >>> plot = reliability([ReliabilityBin(0.8, 0.9, 50, 0.85, 0.7)], None)
        >>> plot.startswith("<svg")
        True
    """
    known = [
        (part, finite_number(part.confidence), finite_number(part.accuracy))
        for part in bins
        if part.count
    ]
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
        tooltip = f"{part.count:,} images: confidence {percent(c)}, accuracy {percent(a)}"
        # The radius grows with the square root of the number of images, as eyes compare
        # areas. The constant keeps bins of few images visible.
        radius = round(3 + 6 * (part.count / most) ** 0.5, 1)
        parts.append(node("circle", node("title", tooltip), cx=x, cy=y, r=radius, class_="dot"))
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
    error = read_interval(ece).value
    return frame.drawing(
        parts,
        f"Reliability diagram of {sum(part.count for part, _, _ in discs):,} images in "
        f"{len(discs)} bins; the mean gap between confidence and accuracy (ECE) is "
        f"{decimal(error)}.",
    )


def roc(
    corners: Sequence[Point],
    auroc: Interval | None,
    threshold: float | None,
    sensitivity: object,
    specificity: object,
) -> Markup | None:
    """Draw the ROC curve of malignant against benign, with a point for the threshold.

    Args:
        corners: Corners of the curve, as (false, true) positive rates.
        auroc: Area under the curve.
        threshold: The bundle's threshold.
        sensitivity: Sensitivity at the threshold, as an interval.
        specificity: Specificity at the threshold, as an interval.

    Returns:
        The plot, None if the curve is undefined.

    Examples:
        >>> corners = [(0.0, 0.0), (0.1, 0.8), (1.0, 1.0)]
        >>> curve = roc(corners, Interval(0.85), None, None, None)
        >>> "area 0.850" in curve
        True
    """
    # Three digits are finer than a pixel. Rounding makes the many corners of a large
    # evaluation coincide, which keeps the page small.
    points = list(dict.fromkeys((round(x, 3), round(y, 3)) for x, y in corners))
    if len(points) < 2:
        return None
    frame = Frame(height=330)
    detected, cleared = read_interval(sensitivity), read_interval(specificity)
    parts = frame.axes(
        UNIT, UNIT, "benign called malignant (1 - specificity)", "malignant detected (sensitivity)"
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
    label = f"ROC curve of malignant against benign, area {decimal(read_interval(auroc).value)}"
    if detected.value is not None and cleared.value is not None:
        parts += _operating_point(frame, detected, cleared, threshold)
        label += (
            f"; at the threshold the sensitivity is {percent(detected.value)} and the specificity "
            f"{percent(cleared.value)}"
        )
    return frame.drawing(parts, f"{label}.")


def _operating_point(
    frame: Frame, detected: Interval, cleared: Interval, threshold: float | None
) -> list[Markup]:
    """Draw the point of the threshold, its intervals and its label."""
    at = (1 - (cleared.value or 0), detected.value or 0)
    parts = []
    if detected.low is not None and detected.high is not None:
        parts.append(frame.line((at[0], detected.low), (at[0], detected.high), class_="whisker"))
    if cleared.low is not None and cleared.high is not None:
        parts.append(
            frame.line((1 - cleared.high, at[1]), (1 - cleared.low, at[1]), class_="whisker")
        )
    x, y = frame.at(*at)
    parts.append(node("circle", cx=x, cy=y, r=5.5, class_="point"))
    # The label is drawn on the side with more room.
    right = at[0] < 0.55
    x, side = (x + 14, "note") if right else (x - 14, "note end")
    y = min(max(y + 26, 40), frame.height - frame.bottom - 36)
    words = (
        f"threshold {decimal(threshold)}",
        f"sensitivity {percent(detected.value)}",
        f"specificity {percent(cleared.value)}",
    )
    return parts + [_text(x, y + 15 * row, word, side) for row, word in enumerate(words)]


def history(epochs: Sequence[Mapping[str, object]], best: int | None) -> Markup | None:
    """Draw at most four validation metrics by epoch; mark the kept epoch.

    Args:
        epochs: Metrics of each epoch, as in `run.json`.
        best: Index of the epoch whose weights were kept.

    Returns:
        The plot, None without metrics between 0 and 1.

    Examples:
        >>> plot = history([{"accuracy": 0.5}, {"accuracy": 0.8}], best=1)
        >>> "2 epochs" in plot
        True
    """
    series = _metric_series(epochs)
    if not series:
        return None
    low = min(value for line in series.values() for _, value in line)
    # The axis starts at the next fifth below the lowest value: from zero the
    # differences between epochs would be too small to see.
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
        # Tooltips of every epoch would overlap in a long training.
        for point in line if len(line) < 30 else line[-1:]:
            x, y = frame.at(*point)
            tooltip = f"epoch {point[0]}: {_metric_name(name)} {decimal(point[1])}"
            parts.append(
                node("circle", node("title", tooltip), cx=x, cy=y, r=2.5, class_=f"mark {mark}")
            )
    parts += _line_labels(frame, series)
    last_values = (f"{_metric_name(name)} {decimal(line[-1][1])}" for name, line in series.items())
    return frame.drawing(
        parts,
        f"Validation metrics over {len(epochs)} epochs, at the end: {', '.join(last_values)}.",
    )


def _metric_series(
    epochs: Sequence[Mapping[str, object]],
) -> dict[str, list[tuple[int, float]]]:
    """Return (epoch, value) by metric, for the first four metrics between 0 and 1."""
    names = {key: None for epoch in epochs for key in epoch if key not in ("loss", "score")}
    series = {
        name: [
            (step, value)
            for step, epoch in enumerate(epochs, 1)
            if (value := finite_number(epoch.get(name))) is not None
        ]
        for name in names
    }
    shares = [
        (name, line)
        for name, line in series.items()
        if line and all(0 <= value <= 1 for _, value in line)
    ]
    return dict(shares[:MOST_LINES])


def _line_labels(frame: Frame, series: Mapping[str, Sequence[tuple[int, float]]]) -> list[Markup]:
    """Write name and last value at the end of each line, without overlaps."""
    parts, lowest = [], frame.height - frame.bottom + 4
    ends = sorted(
        (frame.at(*line[-1])[1] + 4, mark, name)
        for mark, (name, line) in zip("abcd", series.items(), strict=False)
    )
    rows = [y for y, _, _ in ends]
    # First push labels down until none overlaps, then push up those below the axis.
    for index in range(1, len(rows)):
        rows[index] = max(rows[index], rows[index - 1] + LABEL_GAP)
    for index in reversed(range(len(rows))):
        rows[index] = min(
            rows[index], lowest if index == len(rows) - 1 else rows[index + 1] - LABEL_GAP
        )
    x = frame.width - frame.right + 8
    for y, (_, mark, name) in zip(rows, ends, strict=True):
        parts.append(
            _text(
                x, round(y, 1), f"{_metric_name(name)} {series[name][-1][1]:.2f}", f"label {mark}"
            )
        )
    return parts


def sustained(medians: Sequence[float]) -> Markup | None:
    """Draw the median time of each tenth of a sustained run; a rise shows throttling.

    Args:
        medians: Medians in milliseconds, in order.

    Returns:
        The plot, None with fewer than two values.

    Examples:
        >>> "30.0" in sustained([20.0, 30.0])
        True
    """
    known = [value for value in map(finite_number, medians) if value is not None]
    if len(known) < 2:
        return None
    top = max(known) * 1.25 or 1.0
    frame = Frame(x=(1, len(known)), y=(0, top), width=390, height=140, left=56, right=20)
    up = [(0.0, "0"), (top / 1.25, milliseconds(top / 1.25))]
    parts = frame.axes([(1, "start"), (len(known), "end")], up, "sustained run", "")
    parts.append(frame.line(*enumerate(known, 1), class_="line a"))
    return frame.drawing(
        parts,
        f"Median time in a sustained run: {milliseconds(known[0])} at its start, "
        f"{milliseconds(known[-1])} at its end.",
    )


def _metric_name(name: str) -> str:
    return EVALUATION_METRICS.get(name, MetricText(name.replace("_", " "))).name


def _pixels(points: Iterable[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _text(x: float, y: float, text: str, class_: str, **more: object) -> Markup:
    return node("text", text, x=round(x, 1), y=round(y, 1), class_=class_, **more)
