"""`distill`: train a compact student from a teacher's outputs, by the terms of a recipe.

The teacher runs once on a few fixed views of each image; see `teacher_cache`. Each epoch
trains on one of these views, rotated or mirrored at random, which does not change a
lesion's diagnosis.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dermedge.models.backbone import Backbone
from dermedge.models.initialize import choose_backbone, is_prunable
from dermedge.models.model_folder import TrainedModel
from dermedge.models.new_spec import make_spec
from dermedge.train.distill_recipe import DEFAULT_RECIPE, DistillRecipe, read_recipe
from dermedge.train.distillation_loss import EXTRA, DistillationLoss
from dermedge.train.distributed import rank, start_processes
from dermedge.train.ensemble import calibrate
from dermedge.train.lineage import make_data_lineage, make_model_lineage
from dermedge.train.options import TrainingOptions
from dermedge.train.run_record import CACHE, RunRecord
from dermedge.train.samples import RowIndices, Samples, read_samples
from dermedge.train.teacher_cache import TeacherCache
from dermedge.train.teachers import Teacher, describe_teacher, load_teacher, save_ensemble
from dermedge.train.train_model import by_steps, describe_training, train_model
from dermedge.train.training_data import Batches, Loss, TrainingBatch, TrainingData
from dermedge_runtime.errors import UsageError
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec

T = TypeVar("T", np.uint8, np.float32)


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainingOptions):
    """Options of `distill`, besides those of `TrainingOptions`.

    Attributes:
        init: Initial weights. `auto` prunes the teacher if the student is a narrower
            model of its family, and otherwise starts from random weights. The other
            values are those of `TrainingOptions`.
        unlabelled: Folders or table files of further data sets. All of their rows are
            used for training, without their labels.
        recipe: Losses and their weights: a preset of `RECIPES`, a TOML or JSON file, or a
            `DistillRecipe`.
        views: Fixed views of each image that the teacher runs on. More views cost more
            of the teacher's time and of the disk.
        tasks: Names of the tasks to learn, as in `FinetuneOptions`. None takes the
            teacher's. The labels of the teachers are mapped to those of the table.
        size: Side of the student's input in pixels. None takes the teacher's.
        teacher_cache: Folder of the stored views, which several runs can share. None
            stores them in the run's folder and deletes them with the last epoch.

    Raises:
        UsageError: A value is outside its range.

    Example:
        >>> DistillOptions(backbone="mobilenetv2_050", recipe="standard").views
        8
    """

    init: str = "auto"
    unlabelled: Sequence[Path | str] = ()
    recipe: str | Path | DistillRecipe = DEFAULT_RECIPE
    views: int = 8
    tasks: Sequence[str] | None = None
    size: int | None = None
    teacher_cache: Path | str | None = None

    def __post_init__(self) -> None:
        """Check the recipe's name or file, and the number of views."""
        read_recipe(self.recipe)
        if self.views < 1:
            raise UsageError(f"{self.views} views allow no distillation. Give at least one view.")


def distill(
    teachers: Path | str | Sequence[Path | str],
    data: Path | str,
    out: Path | str,
    options: DistillOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train a student from a teacher's outputs and the labels of a table.

    The loss is the weighted sum of the recipe's terms; see `RECIPES`. Rows without a
    label, and all rows of `unlabelled`, count in the terms of the teacher only.
    Unless the options say otherwise, the student has the teacher's tasks and size.

    The views of the train images and the teacher's outputs are stored once, so an epoch
    costs the student alone.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.

    Args:
        teachers: Model folder of the teacher, several, or the folder of an ensemble.
            Several are averaged as by `make_ensemble`, and `out/ensemble` names them.
        data: Folder or table file of a data set. The student trains on its train split,
            and its val split stops training early.
        out: Folder for the student, its `run.json` and, while training, its checkpoint.
        options: Network, loss and schedule.
        overwrite: Replace another run in `out`.
        progress: Called after every batch of the teacher, then after every step.

    Raises:
        DataError: A table cannot be read or lacks labels, a teacher's folder is
            damaged, or its labels do not map to the student's.
        DermedgeError: The disk has too little space for the stored views.
        UsageError: The recipe is invalid, the backbone or the initial weights do not
            exist or do not fit, the preprocessing of the teachers differs in more than
            size, or `out` holds another run and `overwrite` is false.

    Example:
        >>> from dermedge.train.loop import Schedule
        >>> options = DistillOptions(
        ...     backbone="test_efficientnet", views=1, schedule=Schedule(epochs=1)
        ... )
        >>> student = distill("teacher", "lesions", "distilled", options)
        >>> student.role
        'student'
    """
    progress = start_processes(progress)
    options = options or DistillOptions()
    recipe = read_recipe(options.recipe)
    teacher = load_teacher(teachers)
    options = replace(options, init=_choose_init(options, teacher))
    backbone = choose_backbone(
        options.backbone, options.backbone_args, options.init, options.stages
    )
    given = teacher.spec.tasks if options.tasks is None else None
    labelled, tasks = read_samples(data, given, wanted=options.tasks)
    teacher = teacher.fit_to(tasks, options.size or teacher.size)
    unlabelled = [read_samples(table, tasks)[0] for table in options.unlabelled]
    samples = append_unlabelled(labelled, unlabelled)
    spec = _make_student_spec(options, backbone, teacher, samples, recipe)
    settings = {
        "data": [table.table_digest for table in (labelled, *unlabelled)],
        "teacher": teacher.digest,
        **describe_training(
            options,
            samples,
            backbone,
            spec,
            recipe=recipe.to_json(),
            views=options.views,
        ),
    }
    run = RunRecord(Path(out), "distill", settings, samples.images_digest, "student")
    finished = run.finished(overwrite=overwrite)
    if finished is not None:
        return finished
    if not teacher.calibrated:
        teacher = calibrate(teacher, data, labelled, progress)
        spec = replace(spec, lineage={**spec.lineage, "teacher": describe_teacher(teacher)})

    def objective(training: TrainingData) -> tuple[Batches, Loss]:
        if len(teacher.members) > 1 and rank() == 0:
            save_ensemble(teacher, run.folder / "ensemble")
        cache = TeacherCache.open(
            Path(options.teacher_cache or run.folder / CACHE),
            samples,
            teacher,
            views=options.views,
            masked=training.masks is not None,
            maps="map" in recipe.needs,
        )
        cache.fill(training.train, progress)
        if "embedding" in recipe.needs:
            cache = cache.whiten(training.train)
        _, _, example = cache.read(training.train[:1], 0, recipe.needs)
        loss = DistillationLoss(
            tasks,
            recipe,
            training.log_prior(balance=options.balance),
            {name: example[EXTRA[name]].shape[1] for name in recipe.needs},
        )
        return (lambda epoch: distillation_batches(training, cache, epoch, recipe.needs)), loss

    return train_model(
        run,
        samples,
        spec,
        backbone,
        options,
        by_steps(run, options, objective, progress),
        teacher=teacher,
        overwrite=overwrite,
    )


def _choose_init(options: DistillOptions, teacher: Teacher) -> str:
    """Return the student's initial weights, with `auto` resolved."""
    init = options.init
    if init == "auto":
        wide = [
            member
            for member in teacher.members
            if is_prunable(
                member.model.backbone, options.backbone, options.backbone_args, options.stages
            )
        ]
        init = str(wide[0].folder) if wide else "none"
    if init in ("none", "hub") and options.backbone is None:
        raise UsageError("No student backbone is named. Pass --backbone with a timm name.")
    return init


def _make_student_spec(
    options: DistillOptions,
    backbone: Backbone,
    teacher: Teacher,
    samples: Samples,
    recipe: DistillRecipe,
) -> Spec:
    lineage = {
        "teacher": describe_teacher(teacher),
        "student": {
            **make_model_lineage(backbone, options.init),
            "recipe": recipe.to_json(),
        },
        "data": make_data_lineage(samples),
    }
    name = options.name or f"{backbone.name}-student"
    return make_spec(name, teacher.spec.tasks, teacher.spec.preprocess, lineage)


def distillation_batches(
    data: TrainingData, cache: TeacherCache, epoch: int, needs: Collection[str] = ()
) -> Iterator[TrainingBatch]:
    """Return the batches of one epoch.

    A batch is a tuple: images, a target per task, a teacher output per task, and the
    teacher's outputs in `needs` in the order `embedding`, `map`. Image, mask, the
    teacher's mask and its map get the same symmetry of the square.

    Args:
        data: Train rows.
        cache: Stored views, which hold all train rows.
        epoch: Index of the epoch. It selects the view, the order and the symmetries.
        needs: `embedding`, `map`, both or none.
    """
    view = epoch % cache.views
    names = [name for name in EXTRA if name in needs]
    # Views repeat every `cache.views` epochs. The symmetry makes each repetition a new
    # image, and the third seed keeps it independent of the order of the rows.
    symmetries = np.random.default_rng((data.seed, epoch, 1)).integers(
        8, size=len(data.samples.image_ids)
    )

    def transform(arrays: NDArray[T], rows: RowIndices) -> NDArray[T]:
        pairs = zip(arrays, rows, strict=True)
        return np.stack([apply_symmetry(array, int(symmetries[row])) for array, row in pairs])

    def transform_maps(maps: NDArray[T], rows: RowIndices) -> NDArray[T]:
        turned = transform(np.moveaxis(maps, 1, -1), rows)
        return np.ascontiguousarray(np.moveaxis(turned, -1, 1))

    def make_batch(rows: RowIndices) -> TrainingBatch:
        pixels, masks, outputs = cache.read(rows, view, names)
        targets = data.targets(rows, None if masks is None else transform(masks, rows))
        # NaN marks a task that no teacher has.
        unknown = np.full((len(rows), 1), np.nan, np.float32)
        answers = [outputs.get(task.name, unknown) for task in data.spec.tasks]
        answers += [outputs[EXTRA[name]] for name in names]
        # Only masks and maps have places that move with the pixels.
        moved = [transform_maps(one, rows) if one.ndim == 4 else one for one in answers]
        soft = map(torch.from_numpy, moved)
        return torch.from_numpy(transform(pixels, rows)), *targets, *soft

    return prefetch(make_batch, data.batch_rows(epoch))


def apply_symmetry(pixels: NDArray[T], symmetry: int) -> NDArray[T]:
    """Apply one of the eight symmetries of the square to an image [S, S, ...].

    Args:
        pixels: The image.
        symmetry: 0 to 7: quarter turns, and from 4 on a reflection too.

    Example:
        >>> apply_symmetry(np.array([[1, 2], [3, 4]], np.uint8), 1).tolist()
        [[2, 4], [1, 3]]
    """
    pixels = np.rot90(pixels, symmetry % 4)
    return np.ascontiguousarray(pixels[:, ::-1] if symmetry >= 4 else pixels)


def append_unlabelled(samples: Samples, tables: Sequence[Samples]) -> Samples:
    """Append the rows of unlabelled tables as train rows without labels.

    An image that is already there, by its digest, is skipped.
    """
    seen = set(samples.digests)
    for table in tables:
        new = [i for i, digest in enumerate(table.digests) if digest not in seen]
        seen.update(table.digests)
        samples = replace(
            samples,
            image_ids=samples.image_ids + tuple(table.image_ids[i] for i in new),
            paths=samples.paths + tuple(table.paths[i] for i in new),
            digests=samples.digests + tuple(table.digests[i] for i in new),
            labels=np.concatenate([samples.labels, np.full(len(new), -1)]),
            malignant=np.concatenate([samples.malignant, np.full(len(new), np.nan, np.float32)]),
            severity=np.concatenate([samples.severity, np.full(len(new), -1)]),
            masks=samples.masks + (None,) * len(new),
            split=np.concatenate([samples.split, np.full(len(new), "train")]),
            licences=tuple(sorted({*samples.licences, *table.licences})),
            modalities=np.concatenate([samples.modalities, table.modalities[new]]),
        )
    return samples
