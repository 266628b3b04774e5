"""Results of a search over candidates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact
from dermedge_export.evaluation.predictions import Predictions
from dermedge_export.parity import gate
from dermedge_export.parity.evaluator import describe_hardware
from dermedge_runtime.report import Interval, ParityReport
from dermedge_runtime.spec import Json, to_json

SCHEMA = "dermedge.candidates/1"
# From the smallest rounding error to the largest.
PRECISION_ORDER = ("fp32", "bf16", "fp16", "w8", "palettized", "w8a8", "int8+fp16", "int8")
Outcome = Literal["won", "passed", "failed", "refused", "skipped"]


@dataclass(frozen=True)
class CandidateResult:
    """The outcome of one candidate, as `reports/candidates.json` records it.

    Attributes:
        name: Name of the candidate.
        precision: Its precision.
        format: Its format.
        method: Its quantization method.
        status: `won` (selected), `passed`, `failed` (gate), `refused` (no artifact) or
            `skipped`.
        reason: One sentence that explains the status.
        size_bytes: Size of the artifact's files; None if nothing was built.
        latency_ms: Median latency on this machine in milliseconds, measured in turns
            with the other candidates; None if it was not timed.
        top1: Top-1 agreement with the student on val.
        kl: Mean KL divergence from the student on val, in nats.
        balanced_accuracy_loss: Loss of balanced accuracy on val, as a share of the
            student's.

    Example:
        >>> qat = Candidate("int8", "onnx", "qat", tier="trained")
        >>> result = CandidateResult.unbuilt(qat, "skipped", "training needs --data")
        >>> f"{result.name} {result.status}: {result.reason}"
        'int8 onnx qat skipped: training needs --data'
    """

    name: str
    precision: str
    format: str
    method: str
    status: Outcome
    reason: str
    size_bytes: int | None = None
    latency_ms: float | None = None
    top1: float | None = None
    kl: float | None = None
    balanced_accuracy_loss: Interval | None = None

    @classmethod
    def unbuilt(cls, candidate: Candidate, status: Outcome, reason: str) -> "CandidateResult":
        """Return the result of a candidate that has no artifact.

        Args:
            candidate: The candidate.
            status: `skipped` or `refused`.
            reason: One sentence that explains the status.
        """
        return cls(
            candidate.name,
            candidate.precision,
            candidate.format,
            candidate.method,
            status,
            reason,
        )


@dataclass(frozen=True)
class Selection:
    """The selected candidate and the results of all candidates.

    Attributes:
        built: Artifact of the selected candidate.
        val: Predictions of the selected candidate on val.
        results: One result per candidate, in the order of preference.

    Example:
        >>> int8 = CandidateResult.unbuilt(Candidate("int8", "onnx"), "won", "")
        >>> fp32 = CandidateResult.unbuilt(Candidate("fp32", "onnx"), "passed", "")
        >>> selection = Selection(built=None, val=None, results=(int8, fp32))
        >>> [result.status for result in selection.rejected(["ece loses 0.03."])]
        ['failed', 'passed']
    """

    built: BuiltArtifact
    val: Predictions
    results: tuple[CandidateResult, ...]

    def rejected(self, reasons: Sequence[str]) -> tuple[CandidateResult, ...]:
        """Return all results after the selected candidate has failed on test.

        Args:
            reasons: Messages of the failed limits on test.
        """
        reason = f"selected on val, but failed on test: {' '.join(reasons)}"
        return tuple(
            replace(result, status="failed", reason=reason) if result.status == "won" else result
            for result in self.results
        )

    def after(self, earlier: Sequence[CandidateResult]) -> "Selection":
        """Return this selection with the results of an earlier search added.

        Args:
            earlier: Results of the earlier search. Where both searches know a
                candidate, this selection's result counts.
        """
        own = {result.name: result for result in self.results}
        known = {result.name for result in earlier}
        results = [own.get(result.name, result) for result in earlier]
        results += [result for result in self.results if result.name not in known]
        return replace(self, results=tuple(results))

    def to_json(self) -> Json:
        """Return the content of `reports/candidates.json`."""
        return {
            "schema": SCHEMA,
            "machine": describe_hardware(),
            "candidates": to_json(self.results),
        }


@dataclass(frozen=True)
class EvaluatedCandidate:
    """A candidate that was built and compared with its student on val.

    Attributes:
        candidate: The candidate.
        built: Its artifact.
        val: Its predictions on val.
        report: Its parity on val.
        pass_probability: Estimated probability that it also passes on test.

    Example:
        >>> from dermedge_runtime.spec import Artifact
        >>> artifact = Artifact("cpu", "onnx", "model.onnx", "fp32")
        >>> entry = EvaluatedCandidate(
        ...     Candidate("fp32", "onnx"),
        ...     BuiltArtifact(artifact, {"model.onnx": bytes(34_000)}),
        ...     val=None,  # left out here
        ...     report=ParityReport("passed", "val split", 400, "", "", "fp32", ()),
        ...     pass_probability=1.0,
        ... )
        >>> entry.size, entry.failures
        (34000, [])
    """

    candidate: Candidate
    built: BuiltArtifact
    val: Predictions
    report: ParityReport
    pass_probability: float

    @property
    def size(self) -> int:
        """Bytes of the artifact's files."""
        return sum(map(len, self.built.files.values()))

    @property
    def kl(self) -> float:
        """KL divergence from the student; infinite if it was not measured."""
        return self.report.agreement.get("kl", float("inf"))

    @property
    def failures(self) -> list[str]:
        """One message per failed limit; empty if the candidate passes."""
        return gate.failure_messages(self.report)

    @property
    def undecided(self) -> str:
        """Names of the limits with status `warn` or `insufficient`."""
        return ", ".join(
            limit.metric for limit in self.report.limits if limit.status in ("warn", "insufficient")
        )

    def result(
        self, status: Outcome, reason: str, latency_ms: float | None = None
    ) -> CandidateResult:
        """Return the result of this candidate.

        Args:
            status: Its outcome.
            reason: One sentence that explains the outcome.
            latency_ms: Its latency in milliseconds, if it was timed.
        """
        loss = next(
            (limit.loss for limit in self.report.limits if limit.metric == "balanced_accuracy"),
            None,
        )
        return replace(
            CandidateResult.unbuilt(self.candidate, status, reason),
            size_bytes=self.size,
            latency_ms=latency_ms,
            top1=self.report.agreement.get("top1"),
            kl=self.report.agreement.get("kl"),
            balanced_accuracy_loss=loss if loss is not None and loss.value is not None else None,
        )


def rounding_rank(precision: str) -> int:
    """Return the rank of a precision by its rounding error; 0 is fp32.

    Args:
        precision: Name of a precision. An unknown one ranks last.
    """
    if precision in PRECISION_ORDER:
        return PRECISION_ORDER.index(precision)
    return len(PRECISION_ORDER)
