"""Every image of a table, decoded once: is it sound, and which others show the same picture?"""

import io
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.table import Table
from dermedge_runtime.errors import MissingExtraError
from dermedge_runtime.progress import Progress

# Chosen on lesions photographed several times: of HAM10000's 8,062 images, 103 pairs of one lesion and 1 pair of two
# lesions are this alike; the hash alone, at the same distance, takes 1,028 pairs of two lesions for one.
HASH_DISTANCE = 6
CORRELATION = 0.975
_SIDE = 32
_DECODE = 128
_FLAT = 2.0
_BLOCK = 1024


@dataclass(frozen=True)
class ImageInspection:
    """What one image file turned out to be; `problem` is empty for a sound one.

    Attributes:
        width: pixels, as stored.
        height: pixels, as stored.
        digest: sha256 of the file, hex.
        phash: perceptual hash, 64 values of +-1, None for a picture without contrast.
        thumbnail: grey, zero mean, unit length, [1024], halved in precision to spare memory; None likewise.
        problem: what is wrong with the file.
        missing: there is no such file.
    """

    width: int = 0
    height: int = 0
    digest: str = ""
    phash: NDArray[np.float32] | None = None
    thumbnail: NDArray[np.float16] | None = None
    problem: str = ""
    missing: bool = False


def inspect_images(
    table: Table, *, workers: int = 8, progress: Progress | None = None
) -> list[ImageInspection]:
    """Decode every image of the table (a JPEG at a reduced scale); one `Look` per row.

    The hash is `imagehash.phash` (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010).

    Raises:
        MissingExtraError: where imagehash is not installed.
    """
    try:
        import imagehash
    except ImportError as error:
        raise MissingExtraError("imagehash", "data", "The check for duplicates") from error

    def look(image: str) -> ImageInspection:
        try:
            data = table.path(image).read_bytes()
        except OSError as error:
            return ImageInspection(
                problem=error.strerror or str(error), missing=isinstance(error, FileNotFoundError)
            )
        try:
            return _decode(data, imagehash.phash)
        except Exception as error:  # Pillow's decoders raise whatever the damage leads them to.
            return ImageInspection(
                digest=sha256(data).hexdigest(), problem=str(error) or type(error).__name__
            )

    looks = []
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for image, result in zip(
            table.frame["image"], pool.map(look, table.frame["image"]), strict=True
        ):
            looks.append(result)
            if progress:
                progress(len(looks), len(table), image)
    return looks


def _decode(data: bytes, phash: object) -> ImageInspection:
    digest = sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if getattr(image, "is_animated", False):
            return ImageInspection(width, height, digest, problem="it is animated")
        image.draft("RGB", (_DECODE, _DECODE))
        picture = image.convert("RGB")
    grey = np.asarray(
        picture.resize((_SIDE, _SIDE), Image.Resampling.BOX).convert("L"), dtype=np.float32
    ).ravel()
    centred = grey - grey.mean()
    if float(centred.std()) < _FLAT:
        return ImageInspection(width, height, digest)
    bits = np.asarray(phash(picture).hash, dtype=np.float32).ravel()  # type: ignore[operator]
    return ImageInspection(
        width, height, digest, bits * 2 - 1, (centred / np.linalg.norm(centred)).astype(np.float16)
    )


def check_masks(table: Table, looks: Sequence[ImageInspection]) -> Iterator[tuple[str, str]]:
    """(mask, problem) for every mask that is not there, not an image, or not as large as its image."""
    for mask, look in zip(table.frame["mask"], looks, strict=True):
        if not mask:
            continue
        path = table.path(mask)
        try:
            with Image.open(path) as image:
                size = image.size
        except FileNotFoundError:
            yield mask, "there is no such file"
            continue
        except Exception as error:
            yield mask, str(error)
            continue
        if look.width and size != (look.width, look.height):
            yield mask, f"it is {size[0]}x{size[1]}, its image {look.width}x{look.height}"


def exact_pairs(looks: Sequence[ImageInspection]) -> list[tuple[int, int]]:
    """Row pairs (first, other) of byte-identical files."""
    first: dict[str, int] = {}
    pairs = []
    for row, look in enumerate(looks):
        if look.digest:
            earlier = first.setdefault(look.digest, row)
            if earlier != row:
                pairs.append((earlier, row))
    return pairs


def near_pairs(looks: Sequence[ImageInspection]) -> list[tuple[int, int]]:
    """Row pairs of files that differ and show almost the same picture: a like hash, confirmed by the thumbnails.

    A product of hashes as +-1 vectors is 64 - 2 x their distance, so that all pairs cost one matrix product.
    """
    rows = np.asarray(
        [row for row, look in enumerate(looks) if look.phash is not None], dtype=np.intp
    )
    if len(rows) < 2:
        return []
    hashes = np.stack([looks[row].phash for row in rows])
    small = np.stack([looks[row].thumbnail for row in rows])
    pairs = []
    for start in range(0, len(rows), _BLOCK):
        distance = (hashes.shape[1] - hashes[start : start + _BLOCK] @ hashes[start:].T) / 2
        left, right = np.nonzero(distance <= HASH_DISTANCE)
        later = right > left
        left, right = left[later] + start, right[later] + start
        one, other = small[left].astype(np.float32), small[right].astype(np.float32)
        alike = np.einsum("ij,ij->i", one, other) >= CORRELATION
        pairs += [
            (int(a), int(b)) for a, b in zip(rows[left[alike]], rows[right[alike]], strict=True)
        ]
    return [(a, b) for a, b in pairs if looks[a].digest != looks[b].digest]


def unlisted(table: Table) -> list[str]:
    """Image files in the folders that the table's images lie in which no row names."""
    listed = {
        Path(image).as_posix()
        for column in ("image", "mask")
        for image in table.frame[column]
        if image
    }
    folders = {Path(image).parent for image in table.frame["image"]}
    suffixes = {Path(image).suffix.lower() for image in table.frame["image"]}
    found = []
    for folder in sorted(folders):
        if (table.root / folder).is_dir():
            for path in sorted((table.root / folder).iterdir()):
                name = (folder / path.name).as_posix()
                if (
                    path.suffix.lower() in suffixes
                    and name not in listed
                    and not path.name.startswith(".")
                ):
                    found.append(name)
    return found
