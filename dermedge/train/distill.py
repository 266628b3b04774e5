"""`distill`: train a compact student from a teacher's outputs, by the terms of a recipe.

The teacher runs once on a few fixed views of each image; see `teacher_cache`. Each epoch
trains on one of these views, rotated or mirrored at random, which does not change a
lesion's diagnosis.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dermedge.models.initialize import choose_backbone, is_prunable
from dermedge.models.model_folder import TrainedModel
from dermedge.models.new_spec import make_spec
from dermedge.train.distill_recipe import (
    DEFAULT_RECIPE,
    EMBEDDING_LOSSES,
    LOGIT_LOSSES,
    DistillRecipe,
    read_recipe,
)
from dermedge.train.distillation_batches import distillation_batches
from dermedge.train.distillation_loss import EXTRA, DistillationLoss
from dermedge.train.distributed import rank, start_processes
from dermedge.train.ensemble import calibrate
from dermedge.train.ensemble_file import write_ensemble
from dermedge.train.fill_teacher_cache import fill_teacher_cache
from dermedge.train.lineage import make_data_lineage, make_model_lineage
from dermedge.train.options import TrainingOptions
from dermedge.train.run_record import CACHE, RunRecord
from dermedge.train.samples import Samples, append_unlabelled, read_samples
from dermedge.train.supervision import supervised_tasks
from dermedge.train.teacher_cache import TeacherCache
from dermedge.train.teachers import Teacher, describe_teacher, load_teacher
from dermedge.train.train_model import Objective, by_steps, describe_training, train_model
from dermedge.train.training_data import Batches, Loss, TrainingData
from dermedge_runtime.errors import UsageError
from dermedge_runtime.progress import Progress


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
        embedding_width: Width of the student's embedding, as a linear map of its pooled
            features. None takes the pooled features themselves.
        teacher_cache: Folder of the stored views, which several runs can share. None
            stores them in the run's folder and deletes them at the end of the run.

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
    embedding_width: int | None = None
    teacher_cache: Path | str | None = None

    def __post_init__(self) -> None:
        """Check the recipe's name or file, the number of views and the width."""
        read_recipe(self.recipe)
        if self.embedding_width is not None and self.embedding_width < 1:
            raise UsageError(
                f"An embedding cannot have width {self.embedding_width}. Give 1 or more."
            )
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

    The views of the train images and the teacher's outputs are stored once. The epochs
    run the student only.

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
        UsageError: The recipe is invalid or trains one of the outputs by no term, the
            backbone or the initial weights do not exist or do not fit, the
            preprocessing of the teachers differs in more than size, or `out` holds
            another run and `overwrite` is false.

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
    check_recipe(recipe, teacher, embedding_width=options.embedding_width)
    unlabelled = [read_samples(table, tasks)[0] for table in options.unlabelled]
    samples = append_unlabelled(labelled, unlabelled)
    lineage = {
        "teacher": describe_teacher(teacher),
        "student": {
            **make_model_lineage(backbone, options.init),
            "recipe": recipe.to_json(),
        },
        "data": make_data_lineage(samples, unlabelled),
    }
    name = options.name or f"{backbone.name}-student"
    spec = make_spec(name, tasks, teacher.spec.preprocess, lineage)
    width = options.embedding_width
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
            **({} if width is None else {"embedding_width": width}),
        ),
    }
    run = RunRecord(Path(out), "distill", settings, samples.images_digest, "student")
    finished = run.finished(overwrite=overwrite)
    if finished is not None:
        return finished
    if not teacher.calibrated:
        teacher = calibrate(teacher, data, labelled, progress)
        spec = replace(spec, lineage={**spec.lineage, "teacher": describe_teacher(teacher)})
    objective = _make_objective(run, samples, teacher, recipe, options, progress)
    return train_model(
        run,
        samples,
        spec,
        backbone,
        options,
        by_steps(run, options, objective, progress),
        teacher=teacher,
        embedding_width=width,
        overwrite=overwrite,
    )


def _make_objective(
    run: RunRecord,
    samples: Samples,
    teacher: Teacher,
    recipe: DistillRecipe,
    options: DistillOptions,
    progress: Progress | None,
) -> Objective:
    """Return the function that fills the teacher cache and makes batches and loss of it."""

    def objective(training: TrainingData) -> tuple[Batches, Loss]:
        if len(teacher.members) > 1 and rank() == 0:
            write_ensemble(teacher.members, teacher.metrics, run.folder / "ensemble")
        cache = TeacherCache.open(
            Path(options.teacher_cache or run.folder / CACHE),
            samples,
            teacher,
            views=options.views,
            masked=training.masks is not None,
            maps="map" in recipe.needs,
        )
        fill_teacher_cache(cache, training.train, progress)
        if "embedding" in recipe.needs:
            cache = cache.whiten(training.train)
        run.found.update(cache.describe())
        _, _, example = cache.read(training.train[:1], 0, recipe.needs)
        loss = DistillationLoss(
            training.spec.tasks,
            recipe,
            training.log_prior(balance=options.balance),
            {name: example[EXTRA[name]].shape[1] for name in recipe.needs},
        )
        return (lambda epoch: distillation_batches(training, cache, epoch, recipe.needs)), loss

    return objective


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


def check_recipe(
    recipe: DistillRecipe, teacher: Teacher, *, embedding_width: int | None = None
) -> None:
    """Check that a recipe trains every task of a student.

    Args:
        recipe: The recipe.
        teacher: The teacher, fitted to the student's tasks.
        embedding_width: Width of the student's embedding; see `DistillOptions`.

    Raises:
        UsageError: No term trains one of the tasks or the map of the embedding, or there
            is no embedding.

    Example:
        >>> check_recipe(read_recipe("hinton"), load_teacher("teacher"))
    """
    terms, tasks = {term.loss for term in recipe.active}, teacher.spec.tasks
    supervised = supervised_tasks(tasks).values() if "labels" in terms else ()
    untrained = []
    for task in tasks:
        losses = {*LOGIT_LOSSES, "mask"} if task.kind == "segment" else LOGIT_LOSSES
        trained = task in supervised or (teacher.knows(task) and bool(terms & losses))
        if task.kind == "embed":
            # The pooled features are trained by the terms of all tasks.
            trained |= embedding_width is None or bool(terms & EMBEDDING_LOSSES)
        if not trained:
            untrained.append(task.name)
    if untrained:
        raise UsageError(
            f"No term of the recipe {recipe.name!r} trains {', '.join(untrained)}. Add a term: "
            f"labels for a task with labels, embedding for an embedding, and otherwise kl with "
            "a teacher that has the task."
        )
    if embedding_width is not None and not any(task.kind == "embed" for task in tasks):
        raise UsageError(
            f"The student has no embedding to give the width {embedding_width}. Add --task "
            "embedding, or leave --embedding-width out."
        )
