"""Explain in English why a candidate was selected, passed over, or skipped."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dermedge_export.candidate import Candidate
from dermedge_export.selection.results import CandidateResult, EvaluatedCandidate, rounding_rank
from dermedge_export.target import Target
from dermedge_runtime.errors import DermedgeError, GateError, MissingExtraError

# Share by which two latencies or sizes must differ to count as different. Medians of
# the same engine differ by a few percent from one measurement to the next.
NOISE = 0.03
# A rounded candidate pays if it is this many times as fast as fp32. Below, it costs
# accuracy for little time, and training may find a better one.
WORTHWHILE = 1.3


@dataclass(frozen=True)
class Comparison:
    """The measurements by which a candidate was selected.

    Attributes:
        selected: The selected candidate.
        latencies: Milliseconds by name; empty if nothing was timed.
        expected_costs: Expected milliseconds (or bytes) by name; see `expected_costs`.
        passed: Number of candidates that passed on val.

    Example:
        >>> from dermedge_export.context import BuiltArtifact
        >>> from dermedge_runtime.report import ParityReport
        >>> from dermedge_runtime.spec import Artifact
        >>> def evaluated(precision, size):
        ...     candidate = Candidate(precision, "onnx")
        ...     artifact = Artifact("cpu", "onnx", "model.onnx", precision)
        ...     report = ParityReport("passed", "val split", 400, "", "", precision, ())
        ...     built = BuiltArtifact(artifact, {"model.onnx": bytes(size)})
        ...     return EvaluatedCandidate(candidate, built, None, report, 1.0)
        >>> int8, fp32 = evaluated("int8", 9_000), evaluated("fp32", 34_000)
        >>> milliseconds = {int8.candidate.name: 4.0, fp32.candidate.name: 9.0}
        >>> comparison = Comparison(int8, milliseconds, milliseconds, passed=2)
        >>> comparison.result(fp32).reason
        '9.00 ms against 4.00 ms'
    """

    selected: EvaluatedCandidate
    latencies: Mapping[str, float]
    expected_costs: Mapping[str, float]
    passed: int

    def result(self, entry: EvaluatedCandidate) -> CandidateResult:
        """Return the result of one evaluated candidate, with its reason.

        Args:
            entry: The selected or another evaluated candidate.
        """
        latency = self.latencies.get(entry.candidate.name)
        if entry is self.selected:
            return entry.result("won", self._reason_of_selected(), latency)
        if entry.failures:
            return entry.result("failed", " ".join(entry.failures))
        return entry.result("passed", self._reason_of_other(entry), latency)

    def _reason_of_selected(self) -> str:
        selected = self.selected
        if selected.failures:
            return f"written although it failed: {' '.join(selected.failures)}"
        own = self.latencies.get(selected.candidate.name)
        others = [ms for name, ms in self.latencies.items() if name != selected.candidate.name]
        if own is not None and others:
            return _speed_reason(own, min(others)) + _busy_note()
        if self.passed > 1:
            return (
                "smallest of those that passed; "
                "this target does not run here, so speed was not measured"
            )
        if selected.report.status == "passed":
            return "the only one that passed"
        return f"{selected.report.status}: {selected.undecided}"

    def _reason_of_other(self, entry: EvaluatedCandidate) -> str:
        selected, candidate = self.selected, entry.candidate
        own = self.latencies.get(candidate.name)
        best = self.latencies.get(selected.candidate.name)
        if own is None or best is None:
            sizes = f"{entry.size / 1e6:.2f} MB against {selected.size / 1e6:.2f} MB"
            return f"{sizes}, KL {entry.kl:.2g} against {selected.kl:.2g}"
        reason = f"{own:.2f} ms against {best:.2f} ms"
        if rounding_rank(candidate.precision) > rounding_rank(selected.candidate.precision):
            reason = f"{candidate.precision} is not worth it here: {reason}"
        if own * (1 + NOISE) < best:
            reason += (
                f", but the risk to fail on test is {1 - entry.pass_probability:.0%}, "
                f"so {self.expected_costs[candidate.name]:.2f} ms must be expected"
            )
        return reason


def skip_reason(
    candidate: Candidate,
    evaluated: Sequence[EvaluatedCandidate],
    *,
    exhaustive: bool,
    can_retrain: bool,
) -> str:
    """Return why a candidate need not be built; empty if it must be built.

    Args:
        candidate: The next candidate.
        evaluated: The candidates before it.
        exhaustive: All plain candidates are built, even if one has passed.
        can_retrain: Quantization-aware training is available.
    """
    passed = [entry.candidate for entry in evaluated if not entry.failures]
    if passed and not exhaustive:
        return f"not needed: {passed[0].name} passed"
    same = [other for other in passed if other.precision == candidate.precision]
    # A candidate of another format does not count: its engine may be the slower one.
    if candidate.tier == "mixed" and any(other.format == candidate.format for other in same):
        return f"not needed: {candidate.precision} passed in fewer steps"
    if candidate.tier == "trained" and not can_retrain:
        return "training needs --data"
    return ""


def training_pays(rounded: Mapping[str, float], exact: Mapping[str, float]) -> tuple[bool, str]:
    """Return whether quantization-aware training may pay, and the reason in English.

    Args:
        rounded: Milliseconds of the candidates that passed without training, by name.
        exact: Milliseconds of the fp32 candidates that passed, by name.

    Example:
        >>> training_pays({"int8 onnx minmax": 2.0}, {"fp32 onnx plain": 4.0})
        (False, 'int8 onnx minmax is 2.00 x as fast as fp32 onnx plain')
    """
    fastest, reference = min(rounded, key=rounded.__getitem__), min(exact, key=exact.__getitem__)
    speed = exact[reference] / rounded[fastest]
    comparison = f"{fastest} is {speed:.2f} x as fast as {reference}"
    if speed >= WORTHWHILE:
        return False, comparison
    return True, f"{comparison}, less than {WORTHWHILE:g} x"


def with_note(result: CandidateResult, note: str) -> CandidateResult:
    """Return a result with a note behind its reason.

    Args:
        result: The result.
        note: The note; an empty one is left out.
    """
    return replace(result, reason=f"{result.reason}; {note}") if note else result


def no_candidate_error(
    target: Target, evaluated: Sequence[EvaluatedCandidate], errors: Sequence[DermedgeError]
) -> DermedgeError:
    """Return the error of a search in which no candidate passed.

    Args:
        target: The target.
        evaluated: The candidates that were built; all of them failed.
        errors: The errors of the candidates that could not be built.
    """
    if not evaluated:
        missing = next((error for error in errors if isinstance(error, MissingExtraError)), None)
        return missing or errors[0]
    losses = " ".join(f"{entry.candidate.name}: {' '.join(entry.failures)}" for entry in evaluated)
    return GateError(
        f"No artifact for {target.name} keeps the accuracy of its student. {losses} "
        "No bundle was written. Try --precision auto, or write the bundle with "
        "--allow-parity-failure, which records the failure."
    )


def _speed_reason(own: float, best_other: float) -> str:
    if best_other * (1 + NOISE) < own:
        return (
            f"best expected latency: {own:.2f} ms, and far enough from the limits to pass on test"
        )
    if best_other < own:
        return (
            f"as fast as any ({own:.2f} ms, {best_other:.2f} ms the fastest) "
            "and closest to the student"
        )
    return f"fastest of those that passed: {own:.2f} ms against {best_other:.2f} ms"


def _busy_note() -> str:
    """Return a warning if other programs were running; they slow engines unequally."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = os.cpu_count() or 1
    if load <= cores + 1:
        return ""
    return (
        f"; the machine was busy (load {load:.1f} on {cores} cores), "
        "so measure again on a quiet one"
    )
