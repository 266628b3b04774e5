"""What training reads: a table's rows as arrays, its pictures as small frames, and augmented views of them."""

import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.split import with_split
from dermedge.data.table import digests, read_table, table_digest
from dermedge.data.taxonomy import TAXONOMY, project, resolve
from dermedge_runtime.errors import DataError, ImageError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.preprocess import decode_image, preprocess
from dermedge_runtime.spec import Label, Preprocess, Task

Pixels = NDArray[np.uint8]
FRAME_MARGIN = 1.15
FRAME_BYTES = 3 << 30


@dataclass(frozen=True)
class Samples:
    """The rows of the table `name`, in its order.

    `labels` indexes the diagnosis task's labels, -1 where unknown or foreign; `malignant` is 1, 0 or NaN; `split` is
    train, val or test.
    """

    name: str
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    labels: NDArray[np.int64]
    malignant: NDArray[np.float32]
    split: NDArray[np.str_]
    table_digest: str
    licences: tuple[str, ...]

    @property
    def images_digest(self) -> str:
        """Identifies the image files themselves, whatever the table says of them."""
        return sha256_hex("\n".join(sorted(self.digests)).encode())

    def rows(self, split: str) -> NDArray[np.intp]:
        """Indices of one split's rows."""
        return np.flatnonzero(self.split == split)


def read_samples(data: Path | str, tasks: tuple[Task, ...] | None = None) -> tuple[Samples, tuple[Task, ...]]:
    """Read a table, split it if it has no split, and derive its tasks unless they are given.

    Raises:
        DataError: the table is unusable, or its training rows have fewer than two diagnoses.
    """
    table = with_split(read_table(data))
    frame = table.frame
    if tasks is None:
        tasks = derive_tasks(frame[frame["split"] == "train"], str(table.root))
    ids = [label.id for task in tasks if task.kind == "classify" for label in task.labels]
    covering = {dx: project(dx, ids) for dx in frame["dx"].unique() if dx}
    index = {dx: ids.index(label) for dx, label in covering.items() if label is not None}
    files = digests(table)
    samples = Samples(
        name=table.name,
        image_ids=tuple(frame["image_id"]),
        paths=tuple(table.root / image for image in frame["image"]),
        digests=tuple(files.loc[list(frame["image_id"])]),
        labels=np.array([index.get(dx, -1) for dx in frame["dx"]], np.int64),
        malignant=frame["malignant"].to_numpy(np.float32),
        split=frame["split"].to_numpy(str),
        table_digest=table_digest(table),
        licences=tuple(sorted(set(frame["licence"]) - {""})),
    )
    return samples, tasks


def derive_tasks(frame: Any, where: str) -> tuple[Task, ...]:
    """`diagnosis` over the labels present, in the taxonomy's order, and `malignancy` where both answers occur."""
    present = set(frame["dx"]) - {""}
    if len(present) < 2:
        raise DataError(
            f"The training rows of {where} have {len(present)} diagnoses, two are needed: fill its dx column."
        )
    known = [resolve(dx) for dx in present]
    order = {name: i for i, name in enumerate(TAXONOMY)}
    labels = tuple(
        Label(d.id, d.name, d.malignant, {"icd11": d.icd11} if d.icd11 else {})
        for d in sorted(known, key=lambda diagnosis: order[diagnosis.id])
    )
    tasks: tuple[Task, ...] = (Task("diagnosis", "classify", labels),)
    if set(frame["malignant"].dropna().unique()) >= {0, 1}:
        tasks += (Task("malignancy", "binary"),)
    return tasks


class Frames:
    """Decoded pictures, shrunk to what training needs and kept in memory up to a limit."""

    def __init__(
        self, paths: Sequence[Path], spec: Preprocess, *, margin: float = FRAME_MARGIN, room: int = FRAME_BYTES
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
            raise DataError(f"{self.paths[row]}: {error} Run `dermedge data check` on this table.") from error

    def _decode(self, row: int) -> Pixels:
        try:
            pixels = decode_image(self.paths[row], self.spec)
        except ImageError as error:
            raise DataError(f"{self.paths[row]}: {error} Run `dermedge data check` on this table.") from error
        height, width = pixels.shape[:2]
        ratio = self.margin * self.spec.size / min(height, width)
        if ratio >= 1:
            return pixels
        size = (round(width * ratio), round(height * ratio))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


class Views:
    """Augmented views: view `v` of an image is the same pixels whenever, and in whatever order, it is asked for."""

    def __init__(self, frames: Frames, image_ids: Sequence[str], seed: int) -> None:
        self.frames, self.image_ids, self.seed = frames, image_ids, seed
        self._local = threading.local()

    def view(self, row: int, number: int) -> Pixels:
        """View `number` of a row: uint8 [S, S, 3]."""
        if not hasattr(self._local, "transform"):
            self._local.transform = augmentation(self.frames.spec.size)
        self._local.transform.set_random_seed(zlib.crc32(f"{self.seed}/{number}/{self.image_ids[row]}".encode()))
        pixels: Pixels = self._local.transform(image=self.frames[row])["image"]
        return pixels


def augmentation(size: int) -> Any:
    """Crops, the eight symmetries of the square and mild colour changes; nothing that hides or invents structure."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network for its newest version
    import albumentations as A
    import cv2

    return A.Compose(
        [
            A.RandomResizedCrop((size, size), scale=(0.45, 1.0), ratio=(0.8, 1.25), interpolation=cv2.INTER_LINEAR),
            A.D4(p=1.0),
            A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.03, 0.03), p=0.8),
        ]
    )


def ahead(make: Any, keys: Sequence[Any], depth: int = 3) -> Iterator[Any]:
    """`make(key)` for every key, in order, made by a thread that keeps `depth` results ahead."""
    with ThreadPoolExecutor(1) as pool:
        pending: list[Future[Any]] = []
        try:
            for key in keys:
                pending.append(pool.submit(make, key))
                if len(pending) > depth:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()
