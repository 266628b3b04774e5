"""`finetune`: train a timm backbone with task heads on a table of labelled images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dermedge.models.backbone import Backbone
from dermedge.models.folder_metadata import Role
from dermedge.models.initialize import choose_backbone
from dermedge.models.model_folder import TrainedModel, save_model_folder
from dermedge.models.network import count_parameters
from dermedge.models.new_spec import make_preprocess, make_spec
from dermedge.train.lineage import (
    collect_split,
    describe_backbone,
    describe_masks,
    digest_init,
    make_data_lineage,
    make_model_lineage,
    read_init_split,
)
from dermedge.train.loop import FitResult
from dermedge.train.options import TrainingOptions
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import Samples, read_samples
from dermedge.train.supervision import check_val
from dermedge.train.training_data import (
    TrainingData,
    make_labelled_loss,
    make_val_score,
    start_network,
    train_network,
)
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec, to_json


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Options of `finetune`, besides those of `TrainingOptions`.

    Attributes:
        tasks: Names of the tasks to learn: `diagnosis`, `malignancy`, `severity`,
            `segmentation`. None learns the diagnosis and the malignancy if the table
            has them, and otherwise the severity.
        size: Side of the network's square input in pixels.
        fit: Conversion of a rectangle to a square: `crop`, `pad` or `stretch`.
        role: `teacher` or `student`. It names the JSON file of the model folder.

    Example:
        >>> options = FinetuneOptions(backbone="mobilenetv2_100", size=224)
        >>> options.role, options.schedule.epochs
        ('teacher', 12)
    """

    tasks: Sequence[str] | None = None
    size: int = 160
    fit: str = "crop"
    role: Role = "teacher"


def finetune(
    data: Path | str,
    out: Path | str,
    options: FinetuneOptions | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedModel:
    """Train a backbone with a head for each task that a table has labels for.

    The network trains on the train split. Training stops early by a metric on val. It
    is the first of these that the model has:

    - balanced accuracy of the diagnosis,
    - balanced accuracy of the malignancy,
    - quadratic weighted kappa of the severity,
    - mean Dice coefficient of the masks.

    A finished run with the same settings, data and initial weights is not repeated: its
    model is returned. A killed run continues.

    Args:
        data: Folder or table file of a data set.
        out: Folder for the model, its `run.json` and, while training, its checkpoint.
        options: Network, tasks and schedule.
        overwrite: Replace another run in `out`.
        progress: Called after every step.

    Raises:
        DataError: The table has no train or val rows, lacks the labels of the tasks, or
            names an image that cannot be read.
        UsageError: The backbone or the initial weights do not exist or do not fit, or
            `out` holds another run and `overwrite` is false.

    Example:
        >>> from dermedge.train.loop import Schedule
        >>> options = FinetuneOptions(
        ...     backbone="test_efficientnet", size=32, schedule=Schedule(epochs=1)
        ... )
        >>> model = finetune("lesions", "finetuned", options)
        >>> model.spec.name
        'test_efficientnet-teacher'
    """
    options = options or FinetuneOptions()
    samples, tasks = read_samples(data, wanted=options.tasks)
    backbone = choose_backbone(
        options.backbone, options.backbone_args, options.init, options.stages
    )
    lineage = {
        options.role: make_model_lineage(backbone, options.init),
        "data": make_data_lineage(samples),
    }
    spec = make_spec(
        options.name or f"{backbone.name}-{options.role}",
        tasks,
        make_preprocess(options.size, options.fit),
        lineage,
    )
    settings = _describe_run(options, samples, backbone, spec)
    run = RunRecord(Path(out), "finetune", options.role, settings, samples.images_digest)
    finished = run.finished(overwrite=overwrite)
    if finished is not None:
        return finished
    training = TrainingData.prepare(
        samples, spec, batch_size=options.schedule.batch_size, seed=options.seed
    )
    check_val(tasks, samples, training.val)
    # The network is created before the folder, so that an unusable backbone or weights
    # file leaves no folder behind.
    network = start_network(training, backbone, options.init)
    split = collect_split(samples, read_init_split(options.init))
    run.open(overwrite=overwrite)
    fitted = train_network(
        network,
        training,
        run,
        options.schedule,
        batches=training.labelled_batches,
        loss=make_labelled_loss(training, balance=options.balance),
        score=make_val_score(training),
        progress=progress,
    )
    model = TrainedModel(network, spec, backbone, options.role, split=split)
    return save_trained(model, run, fitted)


def _describe_run(
    options: FinetuneOptions, samples: Samples, backbone: Backbone, spec: Spec
) -> dict[str, Any]:
    """Return the recorded settings. Their digest identifies the run."""
    return {
        "data": samples.table_digest,
        "backbone": describe_backbone(backbone),
        "init": digest_init(options.init),
        # The lineage names files and licences, which do not change what is computed.
        "spec": to_json(replace(spec, lineage={})),
        "role": options.role,
        "balance": options.balance,
        "schedule": asdict(options.schedule),
        "seed": options.seed,
        **describe_masks(samples, spec.tasks),
    }


def save_trained(
    model: TrainedModel, run: RunRecord, fitted: FitResult, **results: Any
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
