"""Prepare a table for training one model: batches, targets, losses and val scores."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermedge.data.split_checks import log_warnings, refuse_empty_split
from dermedge.models.backbone import Backbone
from dermedge.models.initialize import initialise
from dermedge.models.network import Network
from dermedge.models.new_spec import check_input
from dermedge.train.distributed import gather_arrays, rank, split_rows, world_size
from dermedge.train.finite import check_outputs
from dermedge.train.loop import FitResult, Schedule, fit
from dermedge.train.run_record import RunRecord
from dermedge.train.samples import RowIndices, Samples
from dermedge.train.supervision import supervised_tasks, training_target, val_metrics
from dermedge.train.views import (
    Coverage,
    Frames,
    Masks,
    Pixels,
    Views,
    choose_threads,
    memory_budget,
)
from dermedge_runtime.errors import DataError
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Spec

LOGGER = logging.getLogger(__name__)
# Images uint8 [N, S, S, 3], then one target per task (and, in distillation, one teacher
# output per task).
TrainingBatch = tuple[Tensor, ...]
Batches = Callable[[int], Iterable[TrainingBatch]]
Loss = Callable[[nn.Module, TrainingBatch], Tensor]
Score = Callable[[nn.Module], Mapping[str, float]]
EVALUATION_BATCH = 64
# Number of train images that set the statistics of BatchNorms that were folded.
NORM_IMAGES = 256


@dataclass(frozen=True)
class TrainingData:
    """Rows of a table, with images and augmented views, for the tasks of one spec.

    Attributes:
        samples: All rows of the table.
        spec: The model's tasks and preprocessing.
        seed: Random seed for shuffling and augmentation.
        train: Indices of the train rows.
        val: Indices of the val rows.
        batch_size: Images per step, at most the number of train rows.
        frames: Decoded images.
        masks: Lesion masks, or None without a segmentation task.
        views: Augmented views of the images.

    Example:
        >>> from dermedge.models.folder_metadata import read_metadata
        >>> from dermedge.train.samples import read_samples
        >>> spec = read_metadata("teacher").spec
        >>> samples, _ = read_samples("lesions", spec.tasks)
        >>> data = TrainingData.prepare(samples, spec, batch_size=16, seed=0)
        >>> pixels, diagnoses, malignant = next(data.labelled_batches(epoch=0))
        >>> data.steps, tuple(pixels.shape)
        (3, (16, 32, 32, 3))
    """

    samples: Samples
    spec: Spec
    seed: int
    train: RowIndices
    val: RowIndices
    batch_size: int
    frames: Frames
    masks: Masks | None
    views: Views

    @classmethod
    def prepare(cls, samples: Samples, spec: Spec, *, batch_size: int, seed: int) -> "TrainingData":
        """Prepare the rows without reading an image, and log warnings about the split.

        Raises:
            DataError: The table has no train rows or no val rows.
            UsageError: The processes cannot divide a batch.
        """
        train, val = samples.rows("train"), samples.rows("val")
        for split in ("train", "val"):
            refuse_empty_split(samples.findings, split)
        split_rows(min(batch_size, len(train)))
        log_warnings(samples.findings)
        frames = Frames(samples.paths, spec.preprocess)
        segments = "segment" in supervised_tasks(spec.tasks)
        masks = Masks(samples.masks, frames) if segments else None
        views = Views(frames, samples.image_ids, seed, masks)
        return cls(
            samples, spec, seed, train, val, min(batch_size, len(train)), frames, masks, views
        )

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch; an incomplete last batch is dropped."""
        return len(self.train) // self.batch_size

    def batch_rows(self, epoch: int) -> list[RowIndices]:
        """Return the rows of each batch of an epoch, shuffled by seed and epoch.

        Of several processes, each gets its part of every batch.
        """
        # The order depends on seed and epoch only, so a resumed run repeats it.
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train))
        rows = self.train[order]
        starts = range(0, self.steps * self.batch_size, self.batch_size)
        own = split_rows(self.batch_size)
        return [rows[start : start + self.batch_size][own] for start in starts]

    def view(self, rows: RowIndices, number: int) -> tuple[Pixels, Coverage | None]:
        """Return view `number` of some rows.

        Returns:
            Images uint8 [N, S, S, 3], and masks float32 [N, S/4, S/4] or None.
        """
        if self.masks is None:
            return np.stack([self.views.view(int(row), number) for row in rows]), None
        pixels, masks = zip(
            *(self.views.masked_view(int(row), number) for row in rows), strict=True
        )
        return np.stack(pixels), np.stack(masks)

    def targets(self, rows: RowIndices, masks: Coverage | None) -> tuple[Tensor, ...]:
        """Return the targets of some rows, one per task."""
        return tuple(
            training_target(task, self.spec.tasks, self.samples, rows, masks)
            for task in self.spec.tasks
        )

    def images(self, rows: RowIndices) -> Tensor:
        """Return preprocessed images without augmentation, uint8 [N, S, S, 3]."""
        return torch.from_numpy(np.stack([self.frames.centred(int(row)) for row in rows]))

    def labelled_batches(self, epoch: int) -> Iterator[TrainingBatch]:
        """Return the batches of one epoch, with a new view of each image."""

        def make_batch(rows: RowIndices) -> TrainingBatch:
            pixels, masks = self.view(rows, epoch)
            return torch.from_numpy(pixels), *self.targets(rows, masks)

        # Images that do not fit into memory are decoded in every epoch.
        workers = choose_threads()
        return prefetch(make_batch, self.batch_rows(epoch), workers=workers, ahead=3 + workers)

    def log_prior(self, *, balance: bool) -> Tensor:
        """Return log frequencies of the train diagnoses, or zeros, float32 [K].

        Args:
            balance: Return the frequencies. False returns zeros, for plain accuracy.
        """
        diagnosis = self.spec.diagnosis
        classes = len(diagnosis.labels) if diagnosis else 0
        if not balance:
            return torch.zeros(classes)
        labels = self.samples.labels[self.train]
        counts = np.bincount(labels[labels >= 0], minlength=classes)
        # A class without train rows counts as one, so that its logarithm is finite.
        prior = np.log(np.maximum(counts, 1) / max(1, counts.sum()))
        return torch.tensor(prior, dtype=torch.float32)


def start_network(
    data: TrainingData, backbone: Backbone, init: str, embedding_width: int | None = None
) -> Network:
    """Create a network with its initial weights.

    Args:
        data: Tasks, size, seed and images.
        backbone: The network's backbone.
        init: `none`, `hub`, a safetensors file, or a model folder.
        embedding_width: Width of the embedding; see `Network`.

    Raises:
        DataError: The initial weights cannot be read, or do not fit.
        UsageError: The network cannot be created, or refuses the input size.
    """
    torch.manual_seed(data.seed)
    network = Network(backbone, data.spec.tasks, embedding_width)
    size = data.spec.preprocess.size
    order = np.random.default_rng(data.seed).permutation(len(data.train))
    rows = data.train[order[:NORM_IMAGES]]
    parts = [rows[start : start + 64] for start in range(0, len(rows), 64)]
    initialise(network, backbone, init, size, lambda: map(data.images, parts))
    check_input(network, backbone.name, size)
    return network


def train_network(
    network: nn.Module,
    data: TrainingData,
    run: RunRecord,
    schedule: Schedule,
    *,
    batches: Batches,
    loss: Loss,
    score: Score,
    progress: Progress | None,
) -> FitResult:
    """Run the training loop, and update `run.json` after each epoch."""

    def score_and_record(network: nn.Module) -> Mapping[str, float]:
        metrics = score(network)
        # So that the record of a killed run holds its time, too.
        if rank() == 0:
            run.write(finished=False)
        return metrics

    return fit(
        network,
        steps=data.steps,
        batches=batches,
        loss=loss,
        score=score_and_record,
        schedule=schedule,
        seed=data.seed,
        folder=run.folder,
        fingerprint=run.fingerprint,
        progress=progress,
    )


def make_val_score(data: TrainingData) -> Score:
    """Return a function that computes a network's metrics on val.

    The val images are read here, once, if they fit into memory, and otherwise in each
    call. Metrics that are undefined on val are left out, for example the AUROC without
    malignant images.

    Raises:
        DataError: A val image or mask cannot be read, or no val mask has a lesion
            although its Dice coefficient ranks the epochs. The function raises it if
            an output is not finite.
    """
    # Each process runs the network on its part. All parts are equally long, so the last
    # ones repeat rows.
    world, count = world_size(), len(data.val)
    own = np.resize(data.val, -(-count // world) * world).reshape(world, -1)[rank()]
    size = data.spec.preprocess.size
    parts = [
        own[start : start + EVALUATION_BATCH] for start in range(0, len(own), EVALUATION_BATCH)
    ]
    fits = len(own) * 3 * size**2 <= memory_budget()
    kept = list(map(data.images, parts)) if fits else None
    masks = None if data.masks is None else np.stack([data.masks.centred(r) for r in data.val])
    if masks is not None:
        _check_val_masks(data, masks)

    def score(network: nn.Module) -> Mapping[str, float]:
        read = prefetch(data.images, parts, workers=choose_threads()) if kept is None else kept
        outputs = stack_outputs([run_network(network, pixels) for pixels in read])
        outputs = gather_arrays(outputs, count)
        # The class of a NaN would be the first one.
        check_outputs(outputs, "the network on val", "Lower --lr, and train again.")
        return val_metrics(data.spec.tasks, outputs, data.samples, data.val, masks)

    return score


def _check_val_masks(data: TrainingData, masks: Coverage) -> None:
    """Log the number of empty val masks; refuse val masks that cannot rank epochs."""
    known = ~np.isnan(masks).any(axis=(1, 2))
    empty = int((known & ~(masks >= 0.5).any(axis=(1, 2))).sum())
    if empty == known.sum() and next(iter(supervised_tasks(data.spec.tasks))) == "segment":
        raise DataError(
            f"All {empty} masks of the val rows are empty on the grid of the network's output. "
            "Add val rows with a lesion, or choose a larger --size."
        )
    if empty:
        LOGGER.warning(
            "Warning: %d of %d val masks are empty and do not count in the Dice coefficient.",
            empty,
            known.sum(),
        )


@torch.no_grad()
def run_network(network: nn.Module, pixels: Tensor) -> dict[str, NDArray[np.float32]]:
    """Return a network's outputs in eval mode, float32 [N, ...] by task.

    Args:
        network: A network on any device.
        pixels: Images, uint8 [N, S, S, 3].
    """
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    parts = [network(part.to(device)) for part in torch.split(pixels, EVALUATION_BATCH)]
    network.train(was_training)
    return {
        name: torch.cat([part[name].float().cpu() for part in parts]).numpy() for name in parts[0]
    }


def stack_outputs(
    parts: Sequence[Mapping[str, NDArray[np.float32]]],
) -> dict[str, NDArray[np.float32]]:
    """Concatenate the outputs of several batches by task."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
