"""`export`: a student becomes a bundle for a target, measured against the student before anyone sees it."""

import contextlib
import glob
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermedge_export.calibration import check_calibration
from dermedge_export.candidate import AUTO, Candidate, select_candidates
from dermedge_export.context import (
    BuiltArtifact,
    Exportable,
    ExportContext,
    Exporter,
    Retrain,
    module_runner,
)
from dermedge_export.model_card import licences, model_card
from dermedge_export.parity.evaluator import EvaluationData, ParityEvaluator
from dermedge_export.parity.gate import failure_messages
from dermedge_export.parity.reference import reference_file
from dermedge_export.selection.search import CandidateResult, Selection, search
from dermedge_export.synthetic.golden import golden_cases
from dermedge_export.target import Target, find_target
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.container import MANIFEST
from dermedge_runtime.errors import BundleError, DataError, GateError, UsageError
from dermedge_runtime.files import check_free
from dermedge_runtime.golden import golden_files
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import Runtime, load
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.registry import lookup
from dermedge_runtime.report import (
    CANDIDATES_REPORT,
    DIGEST_PREFIX,
    PARITY_REPORT,
    REFERENCE_REPORT,
    TRAINING_IMAGES,
    ParityReport,
)
from dermedge_runtime.spec import Json, Postprocessing, Spec, to_json
from dermedge_runtime.verify import verify

EXPORTERS: dict[str, str] = {
    "onnx": "dermedge_export.exporters.onnx:export_onnx",
    "openvino": "dermedge_export.exporters.openvino:export_openvino",
    "tensorrt": "dermedge_export.exporters.tensorrt.export:export_tensorrt",
    "coreml": "dermedge_export.exporters.coreml.export:export_coreml",
}
GROUP = "dermedge.exporters"
# Absolute, on logits: what engines and CPUs differ by in the order of their sums, and in how they round to few bits.
TOLERANCE = {
    "fp32": 1e-3,
    "fp16": 0.05,
    "bf16": 0.25,
    "w8": 0.05,
    "palettized": 0.05,
    "int8": 0.25,
    "int8+fp16": 0.5,
    "w8a8": 0.5,
}
LEFTOVER_SECONDS = 24 * 3600
CACHE = ".candidates"


def export(
    source: Exportable,
    target: str | Target,
    out: Path | str,
    *,
    data: EvaluationData | None = None,
    training_images: Sequence[str] = (),
    precision: str | None = None,
    engine: str | None = None,
    dynamic_batch: bool = False,
    allow_parity_failure: bool = False,
    budget_minutes: float = 30.0,
    retrain: Retrain | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Build candidates, choose one on val, judge it on test, and write `OUT/NAME-TARGET.dermedge`.

    With `data`, quantization is calibrated on its train split, postprocessing is fitted on its val split for the
    very artifact, and the gate judges the winner on its test split, once. Without, only agreement with the student on
    procedural lesions is gated, and nothing is fitted. The bundle has passed `verify` before it stands at its place, as
    far as its engine runs here; after an error, or a kill, nothing stands there.

    Args:
        source: the model.
        target: name of a target, or one.
        out: folder to write into.
        data: labelled images.
        training_images: sha256 of the image files that the model has learned from; the bundle keeps prefixes of them.
        precision: one of the target's; None is its first, `auto` tries all and takes the best that passes.
        engine: only artifacts for this engine, where a target has several.
        dynamic_batch: leave the batch size open; it is 1 by default.
        allow_parity_failure: write the bundle although the gate failed, which its manifest records.
        budget_minutes: after that no further candidate is begun.
        retrain: quantization-aware training, for when nothing else keeps the accuracy.
        overwrite: replace an older bundle.
        progress: told what is being done.

    Raises:
        UsageError: an unknown target, or the bundle exists and may not be replaced.
        DataError: the model has learned from test images, or calibration images are unfit.
        GateError: the artifact lost more than its target allows.
        MissingExtraError: a toolchain is not installed.
        BundleError: the written bundle did not verify.
    """
    shop = ExportSession.open(
        source,
        data=data,
        training_images=training_images,
        dynamic_batch=dynamic_batch,
        retrain=retrain,
    )
    return shop.export(
        target,
        out,
        precision=precision,
        engine=engine,
        allow_parity_failure=allow_parity_failure,
        budget_minutes=budget_minutes,
        overwrite=overwrite,
        progress=progress,
    )


@dataclass(frozen=True)
class ExportSession:
    """A student and the jury of its artifacts; targets that are exported from one workshop share traces and answers."""

    context: ExportContext
    evaluator: ParityEvaluator
    training_images: tuple[str, ...]

    @classmethod
    def open(
        cls,
        source: Exportable,
        *,
        data: EvaluationData | None = None,
        training_images: Sequence[str] = (),
        dynamic_batch: bool = False,
        retrain: Retrain | None = None,
    ) -> "ExportSession":
        """Arguments and errors as of `export`."""
        context = ExportContext(source, dynamic_batch=dynamic_batch, retrain=retrain)
        evaluator = ParityEvaluator(source.spec, module_runner(source.module), data)
        if data is not None:
            check_leakage(data, training_images)
            context.calibration_source = lambda: _calibration(data)
        return cls(context, evaluator, tuple(training_images))

    def export(
        self,
        target: str | Target,
        out: Path | str,
        *,
        precision: str | None = None,
        engine: str | None = None,
        allow_parity_failure: bool = False,
        budget_minutes: float = 30.0,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Bundle:
        """One bundle; arguments and errors as of the function `export`."""
        target = target if isinstance(target, Target) else find_target(target)
        tell = progress or no_progress
        candidates = select_candidates(
            target, precision, engine, describe_device()["flags"].split()
        )
        path = Path(out) / f"{self.context.spec.name}-{target.name}.dermedge"
        check_free(path, overwrite=overwrite, marker=MANIFEST)
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_leftovers(path)
        rejected: tuple[CandidateResult, ...] = ()
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            drafts = _StagedBundles(self.context.spec, target, Path(folder))
            for wanted in _attempts(candidates, precision):
                choice = search(
                    self.context,
                    target,
                    wanted,
                    self.evaluator,
                    _exporter,
                    drafts.start,
                    exhaustive=precision == AUTO,
                    allow_failure=allow_parity_failure,
                    budget_minutes=budget_minutes,
                    cache=path.parent / CACHE if precision == AUTO else None,
                    progress=progress,
                ).after(rejected)
                with drafts.start(choice.built) as runtime:
                    tell(
                        0,
                        1,
                        f"judging {choice.built.artifact.precision} on {self.evaluator.basis('test')}",
                    )
                    verdict = _evaluate_on_test(self.evaluator, choice, runtime, target)
                    if verdict.reasons and not allow_parity_failure:
                        rejected = choice.rejected(verdict.reasons)
                        continue
                    tell(0, 1, "drawing golden cases")
                    entries = _parity_entries(verdict, target, path)
                    files = self._files(choice, verdict, target, entries, runtime)
                    tell(0, 1, "verifying the bundle")
                    final = drafts.write(
                        Path(folder) / "final", choice.built, verdict.fitted, entries, files
                    )
                    _must_verify(final, runtime)
                return final.save(path, overwrite=overwrite)
        raise GateError(
            f"The {choice.built.artifact.precision} artifact for {target.name} is not the same model: "
            f"{' '.join(verdict.reasons)} No bundle was written; --allow-parity-failure writes it all the same and "
            "records that."
        )

    def _learned_from(self, choice: Selection) -> list[str]:
        """sha256 of every image that the artifact has learned from, sorted: the student's, and what quantization-aware
        training saw.
        """
        images, data = set(self.training_images), self.evaluator.data
        if data is not None and choice.built.artifact.details.get("method") == "qat":
            seen = [*data.digests("train"), *data.digests("val")]
            check_leakage(data, seen)
            images.update(seen)
        return sorted(images)

    def _files(
        self,
        choice: Selection,
        verdict: "_TestResult",
        target: Target,
        entries: Json,
        runtime: Runtime,
    ) -> dict[str, bytes]:
        """What travels beside the model. `reports/` holds the parity, how the artifact was chosen, what the model has
        learned from, and for a target that is judged elsewhere the student's own answers, so that it can be judged
        there without torch.
        """
        evaluator, spec, artifact = self.evaluator, self.context.spec, choice.built.artifact
        # The reference is the network that was trained, not the merged one that is exported.
        cases = golden_cases(spec, evaluator.reference, runtime.run, verdict.fitted)
        learned = "".join(f"{digest[:DIGEST_PREFIX]}\n" for digest in self._learned_from(choice))
        files = {
            **golden_files(cases),
            PARITY_REPORT: pretty_json(to_json(verdict.report)),
            CANDIDATES_REPORT: pretty_json(choice.to_json() | {"basis": evaluator.basis("val")}),
            TRAINING_IMAGES: learned.encode(),
            "modelcard.md": model_card(
                spec, artifact, verdict.fitted, verdict.report, entries["device"]
            ).encode(),
            **licences(spec),
        }
        if evaluator.data is not None and not target.native:
            student, fitted = (
                evaluator.reference_predictions("test"),
                evaluator.fit_postprocessing(evaluator.reference_predictions("val")),
            )
            digests = evaluator.data.digests("test")
            files[REFERENCE_REPORT] = reference_file(
                student, digests, fitted, evaluator.basis("test")
            )
        return files


def _attempts(candidates: Sequence[Candidate], precision: str | None) -> list[list[Candidate]]:
    """What is searched, and what in its place where the winner fails on test and no precision was insisted on: fp32
    alone, which computes what the student computes. No second rounded candidate is tried on test.
    """
    exact = [candidate for candidate in candidates if candidate.precision == "fp32"]
    return [list(candidates), exact] if exact and precision in (None, AUTO) else [list(candidates)]


@dataclass(frozen=True)
class _TestResult:
    """The winner on test: its parity, what was fitted for it, and why the gate stays shut, if it does."""

    report: ParityReport
    fitted: Mapping[str, Postprocessing]
    reasons: list[str]


def _evaluate_on_test(
    evaluator: ParityEvaluator, choice: Selection, runtime: Runtime, target: Target
) -> _TestResult:
    fitted = evaluator.fit_postprocessing(choice.val)
    # Without evidence there is nothing beyond what it has answered already.
    answers = choice.val if evaluator.data is None else evaluator.run("test", runtime.run)
    report = evaluator.compare(
        "test", answers, fitted, choice.built.artifact.precision, runtime, target
    )
    return _TestResult(report, fitted, failure_messages(report))


@dataclass(frozen=True)
class _StagedBundles:
    """Bundles under construction, in a folder that nobody sees."""

    spec: Spec
    target: Target
    folder: Path

    @contextlib.contextmanager
    def start(self, built: BuiltArtifact) -> Iterator[Runtime]:
        """The engine that runs an artifact on this machine, or what imitates it."""
        if built.simulation is not None:
            yield built.simulation
            return
        # What this machine has in place of the device's own engine.
        engine = self.target.host if built.artifact.format == self.target.format else None
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            load(self.write(Path(folder) / "draft", built, {}, {}, {}), engine=engine) as model,
        ):
            yield model.runtime

    def write(
        self,
        path: Path,
        built: BuiltArtifact,
        fitted: Mapping[str, Postprocessing],
        parity_entries: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> Bundle:
        """A bundle at `path` inside the folder."""
        if built.artifact.precision not in TOLERANCE:
            raise UsageError(
                f"No tolerance is known for precision {built.artifact.precision!r}: add it to TOLERANCE."
            )
        tolerance = TOLERANCE[built.artifact.precision]
        return write_bundle(
            path,
            spec=self.spec,
            artifact=built.artifact,
            postprocessing=fitted,
            tolerance={task.name: tolerance for task in self.spec.tasks},
            parity=parity_entries
            or {"host": {"status": "not_run"}, "device": {"status": "not_run"}},
            files={**built.files, **files},
        )


def _exporter(name: str) -> Exporter:
    exporter: Exporter = lookup("format", name, EXPORTERS, GROUP)
    return exporter


def _calibration(data: EvaluationData) -> Any:
    calibration = data.calibration()
    check_calibration(
        calibration, {split: data.digests(split) for split in ("val", "test")}, data.name
    )
    return calibration


def _must_verify(bundle: Bundle, runtime: Runtime) -> None:
    answer = verify(bundle, runtime=runtime)
    if answer.status != "passed":
        failed = next(check for check in answer.checks if check.status != "passed")
        raise BundleError(
            f"The new bundle does not verify ({failed.name}: {failed.detail}); nothing was written."
        )


def _delete_leftovers(path: Path) -> None:
    """Delete what killed exports to `path` left beside it. One that is younger than a day may still be at work."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):
            if leftover.is_dir() and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover)


def check_leakage(data: EvaluationData, training_images: Sequence[str]) -> None:
    """Raise DataError if the model has learned from an image that it would be judged on."""
    seen = set(training_images) & set(data.digests("test"))
    if seen:
        raise DataError(
            f"{len(seen)} test images of {data.name} are among those that the model has learned from: "
            "judge it on other images, or train it again on this table's own split."
        )


def _parity_entries(verdict: _TestResult, target: Target, path: Path) -> Json:
    """The manifest's `parity`: this machine is the exporting host, and the device too where the target is native."""
    report = verdict.report
    entry: Json = {
        "status": report.status,
        "basis": report.basis,
        "cases": report.cases,
        "engine": report.engine,
        "hardware": report.hardware,
        "report": PARITY_REPORT,
    }
    if verdict.reasons:
        entry["allowed_failures"] = verdict.reasons
    if target.native:
        return {"host": entry, "device": entry}
    return {
        "host": entry,
        "device": {"status": "not_run", "todo": target.todo.format(bundle=path.name)},
    }
