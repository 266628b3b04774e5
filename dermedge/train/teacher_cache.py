"""Store the views of train images, and what a teacher answers to them.

A pass of the teacher costs more than a training step of a small student, and an image
costs more to decode and crop than to read. Both are therefore stored, and an epoch costs
the student alone. The files depend on the image, the number of the view and the teacher's
weights, so several runs can share them.
"""

import logging
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.models.network import POOLED
from dermedge.train.distillation_loss import EXTRA
from dermedge.train.distributed import rank, wait_for_ranks, world_size
from dermedge.train.lineage import describe_backbone
from dermedge.train.samples import (
    FRAME_MARGIN,
    Coverage,
    Frames,
    Masks,
    Pixels,
    RowIndices,
    Samples,
    Views,
)
from dermedge.train.teachers import (
    BATCH,
    Member,
    Teacher,
    Whitening,
    concatenate_embeddings,
    resize_pixels,
)
from dermedge.train.view_store import ViewStore
from dermedge_runtime.errors import DataError, DermedgeError
from dermedge_runtime.files import sha256_file
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.packages import find_version
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress

LOGGER = logging.getLogger(__name__)
SCHEMA = "dermedge.views/1"
# Views have numbers and no other seed, so that runs of several seeds share them. The
# symmetry and the order of each epoch depend on the run's seed.
VIEW_SEED = 0
# Images of one chunk, with all of their views: a killed run loses at most this much.
CHUNK = 32
WORKERS = 4


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """Stored views of the train images of one run.

    Attributes:
        samples: The rows of the table.
        teacher: The teacher, fitted to the student's tasks and size.
        views: Number of views of each image.
        masked: Store the lesion masks too.
        maps: Store the teacher's feature maps too.
        pixels: Images of the student's size, and masks.
        outputs: Outputs of each member of the teacher.

    Example:
        >>> from dermedge.train.samples import read_samples
        >>> from dermedge.train.teachers import load_teacher
        >>> teacher = load_teacher("teacher")
        >>> samples, _ = read_samples("lesions", teacher.spec.tasks)
        >>> cache = TeacherCache.open(Path("cache"), samples, teacher, views=2)
        >>> cache.fill(samples.rows("train"))
        >>> pixels, _, outputs = cache.read(samples.rows("train")[:8], view=1)
        >>> pixels.shape, outputs["diagnosis"].shape
        ((8, 32, 32, 3), (8, 6))
    """

    samples: Samples
    teacher: Teacher
    views: int
    masked: bool
    maps: bool
    pixels: ViewStore
    outputs: tuple[ViewStore, ...]

    @classmethod
    def open(
        cls,
        folder: Path,
        samples: Samples,
        teacher: Teacher,
        *,
        views: int,
        masked: bool = False,
        maps: bool = False,
    ) -> "TeacherCache":
        """Open the stores of a folder; nothing is computed.

        Args:
            folder: Folder of all stores.
            samples: The rows of the table.
            teacher: The teacher, fitted to the student's tasks and size.
            views: Number of views of each image.
            masked: Store the lesion masks too.
            maps: Store the teacher's feature maps too.
        """
        preprocess = teacher.spec.preprocess
        # Versions that may change the pixels of a view or the outputs of a network.
        common = {
            "schema": SCHEMA,
            "cut": max(teacher.size, preprocess.size),
            "margin": FRAME_MARGIN,
            "seed": VIEW_SEED,
            "background": list(preprocess.background),
            "albumentations": find_version("albumentations"),
        }
        pixels = ViewStore(folder, {**common, "size": preprocess.size, "masks": masked})
        outputs = tuple(
            ViewStore(folder, {**common, **_describe(member), "map": maps})
            for member in teacher.members
        )
        return cls(samples, teacher, views, masked, maps, pixels, outputs)

    def fill(self, rows: RowIndices, progress: Progress | None = None) -> None:
        """Compute the views that the stores lack; several processes share the rows.

        Args:
            rows: Rows whose views are needed.
            progress: Called after every batch of views.

        Raises:
            DataError: An image or a mask cannot be read.
            DermedgeError: The disk has too little space.
        """
        self._fill(rows[rank() :: world_size()], progress)
        if world_size() > 1:
            wait_for_ranks()
            for store in (self.pixels, *self.outputs):
                store.refresh()

    def _fill(self, rows: RowIndices, progress: Progress | None) -> None:
        """Compute the views that the stores lack of this process's rows."""
        wanted = self._missing(rows)
        if not wanted:
            return
        total = sum(len(rows) * len(views) for rows, views in wanted)
        need = total * self._bytes_per_view()
        note = f"teacher runs on {self.views} views per image, {need / 1e9:.2f} GB on disk"
        LOGGER.info("%d views: %s in %s.", total, note, self.pixels.folder.parent)
        _check_space(self.pixels.folder, need)
        done = 0
        for (chunk, views), (pixels, masks) in zip(
            wanted, prefetch(self._cut, wanted, workers=_workers(), ahead=_workers()), strict=True
        ):
            self._add_pixels(chunk, views, pixels, masks)
            for member, store in zip(self.teacher.members, self.outputs, strict=True):
                for step in self._add_outputs(member, store, chunk, views, pixels):
                    if progress:
                        progress(done + step // len(self.outputs), total, note)
            done += len(pixels)
        for member in self.teacher.members:
            member.model.module.to("cpu")  # the student needs the accelerator's memory

    def read(
        self, rows: RowIndices, view: int, needs: Collection[str] = ()
    ) -> tuple[Pixels, Coverage | None, dict[str, NDArray[np.float32]]]:
        """Return one view of some rows.

        Args:
            rows: Row indices, [N].
            view: Number of the view.
            needs: `embedding`, `map`, both or none.

        Returns:
            Images uint8 [N, S, S, 3], masks float32 [N, S/4, S/4] or None, and the
            teacher's outputs float32 [N, ...] by task and by `EXTRA[name]` of `needs`.
        """
        contents = [self._contents[row] for row in rows]
        stored = self.pixels.read(contents, view, ["image", "mask"] if self.masked else ["image"])
        masks = stored["mask"].astype(np.float32) if self.masked else None
        images = [self.samples.digests[row] for row in rows]
        wanted = {task.name for task in self.teacher.spec.tasks}
        extra, parts = [EXTRA[name] for name in needs], []
        for member, store in zip(self.teacher.members, self.outputs, strict=True):
            own = {task.name for task in member.model.spec.tasks}
            parts.append(store.read(images, view, [*sorted(own & wanted), *extra]))
        return stored["image"], masks, self.teacher.combine(parts)

    def whiten(self, rows: RowIndices) -> "TeacherCache":
        """Return the cache with embeddings that are whitened over the first view of `rows`."""
        whitening = Whitening.fit(self.read_embeddings(rows, 0))
        return replace(self, teacher=replace(self.teacher, whitening=whitening))

    def read_embeddings(self, rows: RowIndices, view: int) -> NDArray[np.float32]:
        """Return the features [N, D] of all members side by side, without whitening."""
        images = [self.samples.digests[row] for row in rows]
        parts = [store.read(images, view, [POOLED]) for store in self.outputs]
        return concatenate_embeddings(parts)

    @cached_property
    def _contents(self) -> tuple[str, ...]:
        """Digests of every row's image, and of its mask where masks are stored."""
        rows = zip(self.samples.digests, self.samples.masks, strict=True)
        return tuple(
            f"{image}/{sha256_file(mask)}" if self.masked and mask is not None else image
            for image, mask in rows
        )

    def _missing(self, rows: RowIndices) -> list[tuple[RowIndices, tuple[int, ...]]]:
        """Return chunks of rows and the views that any store lacks of them."""
        contents = {self._contents[row]: int(row) for row in reversed(rows)}
        images = {self.samples.digests[row]: int(row) for row in reversed(rows)}
        lacking: dict[int, set[int]] = {}
        for store, row_of in ((self.pixels, contents), *((s, images) for s in self.outputs)):
            for image, views in store.missing(list(row_of), self.views).items():
                lacking.setdefault(row_of[image], set()).update(views)
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in sorted(lacking):
            groups.setdefault(tuple(sorted(lacking[row])), []).append(row)
        return [
            (np.array(members[start : start + CHUNK], np.intp), views)
            for views, members in groups.items()
            for start in range(0, len(members), CHUNK)
        ]

    def _cut(
        self, wanted: tuple[RowIndices, tuple[int, ...]]
    ) -> tuple[Pixels, NDArray[np.float16]]:
        """Cut views uint8 [n * V, M, M, 3] and coverage [n * V, S/4, S/4] (NaN: no mask)."""
        rows, numbers = wanted
        spec = self.teacher.spec.preprocess
        cut = replace(spec, size=max(self.teacher.size, spec.size))
        frames = Frames([self.samples.paths[row] for row in rows], cut)
        masks = Masks([self.samples.masks[row] for row in rows], frames) if self.masked else None
        views = Views(frames, [self.samples.digests[row] for row in rows], VIEW_SEED)
        pixels, coverage = [], []
        for place in range(len(rows)):
            framed = masks.framed(place) if masks else None
            for number in numbers:
                image, mask = views.cut(place, number, framed)
                pixels.append(image)
                coverage.append(_cover(mask, spec.size // 4))
        return np.stack(pixels), np.stack(coverage)

    def _add_pixels(
        self,
        rows: RowIndices,
        views: Sequence[int],
        pixels: Pixels,
        masks: NDArray[np.float16],
    ) -> None:
        contents = [self._contents[row] for row in rows]
        chosen = _lacking(self.pixels, contents, views)
        if not chosen:
            return
        places = _places(chosen, len(views))
        arrays: dict[str, NDArray[Any]] = {
            "image": resize_pixels(pixels[places], self.teacher.spec.preprocess.size)
        }
        if self.masked:
            arrays["mask"] = masks[places]
        self.pixels.add([contents[i] for i in chosen], views, arrays)

    def _add_outputs(
        self,
        member: Member,
        store: ViewStore,
        rows: RowIndices,
        views: Sequence[int],
        pixels: Pixels,
    ) -> Iterator[int]:
        """Write a member's outputs of a chunk; yield the number of views done so far."""
        images = [self.samples.digests[row] for row in rows]
        chosen = _lacking(store, images, views)
        if not chosen:
            return
        places, parts = _places(chosen, len(views)), []
        for start in range(0, len(places), BATCH):
            parts.append(member.run(pixels[places[start : start + BATCH]], maps=self.maps))
            yield min(start + BATCH, len(places))
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _check_outputs(arrays, member)
        halves = {name: _half(array) for name, array in arrays.items()}
        store.add([images[i] for i in chosen], views, halves)

    def _bytes_per_view(self) -> int:
        size = self.teacher.spec.preprocess.size
        blank = np.zeros((1, size, size, 3), np.uint8)
        outputs = [member.run(blank, maps=self.maps) for member in self.teacher.members]
        values = sum(array.size for part in outputs for array in part.values())
        return blank.size + 2 * values + (size * size // 8 if self.masked else 0)


def _describe(member: Member) -> Mapping[str, Any]:
    return {
        "teacher": member.digest,
        "backbone": describe_backbone(member.model.backbone),
        "size": member.size,
        "timm": find_version("timm"),
    }


def _lacking(store: ViewStore, images: Sequence[str], views: Sequence[int]) -> list[int]:
    """Return the positions of images that a store lacks one of the views of."""
    missing = store.missing(images, max(views) + 1)
    return [i for i, image in enumerate(images) if set(missing.get(image, ())) & set(views)]


def _places(chosen: Sequence[int], views: int) -> NDArray[np.intp]:
    return (np.array(chosen, np.intp)[:, None] * views + np.arange(views)).ravel()


def _cover(mask: Pixels | None, side: int) -> NDArray[np.float16]:
    """Return the share of each cell inside the lesion, [side, side]; NaN without a mask."""
    if mask is None:
        return np.full((side, side), np.nan, np.float16)
    share = Image.fromarray(mask.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(share).astype(np.float16)


def _check_outputs(arrays: Mapping[str, NDArray[np.float32]], member: Member) -> None:
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise DataError(
            f"The {bad[0]} of the teacher {member.folder} is NaN or infinite on a train image. "
            "Train or import the teacher again."
        )


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    # A logit beyond float16's range would become infinite.
    limit = float(np.finfo(np.float16).max)
    return np.clip(values, -limit, limit).astype(np.float16)


def _workers() -> int:
    return min(WORKERS, usable_cpus())


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DermedgeError(
            f"The teacher cache needs {need / 1e9:.1f} GB, but {folder.parent} has "
            f"{free / 1e9:.1f} GB free. Use fewer --views, or another --teacher-cache."
        )
