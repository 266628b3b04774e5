"""Select among candidates of known accuracy and speed, with a fake clock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, ExportContext, Simulation
from dermedge_export.evaluation.predictions import Predictions, Run
from dermedge_export.parity.evaluator import ParityEvaluator
from dermedge_export.selection import explain
from dermedge_export.selection.cache import build_cached
from dermedge_export.selection.latency import (
    CALLS,
    SETTLE_SECONDS,
    TURNS,
    Clock,
    measure_latencies,
)
from dermedge_export.selection.results import Selection
from dermedge_export.selection.search import SearchSettings, search
from dermedge_export.target import CPU, Target
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
    """Return a run whose logits are the student's plus noise."""
    noise = np.random.default_rng(3).normal(size=LOGITS.shape).astype(np.float32) * np.float32(
        scale
    )

    def run(images: Any) -> dict[str, Any]:
        rows = [ROWS.get(int(image.astype(np.int64).sum()), 0) for image in images]
        return {"diagnosis": (LOGITS + noise)[rows]}

    return run


class NumberedImages:
    """Evaluation data in two halves, val and test; it records the splits it reads."""

    name = "numbers"

    def __init__(self) -> None:
        self.splits: list[str] = []

    def predictions(self, split: str, run: Run) -> Predictions:
        self.splits.append(split)
        half = slice(0, COUNT // 2) if split == "val" else slice(COUNT // 2, COUNT)
        ids = tuple(str(row) for row in range(COUNT))[half]
        outputs = {name: np.asarray(values) for name, values in run(PIXELS[half]).items()}
        malignant = (LABELS[half] == 1).astype(np.float64)
        return Predictions(ids, outputs, LABELS[half].astype(np.int64), malignant, np.array(ids))

    def digests(self, split: str) -> list[str]:
        return [f"{split}-{row}" for row in range(COUNT // 2)]

    def calibration(self) -> Calibration:
        return Calibration(PIXELS[:40], tuple(map(str, range(40))), "train")


class FakeClock:
    """A clock that advances only when an engine runs or somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.log: list[str] = []

    def sleep(self, seconds: float) -> None:
        self.log.append(f"sleep {seconds}")
        self.seconds += seconds

    def engine(self, name: str, milliseconds: list[float], run: Run) -> Simulation:
        """Return an engine whose calls take these times in turn."""
        calls = 0

        def timed(images: Any) -> Any:
            nonlocal calls
            self.seconds += milliseconds[calls % len(milliseconds)] / 1000
            calls += 1
            self.log.append(name)
            return run(images)

        return Simulation(name, "1", timed)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep)


class FakeBuilder:
    """A builder of artifacts with known damage, size and latency."""

    def __init__(
        self,
        damage: dict[Candidate, float | DermedgeError],
        sizes: dict[Candidate, int] | None = None,
        cache: Path | None = None,
        **milliseconds: float,
    ) -> None:
        self.damage, self.sizes, self.cache = damage, sizes or {}, cache
        self.milliseconds, self.built = milliseconds, list[str]()
        self.data, self.time = NumberedImages(), FakeClock()

    def make(self, context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
        self.built.append(candidate.method)
        harm = self.damage[candidate]
        if isinstance(harm, DermedgeError):
            raise harm
        artifact = Artifact(
            target.name,
            candidate.format,
            "model.toy",
            candidate.precision,
            details={"harm": harm, "method": candidate.method},
        )
        return BuiltArtifact(artifact, {"model.toy": bytes(self.sizes.get(candidate, 100))})

    def build(self, candidate: Candidate) -> BuiltArtifact:
        context = ExportContext(SimpleNamespace(module=None, spec=SPEC), self.data.calibration)
        context.cached(("graph", CPU.opset), lambda: b"graph")
        return build_cached(context, CPU, candidate, self.make, self.cache)

    @contextmanager
    def start(self, built: BuiltArtifact) -> Iterator[Runtime]:
        details = built.artifact.details
        milliseconds = self.milliseconds.get(details["method"], 1.0)
        yield self.time.engine("toy", [milliseconds], noisy(details["harm"]))  # type: ignore[misc]

    def search(self, target: Target = CPU, **settings: Any) -> Selection:
        evaluator = ParityEvaluator(SPEC, noisy(0.0), self.data)
        return search(
            target,
            list(self.damage),
            self,
            evaluator,
            SearchSettings(clock=self.time.clock, **settings),
        )


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is idle, so that no reason warns of other programs."""
    monkeypatch.setattr(explain.os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def states(selection: Selection) -> dict[str, str]:
    return {result.method: result.status for result in selection.results}


def reasons(selection: Selection) -> dict[str, str]:
    return {result.method: result.reason for result in selection.results}


class TestFirstThatPasses:
    def test_the_first_that_passes_is_selected_and_the_others_are_not_built(self) -> None:
        builder = FakeBuilder({FAST: 0.01, CLOSE: 0.0})
        selection = builder.search()
        assert states(selection) == {"fast": "won", "close": "skipped"}
        assert builder.built == ["fast"]

    def test_a_candidate_that_fails_is_listed_with_its_losses(self) -> None:
        selection = FakeBuilder({FAST: 3.0, CLOSE: 0.01}).search()
        assert states(selection) == {"fast": "failed", "close": "won"}
        assert "top1_agreement: 1.0000 -> 0." in reasons(selection)["fast"]
        failed = selection.results[0]
        assert failed.top1 is not None
        assert failed.top1 < 0.9
        assert failed.balanced_accuracy_loss is not None
        assert failed.balanced_accuracy_loss.low is not None
        assert failed.balanced_accuracy_loss.low > 0

    def test_if_none_passes_the_error_names_each(self) -> None:
        with pytest.raises(
            GateError, match=r"int8 toy fast: top1.*int8 toy close: top1.*--allow-parity-failure"
        ) as error:
            FakeBuilder({FAST: 3.0, CLOSE: 2.0}).search()
        assert error.value.exit_code == 3

    def test_with_allow_failure_the_closest_is_selected_and_not_called_passed(self) -> None:
        selection = FakeBuilder({FAST: 3.0, CLOSE: 2.0}).search(allow_failure=True)
        assert states(selection) == {"fast": "failed", "close": "won"}
        assert reasons(selection)["close"].startswith("written although it failed: top1_agreement")

    def test_the_search_never_reads_test(self) -> None:
        builder = FakeBuilder({FP32: 0.0, FAST: 0.01})
        builder.search(exhaustive=True)
        assert set(builder.data.splits) == {"val"}


class TestTiers:
    def test_mixed_precision_is_built_only_if_no_plain_candidate_passes(self) -> None:
        selection = FakeBuilder({FP32: 0.0, FAST: 0.01, MIXED: 0.0}).search(exhaustive=True)
        assert states(selection)["mixed"] == "skipped"
        assert reasons(selection)["mixed"] == "not needed: int8 passed in fewer steps"
        builder = FakeBuilder({FP32: 0.0, FAST: 3.0, MIXED: 0.01, TRAINED: 0.0}, mixed=0.7)
        selection = builder.search(exhaustive=True, can_retrain=True)
        assert reasons(selection)["qat"] == (
            "not needed: int8 toy mixed is 1.43 x as fast as fp32 toy plain"
        )
        assert builder.built == ["plain", "fast", "mixed"]

    def test_int8_that_passes_but_does_not_pay_is_trained_too(self) -> None:
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 3.0, MIXED: 0.01, TRAINED: 0.01}
        builder = FakeBuilder(damage, plain=2.0, mixed=1.6, qat=1.0)
        selection = builder.search(exhaustive=True, can_retrain=True)
        assert states(selection) == {
            "plain": "passed",
            "fast": "failed",
            "mixed": "passed",
            "qat": "won",
        }
        assert reasons(selection)["qat"].endswith(
            "; trained because int8 toy mixed is 1.25 x as fast as fp32 toy plain, less than 1.3 x"
        )
        # Neither the budget nor missing data is overruled.
        assert reasons(FakeBuilder(damage, plain=2.0, mixed=1.6).search(exhaustive=True))[
            "qat"
        ] == ("training needs --data")
        spent = FakeBuilder(damage, plain=60_000.0, mixed=60_000.0).search(
            exhaustive=True, can_retrain=True, budget_minutes=1
        )
        assert "budget of 1 minutes was spent" in reasons(spent)["qat"]

    def test_without_a_time_of_the_device_int8_that_passes_is_enough(self) -> None:
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 0.01, TRAINED: 0.0}
        selection = FakeBuilder(damage).search(ELSEWHERE, exhaustive=True, can_retrain=True)
        assert reasons(selection)["qat"] == "not needed: int8 passed without training"

    def test_a_candidate_of_another_format_is_built_all_the_same(self) -> None:
        other = replace(MIXED, format="other")
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 0.01, other: 0.01}
        selection = FakeBuilder(damage, plain=3.0, fast=2.0, mixed=1.0).search(exhaustive=True)
        assert states(selection) == {"plain": "passed", "fast": "passed", "mixed": "won"}

    def test_training_comes_last_and_needs_data(self) -> None:
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 3.0, MIXED: 3.0, TRAINED: 0.01}
        selection = FakeBuilder(damage).search(exhaustive=True)
        assert reasons(selection)["qat"] == "training needs --data"
        builder = FakeBuilder(damage)
        builder.search(exhaustive=True, can_retrain=True)
        assert builder.built[-1] == "qat"

    def test_no_candidate_is_started_after_the_budget(self) -> None:
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 0.01, CLOSE: 0.0}
        minute = 60_000.0
        builder = FakeBuilder(damage, plain=minute, fast=minute, close=minute)
        selection = builder.search(exhaustive=True, budget_minutes=1.5)
        assert builder.built == ["plain", "fast"]
        assert reasons(selection)["close"] == "the budget of 1.5 minutes was spent"

    def test_the_first_candidate_is_built_whatever_the_budget(self) -> None:
        builder = FakeBuilder({FP32: 0.0, FAST: 0.01})
        builder.search(exhaustive=True, budget_minutes=0)
        assert builder.built == ["plain"]


class TestSelected:
    def test_the_fastest_is_selected_and_the_reason_has_both_times(self) -> None:
        builder = FakeBuilder({FP32: 0.0, FAST: 0.02, CLOSE: 0.01}, plain=13.4, fast=6.0, close=7.0)
        selection = builder.search(exhaustive=True)
        assert states(selection) == {"plain": "passed", "fast": "won", "close": "passed"}
        assert reasons(selection)["fast"] == "fastest of those that passed: 6.00 ms against 7.00 ms"
        latencies = [result.latency_ms for result in selection.results]
        assert latencies == pytest.approx([13.4, 6.0, 7.0])

    def test_the_reason_warns_of_a_busy_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(explain.os, "getloadavg", lambda: (99.0, 0.0, 0.0))
        builder = FakeBuilder({FP32: 0.0, FAST: 0.02}, plain=13.4, fast=6.0)
        assert (
            "the machine was busy (load 99.0 on" in reasons(builder.search(exhaustive=True))["fast"]
        )

    def test_slower_int8_is_rejected_with_a_reason(self) -> None:
        builder = FakeBuilder({FP32: 0.0, FAST: 0.01}, plain=13.4, fast=19.8)
        selection = builder.search(exhaustive=True)
        assert states(selection) == {"plain": "won", "fast": "passed"}
        assert reasons(selection)["fast"] == "int8 is not worth it here: 19.80 ms against 13.40 ms"

    def test_among_equally_fast_candidates_the_least_rounded_is_selected(self) -> None:
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 0.02, CLOSE: 0.01}
        builder = FakeBuilder(damage, plain=10.2, fast=10.0, close=10.1)
        assert states(builder.search(exhaustive=True))["plain"] == "won"
        builder = FakeBuilder({FAST: 0.05, CLOSE: 0.01}, fast=10.0, close=10.1)
        selection = builder.search(exhaustive=True)
        assert states(selection)["close"] == "won"
        assert "closest to the student" in reasons(selection)["close"]

    def test_the_expected_latency_includes_the_risk_to_fail_on_test(self) -> None:
        # FAST loses 1.7 % of agreement where 2 % are allowed.
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 0.08, CLOSE: 0.01}
        selection = FakeBuilder(damage, plain=13.4, fast=6.0, close=7.0).search(exhaustive=True)
        assert states(selection) == {"plain": "passed", "fast": "passed", "close": "won"}
        risk = "6.00 ms against 7.00 ms, but the risk to fail on test is"
        assert risk in reasons(selection)["fast"]
        assert reasons(selection)["close"].startswith("best expected latency: 7.00 ms")
        builder = FakeBuilder(damage, plain=13.4, fast=2.0, close=7.0)
        assert states(builder.search(exhaustive=True))["fast"] == "won"

    def test_a_fast_candidate_that_fails_is_never_selected(self) -> None:
        selection = FakeBuilder({FP32: 0.0, FAST: 3.0}, plain=13.4).search(exhaustive=True)
        assert states(selection) == {"plain": "won", "fast": "failed"}
        assert selection.results[1].latency_ms is None

    def test_on_another_device_the_smallest_that_passes_is_selected(self) -> None:
        sizes = {FP32: 4000, FAST: 1000, CLOSE: 1010}
        builder = FakeBuilder({FP32: 0.0, FAST: 0.05, CLOSE: 0.01}, sizes)
        selection = builder.search(ELSEWHERE, exhaustive=True)
        assert states(selection) == {"plain": "passed", "fast": "passed", "close": "won"}
        assert "speed was not measured" in reasons(selection)["close"]
        assert all(result.latency_ms is None for result in selection.results)


class TestLatency:
    @staticmethod
    def measure(**engines: list[float]) -> tuple[FakeClock, dict[str, float]]:
        time = FakeClock()
        runtimes = {
            name: time.engine(name, milliseconds, lambda images: {})
            for name, milliseconds in engines.items()
        }
        return time, measure_latencies(runtimes, PIXELS[:1], time.clock)

    def test_engines_take_turns_in_alternating_order(self) -> None:
        time, _ = self.measure(a=[1.0], b=[2.0])
        turn = {name: [f"sleep {SETTLE_SECONDS}"] + [name] * (CALLS + 1) for name in "ab"}
        expected = [turn["b"] + turn["a"], turn["a"] + turn["b"]] * (TURNS // 2)
        assert time.log == [entry for pair in expected for entry in pair]

    def test_the_first_call_of_a_turn_and_the_pause_are_not_timed(self) -> None:
        # Every turn has one call of 900 ms, then CALLS calls of 4 ms.
        _, latencies = self.measure(a=[900.0] + [4.0] * CALLS)
        assert latencies == pytest.approx({"a": 4.0})

    def test_the_latency_is_the_median_of_all_turns(self) -> None:
        # One call in eight is an outlier; the mean is 14.75 ms.
        _, latencies = self.measure(a=[2.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0, 3.0, 100.0])
        assert latencies == pytest.approx({"a": 3.0})
        _, latencies = self.measure(a=[1.0], b=[2.5], c=[7.0])
        assert latencies == pytest.approx({"a": 1.0, "b": 2.5, "c": 7.0})


class TestRefusal:
    def test_a_candidate_that_cannot_be_built_is_a_result(self) -> None:
        damage = {FAST: DermedgeError("NNCF cannot do this."), CLOSE: 0.01}
        selection = FakeBuilder(damage).search()
        assert states(selection) == {"fast": "refused", "close": "won"}
        assert reasons(selection)["fast"] == "NNCF cannot do this."

    def test_if_nothing_can_be_built_the_missing_extra_is_named(self) -> None:
        missing = MissingExtraError("nncf", "quantize", "Quantization")
        with pytest.raises(MissingExtraError, match=r"dermedge\[quantize\]"):
            FakeBuilder({FAST: DermedgeError("no"), CLOSE: missing}).search()


class TestReport:
    def test_the_report_lists_every_candidate_in_order(self) -> None:
        damage: dict[Candidate, Any] = {
            FP32: 0.0,
            FAST: 0.02,
            CLOSE: DermedgeError("no"),
            MIXED: 0.0,
        }
        sizes = {FP32: 4000, FAST: 1000}
        selection = FakeBuilder(damage, sizes, plain=13.4, fast=6.0).search(exhaustive=True)
        report = selection.to_json()
        assert set(report) == {"schema", "machine", "candidates"}
        assert report["schema"] == "dermedge.candidates/1"
        plain, fast, close, mixed = report["candidates"]
        assert set(plain) == {
            *("name", "precision", "format", "method", "status", "reason", "size_bytes"),
            *("latency_ms", "top1", "kl", "balanced_accuracy_loss"),
        }
        statuses = [entry["status"] for entry in report["candidates"]]
        assert statuses == ["passed", "won", "refused", "skipped"]
        assert (plain["name"], plain["precision"], plain["format"]) == (
            "fp32 toy plain",
            "fp32",
            "toy",
        )
        assert (plain["size_bytes"], plain["top1"], plain["kl"]) == (4000, 1.0, 0.0)
        assert fast["latency_ms"] == pytest.approx(6.0)
        assert 0.98 < fast["top1"] <= 1.0
        assert 0 < fast["kl"] < 0.01
        assert set(fast["balanced_accuracy_loss"]) == {"value", "low", "high"}
        for entry in (close, mixed):
            assert entry["size_bytes"] is entry["latency_ms"] is entry["top1"] is None

    def test_a_selected_candidate_that_fails_on_test_is_reported_as_failed(self) -> None:
        selection = FakeBuilder({FAST: 0.01, CLOSE: 0.0}).search()
        results = selection.rejected(["top1_agreement: too low."])
        assert [result.status for result in results] == ["failed", "skipped"]
        assert results[0].reason.endswith("failed on test: top1_agreement: too low.")
        second = FakeBuilder({CLOSE: 0.0}).search().after(results)
        assert states(second) == {"fast": "failed", "close": "won"}


class TestCache:
    def test_a_second_search_builds_nothing_and_selects_the_same(self, tmp_path: Path) -> None:
        damage: dict[Candidate, Any] = {FP32: 0.0, FAST: 0.01}
        first = FakeBuilder(damage, cache=tmp_path, plain=2.0, fast=1.0)
        second = FakeBuilder(damage, cache=tmp_path, plain=2.0, fast=1.0)
        results = first.search(exhaustive=True).results
        assert first.built == ["plain", "fast"]
        assert second.search(exhaustive=True).results == results
        assert second.built == []

    def test_other_options_of_a_method_are_another_artifact(self, tmp_path: Path) -> None:
        FakeBuilder({FAST: 0.01}, cache=tmp_path).search()
        other = FakeBuilder({replace(FAST, options={"reduce_range": True}): 0.01}, cache=tmp_path)
        other.search()
        assert other.built == ["fast"]
