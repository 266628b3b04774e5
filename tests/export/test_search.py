"""The search among candidates, with engines of one line each, so that who wins depends on nothing but the rules."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Simulation
from dermedge_export.evaluation.predictions import Predictions, Run
from dermedge_export.parity.evaluator import ParityEvaluator
from dermedge_export.selection import search as module
from dermedge_export.selection.search import Selection, search
from dermedge_export.target import CPU
from dermedge_runtime.errors import DermedgeError, GateError, MissingExtraError
from dermedge_runtime.model import Runtime
from dermedge_runtime.spec import Artifact, Label, Preprocess, Spec, Task

SPEC = Spec(
    "toy",
    "1",
    (
        Task(
            "diagnosis",
            "classify",
            tuple(Label(name, name, name == "mel") for name in ("nv", "mel", "bkl")),
        ),
    ),
    Preprocess(16),
)
COUNT = 600
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
ROWS = {int(image.astype(np.int64).sum()): row for row, image in enumerate(PIXELS)}
LABELS = np.random.default_rng(1).integers(0, 3, COUNT)
LOGITS = (np.eye(3)[LABELS] * 1.5 + np.random.default_rng(2).normal(size=(COUNT, 3))).astype(
    np.float32
)

FP32 = Candidate("fp32", "toy")
FAST, CLOSE = Candidate("int8", "toy", "fast"), Candidate("int8", "toy", "close")
MIXED, TRAINED = (
    Candidate("int8", "toy", "mixed", tier="mixed"),
    Candidate("int8", "toy", "qat", tier="trained"),
)
ELSEWHERE = replace(CPU, name="elsewhere", native=False)


def noisy(scale: float) -> Run:
    """The student's logits, off by as much as an artifact may be or more."""
    noise = np.random.default_rng(3).normal(size=LOGITS.shape).astype(np.float32) * np.float32(
        scale
    )

    def run(images: Any) -> dict[str, Any]:
        rows = [ROWS.get(int(image.astype(np.int64).sum()), 0) for image in images]
        return {"diagnosis": (LOGITS + noise)[rows]}

    return run


class Evidence:
    """Val and test are the two halves; which were asked for is remembered."""

    name = "numbers"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def predictions(self, split: str, run: Run) -> Predictions:
        self.asked.append(split)
        half = slice(0, COUNT // 2) if split == "val" else slice(COUNT // 2, COUNT)
        ids = tuple(str(row) for row in range(COUNT))[half]
        outputs = {name: np.asarray(values) for name, values in run(PIXELS[half]).items()}
        malignant = (LABELS[half] == 1).astype(np.float64)
        return Predictions(ids, outputs, LABELS[half].astype(np.int64), malignant, np.array(ids))

    def digests(self, split: str) -> list[str]:
        return [f"{split}-{row}" for row in range(COUNT // 2)]

    def calibration(self) -> Calibration:
        return Calibration(PIXELS[:40], tuple(map(str, range(40))), "train")


class Bench:
    """Makes artifacts whose damage is known; counts how often it was asked."""

    def __init__(
        self,
        damage: dict[Candidate, float | DermedgeError],
        sizes: dict[Candidate, int] | None = None,
    ) -> None:
        self.damage, self.sizes, self.built = damage, sizes or {}, list[str]()
        self.data = Evidence()

    def exporter(self, name: str) -> Any:
        def make(context: ExportContext, target: Any, candidate: Candidate) -> BuiltArtifact:
            self.built.append(candidate.method)
            harm = self.damage[candidate]
            if isinstance(harm, DermedgeError):
                raise harm
            artifact = Artifact(
                target.name,
                candidate.format,
                "model.toy",
                candidate.precision,
                details={"harm": harm},
            )
            return BuiltArtifact(artifact, {"model.toy": bytes(self.sizes.get(candidate, 100))})

        return make

    @contextmanager
    def start(self, built: BuiltArtifact) -> Iterator[Runtime]:
        yield Simulation("toy", "1", noisy(built.artifact.details["harm"]))  # type: ignore[arg-type]

    def search(self, *, target: Any = CPU, retrain: Any = None, **options: Any) -> Selection:
        context = ExportContext(replace_source(), self.data.calibration, retrain=retrain)
        context.cached(("graph", target.opset), lambda: b"graph")
        evaluator = ParityEvaluator(SPEC, noisy(0.0), self.data)
        return search(
            context, target, list(self.damage), evaluator, self.exporter, self.start, **options
        )


def replace_source() -> Any:
    class Source:
        module, spec = None, SPEC

    return Source()


@pytest.fixture
def latencies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Decides how long each method takes, in place of a clock, on a quiet machine."""
    monkeypatch.setattr(module.os, "getloadavg", lambda: (0.0, 0.0, 0.0))

    def decide(**milliseconds: float) -> None:
        monkeypatch.setattr(
            module,
            "_latencies",
            lambda entries, start, spec: {
                e.candidate.name: milliseconds[e.candidate.method] for e in entries
            },
        )

    return decide


def states(choice: Selection) -> dict[str, str]:
    return {tried.method: tried.status for tried in choice.tried}


def reasons(choice: Selection) -> dict[str, str]:
    return {tried.method: tried.reason for tried in choice.tried}


class TestOneAfterTheOther:
    def test_the_first_that_passes_is_taken_and_the_others_are_not_built(self) -> None:
        bench = Bench({FAST: 0.01, CLOSE: 0.0})
        choice = bench.search()
        assert states(choice) == {"fast": "won", "close": "skipped"}
        assert bench.built == ["fast"]

    def test_one_that_fails_is_passed_over_and_told_what_it_lost(self) -> None:
        choice = Bench({FAST: 3.0, CLOSE: 0.01}).search()
        assert states(choice) == {"fast": "failed", "close": "won"}
        assert "top1_agreement: 1.0000 -> 0." in reasons(choice)["fast"]
        lost = choice.tried[0]
        assert lost.top1 is not None
        assert lost.top1 < 0.9
        assert lost.balanced_accuracy_loss is not None
        assert lost.balanced_accuracy_loss.low is not None
        assert lost.balanced_accuracy_loss.low > 0

    def test_where_none_passes_no_one_wins_and_each_is_named(self) -> None:
        with pytest.raises(
            GateError, match=r"int8 toy fast: top1.*int8 toy close: top1.*--allow-parity-failure"
        ) as error:
            Bench({FAST: 3.0, CLOSE: 2.0}).search()
        assert error.value.exit_code == 3

    def test_on_demand_the_closest_of_the_failed_is_taken_and_not_called_passed(self) -> None:
        choice = Bench({FAST: 3.0, CLOSE: 2.0}).search(allow_failure=True)
        assert states(choice) == {"fast": "failed", "close": "won"}
        assert reasons(choice)["close"].startswith("written although it failed: top1_agreement")

    def test_candidates_are_chosen_without_a_look_at_test(self) -> None:
        bench = Bench({FP32: 0.0, FAST: 0.01})
        bench.search(exhaustive=True)
        assert set(bench.data.asked) == {"val"}


class TestTiers:
    def test_mixed_precision_is_only_tried_where_no_plain_one_passes(self) -> None:
        choice = Bench({FP32: 0.0, FAST: 0.01, MIXED: 0.0}).search(exhaustive=True)
        assert states(choice)["mixed"] == "skipped"
        assert reasons(choice)["mixed"] == "not needed: int8 passed in fewer steps"
        bench = Bench({FP32: 0.0, FAST: 3.0, MIXED: 0.01, TRAINED: 0.0})
        assert states(bench.search(exhaustive=True, retrain=lambda *_: None))["qat"] == "skipped"
        assert bench.built == ["plain", "fast", "mixed"]

    def test_one_engines_success_is_no_reason_to_leave_out_another(
        self, latencies: Callable[..., None]
    ) -> None:
        latencies(plain=3.0, fast=2.0, mixed=1.0)
        elsewhere = replace(MIXED, format="other")
        choice = Bench({FP32: 0.0, FAST: 0.01, elsewhere: 0.01}).search(exhaustive=True)
        assert states(choice) == {"plain": "passed", "fast": "passed", "mixed": "won"}

    def test_training_comes_last_and_needs_data(self) -> None:
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 3.0, MIXED: 3.0, TRAINED: 0.01}
        assert reasons(Bench(damage).search(exhaustive=True))["qat"] == "training needs --data"
        bench = Bench(damage)
        bench.search(exhaustive=True, retrain=lambda *_: None)
        assert bench.built[-1] == "qat"

    def test_no_candidate_is_begun_after_the_budget(self) -> None:
        bench = Bench({FP32: 0.0, FAST: 0.01, CLOSE: 0.0})
        choice = bench.search(exhaustive=True, budget_minutes=0)
        assert bench.built == ["plain"]
        assert reasons(choice)["fast"] == "the budget of 0 minutes was spent"


class TestWinner:
    def test_the_fastest_wins_and_the_reason_has_both_times(
        self, latencies: Callable[..., None]
    ) -> None:
        latencies(plain=13.4, fast=6.0, close=7.0)
        choice = Bench({FP32: 0.0, FAST: 0.02, CLOSE: 0.01}).search(exhaustive=True)
        assert states(choice) == {"plain": "passed", "fast": "won", "close": "passed"}
        assert reasons(choice)["fast"] == "fastest of those that passed: 6.00 ms against 7.00 ms"

    def test_latencies_of_a_busy_machine_are_said_to_be_such(
        self, latencies: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        latencies(plain=13.4, fast=6.0)
        monkeypatch.setattr(module.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
        choice = Bench({FP32: 0.0, FAST: 0.02}).search(exhaustive=True)
        assert "the machine was busy (load 99.0 on" in reasons(choice)["fast"]

    def test_int8_that_is_slower_is_not_worth_it(self, latencies: Callable[..., None]) -> None:
        latencies(plain=13.4, fast=19.8)
        choice = Bench({FP32: 0.0, FAST: 0.01}).search(exhaustive=True)
        assert states(choice) == {"plain": "won", "fast": "passed"}
        assert reasons(choice)["fast"] == "int8 is not worth it here: 19.80 ms against 13.40 ms"

    def test_what_is_as_fast_but_less_rounded_wins(self, latencies: Callable[..., None]) -> None:
        latencies(plain=10.2, fast=10.0, close=10.1)
        choice = Bench({FP32: 0.0, FAST: 0.02, CLOSE: 0.01}).search(exhaustive=True)
        assert states(choice)["plain"] == "won"
        latencies(fast=10.0, close=10.1)
        choice = Bench({FAST: 0.05, CLOSE: 0.01}).search(exhaustive=True)
        assert states(choice)["close"] == "won"
        assert "closest to the student" in reasons(choice)["close"]

    def test_one_that_would_likely_fail_on_test_must_be_worth_the_risk(
        self, latencies: Callable[..., None]
    ) -> None:
        damage = {
            FP32: 0.0,
            FAST: 0.08,
            CLOSE: 0.01,
        }  # fast loses 1.7 % agreement of the 2 % that are allowed
        latencies(plain=13.4, fast=6.0, close=7.0)
        choice = Bench(damage).search(exhaustive=True)
        assert states(choice) == {"plain": "passed", "fast": "passed", "close": "won"}
        assert "6.00 ms against 7.00 ms, but the risk to fail on test is" in reasons(choice)["fast"]
        assert reasons(choice)["close"].startswith("the best bet: 7.00 ms")
        latencies(plain=13.4, fast=2.0, close=7.0)
        assert states(Bench(damage).search(exhaustive=True))["fast"] == "won"

    def test_one_that_is_fast_and_broken_never_wins(self, latencies: Callable[..., None]) -> None:
        latencies(plain=13.4)
        choice = Bench({FP32: 0.0, FAST: 3.0}).search(exhaustive=True)
        assert states(choice) == {"plain": "won", "fast": "failed"}
        assert choice.tried[1].latency_ms is None

    def test_where_the_target_does_not_run_here_the_smallest_that_passes_wins(self) -> None:
        sizes = {FP32: 4000, FAST: 1000, CLOSE: 1010}
        choice = Bench({FP32: 0.0, FAST: 0.05, CLOSE: 0.01}, sizes).search(
            target=ELSEWHERE, exhaustive=True
        )
        assert states(choice) == {"plain": "passed", "fast": "passed", "close": "won"}
        assert "speed was not measured" in reasons(choice)["close"]
        assert all(tried.latency_ms is None for tried in choice.tried)


class TestRefusal:
    def test_what_a_toolchain_cannot_make_is_a_result(self) -> None:
        choice = Bench({FAST: DermedgeError("NNCF cannot do this."), CLOSE: 0.01}).search()
        assert states(choice) == {"fast": "refused", "close": "won"}
        assert reasons(choice)["fast"] == "NNCF cannot do this."

    def test_where_nothing_can_be_made_the_missing_extra_is_named(self) -> None:
        missing = MissingExtraError("nncf", "quantize", "Quantization")
        with pytest.raises(MissingExtraError, match=r"dermedge\[quantize\]"):
            Bench({FAST: DermedgeError("no"), CLOSE: missing}).search()


class TestCache:
    def test_a_second_search_builds_nothing_and_chooses_the_same(
        self, tmp_path: Path, latencies: Callable[..., None]
    ) -> None:
        latencies(plain=2.0, fast=1.0)
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 0.01}
        first = Bench(damage).search(exhaustive=True, cache=tmp_path)
        again = Bench(damage)
        assert again.search(exhaustive=True, cache=tmp_path).tried == first.tried
        assert again.built == []

    def test_other_options_of_a_method_are_another_artifact(self, tmp_path: Path) -> None:
        Bench({FAST: 0.01}).search(cache=tmp_path)
        other = Bench({replace(FAST, options={"reduce_range": True}): 0.01})
        other.search(cache=tmp_path)
        assert other.built == ["fast"]
