"""`export` and `export_all`: export a model folder as bundles."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.models import TrainedModel, load_model_folder
from dermedge.models.folder_metadata import MODEL_FILES
from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.export import CACHE, ExportSession
from dermedge_export.options import ExportOptions
from dermedge_export.target import families
from dermedge_export.task_selection import select_outputs
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.container import MANIFEST
from dermedge_runtime.errors import DataError, DermedgeError, MissingExtraError, UsageError
from dermedge_runtime.progress import Progress, no_progress

if TYPE_CHECKING:
    from torch import nn

    from dermedge.models import Network

STUDENT = "student"


@dataclass(frozen=True)
class ExportSummary:
    """The bundles of an export for several targets, and the errors of the others.

    Attributes:
        bundles: The bundles that were written.
        errors: Errors by target.

    Example:
        >>> summary = export_all("student", ["jetsn"])
        >>> print(summary.errors["jetsn"])
        Unknown target 'jetsn'. Did you mean 'jetson'? ...
    """

    bundles: tuple[Bundle, ...] = ()
    errors: Mapping[str, DermedgeError] = field(default_factory=dict)

    def check(self) -> None:
        """Raise one error if any target failed.

        Raises:
            ExportError: At least one target failed. Its exit code is the highest of all
                errors, because a failed gate or a missing engine must not look like a
                general error.
        """
        if self.errors:
            raise ExportError(
                f"{len(self.errors)} of {len(self.errors) + len(self.bundles)} targets were not "
                f"written: {', '.join(self.errors)}. See the messages above.",
                max(error.exit_code for error in self.errors.values()),
            )


class ExportError(DermedgeError):
    """An error of `export_all`: at least one of several targets failed.

    Example:
        >>> try:
        ...     export_all("student", ["jetsn"]).check()
        ... except ExportError as error:
        ...     print(error.exit_code)
        2
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def export(
    student: Path | str,
    target: str,
    out: Path | str | None = None,
    *,
    data: Path | str | None = None,
    teacher: Path | str | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a trained model for one target.

    The function builds candidates, selects one on val, compares it with the model on
    test, and writes `OUT/NAME-TARGET.dermedge` if the gate passes.

    Args:
        student: A model folder, or the output folder of `run`.
        target: Name of a target.
        out: Folder of the bundle. None is the folder that contains the model folder.
        data: Folder or table file of a data set. Its train split calibrates
            quantization, val fits postprocessing and selects the candidate, and test is
            read once, for the gate. Without data the gate measures only agreement on
            synthetic lesions.
        teacher: Model folder that quantization-aware training learns from, besides the
            model itself.
        options: Settings of the export.
        progress: Receives the name of each step.

    Raises:
        UsageError: The target, a task or an option is unknown, a teacher is given
            without data, `student` is a bundle, or the bundle already exists.
        DataError: `student` holds no model, or the model was trained on test images.
        GateError: The artifact lost more accuracy than the target allows.
        MissingExtraError: A toolchain is not installed.

    Example:
        >>> from dermedge.workflows.export import export
        >>> from dermedge_export import ExportOptions
        >>> bundle = export("student", "cpu", options=ExportOptions(precision="fp32"))
        >>> str(bundle.path), bundle.artifact.precision
        ('small-cpu.dermedge', 'fp32')
    """
    summary = export_all(
        student, [target], out, data=data, teacher=teacher, options=options, progress=progress
    )
    for error in summary.errors.values():
        raise error
    return summary.bundles[0]


def export_all(
    student: Path | str,
    targets: Sequence[str] | None = None,
    out: Path | str | None = None,
    *,
    data: Path | str | None = None,
    teacher: Path | str | None = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> ExportSummary:
    """Export a trained model for several targets.

    The targets share traces and predictions. An error of one target does not stop the
    others.

    Args:
        student: As in `export`.
        targets: Names of targets. None takes one of each family.
        out: As in `export`.
        data: As in `export`.
        teacher: As in `export`.
        options: As in `export`.
        progress: As in `export`.

    Returns:
        The bundles, and the errors of the targets that have none.

    Raises:
        UsageError: A teacher is given without data, the student has no task of a given
            name, or `student` is a bundle.
        DataError: `student` holds no model, or the model was trained on test images.

    Example:
        >>> from dermedge.workflows.export import export_all
        >>> summary = export_all("student", ["cpu"], "exported")
        >>> [bundle.path.name for bundle in summary.bundles], dict(summary.errors)
        (['small-cpu.dermedge'], {})
    """
    if teacher is not None and data is None:
        raise UsageError(
            "--teacher is for quantization-aware training, which needs images. "
            "Give --data too, or leave --teacher out."
        )
    folder = find_model(student)
    out = folder_beside(folder) if out is None else Path(out)
    targets = families() if targets is None else targets
    options = options or ExportOptions()
    model = _select_outputs(load_model_folder(folder), options)
    steps = _Steps(progress)
    session = ExportSession.open(
        model,
        options,
        data=None if data is None else TableEvaluationData(data, model.spec, steps.images),
        training_images=model.training_images,
        retrain=None
        if data is None
        else _DeferredTraining(model, data, teacher, out / CACHE / "qat", steps),
        progress=steps,
    )
    bundles: list[Bundle] = []
    errors: dict[str, DermedgeError] = {}
    for target in targets:
        # One target alone is not named, because its name would be on every line.
        steps.start(target if len(targets) > 1 else "")
        try:
            bundles.append(session.export(target, out))
        except DermedgeError as error:
            errors[target] = error
    return ExportSummary(tuple(bundles), errors)


def _select_outputs(model: TrainedModel, options: ExportOptions) -> TrainedModel:
    """Return the model with the outputs to export; training for int8 learns only these."""
    selected = select_outputs(model, options)
    # The module computes the same as a `Network` of these tasks, and is only called.
    return replace(model, module=cast("Network", selected.module), spec=selected.spec)


def find_model(path: Path | str) -> Path:
    """Return the model folder that a path names.

    Args:
        path: A model folder, or the output folder of `run`, which contains `student`.

    Raises:
        UsageError: The path is a bundle.
        DataError: The path holds neither a model nor a run.
    """
    path = Path(path)
    if path.is_file() or (path / MANIFEST).is_file():
        bundle = Bundle.open(path)
        raise UsageError(
            f"{path} is a bundle for {bundle.artifact.target}, which cannot be exported again. "
            f"Give the folder of the model {bundle.spec.name!r}."
        )
    for folder in (path, path / STUDENT):
        if any((folder / name).is_file() for name in MODEL_FILES):
            return folder
    if not path.is_dir():
        raise DataError(f"There is no folder {path}. Give the folder that training wrote.")
    raise DataError(
        f"{path} holds neither a model (student.json or teacher.json) nor a run "
        f"({STUDENT}/student.json). Give the folder that `dermedge run`, `distill` or `finetune` "
        "wrote."
    )


def folder_beside(model: Path) -> Path:
    """Return the folder that contains a model folder, relative if `model` is."""
    # `Path(".").parent` is `.`, and `resolve` would make a relative path absolute.
    return Path(os.path.normpath(model / ".."))


def next_command(bundle: Bundle) -> str:
    """Return the command to run after an export.

    Args:
        bundle: The new bundle.
    """
    todo = str(bundle.parity["device"].get("todo", ""))
    # Some targets have no command on the device yet; those bundles are verified here.
    return todo if "dermedge " in todo else f"dermedge verify {shlex.quote(str(bundle.path))}"


@dataclass(frozen=True)
class _DeferredTraining:
    """Quantization-aware training that is imported on first use.

    Most exports never train, and training needs the extra `train`. The object is a
    `dermedge_export.context.Retrain`.
    """

    model: TrainedModel
    data: Path | str
    teacher: Path | str | None
    folder: Path
    progress: Progress

    def __call__(
        self, module: "nn.Module", calibration: Calibration, candidate: Candidate
    ) -> "nn.Module":
        try:
            from dermedge.train.qat import train_quantized
        except ImportError as error:
            raise MissingExtraError(
                error.name or "lightning-fabric", "train", "Quantization-aware training"
            ) from error
        return train_quantized(
            module,
            calibration,
            candidate,
            student=self.model,
            data=self.data,
            folder=self.folder,
            teacher=self.teacher,
            progress=self.progress,
        )


class _Steps:
    """A progress callback that shows counts of images under the name of the step."""

    def __init__(self, progress: Progress | None) -> None:
        self._report = progress or no_progress
        self._note, self._prefix = "images", ""

    def start(self, target: str) -> None:
        """Name the target in every following note; an empty name is left out."""
        self._prefix = f"{target}: " if target else ""

    def __call__(self, done: int, total: int, note: str) -> None:
        count = f" ({done + 1}/{total})" if total > 1 and done < total else ""
        self._note = f"{self._prefix}{note}{count}"
        self._report(done, total, self._note)

    def images(self, done: int, total: int, note: str) -> None:
        """Report a count of images under the name of the current step."""
        self._report(done, total, self._note)
