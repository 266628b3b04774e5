"""Prepare the section on corrupted photographs of the report page."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from dermedge.evaluation.report import CorruptionScores, Robustness
from dermedge.report.plots import UNIT, Frame, node
from dermedge.report.text import EVALUATION_METRICS, decimal, percent, read_interval
from dermedge_runtime.report import Interval

# The first of these that was measured is shown.
METRICS = ("balanced_accuracy", "malignant_auroc", "severity_kappa", "dice")
SEVERITY_TICKS = ((0.0, "none"), (1.0, "1"), (2.0, "2"), (3.0, "3"))


def make_curves(robustness: Robustness | None) -> dict[str, Any]:
    """Return the curve and the numbers of each corruption for the template.

    Args:
        robustness: Scores on corrupted photographs; None if they were not measured.

    Examples:
        >>> make_curves(None)
        {}
        >>> scores = [
        ...     CorruptionScores("hair", k, {"dice": Interval(0.9)}, {}, 0.5) for k in (1, 2, 3)
        ... ]
        >>> curves = make_curves(Robustness(9, {"dice": Interval(0.95)}, 0.0, tuple(scores)))
        >>> [part["name"] for part in curves["parts"]], curves["metric"].kind
        (['hair'], 'decimal')
    """
    if robustness is None:
        return {}
    known = [
        name for name in METRICS if read_interval(robustness.clean.get(name)).value is not None
    ]
    if not known:
        return {}
    name = known[0]
    parts = []
    for corruption in dict.fromkeys(entry.corruption for entry in robustness.corruptions):
        rows = [entry for entry in robustness.corruptions if entry.corruption == corruption]
        values = [read_interval(row.metrics.get(name)) for row in rows]
        parts.append(
            {
                "name": corruption.replace("_", " "),
                "plot": draw_curve(corruption, robustness, rows, name),
                "rows": list(zip(rows, values, strict=True)),
            }
        )
    return {
        "key": name,
        "metric": EVALUATION_METRICS[name],
        "images": robustness.images,
        "clean": read_interval(robustness.clean[name]),
        "clean_flagged": robustness.clean_flagged,
        "parts": parts,
    }


def draw_curve(
    corruption: str, robustness: Robustness, rows: Sequence[CorruptionScores], metric: str
) -> Markup:
    """Draw a metric, and the share of flagged images, by severity of a corruption.

    Args:
        corruption: Name of the corruption.
        robustness: Scores of all corruptions.
        rows: Scores of this corruption, by severity.
        metric: Name of the metric.

    Examples:
        >>> rows = [CorruptionScores("jpeg", 1, {"dice": Interval(0.9)}, {}, 0.1)]
        >>> scores = Robustness(9, {"dice": Interval(0.95)}, 0.0, tuple(rows))
        >>> "jpeg" in draw_curve("jpeg", scores, rows, "dice")
        True
    """
    frame = Frame(x=(-0.2, 3.2), width=300, height=190, left=34, right=8, top=8, bottom=40)
    clean = read_interval(robustness.clean.get(metric))
    points = [(0, clean), *((row.severity, read_interval(row.metrics.get(metric))) for row in rows)]
    flags = [(0, robustness.clean_flagged), *((row.severity, row.flagged) for row in rows)]
    parts = frame.axes(SEVERITY_TICKS, UNIT, "severity", "")
    if clean.value is not None:
        parts.append(frame.line((-0.2, clean.value), (3.2, clean.value), class_="ideal"))
    shares = [(x, share) for x, share in flags if share is not None]
    if shares:
        parts.append(frame.line(*shares, class_="line b"))
        parts += [_mark(frame, x, y, f"flagged {percent(y)}", "b") for x, y in shares]
    known = [(x, value) for x, value in points if value.value is not None]
    parts.append(frame.line(*((x, value.value or 0) for x, value in known), class_="line a"))
    for x, value in known:
        parts += _interval(frame, x, value)
    words = ", ".join(f"{decimal(value.value)} at {x or 'none'}" for x, value in known)
    title = EVALUATION_METRICS[metric].name
    return frame.drawing(parts, f"{title} by severity of {corruption.replace('_', ' ')}: {words}.")


def _interval(frame: Frame, x: float, value: Interval) -> list[Markup]:
    parts = []
    if value.low is not None and value.high is not None:
        parts.append(frame.line((x, value.low), (x, value.high), class_="line a thin"))
    at = value.value or 0.0
    return [*parts, _mark(frame, x, at, decimal(at), "a")]


def _mark(frame: Frame, x: float, y: float, tooltip: str, class_: str) -> Markup:
    cx, cy = frame.at(x, y)
    return node("circle", node("title", tooltip), cx=cx, cy=cy, r=3, class_=f"mark {class_}")
