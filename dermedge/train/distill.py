"""`distill`: a compact student that learns from a teacher's softened logits.

Running the teacher on every view of every epoch costs more than training a small student. So the teacher looks at a
few fixed views of each image once, its logits are kept on disk, and each epoch trains on one of these views, turned
or mirrored at random, which a lesion's diagnosis does not depend on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermedge.models.initialize import prunable
from dermedge.models.model_folder import TrainedModel, load_model_folder
from dermedge.models.network import Network
from dermedge.models.new_spec import make_spec
from dermedge.train.finetune import Batch, Job, finish, masks_settings, run_network
from dermedge.train.lineage import (
    choose_backbone,
    data_lineage,
    identity,
    init_digest,
    init_rows,
    learned,
    origin,
)
from dermedge.train.loop import Schedule
from dermedge.train.losses import imitation
from dermedge.train.run_record import CACHE, RunRecord
from dermedge.train.samples import Samples, read_samples
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write, sha256_file
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import to_json


def distill(
    teacher: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    backbone: str | None = None,
    backbone_args: dict[str, Any] | None = None,
    stages: int | None = None,
    init: str = "auto",
    unlabelled: Sequence[Path | str] = (),
    temperature: float = 2.0,
    soft_weight: float = 0.7,
    views: int = 4,
    name: str | None = None,
    balance: bool = True,
    schedule: Schedule | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedModel:
    """Distil a teacher into a student (Hinton et al., "Distilling the knowledge in a neural network", 2015).

    The loss is `soft_weight` x the divergence from the teacher's softened logits + (1 - `soft_weight`) x the labelled
    loss; rows without a label, and every row of `unlabelled`, count in the first part only. Tasks and preprocessing
    are the teacher's.

    Args:
        teacher: a model's folder.
        data: a table's folder or file; its train split trains, its val split stops.
        out: folder for the student.
        backbone: timm name of the student; may be left out where `init` is a folder or a file that names it.
        backbone_args: arguments of `timm.create_model`.
        stages: keep only so many of the backbone's stages, the first ones.
        init: `auto` (pruned from the teacher if the student is a narrower model of its family, else random), or what
            `finetune` accepts.
        unlabelled: further tables, all of whose rows are used without their labels.
        temperature: softens the logits of both.
        soft_weight: share of the distillation loss, 0 to 1.
        views: fixed views of each image that the teacher looks at; more cost more of its time and teach more.
        name: of the student; by default the backbone's.
        balance: aim the labelled loss at balanced accuracy.
        schedule: length and speed.
        seed: of order, augmentation and initial weights.
        overwrite: replace another run in `out`.
        progress: told after every step, the teacher's passes first.

    Raises:
        DataError: a table or the teacher's folder cannot be used.
        UsageError: an argument makes no sense.
    """
    if not 0 <= soft_weight <= 1 or temperature <= 0 or views < 1:
        raise UsageError(
            "Distillation needs 0 <= soft weight <= 1, a temperature above 0 and at least one view: change them."
        )
    schedule = schedule or Schedule()
    master = load_model_folder(teacher)
    if init == "auto":
        init = (
            str(teacher)
            if prunable(master.backbone, backbone, backbone_args or {}, stages)
            else "none"
        )
    if init in ("none", "hub") and backbone is None:
        raise UsageError("No student backbone is named: pass --backbone with a timm name.")
    chosen = choose_backbone(backbone, backbone_args or {}, init, stages)
    samples, tasks = read_samples(data, master.spec.tasks)
    extra = [read_samples(table, tasks)[0] for table in unlabelled]
    everything = join(samples, extra)
    lineage = {
        "teacher": {
            **master.spec.lineage.get(master.role, {}),
            "weights": sha256_file(Path(teacher) / "weights.safetensors"),
        },
        "student": origin(chosen, init),
        "data": data_lineage(everything),
    }
    spec = make_spec(name or f"{chosen.name}-student", tasks, master.spec.preprocess, lineage)
    settings = {
        "data": [samples.table_digest, *(table.table_digest for table in extra)],
        "teacher": lineage["teacher"]["weights"],
        "backbone": identity(chosen),
        "init": init_digest(init),
        "spec": to_json(replace(spec, lineage={})),
        "temperature": temperature,
        "soft_weight": soft_weight,
        "views": views,
        "balance": balance,
        "schedule": asdict(schedule),
        "seed": seed,
        **masks_settings(everything, tasks),
    }
    run = RunRecord(Path(out), "distill", "student", settings, everything.images_digest)
    done = run.finished(overwrite=overwrite)
    if done is not None:
        return done
    job = Distillation(everything, tasks, spec, chosen, schedule, seed, balance)
    network = job.start(init)
    split = learned(everything, master.split, init_rows(init))
    run.open(overwrite=overwrite)
    job.learn_from(master, run, views, temperature, soft_weight, progress)
    fitted = job.fit(network, run, job.soft_batches, job.soft_loss, progress)
    return finish(
        TrainedModel(network, spec, chosen, "student", split=split),
        run,
        fitted,
        teacher_val=dict(master.metrics.get("val", {})),
    )


@dataclass
class Distillation(Job):
    """A job whose batches carry the teacher's logits."""

    def learn_from(
        self,
        teacher: TrainedModel,
        run: RunRecord,
        views: int,
        temperature: float,
        soft_weight: float,
        progress: Progress | None,
    ) -> None:
        """Let the teacher look at every view of every training image, keeping each view's logits on disk."""
        self.view_count, self.temperature, self.soft_weight = views, temperature, soft_weight
        if teacher.spec.preprocess.size != self.spec.preprocess.size:
            raise UsageError(
                "Teacher and student need the same input size: distil at the teacher's."
            )
        self.position = np.full(len(self.samples.image_ids), -1)
        self.position[self.train] = np.arange(len(self.train))
        self.logits = [
            self._teacher_view(teacher.module, run.folder / CACHE, v, progress)
            for v in range(views)
        ]

    def soft_batches(self, epoch: int) -> Iterable[Batch]:
        """Batches (image, a target per task, the teacher's outputs per task) of one epoch."""
        view = epoch % self.view_count
        logits = self.logits[view]
        turns = np.random.default_rng((self.seed, epoch, 1)).integers(
            8, size=len(self.samples.image_ids)
        )

        def turn(arrays: Any, rows: Any) -> Any:
            return np.stack(
                [turned(array, int(turns[row])) for array, row in zip(arrays, rows, strict=True)]
            )

        def make(rows: Any) -> Batch:
            pixels, masks = self.look(rows, view)
            targets = self.targets(rows, None if masks is None else turn(masks, rows))
            at = self.position[rows]
            teacher = (
                turn(logits[task.name][at, 0], rows)[:, None]
                if task.kind == "segment"
                else logits[task.name][at]
                for task in self.tasks
            )
            return torch.from_numpy(turn(pixels, rows)), *targets, *map(torch.from_numpy, teacher)

        return prefetch(make, self.order(epoch, self.train))

    def soft_loss(self, network: Network, batch: Batch) -> Tensor:
        """The distillation loss and the labelled loss, weighted."""
        image, *rest = batch
        count = len(self.tasks)
        outputs = network(image)
        soft = image.new_zeros((), dtype=torch.float32)
        for task, wanted in zip(self.tasks, rest[count:], strict=True):
            soft = soft + imitation(task.kind, outputs[task.name], wanted, self.temperature)
        hard = self.hard_loss(outputs, rest[:count])
        return torch.lerp(hard, soft, self.soft_weight)

    def _teacher_view(
        self, teacher: Network, cache: Path, view: int, progress: Progress | None
    ) -> dict[str, Any]:
        path = cache / f"view-{view}.safetensors"
        if path.is_file():
            from safetensors.numpy import load_file

            return dict(load_file(path))
        chunks = [self.train[i : i + 64] for i in range(0, len(self.train), 64)]
        parts = []
        made = prefetch(
            lambda rows: np.stack([self.views.view(int(row), view) for row in rows]), chunks
        )
        for done, pixels in enumerate(made, 1):
            parts.append(run_network(teacher, torch.from_numpy(pixels)))
            if progress:
                progress(done, len(chunks), f"teacher looks at view {view + 1}/{self.view_count}")
        logits = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        from safetensors.numpy import save

        cache.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(logits))
        return logits


def turned(pixels: Any, turn: int) -> Any:
    """One of the eight symmetries of the square, of an image [S, S, ...]."""
    pixels = np.rot90(pixels, turn % 4)
    return np.ascontiguousarray(pixels[:, ::-1] if turn >= 4 else pixels)


def join(samples: Samples, extra: Sequence[Samples]) -> Samples:
    """Samples followed by the rows of unlabelled tables, all of them to train on, none with a label."""
    if not extra:
        return samples
    known = set(samples.digests)
    for table in extra:
        fresh = [i for i, digest in enumerate(table.digests) if digest not in known]
        known.update(table.digests)
        samples = replace(
            samples,
            image_ids=samples.image_ids + tuple(table.image_ids[i] for i in fresh),
            paths=samples.paths + tuple(table.paths[i] for i in fresh),
            digests=samples.digests + tuple(table.digests[i] for i in fresh),
            labels=np.concatenate([samples.labels, np.full(len(fresh), -1)]),
            malignant=np.concatenate([samples.malignant, np.full(len(fresh), np.nan, np.float32)]),
            severity=np.concatenate([samples.severity, np.full(len(fresh), -1)]),
            masks=samples.masks + (None,) * len(fresh),
            split=np.concatenate([samples.split, np.full(len(fresh), "train")]),
            licences=tuple(sorted({*samples.licences, *table.licences})),
        )
    return samples
