"""Decode every image of a table; find damaged files and repeated pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.table import Table
from dermedge_runtime.errors import ImageError, MissingExtraError
from dermedge_runtime.find_images import Skipped, is_image, list_files
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.image import decode
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.printable import printable_path
from dermedge_runtime.progress import Progress

# Both limits were chosen on lesions that were photographed several times. Among 8,062
# images of HAM10000, 103 pairs of one lesion and 1 pair of two lesions are within both
# limits. The hash alone, at the same distance, finds 1,028 pairs of two lesions.
HASH_DISTANCE = 6
CORRELATION = 0.975
BLOCK = 1024
"""Number of images that are compared with all others at once; it bounds the memory."""
PAIRS = 8192
"""Number of pairs whose thumbnails are compared at once; it bounds the memory."""
_SIDE = 32
_DECODE = 128
_FLAT = 2.0


class _ImageHash(Protocol):
    """The part of `imagehash.ImageHash` that is used here."""

    hash: NDArray[np.bool_]


PerceptualHash = Callable[[Image.Image], _ImageHash]


@dataclass(frozen=True)
class ImageInspection:
    """The result of decoding one image file.

    Attributes:
        width: Width in pixels of the upright image; 0 for a file that cannot be read.
        height: Height in pixels of the upright image; 0 for a file that cannot be read.
        digest: sha256 of the file, hex; "" for a missing file.
        perceptual_hash: 64 values of +-1, None for a picture without contrast.
        thumbnail: Grey values [1024] with zero mean and unit length, None for a picture
            without contrast. Stored as float16 to halve the memory.
        problem: Reason why the file cannot be used, "" for a sound file.
        missing: The file does not exist.
        turned: The stored picture is turned or mirrored by its EXIF orientation.
        quality: A sentence for each sign of damage that is not certain.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> inspection = inspect_images(read_table("lesions"))[0]
        >>> inspection.problem, inspection.thumbnail.shape
        ('', (1024,))
    """

    width: int = 0
    height: int = 0
    digest: str = ""
    perceptual_hash: NDArray[np.float32] | None = None
    thumbnail: NDArray[np.float16] | None = None
    problem: str = ""
    missing: bool = False
    turned: bool = False
    quality: tuple[str, ...] = ()


def inspect_images(table: Table, *, progress: Progress | None = None) -> list[ImageInspection]:
    """Decode every image of a table, JPEG files at a reduced scale.

    The hash is `imagehash.phash` (Zauner, "Implementation and benchmarking of
    perceptual image hash functions", 2010).

    Args:
        table: The data set.
        progress: Called after every image.

    Returns:
        One inspection per row, in the order of the rows.

    Raises:
        MissingExtraError: imagehash is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise MissingExtraError("imagehash", "data", "The check for duplicates") from error

    def inspect(image: str) -> ImageInspection:
        return _inspect(table.path(image), printable_path(image), imagehash.phash)

    images = table.frame["image"].tolist()
    # One thread per CPU decodes, so the memory does not depend on the number of images.
    workers = usable_cpus()
    inspections: list[ImageInspection] = []
    for inspection in prefetch(inspect, images, workers=workers, ahead=2 * workers):
        inspections.append(inspection)
        if progress:
            progress(len(inspections), len(images), images[len(inspections) - 1])
    return inspections


def _inspect(path: Path, name: str, perceptual_hash: PerceptualHash) -> ImageInspection:
    digest = ""
    source: bytes | Path
    try:
        try:
            data = path.read_bytes()
            digest, source = sha256(data).hexdigest(), data
        except (OSError, ValueError):  # the decoder has the message
            source = path
        decoded = decode(source, scale=_scale, name=name)
    except ImageError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        return ImageInspection(digest=digest, problem=str(error), missing=missing)
    found = ImageInspection(
        decoded.width,
        decoded.height,
        digest,
        turned=decoded.turned,
        quality=decoded.quality,
    )
    small = decoded.picture.resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("L")
    grey = np.asarray(small, dtype=np.float32).ravel()
    centred = grey - grey.mean()
    if float(centred.std()) < _FLAT:
        return found
    bits = np.asarray(perceptual_hash(decoded.picture).hash, dtype=np.float32).ravel()
    thumbnail = (centred / np.linalg.norm(centred)).astype(np.float16)
    return replace(found, perceptual_hash=bits * 2 - 1, thumbnail=thumbnail)


def _scale(width: int, height: int) -> int:
    """Return the scale at which a JPEG is decoded; the hash needs 32 pixels only."""
    return next((scale for scale in (8, 4, 2) if min(width, height) >= scale * _DECODE), 1)


def find_exact_duplicates(inspections: Sequence[ImageInspection]) -> list[tuple[int, int]]:
    """Return the pairs of rows (first, later) whose files are byte-identical."""
    first: dict[str, int] = {}
    pairs = []
    for row, inspection in enumerate(inspections):
        if inspection.digest:
            earlier = first.setdefault(inspection.digest, row)
            if earlier != row:
                pairs.append((earlier, row))
    return pairs


def find_near_duplicates(inspections: Sequence[ImageInspection]) -> list[tuple[int, int]]:
    """Return the pairs of rows whose files differ but show almost the same picture.

    The hashes select candidates, and the correlation of the thumbnails confirms them.
    """
    hashed = [row for row, one in enumerate(inspections) if one.perceptual_hash is not None]
    rows = np.asarray(hashed, dtype=np.intp)
    if len(rows) < 2:
        return []
    hashes = np.stack([inspections[row].perceptual_hash for row in rows])
    thumbnails = np.stack([inspections[row].thumbnail for row in rows])
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(rows), BLOCK):
        # The product of two vectors of +-1 is 64 minus twice their Hamming distance, so
        # one matrix product gives the distances of a whole block.
        distance = (hashes.shape[1] - hashes[start : start + BLOCK] @ hashes[start:].T) / 2
        left, right = np.nonzero(distance <= HASH_DISTANCE)
        later = right > left
        left, right = left[later] + start, right[later] + start
        for first in range(0, len(left), PAIRS):
            a, b = left[first : first + PAIRS], right[first : first + PAIRS]
            one, other = thumbnails[a].astype(np.float32), thumbnails[b].astype(np.float32)
            alike = np.einsum("ij,ij->i", one, other) >= CORRELATION
            pairs += zip(rows[a[alike]].tolist(), rows[b[alike]].tolist(), strict=True)
    return [(a, b) for a, b in pairs if inspections[a].digest != inspections[b].digest]


def find_unlisted_files(table: Table, skipped: Skipped) -> list[str]:
    """Return the images in the folders of the table's images that no row lists.

    Args:
        table: The data set.
        skipped: Receives the other files of these folders.
    """
    cells = [file for column in ("image", "mask") for file in table.frame[column] if file]
    listed = {_identify_file(path) for path in (table.file, *map(table.path, cells))}
    unlisted = []
    for folder in sorted({Path(image).parent for image in table.frame["image"]}):
        if not (table.root / folder).is_dir():
            continue
        for path in list_files(table.root / folder, skipped, deep=False):
            if _identify_file(path) not in listed and is_image(path, skipped):
                unlisted.append((folder / path.name).as_posix())
    return unlisted


def _identify_file(path: Path) -> object:
    """Return a key that all names of one file share."""
    try:
        status = path.stat()
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path.resolve()
