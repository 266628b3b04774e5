"""Write the peers' benchmark as Markdown: a table per student, and the comparisons."""

from typing import Any

from peers_contenders import CONTENDERS, OURS, PLAIN
from peers_engine import TIMED_CALLS

WITHIN, FASTER = 1.05, 2.0
LONGEST = 160  # characters of an error that are shown; the JSON has all
TITLES = {"engine": "engine", "small": "600 x 450 JPEG", "large": "12 MP JPEG"}


def markdown(document: dict[str, Any]) -> str:
    """Return the document: tables, then comparisons."""
    machine = document["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores ({machine['flags']}).", ""]
    for student, rows in document["students"].items():
        lines += [f"### {student}", "", *_table(rows, document["threads"]), ""]
    return (
        "\n".join([*lines, "### Comparisons", "", *(f"- {line}" for line in comparisons(document))])
        + "\n"
    )


def comparisons(document: dict[str, Any]) -> list[str]:
    """Return one line per student, input and thread count, and one on int8."""
    lines = []
    for student, rows in document["students"].items():
        if OURS not in _timed(rows):
            lines.append(f"{student}: nothing to compare, dermedge is {_state(rows[OURS])}")
            continue
        for threads in document["threads"]:
            lines += [
                f"{student}, {_threads(threads)}, {against_best(rows, threads, name)}"
                for name in TIMED_CALLS
            ]
            lines.append(f"{student}, {_threads(threads)}, engine: {against_plain(rows, threads)}")
    return lines


def against_best(rows: dict[str, Any], threads: int, call_name: str) -> str:
    """Compare dermedge with the fastest equally accurate peer.

    A peer is equally accurate if the interval of its difference does not exclude zero.
    """
    ours = _median(rows[OURS], threads, call_name)
    peers = {
        name: _median(row, threads, call_name)
        for name, row in _timed(rows).items()
        if name != OURS and not (row["behind"]["low"] or 0) > 0
    }
    if not peers:
        return f"{TITLES[call_name]}: {ours:.2f} ms, and no peer is equally accurate: met"
    best = min(peers, key=lambda name: peers[name])
    met = ours <= WITHIN * peers[best] and not (rows[best]["behind"]["high"] or 0) < 0
    return (
        f"{TITLES[call_name]}: {ours:.2f} ms, {ours / peers[best]:.2f} x the fastest equally "
        f"accurate peer ({CONTENDERS[best].title}, {peers[best]:.2f} ms), at "
        f"{_signed(rows[best]['behind'])} points of balanced accuracy: "
        f"{'met' if met else 'missed'}"
    )


def against_plain(rows: dict[str, Any], threads: int) -> str:
    """Compare a selected int8 artifact with plain ONNX."""
    precision = rows[OURS]["precision"]
    if precision != "int8":
        return f"{precision} was chosen, int8 was not selected here"
    if PLAIN not in _timed(rows):
        return f"no plain ONNX to compare with: {_state(rows[PLAIN])}"
    ratio = _median(rows[PLAIN], threads, "engine") / _median(rows[OURS], threads, "engine")
    return f"int8 is {ratio:.2f} x as fast as plain ONNX: {'met' if ratio >= FASTER else 'missed'}"


def _table(rows: dict[str, Any], threads: list[int]) -> list[str]:
    columns = [(call_name, count) for call_name in TIMED_CALLS for count in threads]
    head = [
        "contender",
        *(f"{TITLES[call_name]}, {_threads(count)}" for call_name, count in columns),
        "file",
        "balanced accuracy",
        "lost of it, points",
        "malignant sensitivity",
        "agreement",
        "KL",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        cells = [CONTENDERS[name].title if name in CONTENDERS else "fp32 student"]
        if row["status"] != "measured":
            cells += [_state(row), *[""] * (len(head) - 2)]
        else:
            cells += [_ms(row, count, call_name) for call_name, count in columns]
            cells += [
                f"{row['bytes'] / 1e6:.2f} MB" if "bytes" in row else "",
                _interval(row["balanced_accuracy"]),
                _signed(row["balanced_accuracy_lost"]),
                _interval(row["malignant_sensitivity"]),
                f"{row['agreement']:.2%}",
                "" if row["kl"] is None else f"{row['kl']:.5f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _timed(rows: dict[str, Any]) -> dict[str, Any]:
    return {name: row for name, row in rows.items() if row.get("ms")}


def _median(row: dict[str, Any], threads: int, call_name: str) -> float:
    median: float = row["ms"][str(threads)][call_name]["p50"]
    return median


def _ms(row: dict[str, Any], threads: int, call_name: str) -> str:
    return f"{_median(row, threads, call_name):.2f} ms" if row.get("ms") else ""


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _state(row: dict[str, Any]) -> str:
    why = row["why"] if len(row["why"]) <= LONGEST else f"{row['why'][:LONGEST]}..."
    return f"{row['status'].replace('_', ' ')}: {why}".replace("|", "\\|")


def _interval(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return ""
    if value["low"] is None:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _signed(value: dict[str, Any]) -> str:
    """Format a difference in points."""
    if value["value"] is None:
        return ""
    if value["low"] is None:
        return f"{100 * value['value']:+.2f}"
    return f"{100 * value['value']:+.2f} ({100 * value['low']:+.2f} to {100 * value['high']:+.2f})"
