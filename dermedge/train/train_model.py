"""Train one model on a table: the part that `finetune` and `distill` share."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeAlias

from dermedge.models.backbone import Backbone
from dermedge.models.model_folder import TrainedModel, load_model_folder, save_model_folder
from dermedge.models.network import Network, count_parameters
from dermedge.models.ood import without_untrained
from dermedge.train.distributed import explained_loss_of_ranks, rank, wait_for_ranks
from dermedge.train.lineage import (
    collect_split,
    describe_backbone,
    describe_masks,
    digest_init,
    read_init_split,
)
from dermedge.train.loop import FitResult
from dermedge.train.ood import check_foreign, read_foreign, with_ood
from dermedge.train.options import TrainingOptions
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import Samples, read_samples
from dermedge.train.supervision import check_val
from dermedge.train.teachers import Teacher
from dermedge.train.training_data import (
    Batches,
    Loss,
    TrainingData,
    make_val_score,
    start_network,
    train_network,
)
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec, to_json

Objective: TypeAlias = Callable[[TrainingData], tuple[Batches, Loss]]
"""Function that returns the batches of each epoch and the loss of a batch."""
Train: TypeAlias = Callable[[Network, TrainingData], FitResult]
"""Function that trains a network in place, once the run's folder exists."""


def by_steps(
    run: RunRecord, options: TrainingOptions, objective: Objective, progress: Progress | None
) -> Train:
    """Return a function that trains the whole network by the steps of an objective.

    Args:
        run: Record of the run.
        options: Schedule.
        objective: Called once the run's folder exists.
        progress: Called after every step.
    """

    def train(network: Network, training: TrainingData) -> FitResult:
        batches, loss = objective(training)
        return train_network(
            network,
            training,
            run,
            options.schedule,
            batches=batches,
            loss=loss,
            score=make_val_score(training),
            progress=progress,
        )

    return train


def describe_training(
    options: TrainingOptions, samples: Samples, backbone: Backbone, spec: Spec, **own: object
) -> dict[str, Any]:
    """Return the recorded settings of a training. Their digest identifies the run.

    Args:
        options: The options that both verbs have.
        samples: The table.
        backbone: The new model's backbone.
        spec: The new model's tasks and preprocessing.
        own: Further settings of the verb.
    """
    foreign = [read_samples(table, ())[0] for table in options.foreign]
    digests = [[table.table_digest, table.images_digest] for table in foreign]
    return {
        "backbone": describe_backbone(backbone),
        "init": digest_init(options.init),
        # The lineage names files and licences, which do not change what is computed.
        "spec": to_json(replace(spec, lineage={})),
        **own,
        "balance": options.balance,
        "schedule": asdict(options.schedule),
        "seed": options.seed,
        # Only where it changes the model, so that finished teachers are still recognized.
        **({"ood": True} if options.ood and own.get("role") != "teacher" else {}),
        **({"foreign": digests} if digests else {}),
        **describe_masks(samples, spec.tasks),
    }


def train_model(
    run: RunRecord,
    samples: Samples,
    spec: Spec,
    backbone: Backbone,
    options: TrainingOptions,
    train: Train,
    *,
    teacher: Teacher | None = None,
    embedding_width: int | None = None,
    overwrite: bool,
) -> TrainedModel:
    """Return the finished model of a run, or train it and finish the run.

    Args:
        run: Record of the run, not yet open.
        samples: The table.
        spec: The new model's tasks and preprocessing. A student also gets the task
            `ood`, unless the options say otherwise.
        backbone: The new model's backbone.
        options: Initial weights, schedule and seed.
        train: Trains the network.
        teacher: Teacher of the new model. Its splits and its val metrics are recorded.
        embedding_width: Width of the embedding; see `DistillOptions`.
        overwrite: Replace another run in the folder.

    Raises:
        DataError: The table lacks rows or labels, a table of foreign images cannot be
            used, or the initial weights do not fit.
        UsageError: The folder holds another run, the network cannot be created, or the
            options name foreign images for a model without the task `ood`.
    """
    fits_ood = options.ood and run.role == "student"
    foreign = read_foreign(options, samples, fits=fits_ood)
    finished = run.finished(overwrite=overwrite)
    if finished is not None:
        return finished
    spec = without_untrained(spec)
    training = TrainingData.prepare(
        samples, spec, batch_size=options.schedule.batch_size, seed=options.seed
    )
    check_val(spec.tasks, samples, training.val)
    check_foreign(foreign, spec.preprocess)
    # The network is created before the folder, so that an unusable backbone or weights
    # file leaves no folder behind.
    network = start_network(training, backbone, options.init, embedding_width)
    members = () if teacher is None else teacher.members
    earlier = [member.model.split for member in members]
    split = collect_split(samples, *earlier, read_init_split(options.init))
    with explained_loss_of_ranks():
        # All ranks have looked at the folder before rank 0 changes it.
        wait_for_ranks()
        if rank() == 0:
            run.open(overwrite=overwrite)
        wait_for_ranks()
        fitted = train(network, training)
        if rank() != 0:
            wait_for_ranks()
            return load_model_folder(run.folder)
    model = TrainedModel(network, spec, backbone, run.role, split=split)
    if fits_ood:
        model = with_ood(model, training, foreign)
    results = {} if teacher is None else {"teacher_val": dict(teacher.metrics)}
    saved = _save(model, run, fitted, results)
    wait_for_ranks()
    return saved


def _save(
    model: TrainedModel, run: RunRecord, fitted: FitResult, results: dict[str, Any]
) -> TrainedModel:
    """Save the model folder, then mark the run as finished in `run.json`.

    In this order, the folder of every finished run is complete.

    Args:
        model: The model without metrics.
        run: The open run.
        fitted: Val metrics and history.
        results: Further entries of `run.json`.

    Returns:
        The model with its metrics.
    """
    metrics = {"val": dict(fitted.metrics), "parameters": count_parameters(model.module)}
    model = replace(model, metrics=metrics)
    save_model_folder(model, run.folder)
    run.close(fitted, parameters=metrics["parameters"], **results)
    return model
