"""Read the batches of a distillation from the teacher cache."""

from collections.abc import Collection, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dermedge.train.distillation_loss import EXTRA
from dermedge.train.samples import RowIndices
from dermedge.train.teacher_cache import TeacherCache
from dermedge.train.training_data import TrainingBatch, TrainingData
from dermedge_runtime.prefetch import prefetch

T = TypeVar("T", np.uint8, np.float32)


def distillation_batches(
    data: TrainingData, cache: TeacherCache, epoch: int, needs: Collection[str] = ()
) -> Iterator[TrainingBatch]:
    """Return the batches of one epoch.

    A batch is a tuple: images, a target per task, a teacher output per task, and the
    teacher's outputs in `needs` in the order `embedding`, `map`. Image, mask, the
    teacher's mask and its map get the same symmetry of the square.

    Args:
        data: Train rows.
        cache: Stored views, which hold all train rows.
        epoch: Index of the epoch. It selects the view, the order and the symmetries.
        needs: `embedding`, `map`, both or none.
    """
    view = epoch % cache.views
    names = [name for name in EXTRA if name in needs]
    # Views repeat every `cache.views` epochs. The symmetry makes each repetition a new
    # image, and the third seed keeps it independent of the order of the rows.
    symmetries = np.random.default_rng((data.seed, epoch, 1)).integers(
        8, size=len(data.samples.image_ids)
    )

    def transform(arrays: NDArray[T], rows: RowIndices) -> NDArray[T]:
        pairs = zip(arrays, rows, strict=True)
        return np.stack([apply_symmetry(array, int(symmetries[row])) for array, row in pairs])

    def transform_maps(maps: NDArray[T], rows: RowIndices) -> NDArray[T]:
        turned = transform(np.moveaxis(maps, 1, -1), rows)
        return np.ascontiguousarray(np.moveaxis(turned, -1, 1))

    def make_batch(rows: RowIndices) -> TrainingBatch:
        pixels, masks, outputs = cache.read(rows, view, names)
        targets = data.targets(rows, None if masks is None else transform(masks, rows))
        # NaN marks a task that no teacher has.
        unknown = np.full((len(rows), 1), np.nan, np.float32)
        answers = [outputs.get(task.name, unknown) for task in data.spec.tasks]
        answers += [outputs[EXTRA[name]] for name in names]
        # Only masks and maps have places that move with the pixels.
        moved = [transform_maps(one, rows) if one.ndim == 4 else one for one in answers]
        soft = map(torch.from_numpy, moved)
        return torch.from_numpy(transform(pixels, rows)), *targets, *soft

    return prefetch(make_batch, data.batch_rows(epoch))


def apply_symmetry(pixels: NDArray[T], symmetry: int) -> NDArray[T]:
    """Apply one of the eight symmetries of the square to an image [S, S, ...].

    Args:
        pixels: The image.
        symmetry: 0 to 7: quarter turns, and from 4 on a reflection too.

    Example:
        >>> apply_symmetry(np.array([[1, 2], [3, 4]], np.uint8), 1).tolist()
        [[2, 4], [1, 3]]
    """
    pixels = np.rot90(pixels, symmetry % 4)
    return np.ascontiguousarray(pixels[:, ::-1] if symmetry >= 4 else pixels)
