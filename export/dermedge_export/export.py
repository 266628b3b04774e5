"""Export a student: build an artifact, compare it with the student, write a bundle."""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dermedge_export.calibration import Calibration, check_calibration
from dermedge_export.candidate import AUTO, Candidate, select_candidates
from dermedge_export.context import (
    Exportable,
    ExportContext,
    Retrain,
    module_runner,
)
from dermedge_export.evaluation.postprocessing import FitOptions
from dermedge_export.gpu_hazards import with_gpu_hazards
from dermedge_export.model_card import licences, model_card
from dermedge_export.options import ExportOptions
from dermedge_export.parity.evaluator import EvaluationData, ParityEvaluator
from dermedge_export.parity.gate import failure_messages
from dermedge_export.parity.reference import reference_file
from dermedge_export.selection.results import CandidateResult, Selection
from dermedge_export.selection.search import SearchSettings, search
from dermedge_export.staging import StagedBundles, delete_leftovers
from dermedge_export.synthetic.golden import golden_cases
from dermedge_export.target import Target, find_target
from dermedge_export.task_selection import LEFT_OUT, select_outputs
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.container import MANIFEST
from dermedge_runtime.errors import BundleError, DataError, GateError
from dermedge_runtime.files import check_free, name_full_disk
from dermedge_runtime.golden import golden_files
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import Runtime
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.report import (
    CANDIDATES_REPORT,
    DIGEST_PREFIX,
    PARITY_REPORT,
    REFERENCE_REPORT,
    TRAINING_IMAGES,
    VALIDATION_IMAGES,
    ParityReport,
)
from dermedge_runtime.spec import Json, Postprocessing, Spec, to_json
from dermedge_runtime.verify import verify

CACHE = ".candidates"


@dataclass(frozen=True)
class ExportSession:
    """One student with the data and settings that its exports share.

    Example:
        >>> from dermedge.models import load_model_folder
        >>> from dermedge_export import ExportOptions, ExportSession
        >>> options = ExportOptions(precision="fp32", engine="onnxruntime")
        >>> session = ExportSession.open(load_model_folder("student"), options)
        >>> bundle = session.export("cpu", "exported")
        >>> bundle.path.name, bundle.parity["host"]["status"]
        ('small-cpu.dermedge', 'passed')

    Attributes:
        context: The student, for the exporters.
        evaluator: Compares artifacts with the student.
        options: Settings of every export.
        training_images: sha256 of the image files that the student was trained on.
        progress: Receives the name of each step.
    """

    context: ExportContext
    evaluator: ParityEvaluator
    options: ExportOptions
    training_images: tuple[str, ...]
    progress: Progress

    @classmethod
    def open(
        cls,
        model: Exportable,
        options: ExportOptions | None = None,
        *,
        data: EvaluationData | None = None,
        training_images: Sequence[str] = (),
        retrain: Retrain | None = None,
        progress: Progress | None = None,
    ) -> "ExportSession":
        """Return a session for one student.

        With `data`, the train split calibrates quantization. The val split fits
        postprocessing and selects the candidate. The test split is read once, for the
        gate. Without `data`, the gate measures only agreement with the student on
        synthetic lesions, and no postprocessing is fitted.

        Args:
            model: The student.
            options: Settings of every export of this session.
            data: Labelled images.
            training_images: sha256 of the image files that the student was trained on.
                Bundles keep a prefix of each.
            retrain: Quantization-aware training, for students that lose too much
                accuracy otherwise.
            progress: Receives the name of each step.

        Raises:
            DataError: The student was trained on test images of `data`.
            UsageError: The sensitivity or the coverage is not between 0 and 1, the student
                has no task of a name in `options.tasks`, or its class activation maps
                would not be exact.
        """
        options = options or ExportOptions()
        fit = FitOptions(options.sensitivity, options.coverage)
        model = select_outputs(model, options)
        if data is not None:
            check_leakage(data, training_images)
        context = ExportContext(
            model,
            None if data is None else functools.partial(_checked_calibration, data),
            dynamic_batch=options.dynamic_batch,
            retrain=retrain,
            progress=progress,
        )
        evaluator = ParityEvaluator(model.spec, module_runner(model.module), data, fit)
        return cls(context, evaluator, options, tuple(training_images), progress or no_progress)

    def export(self, target: str | Target, out: Path | str) -> Bundle:
        """Write the bundle `OUT/NAME-TARGET.dermedge` and return it.

        If tasks were left out, the name is `NAME-TASKS-TARGET.dermedge`.

        The bundle appears under this name only after it has passed `verify`, as far as
        its engine runs on this machine. After an error or a kill there is no bundle.

        Args:
            target: Name of a target, or a target.
            out: Folder of the bundle.

        Raises:
            UsageError: The target is unknown, or the bundle exists already.
            DataError: The calibration images are too few, of one class, or in val or
                test.
            GateError: The artifact lost more accuracy than its target allows.
            MissingExtraError: A toolchain is not installed.
            BundleError: The new bundle did not verify.
        """
        target = target if isinstance(target, Target) else find_target(target)
        options = self.options
        candidates = select_candidates(
            target, options.precision, options.engine, describe_device()["flags"].split()
        )
        path = Path(out) / f"{variant_name(self.context.spec)}-{target.name}.dermedge"
        check_free(path, overwrite=options.overwrite, marker=MANIFEST)
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_leftovers(path)
        with (
            name_full_disk(path),
            tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
        ):
            staged = StagedBundles(
                self.context,
                target,
                Path(folder),
                cache=path.parent / CACHE if options.precision == AUTO else None,
            )
            bundle = self._select_and_stage(candidates, staged, path.name)
            return bundle.save(path, overwrite=options.overwrite)

    def _select_and_stage(
        self, candidates: Sequence[Candidate], staged: StagedBundles, name: str
    ) -> Bundle:
        """Return the staged bundle of the first selection that passes on test.

        Raises:
            GateError: No selection passes.
        """
        rejected: tuple[CandidateResult, ...] = ()
        for attempt in _attempts(candidates, self.options.precision):
            selection = self._search(attempt, staged).after(rejected)
            artifact = selection.built.artifact
            with staged.start(selection.built) as runtime:
                basis = self.evaluator.basis("test")
                self.progress(0, 1, f"comparing {artifact.precision} with the student on {basis}")
                result = self._evaluate_on_test(selection, runtime, staged.target)
                if not result.failures or self.options.allow_parity_failure:
                    return self._stage(selection, result, staged, runtime, name)
            rejected = selection.rejected(result.failures)
        raise GateError(
            f"The {artifact.precision} artifact for {staged.target.name} lost too much accuracy "
            f"on {basis}: {' '.join(result.failures)} No bundle was written. To write it anyway, "
            "add --allow-parity-failure; the manifest records the failure."
        )

    def _search(self, candidates: Sequence[Candidate], staged: StagedBundles) -> Selection:
        settings = SearchSettings(
            exhaustive=self.options.precision == AUTO,
            allow_failure=self.options.allow_parity_failure,
            can_retrain=self.context.retrain is not None,
            budget_minutes=self.options.budget,
        )
        return search(staged.target, candidates, staged, self.evaluator, settings, self.progress)

    def _evaluate_on_test(
        self, selection: Selection, runtime: Runtime, target: Target
    ) -> "_TestResult":
        evaluator = self.evaluator
        fitted = evaluator.fit_postprocessing(selection.val)
        # Without data, val and test are the same synthetic lesions.
        predictions = selection.val
        if evaluator.data is not None:
            predictions = evaluator.run("test", runtime.run)
        precision = selection.built.artifact.precision
        report = evaluator.compare("test", predictions, fitted, precision, runtime, target)
        return _TestResult(report, fitted, failure_messages(report))

    def _stage(
        self,
        selection: Selection,
        result: "_TestResult",
        staged: StagedBundles,
        runtime: Runtime,
        name: str,
    ) -> Bundle:
        """Write the bundle into the staging folder and verify it."""
        built = with_gpu_hazards(selection.built, self.context, staged.target)
        selection = replace(selection, built=built)
        self.progress(0, 1, "drawing golden cases")
        entries = _parity_entries(result, staged.target, name)
        files = self._files(selection, result, staged.target, entries, runtime)
        self.progress(0, 1, "verifying the bundle")
        bundle = staged.write(
            staged.folder / "final", selection.built, result.postprocessing, entries, files
        )
        _require_verified(bundle, runtime)
        return bundle

    def _files(
        self,
        selection: Selection,
        result: "_TestResult",
        target: Target,
        entries: Mapping[str, Json],
        runtime: Runtime,
    ) -> dict[str, bytes]:
        """Return the files of the bundle other than the model."""
        evaluator, spec, artifact = self.evaluator, self.context.spec, selection.built.artifact
        # The reference is the trained network, not the merged copy that was exported,
        # so that golden cases also cover the merging.
        cases = golden_cases(spec, evaluator.reference, runtime.run, result.postprocessing)
        validation = [] if evaluator.data is None else evaluator.data.digests("val")
        candidates = selection.to_json() | {"basis": evaluator.basis("val")}
        card = model_card(spec, artifact, result.postprocessing, result.report, entries["device"])
        files = {
            **golden_files(cases),
            PARITY_REPORT: pretty_json(to_json(result.report)),
            CANDIDATES_REPORT: pretty_json(candidates),
            TRAINING_IMAGES: list_digests(self._training_images(selection)),
            VALIDATION_IMAGES: list_digests(validation),
            "modelcard.md": card.encode(),
            **licences(spec),
        }
        # `dermedge build` compares the engine with these predictions on the device,
        # which has no torch.
        if evaluator.data is not None and not target.native:
            files[REFERENCE_REPORT] = reference_file(
                evaluator.reference_predictions("test"),
                evaluator.data.digests("test"),
                evaluator.fit_postprocessing(evaluator.reference_predictions("val")),
                evaluator.basis("test"),
            )
        return files

    def _training_images(self, selection: Selection) -> list[str]:
        """Return the sorted sha256 of every image that the artifact was trained on."""
        images, data = set(self.training_images), self.evaluator.data
        if data is not None and selection.built.artifact.details.get("method") == "qat":
            retrained = [*data.digests("train"), *data.digests("val")]
            check_leakage(data, retrained)
            images.update(retrained)
        return sorted(images)


@dataclass(frozen=True)
class _TestResult:
    """Parity and failed limits of the selected candidate on test; postprocessing."""

    report: ParityReport
    postprocessing: Mapping[str, Postprocessing]
    failures: list[str]


def variant_name(spec: Spec) -> str:
    """Return the name of a model, followed by its tasks if others were left out.

    Exports of different tasks of one student must not replace each other.

    Args:
        spec: Spec of the model.
    """
    tasks = [task.name for task in spec.tasks] if LEFT_OUT in spec.lineage else []
    return "-".join([spec.name, *tasks])


def check_leakage(data: EvaluationData, training_images: Sequence[str]) -> None:
    """Check that the student was not trained on test images.

    Args:
        data: Labelled images.
        training_images: sha256 of the image files that the student was trained on.

    Raises:
        DataError: The student was trained on test images of `data`.
    """
    shared = set(training_images) & set(data.digests("test"))
    if shared:
        raise DataError(
            f"The model was trained on {len(shared)} test images of {data.name}. "
            "Export it with other images, or train it again on this table's own split."
        )


def list_digests(digests: Sequence[str]) -> bytes:
    """Return the digest prefixes of images as a text file, one per line, sorted.

    Args:
        digests: sha256 of image files.
    """
    return "".join(f"{digest[:DIGEST_PREFIX]}\n" for digest in sorted(set(digests))).encode()


def _attempts(candidates: Sequence[Candidate], precision: str | None) -> list[list[Candidate]]:
    """Return the candidates of the first search, and of a second one after a failure.

    The second search holds fp32 alone, which computes the same as the student. Trying a
    second rounded candidate on test would select on test. If the caller names a
    precision, there is no second search.
    """
    exact = [candidate for candidate in candidates if candidate.precision == "fp32"]
    return [list(candidates), exact] if exact and precision in (None, AUTO) else [list(candidates)]


def _checked_calibration(data: EvaluationData) -> Calibration:
    calibration = data.calibration()
    held_out = {split: data.digests(split) for split in ("val", "test")}
    check_calibration(calibration, held_out, data.name)
    return calibration


def _require_verified(bundle: Bundle, runtime: Runtime) -> None:
    report = verify(bundle, runtime=runtime)
    if report.status != "passed":
        failed = next(check for check in report.checks if check.status != "passed")
        raise BundleError(
            f"The new bundle does not verify ({failed.name}: {failed.detail}). Nothing was written."
        )


def _parity_entries(result: _TestResult, target: Target, name: str) -> dict[str, Json]:
    """Return the manifest's `parity`; a native target's device is this machine."""
    report = result.report
    entry: Json = {
        "status": report.status,
        "basis": report.basis,
        "cases": report.cases,
        "engine": report.engine,
        "hardware": report.hardware,
        "report": PARITY_REPORT,
    }
    if result.failures:
        entry["allowed_failures"] = result.failures
    if target.native:
        return {"host": entry, "device": entry}
    return {
        "host": entry,
        "device": {"status": "not_run", "todo": target.todo.format(bundle=name)},
    }
