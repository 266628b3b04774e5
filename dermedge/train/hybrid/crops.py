"""What pretraining looks at: crops and masks of pictures, the same whenever and wherever they are made."""

import contextlib
import functools
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightly.models.utils import random_block_mask_image
from lightly.transforms.dino_transform import DINOViewTransform
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dermedge.models.backbone import Backbone
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge.train.samples import FRAME_BYTES, Frames
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Preprocess

Key = tuple[int, int]
Grid = tuple[int, int]
SMALLEST_BLOCK = 4  # patches


class CropView(NamedTuple):
    """One image: crops [2, 3, S, S] and [L, 3, s, s], `mask` bool [2, P], its row, and the rows that did not decode."""

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor
    row: int
    unreadable: tuple[int, ...]


class CropBatch(NamedTuple):
    """Images of one step on one process, crop by crop: [2N, 3, S, S], [L N, 3, s, s], bool [2N, P] and rows [N]."""

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor
    rows: Tensor
    unreadable: tuple[int, ...]


class Crops(Dataset[CropView]):
    """Views by key (row, pass): augmentation and mask depend on nothing but the seed and the key.

    A picture that does not decode is replaced by the next row's, and named.
    """

    def __init__(
        self, paths: Sequence[Path], ids: Sequence[str], recipe: HybridRecipe, backbone: Backbone, grid: Grid | None,
        seed: int,
    ) -> None:  # fmt: skip
        self.paths, self.ids, self.recipe, self.grid, self.seed = paths, ids, recipe, grid, seed
        normalize = {"mean": list(backbone.mean), "std": list(backbone.std)}
        wide = {"crop_size": recipe.size, "crop_scale": recipe.global_scale, "normalize": normalize}
        near = {
            "crop_size": recipe.local_size,
            "crop_scale": recipe.local_scale,
            "normalize": normalize,
        }
        self.transforms = (
            DINOViewTransform(**wide, gaussian_blur=1.0, solarization_prob=0.0),
            DINOViewTransform(**wide, gaussian_blur=0.1, solarization_prob=0.2),
            DINOViewTransform(**near, gaussian_blur=0.5, solarization_prob=0.0),
        )
        self._frames: Frames | None = None

    def __getitem__(self, key: Key) -> CropView:
        row, number = key
        unreadable: list[int] = []
        while True:
            try:
                frame = self.frames[row]
                break
            except DataError:
                unreadable.append(row)
                if len(unreadable) == len(self.paths):
                    raise
                row = (row + 1) % len(self.paths)
        with seeded(zlib.crc32(f"{self.seed}/{number}/{self.ids[row]}".encode())):
            picture = Image.fromarray(frame)
            first, second, local = self.transforms
            crops = torch.stack([first(picture), second(picture)])
            small = [
                local(picture) for _ in range(self.recipe.local_crops if self.recipe.dino else 0)
            ]
            mask = torch.stack([self._mask(), self._mask()])
        return CropView(
            crops, torch.stack(small) if small else crops[:0], mask, row, tuple(unreadable)
        )

    @property
    def frames(self) -> Frames:
        """Decoded pictures, kept in memory; every process of a loader has its own."""
        if self._frames is None:
            worker = get_worker_info()
            margin = 1 / math.sqrt(self.recipe.global_scale[0])
            room = FRAME_BYTES // (worker.num_workers if worker else 1)
            self._frames = Frames(
                self.paths, Preprocess(self.recipe.size), margin=margin, capacity=room
            )
        return self._frames

    def _mask(self) -> Tensor:
        """Bool [P]: with the recipe's probability, blocks of patches that cover a random share of the crop."""
        if self.grid is None:
            return torch.zeros(0, dtype=torch.bool)
        patches = self.grid[0] * self.grid[1]
        count = 0
        if self.recipe.ibot and random.random() < self.recipe.mask_probability:
            count = int(patches * random.uniform(*self.recipe.mask_ratio))
        if count < SMALLEST_BLOCK:
            return torch.zeros(patches, dtype=torch.bool)
        mask: Tensor = random_block_mask_image(
            self.grid, count, min_num_masks_per_block=SMALLEST_BLOCK
        )
        return mask.flatten()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global generator that the transforms draw from starts at `seed`, and is what it was afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (lightly draws from it)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def collate(views: Sequence[CropView]) -> CropBatch:
    """Views as one batch, crop by crop."""
    return CropBatch(
        torch.stack([view.global_crops for view in views], 1).flatten(0, 1),
        torch.stack([view.local_crops for view in views], 1).flatten(0, 1),
        torch.stack([view.mask for view in views], 1).flatten(0, 1),
        torch.tensor([view.row for view in views]),
        tuple(row for view in views for row in view.unreadable),
    )


def keys(rows: int, batch: int, step: int, seed: int) -> list[Key]:
    """The keys of a step's images: every row once per pass, in an order of its own, one pass after the other."""
    found: list[Key] = []
    for position in range(step * batch, (step + 1) * batch):
        number, place = divmod(position, rows)
        found.append((int(order(rows, number, seed)[place]), number))
    return found


@functools.lru_cache(maxsize=2)
def order(rows: int, number: int, seed: int) -> NDArray[np.int64]:
    """A permutation of the rows, another one for every pass."""
    return np.random.default_rng((seed, number)).permutation(rows)


@dataclass(frozen=True)
class RankSampler:
    """The keys of every part of every step from `start` on that are one process's.

    A step's images are dealt out part by part and, within a part, rank by rank, so that what a step sees does not
    depend on how many processes see it.
    """

    rows: int
    recipe: HybridRecipe
    seed: int
    start: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.recipe.batch_size // (self.recipe.accumulate * self.world)
        for step in range(self.start, self.recipe.total):
            everything = keys(self.rows, self.recipe.batch_size, step, self.seed)
            for part in range(self.recipe.accumulate):
                first = (part * self.world + self.rank) * size
                yield everything[first : first + size]


def batches(crops: Crops, shares: RankSampler, workers: int) -> Iterator[list[CropBatch]]:
    """The parts of every step, made ahead by `workers` processes."""
    loader: Iterable[Any] = DataLoader(
        crops,
        batch_sampler=shares,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    parts: list[CropBatch] = []
    for batch in loader:
        parts.append(batch)
        if len(parts) == shares.recipe.accumulate:
            yield parts
            parts = []
