"""Build candidates, compare each with its student on val, and select one.

The search assumes nothing about speed or accuracy. An int8 artifact can be slower than
fp32 or broken, and the fastest engine differs from model to model.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact
from dermedge_export.parity import gate
from dermedge_export.parity.evaluator import ParityEvaluator
from dermedge_export.selection.explain import (
    NOISE,
    Comparison,
    no_candidate_error,
    skip_reason,
    training_pays,
    with_note,
)
from dermedge_export.selection.latency import Clock, measure_latencies
from dermedge_export.selection.results import (
    CandidateResult,
    EvaluatedCandidate,
    Selection,
    rounding_rank,
)
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import Target
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.model import Runtime
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress, no_progress


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search.

    Attributes:
        exhaustive: Build all candidates and compare them. Otherwise the first candidate
            that passes is selected.
        allow_failure: Select the candidate closest to the student if none passes.
        can_retrain: Quantization-aware training is available.
        budget_minutes: Minutes after which no further candidate is started.
        clock: Source of time for the budget and the latencies.

    Example:
        >>> settings = SearchSettings(exhaustive=True, budget_minutes=5)
        >>> settings.can_retrain  # so candidates that need training are skipped
        False
    """

    exhaustive: bool = False
    allow_failure: bool = False
    can_retrain: bool = False
    budget_minutes: float = 30.0
    clock: Clock = field(default_factory=Clock)


class CandidateBuilder(Protocol):
    """An object that builds artifacts and starts runtimes for them.

    Example:
        >>> from contextlib import nullcontext
        >>> from dermedge_export.context import Simulation
        >>> from dermedge_runtime.spec import Artifact
        >>> class Constant:  # its runtime gives no outputs
        ...     def build(self, candidate):
        ...         artifact = Artifact("cpu", "none", "x", candidate.precision)
        ...         return BuiltArtifact(artifact, {})
        ...     def start(self, built):
        ...         return nullcontext(Simulation("constant", "1", lambda images: {}))
        >>> builder: CandidateBuilder = Constant()
        >>> with builder.start(builder.build(Candidate("fp32", "none"))) as runtime:
        ...     runtime.name
        'constant'
    """

    def build(self, candidate: Candidate) -> BuiltArtifact:
        """Return the artifact of a candidate."""

    def start(self, built: BuiltArtifact) -> AbstractContextManager[Runtime]:
        """Return a context manager for a runtime of this machine with the artifact."""


def search(
    target: Target,
    candidates: Sequence[Candidate],
    builder: CandidateBuilder,
    evaluator: ParityEvaluator,
    settings: SearchSettings | None = None,
    progress: Progress | None = None,
) -> Selection:
    """Build candidates and select one.

    An exhaustive search builds all `plain` candidates. It builds a `mixed` candidate
    only if no earlier one of the same precision and format passed. It builds a
    `trained` candidate unless another one of the same precision passed and pays: it is
    at least 1.3 times as fast as the fastest fp32 candidate that passed. Where the
    target does not run on this machine, passing is enough.

    Args:
        target: The target.
        candidates: Candidates in the order of preference.
        builder: Builds the artifacts and starts runtimes for them.
        evaluator: Compares predictions on val with the student's.
        settings: Settings of the search.
        progress: Receives the name of each step.

    Returns:
        The selected candidate and the results of all candidates.

    Raises:
        GateError: No candidate passes; the message lists the failed limits of each.
        MissingExtraError: Nothing was built, because an extra is not installed.
        DermedgeError: Nothing was built, for another reason.
    """
    settings = settings or SearchSettings()
    report_progress = progress or no_progress
    run = _Search(target, builder, evaluator, settings, report_progress)
    run.evaluate_all(candidates)
    report_progress(len(candidates), len(candidates), "selecting the best candidate")
    comparison = run.compare()
    results = run.unbuilt | {
        entry.candidate.name: with_note(
            comparison.result(entry), run.notes.get(entry.candidate.name, "")
        )
        for entry in run.evaluated
    }
    selected = comparison.selected
    return Selection(
        selected.built, selected.val, tuple(results[candidate.name] for candidate in candidates)
    )


@dataclass(frozen=True)
class _Search:
    """The state of one search.

    Attributes:
        evaluated: Candidates that were built and compared, in order.
        unbuilt: Results of the candidates without an artifact, by name.
        errors: Errors of the candidates that could not be built.
        notes: Why a candidate was trained, by name.
    """

    target: Target
    builder: CandidateBuilder
    evaluator: ParityEvaluator
    settings: SearchSettings
    progress: Progress
    evaluated: list[EvaluatedCandidate] = field(default_factory=list)
    unbuilt: dict[str, CandidateResult] = field(default_factory=dict)
    errors: list[DermedgeError] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def evaluate_all(self, candidates: Sequence[Candidate]) -> None:
        """Build and evaluate each candidate unless it can be skipped."""
        settings = self.settings
        start = settings.clock.now()
        for index, candidate in enumerate(candidates):
            seconds = settings.clock.now() - start
            reason = skip_reason(
                candidate,
                self.evaluated,
                exhaustive=settings.exhaustive,
                can_retrain=settings.can_retrain,
            ) or self._training_skip_reason(candidate)
            # Without any result yet, the search goes on: an export needs one candidate.
            if not reason and self.evaluated and seconds > settings.budget_minutes * 60:
                reason = f"the budget of {settings.budget_minutes:g} minutes was spent"
            if reason:
                self.unbuilt[candidate.name] = CandidateResult.unbuilt(candidate, "skipped", reason)
                continue
            try:
                self.evaluated.append(self._evaluate(candidate, index, len(candidates)))
            except DermedgeError as error:
                self.errors.append(error)
                self.unbuilt[candidate.name] = CandidateResult.unbuilt(
                    candidate, "refused", str(error)
                )

    def _training_skip_reason(self, candidate: Candidate) -> str:
        """Return why a candidate need not be trained; empty if it must, with a note."""
        passed = [entry for entry in self.evaluated if not entry.failures]
        same = [entry for entry in passed if entry.candidate.precision == candidate.precision]
        if candidate.tier != "trained" or not same:
            return ""
        exact = [entry for entry in passed if entry.candidate.precision == "fp32"]
        if not exact or not self.target.native:
            return f"not needed: {candidate.precision} passed without training"
        latencies = self._latencies([*exact, *same])
        needed, explanation = training_pays(
            {entry.candidate.name: latencies[entry.candidate.name] for entry in same},
            {entry.candidate.name: latencies[entry.candidate.name] for entry in exact},
        )
        if not needed:
            return f"not needed: {explanation}"
        self.notes[candidate.name] = f"trained because {explanation}"
        return ""

    def _evaluate(self, candidate: Candidate, index: int, total: int) -> EvaluatedCandidate:
        self.progress(index, total, f"building {candidate.name}")
        built = self.builder.build(candidate)
        self.progress(index, total, f"comparing {candidate.name} with the student")
        evaluator = self.evaluator
        with self.builder.start(built) as runtime:
            val = evaluator.run("val", runtime.run)
            report = evaluator.compare(
                "val",
                val,
                evaluator.fit_postprocessing(val),
                candidate.precision,
                runtime,
                self.target,
            )
        # Without data, val and test are the same lesions, so the result on test is
        # certain.
        probability = 1.0 if evaluator.data is None else gate.pass_probability(report)
        return EvaluatedCandidate(candidate, built, val, report, probability)

    def compare(self) -> Comparison:
        """Time the candidates that passed and select one.

        Raises:
            DermedgeError: No candidate passed.
        """
        passed = [entry for entry in self.evaluated if not entry.failures]
        settings = self.settings
        if not passed:
            if not (settings.allow_failure and self.evaluated):
                raise no_candidate_error(self.target, self.evaluated, self.errors)
            closest = min(self.evaluated, key=lambda entry: entry.kl)
            return Comparison(closest, {}, {}, 0)
        latencies = self._latencies(passed) if settings.exhaustive and self.target.native else {}
        costs = expected_costs(passed, latencies)
        return Comparison(select_cheapest(passed, costs), latencies, costs, len(passed))

    def _latencies(self, passed: Sequence[EvaluatedCandidate]) -> dict[str, float]:
        image = preprocess(draw_lesion(0).image, self.evaluator.spec.preprocess)[None]
        with ExitStack() as stack:
            runtimes = {
                entry.candidate.name: stack.enter_context(self.builder.start(entry.built))
                for entry in passed
            }
            return measure_latencies(runtimes, image, self.settings.clock)


def expected_costs(
    passed: Sequence[EvaluatedCandidate], latencies: Mapping[str, float]
) -> dict[str, float]:
    """Return the expected cost of selecting each candidate.

    The cost is the latency in milliseconds, or the size in bytes where nothing was
    timed. If the selected candidate fails on test, only fp32 may replace it. So the
    expectation is `p * own cost + (1 - p) * cost of fp32`, where `p` is the probability
    to pass on test.

    Args:
        passed: The candidates that passed on val.
        latencies: Milliseconds by name; empty if nothing was timed.
    """
    cost = {
        entry.candidate.name: latencies.get(entry.candidate.name, float(entry.size))
        for entry in passed
    }
    exact = [cost[entry.candidate.name] for entry in passed if entry.candidate.precision == "fp32"]
    if not exact:
        return cost
    return {
        entry.candidate.name: entry.pass_probability * cost[entry.candidate.name]
        + (1 - entry.pass_probability) * min(exact)
        for entry in passed
    }


def select_cheapest(
    passed: Sequence[EvaluatedCandidate], costs: Mapping[str, float]
) -> EvaluatedCandidate:
    """Return the candidate with the lowest expected cost.

    Costs within 3 % of the lowest count as equal. Equal candidates are ranked by their
    rounding error, and then by their KL divergence.

    Args:
        passed: The candidates that passed on val.
        costs: Expected cost by name.
    """
    best = min(costs.values())
    equal = [entry for entry in passed if costs[entry.candidate.name] <= best * (1 + NOISE)]
    return min(equal, key=lambda entry: (rounding_rank(entry.candidate.precision), entry.kl))
