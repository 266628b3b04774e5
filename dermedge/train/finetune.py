"""`finetune`: any timm backbone with task heads, on a table of labelled images."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermedge.models.init import initialise
from dermedge.models.network import Backbone, Network, count_parameters
from dermedge.models.student import Role, Student, save_student
from dermedge.train.loop import Fitted, Schedule, fit, keep_freed_memory
from dermedge.train.losses import adjusted_cross_entropy, masked_binary_cross_entropy
from dermedge.train.origin import (
    check_input,
    choose_backbone,
    data_lineage,
    identity,
    init_digest,
    init_rows,
    learned,
    make_preprocess,
    make_spec,
    origin,
)
from dermedge.train.record import Run
from dermedge.train.samples import Frames, Samples, Views, ahead, read_samples
from dermedge_export.metrics import accuracy, auroc, balanced_accuracy
from dermedge_runtime.errors import DataError
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec, Task, to_json

Batch = tuple[Tensor, ...]
EVALUATION_BATCH = 64


def finetune(
    data: Path | str,
    out: Path | str,
    *,
    backbone: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    stages: int | None = None,
    init: str = "none",
    size: int = 160,
    fit: str = "crop",
    name: str | None = None,
    role: Role = "teacher",
    balance: bool = True,
    schedule: Schedule | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Student:
    """Fine-tune a backbone with a `diagnosis` head, and a `malignancy` head where the table tells it.

    Trains on the train split and stops early on the balanced accuracy of val. A finished run with the same settings,
    data and initial weights is returned as it is; a killed one continues.

    Args:
        data: a table's folder or file.
        out: folder for the model, its `run.json` and, while training, its checkpoint.
        backbone: timm name; may be left out where `init` knows it.
        backbone_args: arguments of `timm.create_model`.
        stages: keep only so many of the backbone's stages, the first ones.
        init: `none` (random), `hub` (timm's published weights), a safetensors file, or a model's folder: the same
            backbone is copied, a narrower one of its family is pruned from it.
        size: side of the network's square input in pixels.
        fit: `crop`, `pad` or `stretch`.
        name: of the model; by default the backbone's.
        role: `teacher` or `student`, which names the file.
        balance: aim at balanced accuracy (logit adjustment) instead of accuracy.
        schedule: length and speed.
        seed: of order, augmentation and initial weights.
        overwrite: replace another run in `out`.
        progress: told after every step.

    Raises:
        DataError: the table cannot be trained on.
        UsageError: the backbone, the initial weights or `out` make no sense.
    """
    schedule = schedule or Schedule()
    samples, tasks = read_samples(data)
    chosen = choose_backbone(backbone, backbone_args or {}, init, stages)
    lineage = {role: origin(chosen, init), "data": data_lineage(samples)}
    spec = make_spec(name or f"{chosen.name}-{role}", tasks, make_preprocess(size, fit), lineage)
    settings = {
        "data": samples.table_digest,
        "backbone": identity(chosen),
        "init": init_digest(init),
        "spec": to_json(replace(spec, lineage={})),
        "role": role,
        "balance": balance,
        "schedule": asdict(schedule),
        "seed": seed,
    }
    run = Run(Path(out), "finetune", role, settings, samples.images_digest)
    done = run.finished(overwrite=overwrite)
    if done is not None:
        return done
    job = Job(samples, tasks, spec, chosen, schedule, seed, balance)
    network = job.start(init)
    split = learned(samples, init_rows(init))
    run.open(overwrite=overwrite)
    fitted = job.fit(network, run, job.labelled_batches, job.labelled_loss, progress)
    return finish(Student(network, spec, chosen, role, split=split), run, fitted)


@dataclass
class Job:
    """What fine-tuning and distillation share: samples, views, the network's start, its batches and its score."""

    samples: Samples
    tasks: tuple[Task, ...]
    spec: Spec
    backbone: Backbone
    schedule: Schedule
    seed: int
    balance: bool

    def __post_init__(self) -> None:
        keep_freed_memory()
        self.train, self.val = self.samples.rows("train"), self.samples.rows("val")
        for split, rows in (("train", self.train), ("val", self.val)):
            if not len(rows):
                raise DataError(f"The table has no {split} rows: run `dermedge data split`, or fill its split column.")
        if not (self.samples.labels[self.val] >= 0).any():
            raise DataError("No val row has a diagnosis that the model knows: fill the table's dx column.")
        self.frames = Frames(self.samples.paths, self.spec.preprocess)
        self.views = Views(self.frames, self.samples.image_ids, self.seed)
        self.batch_size = min(self.schedule.batch_size, len(self.train))
        self.steps = len(self.train) // self.batch_size
        counts = np.bincount(
            self.samples.labels[self.train][self.samples.labels[self.train] >= 0], minlength=self.classes
        )
        prior = np.log(np.maximum(counts, 1) / max(1, counts.sum())) if self.balance else np.zeros(self.classes)
        self.log_prior = torch.tensor(prior, dtype=torch.float32)
        self._val_pixels: Tensor | None = None

    @property
    def classes(self) -> int:
        """Number of diagnoses."""
        return len(self.tasks[0].labels)

    def start(self, init: str) -> Network:
        """The network with its initial weights; identity BatchNorms are given the statistics of training images."""
        torch.manual_seed(self.seed)
        network = Network(self.backbone, self.tasks)
        rows = self.train[np.random.default_rng(self.seed).permutation(len(self.train))[:256]]
        images = (self.pixels(rows[i : i + 64]) for i in range(0, len(rows), 64))
        initialise(network, self.backbone, init, self.spec.preprocess.size, lambda: images)
        check_input(network, self.backbone.name, self.spec.preprocess.size)
        return network

    def fit(self, network: Network, run: Run, batches: Any, loss: Any, progress: Progress | None) -> Fitted:
        """Run the loop. `run` is told of every epoch, so that a killed run's time is known too."""

        def score(network: torch.nn.Module) -> dict[str, float]:
            metrics = self.score(network)
            run.write(finished=False)
            return metrics

        return fit(
            network,
            steps=self.steps,
            batches=batches,
            loss=loss,
            score=score,
            schedule=self.schedule,
            seed=self.seed,
            folder=run.folder,
            fingerprint=run.fingerprint,
            progress=progress,
        )

    def order(self, epoch: int, rows: Any) -> list[Any]:
        """The rows of an epoch's batches; the incomplete last batch is left out."""
        rows = rows[np.random.default_rng((self.seed, epoch)).permutation(len(rows))]
        return [rows[i : i + self.batch_size] for i in range(0, self.steps * self.batch_size, self.batch_size)]

    def labelled_batches(self, epoch: int) -> Iterable[Batch]:
        """Batches (image uint8 [N, S, S, 3], labels [N], malignant [N]) of one epoch, a fresh view of each image."""

        def make(rows: Any) -> Batch:
            pixels = np.stack([self.views.view(int(row), epoch) for row in rows])
            return torch.from_numpy(pixels), *self.targets(rows)

        return ahead(make, self.order(epoch, self.train))

    def targets(self, rows: Any) -> tuple[Tensor, Tensor]:
        """Labels [N] and malignant [N] of some rows."""
        return torch.from_numpy(self.samples.labels[rows]), torch.from_numpy(self.samples.malignant[rows])

    def labelled_loss(self, network: Network, batch: Batch) -> Tensor:
        """Adjusted cross entropy of the diagnosis plus binary cross entropy of the malignancy."""
        image, labels, malignant = batch
        return self.hard_loss(network(image), labels, malignant)

    def hard_loss(self, outputs: Mapping[str, Tensor], labels: Tensor, malignant: Tensor) -> Tensor:
        """The labelled loss of outputs that are already there."""
        loss = adjusted_cross_entropy(outputs["diagnosis"], labels, self.log_prior.to(labels.device))
        if "malignancy" in outputs:
            loss = loss + masked_binary_cross_entropy(outputs["malignancy"], malignant)
        return loss

    def pixels(self, rows: Any) -> Tensor:
        """Preprocessed images, uint8 [N, S, S, 3]."""
        return torch.from_numpy(np.stack([self.frames.centred(int(row)) for row in rows]))

    def score(self, network: torch.nn.Module) -> dict[str, float]:
        """Metrics on val; balanced accuracy is the score. What val does not tell, as it lacks malignant images, say, is
        left out.
        """
        if self._val_pixels is None:
            self._val_pixels = self.pixels(self.val)
        outputs = run_network(network, self._val_pixels)
        labels, malignant = self.samples.labels[self.val], self.samples.malignant[self.val]
        known = labels >= 0
        predicted = outputs["diagnosis"].argmax(1)
        balanced = float(balanced_accuracy(labels[known], predicted[known], self.classes))
        metrics = {
            "score": balanced,
            "balanced_accuracy": balanced,
            "accuracy": float(accuracy(labels[known], predicted[known])),
        }
        if "malignancy" in outputs:
            told = ~np.isnan(malignant)
            metrics["malignant_auroc"] = float(auroc(malignant[told] == 1, outputs["malignancy"][told, 0]))
        return {name: value for name, value in metrics.items() if np.isfinite(value)}


@torch.no_grad()
def run_network(network: torch.nn.Module, pixels: Tensor) -> dict[str, Any]:
    """Outputs of a network in eval mode, as numpy float32 [N, ...] by task, for `pixels` uint8 [N, S, S, 3]."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    parts = [network(part.to(device)) for part in torch.split(pixels, EVALUATION_BATCH)]
    network.train(was_training)
    return {name: torch.cat([part[name].float().cpu() for part in parts]).numpy() for name in parts[0]}


def finish(student: Student, run: Run, fitted: Fitted, **results: Any) -> Student:
    """Save the model, then its run.json: a folder whose run.json says finished is complete."""
    metrics = {"val": dict(fitted.metrics), "parameters": count_parameters(student.module)}
    student = replace(student, metrics=metrics)
    save_student(student, run.folder)
    run.close(fitted, parameters=metrics["parameters"], **results)
    return student
