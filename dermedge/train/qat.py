"""Quantization-aware training: a network with fake quantizers learns to answer as it did without them."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

from dermedge.models.model_folder import WEIGHTS, TrainedModel, load_model_folder
from dermedge.models.network import Network
from dermedge.train.finetune import Batch, Job, run_network
from dermedge.train.loop import Schedule
from dermedge.train.losses import imitation, soft_cross_entropy
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import read_samples
from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write, sha256_file, sha256_hex
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import to_json

# Short and slow: the weights are where they should be already, give or take the width of a step.
SCHEDULE = Schedule(epochs=3, lr=1e-4, weight_decay=0.0, warmup=0.5, ema_decay=0.99)


@dataclass(frozen=True)
class QuantizationAwareTraining:
    """Trains what `dermedge_export.quantization.qat.fake_quantized` makes of a student; satisfies `Retrain`.

    The loss is the divergence from the fp32 student's softened logits and, with a weight of `teacher_weight`, from the
    teacher's, on augmented views of the train split; labels are not read. BatchNorms are folded or frozen. The epoch
    whose answers on val are closest to the fp32 student's wins, the start included. Every run has a folder of its own
    under `folder`: a finished one is read from there, a killed one continues to the same weights.

    Attributes:
        student: the fp32 student; left alone.
        data: a table's folder or file.
        folder: where runs are kept.
        teacher: a model's folder.
        schedule: length and speed.
        temperature: softens the logits of all.
        teacher_weight: share of the teacher in the loss, 0 to 1.
        seed: of order and augmentation.
        progress: told after every step.
    """

    student: TrainedModel
    data: Path | str
    folder: Path
    teacher: Path | str | None = None
    schedule: Schedule = SCHEDULE
    temperature: float = 2.0
    teacher_weight: float = 0.25
    seed: int = 0
    progress: Progress | None = None

    def __call__(self, module: Any, calibration: Calibration, candidate: Candidate) -> Any:
        """Train `module` in place and return it.

        Raises:
            DataError: the table cannot be trained on.
            UsageError: the teacher does another task than the student.
        """
        spec, start = self.student.spec, _bytes(module)
        samples, tasks = read_samples(self.data, spec.tasks)
        settings = {
            "data": samples.table_digest,
            "images": samples.images_digest,
            "start": sha256_hex(start),
            "teacher": None if self.teacher is None else sha256_file(Path(self.teacher) / WEIGHTS),
            "candidate": to_json(candidate),
            "calibration": calibration.digest,
            "schedule": asdict(self.schedule),
            "temperature": self.temperature,
            "teacher_weight": self.teacher_weight,
            "seed": self.seed,
        }
        run = RunRecord(self.folder, "qat", self.student.role, settings, samples.images_digest)
        run.folder = self.folder / run.fingerprint[:16]
        path = run.folder / WEIGHTS
        if path.is_file():
            module.load_state_dict(load_file(path))
            return module
        job = Imitation(
            samples, tasks, spec, self.student.backbone, self.schedule, self.seed, balance=False
        )
        job.imitate(self._guides(), self.temperature)
        before = job.score(module)
        run.open(overwrite=False)
        fitted = job.fit(module, run, job.labelled_batches, job.divergence, self.progress)
        if fitted.metrics["score"] < before["score"]:
            module.load_state_dict(load(start))
        atomic_write(path, _bytes(module))
        run.close(fitted, before=before)
        return module

    def _guides(self) -> list[tuple[float, Network]]:
        """The networks to imitate, each with its weight in the loss, the fp32 student first."""
        if self.teacher is None:
            return [(1.0, self.student.module)]
        teacher, spec = load_model_folder(self.teacher), self.student.spec
        if teacher.spec.tasks != spec.tasks or teacher.spec.preprocess.size != spec.preprocess.size:
            raise UsageError(
                f"The teacher {teacher.spec.name!r} has other tasks or another input size than {spec.name!r}: give the "
                "teacher that the student was distilled from, or none."
            )
        return [
            (1 - self.teacher_weight, self.student.module),
            (self.teacher_weight, teacher.module),
        ]


@dataclass
class Imitation(Job):
    """A job without labels: the network is to answer as others do."""

    def imitate(self, guides: list[tuple[float, Network]], temperature: float) -> None:
        """Name the networks to imitate, each with its weight; answers on val are compared with the first's."""
        self.guides = [(weight, copy.deepcopy(guide).eval()) for weight, guide in guides]
        self.temperature = temperature
        self.val_pixels = self.pixels(self.val)
        self.wanted = {
            name: torch.from_numpy(value)
            for name, value in self._answers(self.guides[0][1]).items()
        }

    def check_val(self) -> None:
        """Answers need no labels."""

    def divergence(self, network: Network, batch: Batch) -> Tensor:
        """Divergence of the network's softened logits from those of its guides."""
        image = batch[0]
        outputs = network(image)
        loss = image.new_zeros((), dtype=torch.float32)
        for weight, guide in self.guides:
            with torch.no_grad():
                answers = guide.to(image.device)(image)
            for task in self.tasks:
                own, wanted = outputs[task.name], answers[task.name]
                loss = loss + weight * imitation(task.kind, own, wanted, self.temperature)
        return loss

    def score(self, network: torch.nn.Module) -> dict[str, float]:
        """How close the diagnoses on val are to the first guide's, or without a diagnosis all answers; the score is 1
        where they are the same.
        """
        found = {name: torch.from_numpy(value) for name, value in self._answers(network).items()}
        diagnosis = self.spec.diagnosis
        if diagnosis is None:
            apart = sum(
                (found[name] - wanted).square().mean() for name, wanted in self.wanted.items()
            )
            return {"score": float(torch.exp(-torch.as_tensor(apart)))}
        logits, wanted = found[diagnosis.name], self.wanted[diagnosis.name]
        divergence = soft_cross_entropy(logits, wanted, 1.0)
        agreement = (logits.argmax(1) == wanted.argmax(1)).float().mean()
        return {
            "score": (-divergence).exp().item(),
            "kl": divergence.item(),
            "top1": agreement.item(),
        }

    def _answers(self, network: torch.nn.Module) -> dict[str, Any]:
        return run_network(network, self.val_pixels)


def _bytes(module: torch.nn.Module) -> bytes:
    saved: bytes = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    )
    return saved
