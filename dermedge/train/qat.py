"""Train a fake-quantized network to match its fp32 student (QAT)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from dermedge.models.folder_metadata import WEIGHTS
from dermedge.models.model_folder import TrainedModel, load_model_folder
from dermedge.models.network import Network
from dermedge.models.ood import without_untrained
from dermedge.train.loop import Schedule
from dermedge.train.losses import distillation_loss, soft_cross_entropy
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import Samples, read_samples
from dermedge.train.training_data import (
    Loss,
    Score,
    TrainingBatch,
    TrainingData,
    run_network,
    train_network,
)
from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write, sha256_file, sha256_hex
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec, Task, to_json

# A few epochs at a low rate are enough, because the weights move by about one
# quantization step.
SCHEDULE = Schedule(epochs=3, lr=1e-4, weight_decay=0.0, warmup=0.5, ema_decay=0.99)


@dataclass(frozen=True)
class QatOptions:
    """Options of quantization-aware training.

    Attributes:
        schedule: Number of epochs, batch size and learning rate.
        temperature: Temperature that softens the logits of all networks.
        teacher_weight: Share of the teacher in the loss, 0 to 1. The fp32 student has
            the rest. Without effect if there is no teacher.
        seed: Random seed for shuffling and augmentation.

    Example:
        >>> QatOptions().schedule.epochs
        3
    """

    schedule: Schedule = SCHEDULE
    temperature: float = 2.0
    teacher_weight: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class _ImitatedNetwork:
    """A frozen network whose outputs are imitated, with its weight in the loss."""

    weight: float
    network: Network


def train_quantized(
    module: nn.Module,
    calibration: Calibration,
    candidate: Candidate,
    *,
    student: TrainedModel,
    data: Path | str,
    folder: Path,
    teacher: Path | str | None = None,
    options: QatOptions | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Train a fake-quantized student in place and return it.

    The loss is the divergence from the fp32 student's softened logits and, with
    `teacher_weight`, from the teacher's, on augmented views of the train split. Labels
    are not read. BatchNorms are folded or frozen. The epoch whose val outputs are
    closest to the fp32 student's is kept, or the start if no epoch is closer.

    Every run has its own folder under `folder`. The weights of a finished run are read
    from there. A killed run continues to the same weights.

    With the keyword arguments bound, this function is a
    `dermedge_export.context.Retrain`.

    Args:
        module: Result of `dermedge_export.quantization.qat.fake_quantized`.
        calibration: Images from which the quantization ranges of the module were set.
        candidate: The quantized candidate that is exported.
        student: The fp32 student, which stays unchanged.
        data: Folder or table file of a data set.
        folder: Folder of all runs.
        teacher: Model folder of the teacher that the student was distilled from.
        options: Loss and schedule.
        progress: Called after every step.

    Raises:
        DataError: The table has no train or val rows, or names an image that cannot be
            read.
        UsageError: The teacher lacks a task of the student, or has another input size.
    """
    options = options or QatOptions()
    start = _serialize(module)
    # The head of the task `ood` holds statistics in buffers, which no loss changes.
    spec = without_untrained(student.spec)
    samples, tasks = read_samples(data, spec.tasks)
    settings = _make_settings(samples, start, calibration, candidate, teacher, options)
    # The folder of a run is named by its fingerprint, which is known only after the run
    # is described.
    run = RunRecord(folder, "qat", settings, samples.images_digest, student.role)
    run = replace(run, folder=folder / run.fingerprint[:16])
    path = run.folder / WEIGHTS
    if path.is_file():
        module.load_state_dict(load_file(path))
        return module
    training = TrainingData.prepare(
        samples, spec, batch_size=options.schedule.batch_size, seed=options.seed
    )
    imitated_networks = _copy_imitated(student, teacher, options.teacher_weight)
    score = make_agreement_score(training, imitated_networks[0].network)
    before = score(module)
    run.open(overwrite=False)
    fitted = train_network(
        module,
        training,
        run,
        options.schedule,
        batches=training.labelled_batches,
        loss=_make_loss(tasks, imitated_networks, options.temperature),
        score=score,
        progress=progress,
    )
    # Training may reduce the agreement, for example with a bad schedule. Then the
    # untrained start is exported.
    if fitted.metrics["score"] < before["score"]:
        module.load_state_dict(load(start))
    atomic_write(path, _serialize(module))
    run.close(fitted, before=before)
    return module


def _make_settings(
    samples: Samples,
    start: bytes,
    calibration: Calibration,
    candidate: Candidate,
    teacher: Path | str | None,
    options: QatOptions,
) -> dict[str, Any]:
    """Return the settings that identify a run."""
    return {
        "data": samples.table_digest,
        "images": samples.images_digest,
        "start": sha256_hex(start),
        "teacher": None if teacher is None else sha256_file(Path(teacher) / WEIGHTS),
        "candidate": to_json(candidate),
        "calibration": calibration.digest,
        "schedule": asdict(options.schedule),
        "temperature": options.temperature,
        "teacher_weight": options.teacher_weight,
        "seed": options.seed,
    }


def _copy_imitated(
    student: TrainedModel, teacher: Path | str | None, teacher_weight: float
) -> list[_ImitatedNetwork]:
    """Return copies of the networks to imitate, the fp32 student first."""
    if teacher is None:
        return [_ImitatedNetwork(1.0, _copy_network(student))]
    model, spec = load_model_folder(teacher), without_untrained(student.spec)
    # An export may leave tasks of the student out, which the teacher still has.
    missing = [task.name for task in spec.tasks if task not in model.spec.tasks]
    if missing or model.spec.preprocess.size != spec.preprocess.size:
        raise UsageError(
            f"The teacher {model.spec.name!r} has other tasks or another input size than "
            f"{spec.name!r}. Give the teacher that the student was distilled from, or none."
        )
    return [
        _ImitatedNetwork(1 - teacher_weight, _copy_network(student)),
        _ImitatedNetwork(teacher_weight, _copy_network(model)),
    ]


def _copy_network(model: TrainedModel) -> Network:
    return copy.deepcopy(model.module).eval()


def _make_loss(
    tasks: Sequence[Task], imitated_networks: Sequence[_ImitatedNetwork], temperature: float
) -> Loss:
    """Return a loss: the weighted divergence from the imitated networks' outputs."""

    def loss(network: nn.Module, batch: TrainingBatch) -> Tensor:
        image = batch[0]
        outputs = network(image)
        total = image.new_zeros((), dtype=torch.float32)
        for imitated in imitated_networks:
            with torch.no_grad():
                wanted = imitated.network.to(image.device)(image)
            for task in tasks:
                divergence = distillation_loss(
                    task.kind, outputs[task.name], wanted[task.name], temperature
                )
                total = total + imitated.weight * divergence
        return total

    return loss


def make_agreement_score(data: TrainingData, student: Network) -> Score:
    """Return a function that compares a network's val outputs with the student's.

    With a diagnosis, the score is exp(-KL divergence) of its classes. Without one, it
    is exp(-sum of squared differences) of all outputs. Equal outputs score 1.

    Args:
        data: Training data, whose val rows are read here, once.
        student: The fp32 student.
    """
    # The student never changes, so its outputs are computed once.
    pixels = data.images(data.val)
    wanted = _to_tensors(run_network(student, pixels))

    def score(network: nn.Module) -> Mapping[str, float]:
        return _compare_outputs(data.spec, _to_tensors(run_network(network, pixels)), wanted)

    return score


def _compare_outputs(
    spec: Spec, outputs: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, float]:
    if spec.diagnosis is None:
        names = [task.name for task in spec.tasks]
        errors = [(outputs[name] - wanted[name]).square().mean() for name in names]
        return {"score": float(torch.exp(-torch.as_tensor(sum(errors))))}
    logits, expected = outputs[spec.diagnosis.name], wanted[spec.diagnosis.name]
    divergence = soft_cross_entropy(logits, expected, 1.0)
    agreement = (logits.argmax(1) == expected.argmax(1)).float().mean()
    return {
        "score": (-divergence).exp().item(),
        "kl": divergence.item(),
        "top1": agreement.item(),
    }


def _to_tensors(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in outputs.items()}


def _serialize(module: nn.Module) -> bytes:
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    content: bytes = save(weights)
    return content
