"""The verb `export`; a module of its own, because it needs neither what trains nor what draws reports."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.models import TrainedModel, load_model_folder
from dermedge_export import export as exporter
from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import Retrain
from dermedge_export.target import families
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.container import MANIFEST
from dermedge_runtime.errors import DermedgeError, MissingExtraError, UsageError
from dermedge_runtime.progress import Progress, no_progress

ALL = "all"


def export(
    student: Path | str,
    target: str,
    out: Path | str,
    *,
    data: Path | str | None = None,
    precision: str | None = None,
    engine: str | None = None,
    teacher: Path | str | None = None,
    budget: float = 30.0,
    dynamic_batch: bool = False,
    allow_parity_failure: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a student's or teacher's folder; see `dermedge_export.export.export`.

    Args:
        student: the folder that training wrote.
        target: name of a target.
        out: folder to write `NAME-TARGET.dermedge` into.
        data: a table: its train split calibrates quantization, postprocessing is fitted on val, which also chooses
            among candidates, and the gate judges the winner on test.
        precision: one of the target's; None is its first, `auto` tries all.
        engine: only artifacts for this engine.
        teacher: folder of the model that quantization-aware training learns from, beside the student itself.
        budget: minutes after which no further candidate is begun.
        dynamic_batch: leave the batch size open.
        allow_parity_failure: write the bundle although the gate failed.
        overwrite: replace an older bundle.
        progress: told what is being done.
    """
    for _, made in export_all(
        student,
        [target],
        out,
        data=data,
        precision=precision,
        engine=engine,
        teacher=teacher,
        budget=budget,
        dynamic_batch=dynamic_batch,
        allow_parity_failure=allow_parity_failure,
        overwrite=overwrite,
        progress=progress,
    ):
        if isinstance(made, DermedgeError):
            raise made
        bundle = made
    return bundle


def export_all(
    student: Path | str,
    targets: Sequence[str],
    out: Path | str,
    *,
    data: Path | str | None = None,
    precision: str | None = None,
    engine: str | None = None,
    teacher: Path | str | None = None,
    budget: float = 30.0,
    dynamic_batch: bool = False,
    allow_parity_failure: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Iterator[tuple[str, Bundle | DermedgeError]]:
    """Export one student for several targets, which share traces and the student's answers; arguments as of `export`.

    Yields:
        Each target with its bundle, or with why there is none.
    """
    if teacher is not None and data is None:
        raise UsageError(
            "--teacher is for quantization-aware training, which needs --data: give both or neither."
        )
    _refuse_bundle(Path(student))
    model = load_model_folder(student)
    steps = _Steps(progress)
    shop = exporter.ExportSession.open(
        model,
        data=TableEvaluationData(data, model.spec, steps.images) if data is not None else None,
        training_images=model.training_images,
        dynamic_batch=dynamic_batch,
        retrain=_retrain(model, data, teacher, Path(out), steps) if data is not None else None,
    )
    for target in targets:
        steps.target = f"{target}: " if len(targets) > 1 else ""
        try:
            yield (
                target,
                shop.export(
                    target,
                    out,
                    precision=precision,
                    engine=engine,
                    allow_parity_failure=allow_parity_failure,
                    budget_minutes=budget,
                    overwrite=overwrite,
                    progress=steps,
                ),
            )
        except DermedgeError as error:
            yield target, error


def _refuse_bundle(path: Path) -> None:
    """Say what to give instead to whoever wants to export a bundle; one of another schema is told so first."""
    if path.is_file() or (path / MANIFEST).is_file():
        made = Bundle.open(path)
        raise UsageError(
            f"{path} is a bundle for {made.artifact.target}, which is never changed or exported again: give the folder "
            f"of the student {made.spec.name!r} that it was made of."
        )


def targets_of(name: str) -> list[str]:
    """The targets that a name stands for: `all` is one of each family."""
    return families() if name == ALL else [name]


def _retrain(
    model: TrainedModel, data: Path | str, teacher: Path | str | None, out: Path, progress: Progress
) -> Retrain:
    """Quantization-aware training, imported when it is asked for: it needs the extra `train`."""

    def retrain(module: Any, calibration: Calibration, candidate: Candidate) -> Any:
        try:
            from dermedge.train.qat import QuantizationAwareTraining
        except ImportError as error:
            raise MissingExtraError(
                error.name or "lightning-fabric", "train", "Quantization-aware training"
            ) from error
        training = QuantizationAwareTraining(
            model, data, teacher=teacher, folder=out / exporter.CACHE / "qat", progress=progress
        )
        return training(module, calibration, candidate)

    return retrain


class _Steps:
    """One line of progress from two sources: what is being done, and how many images of it."""

    def __init__(self, progress: Progress | None) -> None:
        self.tell: Progress = progress or no_progress
        self.note, self.target = "images", ""

    def __call__(self, done: int, total: int, note: str) -> None:
        step = f" ({done + 1}/{total})" if total > 1 and done < total else ""
        self.note = f"{self.target}{note}{step}"
        self.tell(done, total, self.note)

    def images(self, done: int, total: int, note: str) -> None:
        """Told by the evidence, image by image."""
        self.tell(done, total, self.note)
