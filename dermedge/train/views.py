"""Decode images as frames, and cut augmented views of them and of their masks."""

import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.masks import decode_mask, output_grid, read_mask
from dermedge.train.distributed import torchrun_layout
from dermedge_runtime.errors import DataError, ImageError
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.preprocess import decode_image, preprocess
from dermedge_runtime.spec import Preprocess

Pixels = NDArray[np.uint8]
# Share of each cell of the output grid that the lesion covers, 0 to 1; NaN without a
# mask.
Coverage = NDArray[np.float32]
# Frames are a little larger than the input, so that a random crop is not enlarged much.
FRAME_MARGIN = 1.15
# 3 GiB: about 18,000 frames of 224 pixels.
FRAME_BYTES = 3 << 30
DECODING_THREADS = 4


def memory_budget() -> int:
    """Return the bytes of pixels that one of the training processes may keep."""
    return FRAME_BYTES // torchrun_layout()[0]


def choose_threads() -> int:
    """Return the number of threads that decode and augment images in this process."""
    return max(1, min(DECODING_THREADS, usable_cpus() // torchrun_layout()[0]))


class Frames:
    """Decoded images by row, reduced to the size that training needs.

    Frames are kept in memory until `capacity` bytes are used. Frames beyond that are
    decoded again whenever they are read. None is evicted, because an epoch needs each
    frame once.

    Args:
        paths: Image files.
        spec: Preprocessing; its `size` S sets the scale.
        margin: Short side of a frame in multiples of S. Above 1, so that crops keep
            detail.
        capacity: Bytes of memory for kept frames and their masks. None divides 3 GiB
            among the training processes of this machine.

    Example:
        >>> frames = Frames([Path("lesion.png")], Preprocess(64))
        >>> frames[0].shape, frames.centred(0).shape
        ((74, 98, 3), (64, 64, 3))
    """

    def __init__(
        self,
        paths: Sequence[Path],
        spec: Preprocess,
        *,
        margin: float = FRAME_MARGIN,
        capacity: int | None = None,
    ) -> None:
        self.paths, self.spec, self.margin = paths, spec, margin
        self._kept: dict[int, Pixels] = {}
        self._capacity = memory_budget() if capacity is None else capacity
        self._lock = threading.Lock()
        self._last = threading.local()

    def __getitem__(self, row: int) -> Pixels:
        """Return a row's frame: RGB uint8 [H, W, 3], short side at most `margin` x S.

        Raises:
            DataError: The image cannot be decoded.
        """
        frame = self._kept.get(row)
        if frame is not None:
            return frame
        # A view with a mask reads its frame twice.
        last: tuple[int, Pixels] | None = getattr(self._last, "frame", None)
        if last is not None and last[0] == row:
            return last[1]
        frame = self._decode(row)
        # Two threads may decode the same row, which costs only time.
        if row not in self._kept and self.claim(frame.nbytes):
            self._kept[row] = frame
        else:
            self._last.frame = row, frame
        return frame

    def claim(self, size: int) -> bool:
        """Return True and count `size` bytes as used, if there is so much memory left."""
        with self._lock:
            fits = size <= self._capacity
            self._capacity -= size if fits else 0
            return fits

    def centred(self, row: int) -> Pixels:
        """Return a row's image with the exact preprocessing: uint8 [S, S, 3].

        Raises:
            DataError: The image cannot be decoded.
        """
        try:
            return preprocess(self.paths[row], self.spec, exact=True)
        except ImageError as error:
            raise _unreadable(error) from error

    def _decode(self, row: int) -> Pixels:
        try:
            pixels = decode_image(self.paths[row], self.spec)
        except ImageError as error:
            raise _unreadable(error) from error
        height, width = pixels.shape[:2]
        ratio = self.margin * self.spec.size / min(height, width)
        if ratio >= 1:
            return pixels
        size = (round(width * ratio), round(height * ratio))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def _unreadable(error: ImageError) -> DataError:
    return DataError(f"{error} Run `dermedge data check` on this table.")


class Masks:
    """Lesion masks of the rows of `frames`, kept in its memory as bits.

    Args:
        paths: Mask files; None for a row without a mask.
        frames: Frames of the same rows.

    Example:
        >>> from dermedge.train.samples import read_samples
        >>> samples, _ = read_samples("lesions")
        >>> masks = Masks(samples.masks, Frames(samples.paths, Preprocess(32)))
        >>> masks.framed(0).shape, masks.centred(0).shape
        ((37, 49), (8, 8))
    """

    def __init__(self, paths: Sequence[Path | None], frames: Frames) -> None:
        self.paths, self.frames = paths, frames
        self._kept: dict[int, Pixels] = {}

    def framed(self, row: int) -> Pixels | None:
        """Return the mask of a row's frame: uint8 [H, W], 1 inside the lesion, or None.

        Raises:
            DataError: The mask cannot be used; see `decode_mask`.
        """
        path = self.paths[row]
        if path is None:
            return None
        height, width = self.frames[row].shape[:2]
        bits = self._kept.get(row)
        if bits is None:
            # A mask may have another resolution than its image.
            mask = decode_mask(path, self.frames.paths[row])
            nearest = Image.fromarray(mask.astype(np.uint8)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            # A bit per pixel: 8 times less memory than a byte.
            bits = np.packbits(np.asarray(nearest))
            if self.frames.claim(bits.nbytes):
                self._kept[row] = bits
        return np.unpackbits(bits, count=height * width).reshape(height, width)

    def centred(self, row: int) -> Coverage:
        """Return a row's mask on the output grid of the model: [S/4, S/4].

        The values are 1 inside the lesion, 0 outside, and NaN for a row without a mask.

        Raises:
            DataError: The mask cannot be used; see `decode_mask`.
        """
        path, grid = self.paths[row], output_grid(self.frames.spec)
        if path is None:
            return np.full((grid.size, grid.size), np.nan, np.float32)
        return read_mask(path, grid, self.frames.paths[row]).astype(np.float32)


class Views:
    """Augmented views of images, determined by seed, view number and image id.

    View `v` of an image has the same pixels at any time and in any order of calls.

    Args:
        frames: Images.
        image_ids: Ids of the same rows.
        seed: Random seed of the augmentation.
        masks: Masks of the same rows, if any.

    Example:
        >>> frames = Frames([Path("lesion.png")], Preprocess(64))
        >>> views = Views(frames, ["lesion"], seed=0)
        >>> first, again = views.view(0, number=1), views.view(0, number=1)
        >>> first.shape, np.array_equal(first, again)
        ((64, 64, 3), True)
    """

    def __init__(
        self, frames: Frames, image_ids: Sequence[str], seed: int, masks: Masks | None = None
    ) -> None:
        self.frames, self.image_ids, self.seed, self.masks = frames, image_ids, seed, masks
        self._local = threading.local()

    def view(self, row: int, number: int) -> Pixels:
        """Return view `number` of a row: uint8 [S, S, 3]."""
        return self.cut(row, number, None)[0]

    def masked_view(self, row: int, number: int) -> tuple[Pixels, Coverage]:
        """Return view `number` of a row and the mask in that view.

        Returns:
            Image uint8 [S, S, 3], and coverage [S/4, S/4], NaN without a mask.
        """
        side = self.frames.spec.size // 4
        pixels, mask = self.cut(row, number, self.masks.framed(row) if self.masks else None)
        if mask is None:
            return pixels, np.full((side, side), np.nan, np.float32)
        # The output grid has a quarter of the input's side. Its targets are the means
        # of 4 x 4 pixels.
        return pixels, mask.reshape(side, 4, side, 4).mean((1, 3), dtype=np.float32)

    def cut(self, row: int, number: int, mask: Pixels | None) -> tuple[Pixels, Pixels | None]:
        """Return view `number` of a row, and the same view of its frame's mask, if any."""
        # A transform holds its random state, so each thread has its own.
        if not hasattr(self._local, "transform"):
            self._local.transform = make_augmentation(self.frames.spec.size)
        self._local.transform.set_random_seed(
            zlib.crc32(f"{self.seed}/{number}/{self.image_ids[row]}".encode())
        )
        extra = {} if mask is None else {"mask": mask}
        cut = self._local.transform(image=self.frames[row], **extra)
        return cut["image"], cut.get("mask")


class Transform(Protocol):
    """An albumentations transform: arrays by name in, arrays by name out.

    Example:
        >>> augment = make_augmentation(32)
        >>> augment.set_random_seed(7)
        >>> pixels, mask = np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8)
        >>> cut = augment(image=pixels, mask=mask)
        >>> cut["image"].shape, cut["mask"].shape
        ((32, 32, 3), (32, 32))
    """

    def __call__(self, **arrays: Pixels) -> dict[str, Pixels]: ...
    def set_random_seed(self, seed: int) -> None:
        """Start the random numbers of the next call from `seed`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the transforms and their settings as JSON types."""


def make_augmentation(size: int) -> Transform:
    """Return random crops, the eight symmetries of the square and mild colour changes.

    Transforms that hide or add structure are left out, because a diagnosis depends on
    structure.

    Args:
        size: Side of the output in pixels.
    """
    # Without this, the import of albumentations looks for a newer version online.
    # Upstream: https://github.com/albumentations-team/albumentations
    # (NO_ALBUMENTATIONS_UPDATE).
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    import cv2

    transform: Transform = A.Compose(
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
    return transform
