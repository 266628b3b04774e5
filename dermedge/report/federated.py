"""Write `federated.html`: one page about a federated training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dermedge.report.html import page_environment
from dermedge.report.plots import Frame, node
from dermedge.report.text import COLUMN_TITLES, EVALUATION_METRICS, decimal
from dermedge_runtime.files import atomic_write
from dermedge_runtime.packages import dermedge_version

MODELS = {"local": "Local only", "pooled": "Pooled", "federated": "Federated"}
ALL = "all"


def write_federated_page(report: Mapping[str, Any], out: Path) -> Path:
    """Write the page of a federated training: no scripts, no network, no images.

    Args:
        report: The JSON of a `FederatedReport`.
        out: File to write or replace.

    Returns:
        The written file.

    Examples:
        >>> report = {
        ...     "settings": {"strategy": "fedavg", "train": "head"}, "clients": {},
        ...     "tasks": ["malignancy"], "parameters": 9, "bytes": 136, "best_round": 1,
        ...     "scores": [0.5, 0.6], "rounds": [], "results": [], "mapped": {}, "notes": [],
        ... }
        >>> write_federated_page(report, Path("federated.html")).name
        'federated.html'
    """
    page = page_environment().get_template("federated.html.j2")
    content = page.render(
        report=report,
        settings=report["settings"],
        metrics=_list_metrics(report["results"]),
        names=[*report["clients"], ALL],
        models=MODELS,
        rows={(row["client"], row["model"]): row for row in report["results"]},
        columns=_list_subgroups(report["results"]),
        curve=draw_scores(report["scores"], report["best_round"]),
        spent=_last_budget(report["rounds"]),
        made_by=f"dermedge {dermedge_version()}",
    )
    atomic_write(out, content.encode("utf-8", "replace"))
    return out


def draw_scores(scores: Sequence[float | None], best: int) -> Markup | None:
    """Draw the mean val score by round, and mark the kept round.

    Args:
        scores: Score before round 1 and after each round.
        best: Number of the kept round.

    Returns:
        The plot, None with fewer than two scores.

    Examples:
        >>> "round 1: 0.700" in draw_scores([0.5, 0.7], best=1)
        True
    """
    known = [(place, score) for place, score in enumerate(scores) if score is not None]
    if len(known) < 2:
        return None
    last = len(scores) - 1
    low = int(min(score for _, score in known) * 5) / 5
    frame = Frame(x=(0, last), y=(low, 1), width=520, height=240, left=44)
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if last / s <= 10)
    across = [(float(t), str(t)) for t in range(0, last + 1, step)]
    up = [(tick / 10, f"{tick / 10:g}") for tick in range(round(low * 10), 11)]
    parts = frame.axes(across, up, "round", "val score")
    parts.append(frame.line((best, low), (best, 1), class_="best"))
    parts.append(frame.line(*known, class_="line a"))
    for place, score in known:
        x, y = frame.at(place, score)
        title = node("title", f"round {place}: {decimal(score)}")
        parts.append(node("circle", title, cx=x, cy=y, r=3, class_="mark a"))
    words = f"Val score over {last} rounds, at the end {decimal(known[-1][1])}; kept: round {best}."
    return frame.drawing(parts, words)


def _list_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the texts of all metrics that occur, in the order of the report."""
    found = {name: None for row in results for name in row["scores"]["metrics"]}
    return {name: EVALUATION_METRICS[name] for name in found}


def _list_subgroups(results: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return a row per subgroup of all clients: its size, and its scores by model."""
    columns: dict[str, dict[str, dict[str, Any]]] = {}
    for row in (row for row in results if row["client"] == ALL):
        for group in row["subgroups"]:
            title = COLUMN_TITLES.get(group["column"], group["column"])
            entry = columns.setdefault(title, {}).setdefault(
                group["value"], {"value": group["value"], "scores": group["scores"], "models": {}}
            )
            entry["models"][row["model"]] = group["scores"]["metrics"]
    return {title: list(groups.values()) for title, groups in columns.items()}


def _last_budget(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the spent epsilon of each client."""
    return {name: value for entry in rounds for name, value in entry.get("epsilon", {}).items()}
