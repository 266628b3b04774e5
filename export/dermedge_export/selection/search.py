"""The search: candidates are built, run, held against the student on val, and timed; one of them wins.

Nothing is assumed: int8 may be slower than fp32 or broken, and the best engine differs from model to model.
"""

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Exporter
from dermedge_export.evaluation.predictions import Predictions
from dermedge_export.parity import gate
from dermedge_export.parity.evaluator import ParityEvaluator, describe_hardware
from dermedge_export.selection.cache import build_cached
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import Target
from dermedge_runtime.errors import DermedgeError, GateError, MissingExtraError
from dermedge_runtime.model import Runtime
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.report import Interval, ParityReport
from dermedge_runtime.spec import Json, Spec, to_json

SCHEMA = "dermedge.candidates/1"
EXACT = (
    "fp32",
    "bf16",
    "fp16",
    "w8",
    "palettized",
    "w8a8",
    "int8+fp16",
    "int8",
)  # the least rounded first
TURNS, CALLS, SETTLE_SECONDS = 12, 8, 0.05
NOISE = 0.03  # share by which two latencies or sizes must differ to count as different
State = Literal["won", "passed", "failed", "refused", "skipped"]
Start = Callable[[BuiltArtifact], AbstractContextManager[Runtime]]


@dataclass(frozen=True)
class CandidateResult:
    """What became of one candidate. `reason` says in a sentence why it won or what it lost.

    `latency_ms` is the median of interleaved engine calls on this machine, None where it was not timed; `top1`, `kl`
    and `balanced_accuracy_loss` compare it with its student on val.
    """

    name: str
    precision: str
    format: str
    method: str
    status: State
    reason: str
    size_bytes: int | None = None
    latency_ms: float | None = None
    top1: float | None = None
    kl: float | None = None
    balanced_accuracy_loss: Interval | None = None


@dataclass(frozen=True)
class Selection:
    """The winner, and what became of everyone; `val` holds the winner's answers there."""

    built: BuiltArtifact
    val: Predictions
    tried: tuple[CandidateResult, ...]

    def rejected(self, reasons: Sequence[str]) -> tuple[CandidateResult, ...]:
        """What became of everyone, now that the winner has failed on test."""
        said = f"chosen on val, but on test: {' '.join(reasons)}"
        return tuple(
            replace(t, status="failed", reason=said) if t.status == "won" else t for t in self.tried
        )

    def after(self, earlier: Sequence[CandidateResult]) -> "Selection":
        """This choice, with what became of candidates that an earlier search had tried."""
        again = {tried.name: tried for tried in self.tried}
        names = {tried.name for tried in earlier}
        kept = tuple(again.get(tried.name, tried) for tried in earlier)
        return replace(
            self, tried=kept + tuple(tried for tried in self.tried if tried.name not in names)
        )

    def to_json(self) -> Json:
        """`reports/candidates.json`."""
        return {"schema": SCHEMA, "machine": describe_hardware(), "candidates": to_json(self.tried)}


@dataclass(frozen=True)
class _Evaluated:
    """A candidate on its way: what it made and what val says of it."""

    candidate: Candidate
    built: BuiltArtifact
    val: Predictions
    report: ParityReport
    chance: float

    @property
    def size(self) -> int:
        return sum(map(len, self.built.files.values()))

    @property
    def kl(self) -> float:
        return self.report.agreement.get("kl", float("inf"))

    @property
    def reasons(self) -> list[str]:
        return gate.failure_messages(self.report)

    @property
    def warned(self) -> str:
        """The limits that are neither kept for sure nor broken for sure."""
        return ", ".join(
            limit.metric for limit in self.report.limits if limit.status in ("warn", "insufficient")
        )

    def tried(self, status: State, reason: str, latency: float | None = None) -> CandidateResult:
        loss = next(
            (limit.loss for limit in self.report.limits if limit.metric == "balanced_accuracy"),
            None,
        )
        return replace(
            _result(self.candidate, status, reason),
            size_bytes=self.size,
            latency_ms=latency,
            top1=self.report.agreement.get("top1"),
            kl=self.report.agreement.get("kl"),
            balanced_accuracy_loss=loss if loss is not None and loss.value is not None else None,
        )


def search(
    context: ExportContext,
    target: Target,
    candidates: Sequence[Candidate],
    evaluator: ParityEvaluator,
    exporter: Callable[[str], Exporter],
    start: Start,
    *,
    exhaustive: bool = False,
    allow_failure: bool = False,
    budget_minutes: float = 30.0,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Make candidates and choose one.

    Exhaustive: all `plain` ones are made; `mixed` ones only where none before of their precision and format passed,
    `trained` ones only where none of their precision did. Else the first that passes is taken.

    Args:
        context: the student.
        target: what for.
        candidates: in the order of preference.
        evaluator: judges on val.
        exporter: by format.
        start: an engine that runs what was built.
        exhaustive: try all and compare them.
        allow_failure: take the best of the failed where none passes.
        budget_minutes: after that no further candidate is begun.
        cache: folder in which artifacts are kept by digest, so that a killed search goes on.
        progress: told of every candidate.

    Raises:
        GateError: none passes; the message says what each lost.
        MissingExtraError: nothing could be made, for want of an extra.
        DermedgeError: nothing could be made.
    """
    begun, tell = time.monotonic(), progress or no_progress
    entries: list[_Evaluated] = []
    told: dict[str, CandidateResult] = {}
    errors: list[DermedgeError] = []
    for index, candidate in enumerate(candidates):
        late = time.monotonic() - begun > budget_minutes * 60
        if why := _skip_reason(candidate, entries, exhaustive, context) or _over_budget(
            entries, late, budget_minutes
        ):
            told[candidate.name] = _result(candidate, "skipped", why)
            continue
        tell(index, len(candidates), f"building {candidate.name}")
        try:
            built = build_cached(context, target, candidate, exporter(candidate.format), cache)
            tell(index, len(candidates), f"comparing {candidate.name} with the student")
            with start(built) as runtime:
                val = evaluator.run("val", runtime.run)
                report = evaluator.compare(
                    "val",
                    val,
                    evaluator.fit_postprocessing(val),
                    candidate.precision,
                    runtime,
                    target,
                )
        except DermedgeError as error:
            errors.append(error)
            told[candidate.name] = _result(candidate, "refused", str(error))
            continue
        # Without evidence there is one set of images, and no second verdict to fear.
        chance = 1.0 if evaluator.data is None else gate.pass_probability(report)
        entries.append(_Evaluated(candidate, built, val, report, chance))
    tell(len(candidates), len(candidates), "choosing")
    passed = [entry for entry in entries if not entry.reasons]
    if not passed and not (allow_failure and entries):
        raise _no_candidate(target, entries, errors)
    timed = (
        _latencies(passed, start, context.spec) if exhaustive and target.native and passed else {}
    )
    expected = _expected(passed, timed)
    winner = _winner(passed, expected) if passed else min(entries, key=lambda entry: entry.kl)
    for entry in entries:
        told[entry.candidate.name] = _explain(entry, winner, timed, expected, len(passed))
    return Selection(
        winner.built, winner.val, tuple(told[candidate.name] for candidate in candidates)
    )


def _skip_reason(
    candidate: Candidate, entries: Sequence[_Evaluated], exhaustive: bool, context: ExportContext
) -> str:
    """Why a candidate need not be made, if so."""
    passed = [entry.candidate for entry in entries if not entry.reasons]
    if passed and not exhaustive:
        return f"not needed: {passed[0].name} passed"
    same = [other for other in passed if other.precision == candidate.precision]
    if candidate.tier == "trained" and same:
        return f"not needed: {candidate.precision} passed without training"
    # Another engine's success says nothing of this one's speed.
    if candidate.tier == "mixed" and any(other.format == candidate.format for other in same):
        return f"not needed: {candidate.precision} passed in fewer steps"
    if candidate.tier == "trained" and context.retrain is None:
        return "training needs --data"
    return ""


def _over_budget(entries: Sequence[_Evaluated], late: bool, budget_minutes: float) -> str:
    return f"the budget of {budget_minutes:g} minutes was spent" if late and entries else ""


def _expected(passed: Sequence[_Evaluated], timed: dict[str, float]) -> dict[str, float]:
    """What each candidate may be expected to cost: its milliseconds, or where nothing was timed its bytes, and with the
    chance that it fails on test, where nothing but fp32 may take its place, those of fp32.
    """
    cost = {
        entry.candidate.name: timed.get(entry.candidate.name, float(entry.size)) for entry in passed
    }
    exact = [cost[entry.candidate.name] for entry in passed if entry.candidate.precision == "fp32"]
    if not exact:
        return cost
    return {
        entry.candidate.name: entry.chance * cost[entry.candidate.name]
        + (1 - entry.chance) * min(exact)
        for entry in passed
    }


def _winner(passed: Sequence[_Evaluated], expected: dict[str, float]) -> _Evaluated:
    """The cheapest; of those that are as good, the least rounded."""
    best = min(expected.values())
    equal = [entry for entry in passed if expected[entry.candidate.name] <= best * (1 + NOISE)]
    return min(equal, key=lambda entry: (_rank(entry.candidate.precision), entry.kl))


def _rank(precision: str) -> int:
    return EXACT.index(precision) if precision in EXACT else len(EXACT)


def _explain(
    entry: _Evaluated,
    winner: _Evaluated,
    timed: dict[str, float],
    expected: dict[str, float],
    passed: int,
) -> CandidateResult:
    name, won = entry.candidate.name, winner.candidate.name
    mine, best = timed.get(name), timed.get(won)
    if entry is winner:
        others = [ms for other, ms in timed.items() if other != name]
        if entry.reasons:
            reason = f"written although it failed: {' '.join(entry.reasons)}"
        elif best is not None and others:
            reason = f"fastest of those that passed: {best:.2f} ms against {min(others):.2f} ms"
            if min(others) < best:
                reason = f"as fast as any ({best:.2f} ms, {min(others):.2f} ms the fastest) and closest to the student"
            if min(others) * (1 + NOISE) < best:
                reason = (
                    f"the best bet: {best:.2f} ms, and far enough from the limits to pass on test"
                )
            reason += _busy()
        elif passed > 1:
            reason = "smallest of those that passed; this target does not run here, so speed was not measured"
        else:
            reason = (
                "the only one that passed"
                if entry.report.status == "passed"
                else f"{entry.report.status}: {entry.warned}"
            )
        return entry.tried("won", reason, best)
    if entry.reasons:
        return entry.tried("failed", " ".join(entry.reasons))
    if mine is not None and best is not None:
        rounder = _rank(entry.candidate.precision) > _rank(winner.candidate.precision)
        worth = f"{entry.candidate.precision} is not worth it here: " if rounder else ""
        risky = mine * (1 + NOISE) < best
        risk = f", but the risk to fail on test is {1 - entry.chance:.0%}, so {expected[name]:.2f} ms must be expected"
        return entry.tried(
            "passed", f"{worth}{mine:.2f} ms against {best:.2f} ms{risk if risky else ''}", mine
        )
    size = f"{entry.size / 1e6:.2f} MB against {winner.size / 1e6:.2f} MB"
    return entry.tried("passed", f"{size}, KL {entry.kl:.2g} against {winner.kl:.2g}")


def _busy() -> str:
    """What a reader of latencies must know where others were computing too; engines suffer from that unequally."""
    load, cores = (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0), os.cpu_count() or 1
    crowded = load > cores + 1
    return (
        f"; the machine was busy (load {load:.1f} on {cores} cores), so measure again on a quiet one"
        if crowded
        else ""
    )


def _no_candidate(
    target: Target, entries: Sequence[_Evaluated], errors: Sequence[DermedgeError]
) -> DermedgeError:
    """The error of a search in which nobody passed."""
    if not entries:
        missing = next((error for error in errors if isinstance(error, MissingExtraError)), None)
        return missing or errors[0]
    said = " ".join(f"{entry.candidate.name}: {' '.join(entry.reasons)}" for entry in entries)
    return GateError(
        f"No artifact for {target.name} is the same model as its student. {said} No bundle was written; "
        "try --precision auto, or --allow-parity-failure, which writes it all the same and records that."
    )


def _result(candidate: Candidate, status: State, reason: str) -> CandidateResult:
    return CandidateResult(
        candidate.name, candidate.precision, candidate.format, candidate.method, status, reason
    )


def _latencies(entries: Sequence[_Evaluated], start: Start, spec: Spec) -> dict[str, float]:
    """Median milliseconds of one image through each engine, called in turns so that all see the same machine.

    An engine's threads go on spinning for a while after its call and would slow down another engine's, so each turn
    begins with a pause and a call that is not timed.
    """
    pixels = preprocess(draw_lesion(0).image, spec.preprocess)[None]
    times: dict[str, list[float]] = {entry.candidate.name: [] for entry in entries}
    with contextlib.ExitStack() as stack:
        runtimes = {
            entry.candidate.name: stack.enter_context(start(entry.built)) for entry in entries
        }
        for turn in range(TURNS):
            for name in list(runtimes) if turn % 2 else reversed(runtimes):
                time.sleep(SETTLE_SECONDS)
                runtimes[name].run(pixels)
                for _ in range(CALLS):
                    begin = time.perf_counter()
                    runtimes[name].run(pixels)
                    times[name].append((time.perf_counter() - begin) * 1000)
    return {name: float(np.median(values)) for name, values in times.items()}
