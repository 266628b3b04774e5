"""What training reads: a table's rows as arrays, its pictures as small frames, and augmented views of them."""

import os
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.masks import decode_mask, output_grid, read_mask
from dermedge.data.split import with_split
from dermedge.data.table import digests, read_table, table_digest
from dermedge.data.taxonomy import project
from dermedge.train.tasks import derive_tasks
from dermedge_runtime.errors import DataError, ImageError
from dermedge_runtime.files import sha256_file, sha256_hex
from dermedge_runtime.preprocess import decode_image, preprocess
from dermedge_runtime.spec import Preprocess, Task

Pixels = NDArray[np.uint8]
Shares = NDArray[np.float32]
FRAME_MARGIN = 1.15
FRAME_BYTES = 3 << 30


@dataclass(frozen=True)
class Samples:
    """The rows of the table `name`, in its order.

    `labels` indexes the diagnosis task's labels and `severity` the severity task's levels, -1 where unknown or foreign;
    `malignant` is 1, 0 or NaN; `masks` are files, None where there is none; `split` is train, val or test.
    """

    name: str
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    labels: NDArray[np.int64]
    malignant: NDArray[np.float32]
    severity: NDArray[np.int64]
    masks: tuple[Path | None, ...]
    split: NDArray[np.str_]
    table_digest: str
    licences: tuple[str, ...]

    @property
    def images_digest(self) -> str:
        """Identifies the image files themselves, whatever the table says of them."""
        return sha256_hex("\n".join(sorted(self.digests)).encode())

    @property
    def masks_digest(self) -> str:
        """Identifies the mask files themselves.

        Raises:
            DataError: one cannot be read.
        """
        try:
            found = [sha256_file(path) if path is not None else "" for path in self.masks]
        except OSError as error:
            raise DataError(
                f"The mask {error.filename} cannot be read: restore it, or empty its cell."
            ) from error
        return sha256_hex(
            "\n".join(sorted(map("/".join, zip(self.digests, found, strict=True)))).encode()
        )

    def rows(self, split: str) -> NDArray[np.intp]:
        """Indices of one split's rows."""
        return np.flatnonzero(self.split == split)


def read_samples(
    data: Path | str, tasks: tuple[Task, ...] | None = None, *, wanted: Sequence[str] | None = None
) -> tuple[Samples, tuple[Task, ...]]:
    """Read a table, split it if it has no split, and derive its tasks (`wanted` as in `derive_tasks`) unless they are
    given.

    Raises:
        DataError: the table is unusable, or its training rows cannot teach the tasks.
        UsageError: an unknown task is wanted.
    """
    table = with_split(read_table(data))
    frame = table.frame
    if tasks is None:
        tasks = derive_tasks(frame[frame["split"] == "train"], str(table.root), wanted)
    ids = [label.id for task in tasks if task.kind == "classify" for label in task.labels]
    covering = {dx: project(dx, ids) for dx in frame["dx"].unique() if dx}
    index = {dx: ids.index(label) for dx, label in covering.items() if label is not None}
    levels = {
        label.id: k
        for task in tasks
        if task.kind == "ordinal"
        for k, label in enumerate(task.labels)
    }
    files = digests(table)
    samples = Samples(
        name=table.name,
        image_ids=tuple(frame["image_id"]),
        paths=tuple(table.root / image for image in frame["image"]),
        digests=tuple(files.loc[list(frame["image_id"])]),
        labels=np.array([index.get(dx, -1) for dx in frame["dx"]], np.int64),
        malignant=frame["malignant"].to_numpy(np.float32),
        severity=np.array(
            [levels.get(f"{level:.0f}", -1) for level in frame["severity"]], np.int64
        ),
        masks=tuple(table.root / mask if mask else None for mask in frame["mask"]),
        split=frame["split"].to_numpy(str),
        table_digest=table_digest(table),
        licences=tuple(sorted(set(frame["licence"]) - {""})),
    )
    return samples, tasks


class Frames:
    """Decoded pictures, shrunk to what training needs and kept in memory up to a limit."""

    def __init__(
        self,
        paths: Sequence[Path],
        spec: Preprocess,
        *,
        margin: float = FRAME_MARGIN,
        room: int = FRAME_BYTES,
    ) -> None:
        self.paths, self.spec, self.margin = paths, spec, margin
        self._kept: dict[int, Pixels] = {}
        self._room = room
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> Pixels:
        """RGB uint8 [H, W, 3], the short side at most `margin` S."""
        frame = self._kept.get(row)
        if frame is None:
            frame = self._decode(row)
            with self._lock:
                if self._room >= frame.nbytes and row not in self._kept:
                    self._kept[row] = frame
                    self._room -= frame.nbytes
        return frame

    def centred(self, row: int) -> Pixels:
        """The contracted preprocessing of a row's file: uint8 [S, S, 3]."""
        try:
            return preprocess(self.paths[row], self.spec, exact=True)
        except ImageError as error:
            raise DataError(
                f"{self.paths[row]}: {error} Run `dermedge data check` on this table."
            ) from error

    def _decode(self, row: int) -> Pixels:
        try:
            pixels = decode_image(self.paths[row], self.spec)
        except ImageError as error:
            raise DataError(
                f"{self.paths[row]}: {error} Run `dermedge data check` on this table."
            ) from error
        height, width = pixels.shape[:2]
        ratio = self.margin * self.spec.size / min(height, width)
        if ratio >= 1:
            return pixels
        size = (round(width * ratio), round(height * ratio))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


class Masks:
    """The masks of the same rows as `frames`, None where there is none; kept in memory as bits."""

    def __init__(self, paths: Sequence[Path | None], frames: Frames) -> None:
        self.paths, self.frames = paths, frames
        self._kept: dict[int, Pixels] = {}

    def framed(self, row: int) -> Pixels | None:
        """The mask of a row's frame: uint8 [H, W], 1 inside the lesion.

        Raises:
            DataError: it is unreadable, or its sides have another ratio than the image's.
        """
        path = self.paths[row]
        if path is None:
            return None
        height, width = self.frames[row].shape[:2]
        if row not in self._kept:
            mask = decode_mask(path)
            if abs(mask.shape[0] * width / mask.shape[1] - height) > 1.5:
                raise DataError(
                    f"The mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, which is not the shape of its "
                    "image: run `dermedge data check` on this table."
                )
            nearest = Image.fromarray(mask.astype(np.uint8)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            self._kept[row] = np.packbits(np.asarray(nearest))
        return np.unpackbits(self._kept[row], count=height * width).reshape(height, width)

    def centred(self, row: int) -> Shares:
        """The mask in the contracted preprocessing's frame, on the grid of the output: [S/4, S/4], 1 inside the lesion;
        NaN where there is none.
        """
        path, grid = self.paths[row], output_grid(self.frames.spec)
        if path is None:
            return np.full((grid.size, grid.size), np.nan, np.float32)
        return read_mask(path, grid).astype(np.float32)


class Views:
    """Augmented views: view `v` of an image is the same pixels whenever, and in whatever order, it is asked for."""

    def __init__(
        self, frames: Frames, image_ids: Sequence[str], seed: int, masks: Masks | None = None
    ) -> None:
        self.frames, self.image_ids, self.seed, self.masks = frames, image_ids, seed, masks
        self._local = threading.local()

    def view(self, row: int, number: int) -> Pixels:
        """View `number` of a row: uint8 [S, S, 3]."""
        return self._cut(row, number, None)[0]

    def masked_view(self, row: int, number: int) -> tuple[Pixels, Shares]:
        """View `number` of a row, and how much of each cell of the output's grid the lesion covers in it: [S/4, S/4],
        NaN where the row has no mask.
        """
        side = self.frames.spec.size // 4
        pixels, mask = self._cut(row, number, self.masks.framed(row) if self.masks else None)
        if mask is None:
            return pixels, np.full((side, side), np.nan, np.float32)
        return pixels, mask.reshape(side, 4, side, 4).mean((1, 3), dtype=np.float32)

    def _cut(self, row: int, number: int, mask: Pixels | None) -> tuple[Pixels, Pixels | None]:
        if not hasattr(self._local, "transform"):
            self._local.transform = augmentation(self.frames.spec.size)
        self._local.transform.set_random_seed(
            zlib.crc32(f"{self.seed}/{number}/{self.image_ids[row]}".encode())
        )
        extra = {} if mask is None else {"mask": mask}
        cut = self._local.transform(image=self.frames[row], **extra)
        return cut["image"], cut.get("mask")


def augmentation(size: int) -> Any:
    """Crops, the eight symmetries of the square and mild colour changes; nothing that hides or invents structure."""
    os.environ.setdefault(
        "NO_ALBUMENTATIONS_UPDATE", "1"
    )  # else importing it asks the network for its newest version
    import albumentations as A
    import cv2

    return A.Compose(
        [
            A.RandomResizedCrop(
                (size, size), scale=(0.45, 1.0), ratio=(0.8, 1.25), interpolation=cv2.INTER_LINEAR
            ),
            A.D4(p=1.0),
            A.ColorJitter(
                brightness=(0.8, 1.2),
                contrast=(0.8, 1.2),
                saturation=(0.8, 1.2),
                hue=(-0.03, 0.03),
                p=0.8,
            ),
        ]
    )
