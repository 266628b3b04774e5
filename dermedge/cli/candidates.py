"""Print the candidates of an export, for `dermedge export` and `dermedge inspect`."""

from collections.abc import Mapping
from typing import Any

from dermedge.cli.console import table
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.report import CANDIDATES_REPORT, outcome_name, read_report

COLUMNS = ("candidate", "status", "MB", "ms", "top-1", "KL", "why")


def show_candidates(bundle: Bundle) -> None:
    """Print one line per candidate: status, size, latency, agreement and reason."""
    candidates = read_report(bundle, CANDIDATES_REPORT).get("candidates") or ()
    if candidates:
        table(COLUMNS, [_row(candidate) for candidate in candidates])


def _row(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    size, top1 = candidate.get("size_bytes"), candidate.get("top1")
    latency, kl = candidate.get("latency_ms"), candidate.get("kl")
    return (
        str(candidate.get("name")),
        outcome_name(candidate.get("status")),
        "-" if size is None else f"{size / 1e6:.2f}",
        "-" if latency is None else f"{latency:.2f}",
        "-" if top1 is None else f"{top1:.2%}",
        "-" if kl is None else f"{kl:.2g}",
        str(candidate.get("reason") or ""),
    )
