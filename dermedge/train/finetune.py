"""`finetune`: any timm backbone with task heads, on a table of labelled images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermedge.models.initialize import initialise
from dermedge.models.model_folder import Role, TrainedModel, save_model_folder
from dermedge.models.network import Backbone, Network, count_parameters
from dermedge.models.new_spec import check_input, make_preprocess, make_spec
from dermedge.train.lineage import (
    choose_backbone,
    data_lineage,
    identity,
    init_digest,
    init_rows,
    learned,
    origin,
)
from dermedge.train.loop import FitResult, Schedule, fit, keep_freed_memory
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import Frames, Masks, Samples, Views, read_samples
from dermedge.train.supervision import (
    check_val,
    learned_loss,
    supervised_tasks,
    training_target,
    val_scores,
)
from dermedge_runtime.errors import DataError
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec, Task, to_json

Batch = tuple[Tensor, ...]
EVALUATION_BATCH = 64


def finetune(
    data: Path | str,
    out: Path | str,
    *,
    tasks: Sequence[str] | None = None,
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
) -> TrainedModel:
    """Fine-tune a backbone with a head for each task that a table tells about.

    Trains on the train split and stops early on val, by the first of these that the model has: the balanced accuracy of
    the diagnosis, that of the malignancy, the quadratic weighted kappa of the severity, the mean Dice coefficient of
    the segmentation. A finished run with the same settings, data and initial weights is returned as it is; a killed one
    continues.

    Args:
        data: a table's folder or file.
        out: folder for the model, its `run.json` and, while training, its checkpoint.
        tasks: what to learn, of `diagnosis`, `malignancy`, `severity` and `segmentation`. By default the diagnosis and
            the malignancy, whichever the table tells; the severity where it tells neither.
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
    samples, learnable = read_samples(data, wanted=tasks)
    chosen = choose_backbone(backbone, backbone_args or {}, init, stages)
    lineage = {role: origin(chosen, init), "data": data_lineage(samples)}
    spec = make_spec(
        name or f"{chosen.name}-{role}", learnable, make_preprocess(size, fit), lineage
    )
    settings = {
        "data": samples.table_digest,
        "backbone": identity(chosen),
        "init": init_digest(init),
        "spec": to_json(replace(spec, lineage={})),
        "role": role,
        "balance": balance,
        "schedule": asdict(schedule),
        "seed": seed,
        **masks_settings(samples, learnable),
    }
    run = RunRecord(Path(out), "finetune", role, settings, samples.images_digest)
    done = run.finished(overwrite=overwrite)
    if done is not None:
        return done
    job = Job(samples, learnable, spec, chosen, schedule, seed, balance)
    network = job.start(init)
    split = learned(samples, init_rows(init))
    run.open(overwrite=overwrite)
    fitted = job.fit(network, run, job.labelled_batches, job.labelled_loss, progress)
    return finish(TrainedModel(network, spec, chosen, role, split=split), run, fitted)


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
                raise DataError(
                    f"The table has no {split} rows: run `dermedge data split`, or fill its split column."
                )
        self.check_val()
        self.frames = Frames(self.samples.paths, self.spec.preprocess)
        self.masks = (
            Masks(self.samples.masks, self.frames)
            if "segment" in supervised_tasks(self.tasks)
            else None
        )
        self.views = Views(self.frames, self.samples.image_ids, self.seed, self.masks)
        self.batch_size = min(self.schedule.batch_size, len(self.train))
        self.steps = len(self.train) // self.batch_size
        labels, classes = (
            self.samples.labels[self.train],
            len(self.spec.diagnosis.labels) if self.spec.diagnosis else 0,
        )
        counts = np.bincount(labels[labels >= 0], minlength=classes)
        prior = (
            np.log(np.maximum(counts, 1) / max(1, counts.sum()))
            if self.balance
            else np.zeros(classes)
        )
        self.log_prior = torch.tensor(prior, dtype=torch.float32)
        self._val_pixels: Tensor | None = None
        self._val_masks: Any = None

    def check_val(self) -> None:
        """Raise DataError if val cannot score the model."""
        check_val(self.tasks, self.samples, self.val)

    def start(self, init: str) -> Network:
        """The network with its initial weights; identity BatchNorms are given the statistics of training images."""
        torch.manual_seed(self.seed)
        network, size = Network(self.backbone, self.tasks), self.spec.preprocess.size
        rows = self.train[np.random.default_rng(self.seed).permutation(len(self.train))[:256]]
        parts = [rows[i : i + 64] for i in range(0, len(rows), 64)]
        initialise(network, self.backbone, init, size, lambda: map(self.pixels, parts))
        check_input(network, self.backbone.name, size)
        return network

    def fit(
        self, network: Network, run: RunRecord, batches: Any, loss: Any, progress: Progress | None
    ) -> FitResult:
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
        return [
            rows[i : i + self.batch_size]
            for i in range(0, self.steps * self.batch_size, self.batch_size)
        ]

    def labelled_batches(self, epoch: int) -> Iterable[Batch]:
        """Batches (image uint8 [N, S, S, 3], a target per task) of one epoch, a fresh view of each image."""

        def make(rows: Any) -> Batch:
            pixels, masks = self.look(rows, epoch)
            return torch.from_numpy(pixels), *self.targets(rows, masks)

        return prefetch(make, self.order(epoch, self.train))

    def look(self, rows: Any, number: int) -> tuple[Any, Any]:
        """View `number` of some rows, uint8 [N, S, S, 3], and their masks [N, S/4, S/4] where these are learned."""
        if self.masks is None:
            return np.stack([self.views.view(int(row), number) for row in rows]), None
        pixels, masks = zip(
            *(self.views.masked_view(int(row), number) for row in rows), strict=True
        )
        return np.stack(pixels), np.stack(masks)

    def targets(self, rows: Any, masks: Any = None) -> tuple[Tensor, ...]:
        """Targets of some rows, one per task."""
        return tuple(
            training_target(task, self.tasks, self.samples, rows, masks) for task in self.tasks
        )

    def labelled_loss(self, network: Network, batch: Batch) -> Tensor:
        """The losses of all tasks, summed."""
        image, *targets = batch
        return self.hard_loss(network(image), targets)

    def hard_loss(self, outputs: Mapping[str, Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The labelled loss of outputs that are already there."""
        return learned_loss(self.tasks, outputs, targets, self.log_prior)

    def pixels(self, rows: Any) -> Tensor:
        """Preprocessed images, uint8 [N, S, S, 3]."""
        return torch.from_numpy(np.stack([self.frames.centred(int(row)) for row in rows]))

    def score(self, network: torch.nn.Module) -> dict[str, float]:
        """Metrics on val. What val does not tell, as it lacks malignant images, say, is left out."""
        if self._val_pixels is None:
            self._val_pixels = self.pixels(self.val)
            self._val_masks = (
                None
                if self.masks is None
                else np.stack([self.masks.centred(row) for row in self.val])
            )
        outputs = run_network(network, self._val_pixels)
        return val_scores(self.tasks, outputs, self.samples, self.val, self._val_masks)


def masks_settings(samples: Samples, tasks: Sequence[Task]) -> dict[str, str]:
    """What identifies the masks that a run learns from; nothing where it learns from none."""
    return {"masks": samples.masks_digest} if "segment" in supervised_tasks(tasks) else {}


@torch.no_grad()
def run_network(network: torch.nn.Module, pixels: Tensor) -> dict[str, Any]:
    """Outputs of a network in eval mode, as numpy float32 [N, ...] by task, for `pixels` uint8 [N, S, S, 3]."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    parts = [network(part.to(device)) for part in torch.split(pixels, EVALUATION_BATCH)]
    network.train(was_training)
    return {
        name: torch.cat([part[name].float().cpu() for part in parts]).numpy() for name in parts[0]
    }


def finish(
    student: TrainedModel, run: RunRecord, fitted: FitResult, **results: Any
) -> TrainedModel:
    """Save the model, then its run.json: a folder whose run.json says finished is complete."""
    metrics = {"val": dict(fitted.metrics), "parameters": count_parameters(student.module)}
    student = replace(student, metrics=metrics)
    save_model_folder(student, run.folder)
    run.close(fitted, parameters=metrics["parameters"], **results)
    return student
