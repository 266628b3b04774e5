"""`finetune`: train a timm backbone with task heads on a table of labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from dermedge.models.folder_metadata import Role
from dermedge.models.initialize import choose_backbone
from dermedge.models.model_folder import TrainedModel
from dermedge.models.network import Network
from dermedge.models.new_spec import make_preprocess, make_spec
from dermedge.train.distill_recipe import Weighting, check_weighting
from dermedge.train.distributed import start_processes
from dermedge.train.frozen import check_heads, fit_heads
from dermedge.train.lineage import make_data_lineage, make_model_lineage
from dermedge.train.loop import FitResult
from dermedge.train.options import TrainingOptions
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import read_samples
from dermedge.train.train_model import by_steps, describe_training, train_model
from dermedge.train.training_data import Batches, Loss, TrainingData
from dermedge.train.training_loss import LabelledLoss
from dermedge_runtime.errors import UsageError
from dermedge_runtime.progress import Progress


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainingOptions):
    """Options of `finetune`, besides those of `TrainingOptions`.

    Attributes:
        tasks: Names of the tasks to learn: `diagnosis`, `malignancy`, `severity`,
            `segmentation`, `embedding`. None learns the diagnosis and the malignancy if
            the table has them, and otherwise the severity.
        size: Side of the network's square input in pixels.
        fit: Conversion of a rectangle to a square: `crop`, `pad` or `stretch`.
        role: `teacher` or `student`. It names the JSON file of the model folder.
        task_weights: `uniform` sums the losses of the tasks. `uncertainty` learns a
            weight per task; see `TaskWeights`.
        freeze: Train only the heads, on features of the frozen backbone; see
            `fit_heads`. Of the schedule, nothing is used.

    Raises:
        UsageError: The weighting or the role is unknown.

    Example:
        >>> options = FinetuneOptions(backbone="mobilenetv2_100", size=224)
        >>> options.role, options.schedule.epochs
        ('teacher', 12)
    """

    tasks: Sequence[str] | None = None
    size: int = 160
    fit: str = "crop"
    role: Role = "teacher"
    task_weights: Weighting = "uniform"
    freeze: bool = False

    def __post_init__(self) -> None:
        """Check the weighting and the role."""
        check_weighting(self.task_weights)
        if self.role not in get_args(Role):
            raise UsageError(f"Unknown role {self.role!r}. Use one of {', '.join(get_args(Role))}.")


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
    model is returned. A killed run continues. Processes that `torchrun` started work on
    one batch together.

    Args:
        data: Folder or table file of a data set.
        out: Folder for the model, its `run.json` and, while training, its checkpoint.
        options: Network, tasks and schedule.
        overwrite: Replace another run in `out`.
        progress: Called after every step.

    Raises:
        DataError: The table has no train or val rows, lacks the labels of the tasks, or
            names an image that cannot be read.
        UsageError: The backbone or the initial weights do not exist or do not fit, a
            frozen backbone is asked to learn masks, or `out` holds another run and
            `overwrite` is false.

    Example:
        >>> from dermedge.train.loop import Schedule
        >>> options = FinetuneOptions(
        ...     backbone="test_efficientnet", size=32, schedule=Schedule(epochs=1)
        ... )
        >>> model = finetune("lesions", "finetuned", options)
        >>> model.spec.name
        'test_efficientnet-teacher'
    """
    progress = start_processes(progress)
    options = options or FinetuneOptions()
    samples, tasks = read_samples(data, wanted=options.tasks)
    if options.freeze:
        check_heads(tasks)
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
    own: dict[str, object] = {"role": options.role}
    if options.task_weights != "uniform":  # so that earlier runs keep their fingerprint
        own["task_weights"] = options.task_weights
    if options.freeze:
        own["freeze"] = True
    settings = {
        "data": samples.table_digest,
        **describe_training(options, samples, backbone, spec, **own),
    }
    run = RunRecord(Path(out), "finetune", settings, samples.images_digest, options.role)

    def objective(training: TrainingData) -> tuple[Batches, Loss]:
        log_prior = training.log_prior(balance=options.balance)
        return training.labelled_batches, LabelledLoss(tasks, log_prior, options.task_weights)

    def fit_frozen(network: Network, training: TrainingData) -> FitResult:
        model = TrainedModel(network, spec, backbone, options.role)
        return fit_heads(model, training, run, balance=options.balance, progress=progress)

    train = fit_frozen if options.freeze else by_steps(run, options, objective, progress)
    return train_model(run, samples, spec, backbone, options, train, overwrite=overwrite)
