"""`make_ensemble`: calibrate several teachers on val, and name them in one folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.evaluation.table_predictions import table_predictions
from dermedge.models.folder_metadata import ENSEMBLE
from dermedge.train.ensemble_file import write_ensemble
from dermedge.train.samples import Samples, read_samples
from dermedge.train.supervision import check_val, val_metrics
from dermedge.train.teachers import Teacher, load_teacher
from dermedge_export.evaluation.postprocessing import fit_postprocessing
from dermedge_runtime.files import check_free
from dermedge_runtime.progress import Progress


def make_ensemble(
    teachers: Sequence[Path | str],
    data: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Teacher:
    """Write a folder that names several teachers, which `distill` takes as one.

    The temperature of each teacher and task is fitted on val. The ensemble's
    probabilities are the mean of its members' calibrated probabilities. The models
    themselves stay where they are; the folder names them relative to itself.

    Args:
        teachers: Model folders.
        data: Folder or table file of a data set with a val split.
        out: Folder for `ensemble.json`.
        overwrite: Replace an `ensemble.json` in `out`.
        progress: Called with the number of val images done.

    Returns:
        The ensemble.

    Raises:
        DataError: A folder holds no model, labels cannot be mapped, or the table has no
            val row with a label.
        UsageError: The preprocessing of the teachers differs in more than size, or
            `out` holds an ensemble and `overwrite` is false.

    Example:
        >>> ensemble = make_ensemble(["teacher", "student"], "lesions", "ensemble")
        >>> sorted(ensemble.members[0].temperatures)
        ['diagnosis', 'malignancy']
        >>> load_teacher("ensemble").digest == ensemble.digest
        True
    """
    path = Path(out) / ENSEMBLE
    check_free(path, overwrite=overwrite)
    teacher = load_teacher(teachers)
    samples, _ = read_samples(data, teacher.spec.tasks)
    calibrated = calibrate(teacher, data, samples, progress)
    write_ensemble(calibrated.members, calibrated.metrics, path.parent)
    return calibrated


def calibrate(
    teacher: Teacher, data: Path | str, samples: Samples, progress: Progress | None = None
) -> Teacher:
    """Fit the temperatures of an ensemble's members on val.

    Each member gets the images with its own preprocessing.

    Args:
        teacher: The ensemble.
        data: Folder or table file.
        samples: The same table for the tasks of the ensemble.
        progress: Called with the number of val images done.

    Returns:
        The calibrated ensemble, with its metrics on val.

    Raises:
        DataError: No val row has a label of the ensemble's first task.
    """
    tasks, val = teacher.spec.tasks, samples.rows("val")
    check_val(tasks, samples, val)
    table = with_split(read_table(data)).select_split("val")
    members, parts = [], []
    for member in teacher.members:
        spec = member.model.spec
        predictions = table_predictions(table, spec, member.run, progress=progress)
        fitted = fit_postprocessing(predictions, spec)
        temperatures = {
            name: task.temperature for name, task in fitted.items() if task.temperature is not None
        }
        members.append(replace(member, temperatures=temperatures))
        parts.append(predictions.outputs)
    calibrated = replace(teacher, members=tuple(members), calibrated=True)
    metrics = val_metrics(tasks, calibrated.combine(parts), samples, val, None)
    return replace(calibrated, metrics=metrics)
