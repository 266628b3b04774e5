"""Cut crops and draw masks, reproducibly for any order and number of processes."""

import contextlib
import functools
import math
import random
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightly.models.utils import random_block_mask_image
from lightly.transforms.dino_transform import DINOViewTransform
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dermedge.models.backbone import Backbone
from dermedge.train.hybrid.model import Grid
from dermedge.train.hybrid.recipe import HybridRecipe
from dermedge.train.views import FRAME_BYTES, Frames
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Preprocess

Key = tuple[int, int]
SMALLEST_BLOCK = 4  # patches
# Probabilities in the first global, second global and local crops, as in DINO.
SOLARIZATION = (0.0, 0.2, 0.0)


class CropView(NamedTuple):
    """The crops of one image.

    `global_crops` is [2, 3, S, S], `local_crops` [L, 3, s, s] and `mask` bool [2, P].
    P is the number of patches. `row` is the row of the image, and `unreadable` lists
    the rows before it that could not be decoded.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> recipe, backbone = PRESETS["mobile"], Backbone("mobilenetv2_100")
        >>> paths = [Path("missing.png"), Path("lesion.png")]
        >>> view = CropDataset(paths, ["a", "b"], recipe, backbone, None, seed=0)[0, 0]
        >>> view.row, view.unreadable
        (1, (0,))
    """

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor
    row: int
    unreadable: tuple[int, ...]


class CropBatch(NamedTuple):
    """The crops of N images: the first crop of all images, then the second, and so on.

    `global_crops` is [2N, 3, S, S], `local_crops` [L N, 3, s, s], `mask` bool [2N, P]
    and `rows` [N].

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> recipe, backbone = PRESETS["mobile"], Backbone("mobilenetv2_100")
        >>> paths, ids = [Path("lesion.png")], ["lesion"]
        >>> crops = CropDataset(paths, ids, recipe, backbone, grid=None, seed=0)
        >>> batch = collate([crops[0, 0], crops[0, 1], crops[0, 2]])
        >>> tuple(batch.global_crops.shape), tuple(batch.local_crops.shape)
        ((6, 3, 96, 96), (6, 3, 48, 48))
    """

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor
    rows: Tensor
    unreadable: tuple[int, ...]


def make_transforms(recipe: HybridRecipe, backbone: Backbone) -> tuple[DINOViewTransform, ...]:
    """Return the augmentations of the first global, second global and local crops."""
    normalize = {"mean": list(backbone.mean), "std": list(backbone.std)}
    wide, near = (recipe.size, recipe.global_scale), (recipe.local_size, recipe.local_scale)
    return tuple(
        DINOViewTransform(
            crop_size=size,
            crop_scale=scale,
            normalize=normalize,
            gaussian_blur=blur,
            solarization_prob=solarization,
        )
        for (size, scale), blur, solarization in zip(
            (wide, wide, near), recipe.blur, SOLARIZATION, strict=True
        )
    )


class CropDataset(Dataset[CropView]):
    """The crops of images, by key (row, pass over the data).

    Augmentation and mask depend on the seed and the key only. An image that cannot be
    decoded is replaced by the next row's, and reported.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> recipe, backbone = PRESETS["mobile"], Backbone("mobilenetv2_100")
        >>> paths, ids = [Path("lesion.png")], ["lesion"]
        >>> crops = CropDataset(paths, ids, recipe, backbone, grid=None, seed=0)
        >>> first, again, second = crops[0, 0], crops[0, 0], crops[0, 1]
        >>> torch.equal(first.global_crops, again.global_crops)
        True
        >>> torch.equal(first.global_crops, second.global_crops)
        False
    """

    def __init__(
        self,
        paths: Sequence[Path],
        ids: Sequence[str],
        recipe: HybridRecipe,
        backbone: Backbone,
        grid: Grid | None,
        seed: int,
    ) -> None:
        """Prepare the augmentations; no image is read yet."""
        self.paths, self.ids, self.recipe, self.grid, self.seed = paths, ids, recipe, grid, seed
        self.transforms = make_transforms(recipe, backbone)
        self._frames: Frames | None = None

    def __getitem__(self, key: Key) -> CropView:
        """Return the crops of a row in a pass over the data."""
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
        local_crops = self.recipe.local_crops if self.recipe.dino else 0
        # Seeding by row and pass makes a crop independent of workers, processes and
        # resuming. Python's own hash() differs between processes.
        with seeded(zlib.crc32(f"{self.seed}/{number}/{self.ids[row]}".encode())):
            picture = Image.fromarray(frame)
            first, second, local = self.transforms
            crops = torch.stack([first(picture), second(picture)])
            small = [local(picture) for _ in range(local_crops)]
            mask = torch.stack([self._draw_mask(), self._draw_mask()])
        return CropView(
            crops, torch.stack(small) if small else crops[:0], mask, row, tuple(unreadable)
        )

    @property
    def frames(self) -> Frames:
        """Decoded images, kept in memory by each process of a loader."""
        if self._frames is None:
            worker = get_worker_info()
            # With this margin even the smallest global crop is not enlarged.
            margin = 1 / math.sqrt(self.recipe.global_scale[0])
            room = FRAME_BYTES // (worker.num_workers if worker else 1)
            self._frames = Frames(
                self.paths, Preprocess(self.recipe.size), margin=margin, capacity=room
            )
        return self._frames

    def _draw_mask(self) -> Tensor:
        """Return a mask of the patches, bool [P]: random blocks, or no patch."""
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
    """Seed the generators that the augmentations use, and restore them afterwards."""
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
    """Combine the crops of several images into a batch."""
    return CropBatch(
        torch.stack([view.global_crops for view in views], 1).flatten(0, 1),
        torch.stack([view.local_crops for view in views], 1).flatten(0, 1),
        torch.stack([view.mask for view in views], 1).flatten(0, 1),
        torch.tensor([view.row for view in views]),
        tuple(row for view in views for row in view.unreadable),
    )


def step_keys(rows: int, batch: int, step: int, seed: int) -> list[Key]:
    """Return the keys (row, pass) of a step's images.

    Every row comes once per pass. Each pass has its own order.

    Example:
        >>> sorted(step_keys(rows=4, batch=4, step=0, seed=0))
        [(0, 0), (1, 0), (2, 0), (3, 0)]
    """
    keys: list[Key] = []
    # A step may cross the end of a pass, as passes are not cut to whole steps.
    for position in range(step * batch, (step + 1) * batch):
        number, place = divmod(position, rows)
        keys.append((int(row_order(rows, number, seed)[place]), number))
    return keys


@functools.lru_cache(maxsize=2)
def row_order(rows: int, number: int, seed: int) -> NDArray[np.int64]:
    """Return the permutation of the rows for pass `number`."""
    return np.random.default_rng((seed, number)).permutation(rows)


@dataclass(frozen=True)
class RankSampler:
    """The keys of one process, one list per accumulation part, from step `start` on.

    A step's images are assigned part by part and, within a part, rank by rank. A step
    therefore has the same images for any number of processes.

    Example:
        >>> from dermedge.train.hybrid.recipe import make_recipe
        >>> recipe = make_recipe("mobile", batch_size=8)
        >>> samplers = [RankSampler(80, recipe, 0, 0, rank, world=2) for rank in (0, 1)]
        >>> first, second = (next(iter(sampler)) for sampler in samplers)
        >>> first + second == step_keys(rows=80, batch=8, step=0, seed=0)
        True
    """

    rows: int
    recipe: HybridRecipe
    seed: int
    start: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys part by part."""
        size = self.recipe.batch_size // (self.recipe.accumulate * self.world)
        for step in range(self.start, self.recipe.total):
            everything = step_keys(self.rows, self.recipe.batch_size, step, self.seed)
            for part in range(self.recipe.accumulate):
                first = (part * self.world + self.rank) * size
                yield everything[first : first + size]


def load_steps(crops: CropDataset, sampler: RankSampler, workers: int) -> Iterator[list[CropBatch]]:
    """Yield the parts of every step, prepared ahead by `workers` processes."""
    loader: Iterable[CropBatch] = DataLoader(
        crops,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    parts: list[CropBatch] = []
    for batch in loader:
        parts.append(batch)
        if len(parts) == sampler.recipe.accumulate:
            yield parts
            parts = []
