"""Compute the views and outputs that a teacher cache lacks."""

import logging
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.train.distributed import rank, wait_for_ranks, world_size
from dermedge.train.finite import check_outputs
from dermedge.train.samples import RowIndices
from dermedge.train.teacher_cache import VIEW_SEED, TeacherCache
from dermedge.train.teacher_member import BATCH, Member, resize_pixels
from dermedge.train.view_store import ViewStore
from dermedge.train.views import Frames, Masks, Pixels, Views, choose_threads
from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.progress import Progress

LOGGER = logging.getLogger(__name__)
# Images of one chunk, with all of their views: a killed run loses at most this much.
CHUNK = 32
# The views that a store lacks, by row.
Lacking = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class _Chunk:
    """Some rows, the numbers of their views to cut, and the rows that each store lacks."""

    rows: RowIndices
    views: tuple[int, ...]
    places: tuple[list[int], ...]

    def counts(self) -> list[int]:
        """Return the number of views to write into each store."""
        return [len(places) * len(self.views) for places in self.places]


def fill_teacher_cache(
    cache: TeacherCache, rows: RowIndices, progress: Progress | None = None
) -> None:
    """Compute the views that the stores lack; several processes share the rows.

    Args:
        cache: The cache.
        rows: Rows whose views are needed.
        progress: Called with the number of stored views after every batch.

    Raises:
        DataError: An image or a mask cannot be read, or an output of a teacher is not
            finite.
        DermedgeError: The disk has too little space, or the processes do not share it.
    """
    _fill(cache, rows[rank() :: world_size()], progress)
    for member in cache.teacher.members:
        member.model.module.to("cpu")  # the student needs the accelerator's memory
    if world_size() > 1:
        wait_for_ranks()
        for store in cache.stores:
            store.refresh()
            if _lacking_views(cache, store, rows):
                raise DermedgeError(
                    f"Views that another process stored are not in {store.folder}. Put "
                    "--teacher-cache, or --out, on a disk that all machines share."
                )


def _fill(cache: TeacherCache, rows: RowIndices, progress: Progress | None) -> None:
    """Compute the views that the stores lack of this process's rows."""
    chunks = _make_chunks([_lacking_views(cache, store, rows) for store in cache.stores])
    if not chunks:
        return
    counts = np.sum([chunk.counts() for chunk in chunks], axis=0)
    total, done = int(counts.sum()), 0
    need = int(counts @ _bytes_per_view(cache)) * world_size()
    note = f"teacher runs on {cache.views} views per image, {need / 1e9:.2f} GB on disk"
    LOGGER.info("%d views: %s in %s.", total, note, cache.pixels.folder.parent)
    _check_space(cache, need)
    threads = choose_threads()
    cut = prefetch(partial(_cut, cache), chunks, workers=threads, ahead=threads)
    for chunk, (pixels, masks) in zip(chunks, cut, strict=True):
        for count in _store_views(cache, chunk, pixels, masks):
            done += count
            if progress:
                progress(done, total, note)


def _keys(cache: TeacherCache, store: ViewStore) -> Sequence[str]:
    """Return the keys of all rows in a store. Outputs do not depend on masks."""
    return cache.pixel_keys if store is cache.pixels else cache.samples.digests


def _lacking_views(cache: TeacherCache, store: ViewStore, rows: RowIndices) -> Lacking:
    """Return the views that a store lacks, by row. Equal images count once."""
    keys = _keys(cache, store)
    row_of = {keys[row]: int(row) for row in reversed(rows)}
    lacking = store.missing(list(row_of), cache.views)
    return {row_of[key]: views for key, views in lacking.items()}


def _make_chunks(lacking: Sequence[Lacking]) -> list[_Chunk]:
    """Return chunks of rows with the views that any store lacks of them.

    Args:
        lacking: Views that each store lacks.
    """
    views_of: dict[int, set[int]] = {}
    for one in lacking:
        for row, views in one.items():
            views_of.setdefault(row, set()).update(views)
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in sorted(views_of):
        groups.setdefault(tuple(sorted(views_of[row])), []).append(row)
    parts = [
        (members[start : start + CHUNK], views)
        for views, members in groups.items()
        for start in range(0, len(members), CHUNK)
    ]
    return [
        _Chunk(
            np.array(rows, np.intp),
            views,
            tuple([place for place, row in enumerate(rows) if row in one] for one in lacking),
        )
        for rows, views in parts
    ]


def _cut(cache: TeacherCache, chunk: _Chunk) -> tuple[Pixels, NDArray[np.float16]]:
    """Cut views uint8 [n * V, M, M, 3] and coverage [n * V, S/4, S/4] (NaN: no mask)."""
    rows = chunk.rows
    samples, spec = cache.samples, cache.teacher.spec.preprocess
    cut = replace(spec, size=max(cache.teacher.size, spec.size))
    frames = Frames([samples.paths[row] for row in rows], cut)
    masks = Masks([samples.masks[row] for row in rows], frames) if cache.masked else None
    views = Views(frames, [samples.digests[row] for row in rows], VIEW_SEED)
    pixels, coverage = [], []
    for place in range(len(rows)):
        framed = masks.framed(place) if masks else None
        for number in chunk.views:
            image, mask = views.cut(place, number, framed)
            pixels.append(image)
            coverage.append(_cover(mask, spec.size // 4))
    return np.stack(pixels), np.stack(coverage)


def _store_views(
    cache: TeacherCache, chunk: _Chunk, pixels: Pixels, masks: NDArray[np.float16]
) -> Iterator[int]:
    """Write what the stores lack of a chunk; yield the number of views of each step."""
    size, count = cache.teacher.spec.preprocess.size, len(chunk.views)
    members = (None, *cache.teacher.members)
    for store, member, places in zip(cache.stores, members, chunk.places, strict=True):
        if not places:
            continue
        chosen = (np.array(places, np.intp)[:, None] * count + np.arange(count)).ravel()
        if member is None:
            arrays: dict[str, NDArray[Any]] = {"image": resize_pixels(pixels[chosen], size)}
            if cache.masked:
                arrays["mask"] = masks[chosen]
            yield len(chosen)
        else:
            arrays = yield from _run(member, pixels[chosen], maps=cache.maps)
        keys = _keys(cache, store)
        store.add([keys[row] for row in chunk.rows[places]], chunk.views, arrays)


def _run(
    member: Member, pixels: Pixels, *, maps: bool
) -> Generator[int, None, dict[str, NDArray[Any]]]:
    """Return a member's outputs, float16; yield the number of images of each batch."""
    parts = []
    for start in range(0, len(pixels), BATCH):
        parts.append(member.run(pixels[start : start + BATCH], maps=maps))
        yield len(pixels[start : start + BATCH])
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    check_outputs(
        arrays,
        f"the teacher {member.folder} on a train image",
        "Train or import the teacher again.",
    )
    return {name: _half(array) for name, array in arrays.items()}


def _bytes_per_view(cache: TeacherCache) -> list[int]:
    """Return the bytes of one view in each store."""
    size = cache.teacher.spec.preprocess.size
    blank = np.zeros((1, size, size, 3), np.uint8)
    mask = 2 * (size // 4) ** 2 if cache.masked else 0
    outputs = [member.run(blank, maps=cache.maps) for member in cache.teacher.members]
    return [blank.size + mask, *(2 * sum(a.size for a in part.values()) for part in outputs)]


def _cover(mask: Pixels | None, side: int) -> NDArray[np.float16]:
    """Return the share of each cell inside the lesion, [side, side]; NaN without a mask."""
    if mask is None:
        return np.full((side, side), np.nan, np.float16)
    share = Image.fromarray(mask.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(share).astype(np.float16)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    # A logit beyond float16's range would become infinite.
    limit = float(np.finfo(np.float16).max)
    return np.clip(values, -limit, limit).astype(np.float16)


def _check_space(cache: TeacherCache, need: int) -> None:
    folder = cache.pixels.folder
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DermedgeError(
            f"The teacher cache needs {need / 1e9:.1f} GB, but {folder.parent} has "
            f"{free / 1e9:.1f} GB free. Use fewer --views, or another --teacher-cache."
        )
