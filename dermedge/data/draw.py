"""Draw a data set of synthetic lesions, with all columns of a real table."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge.data.columns import COLUMNS
from dermedge.data.table import Table, read_table
from dermedge_export.synthetic.lesions import CLASSES, Lesion, draw_lesion
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_folder
from dermedge_runtime.progress import Progress

# The classes have the order of HAM10000's shares, but rare ones are more frequent here,
# so that a small set holds several images of each.
SHARES = {"nv": 0.48, "mel": 0.16, "bkl": 0.14, "bcc": 0.11, "vasc": 0.06, "df": 0.05}
# fmt: off
SITES = (
    "back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot",
    "neck", "scalp",
)
# fmt: on
SKIN_TYPES = (0.14, 0.28, 0.24, 0.16, 0.11, 0.07)
"""Shares of the Fitzpatrick types 1 to 6 among patients."""

MINIMUM_SIDE = 32
_AGE = {"nv": 46.0, "mel": 61.0, "bkl": 64.0, "bcc": 67.0, "vasc": 52.0, "df": 51.0}
_LARGEST_SEED = 2**31 - 1


def draw_data_set(
    out: str | Path,
    *,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (256, 192),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Table:
    """Write a folder of synthetic lesions with masks and a full table.

    The same arguments give the same bytes. Every class occurs, and nevi are the most
    frequent, as in a clinic. Some lesions are photographed two or three times with
    another framing, light and compression, and some patients have several lesions. So
    splits must be assigned by group, as for real images.

    Args:
        out: Folder to write; it appears when it is complete.
        count: Number of images, at least 6: one per class.
        seed: Random seed, not negative.
        size: Width and height in pixels, each at least 32.
        overwrite: Replace `out` if it exists.
        progress: Called after every image.

    Returns:
        The table of the folder.

    Raises:
        UsageError: `count`, `seed` or `size` is out of range, or `out` exists and
            `overwrite` is False.

    Examples:
        >>> table = draw_data_set("drawn", count=6, seed=3, size=(48, 32))
        >>> table.frame.loc[0, ["image_id", "dx", "licence"]].tolist()
        ['D000000', 'nv', 'CC0-1.0']
    """
    if count < len(CLASSES):
        raise UsageError(
            f"The count {count} is too small. Draw at least {len(CLASSES)} images, one per class."
        )
    if seed < 0:
        raise UsageError(f"The seed is {seed}. Give a seed of 0 or more.")
    if min(size) < MINIMUM_SIDE:
        raise UsageError(
            f"The size is {size[0]}x{size[1]}. Give a width and a height of at least "
            f"{MINIMUM_SIDE} pixels."
        )
    with atomic_folder(out, overwrite=overwrite, marker="metadata.csv") as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        lines: list[dict[str, str]] = []
        for photograph in _photograph_patients(count, seed, size):
            lines.append(_save(folder, len(lines), photograph))
            if progress:
                progress(len(lines), count, lines[-1]["image_id"])
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        (folder / "metadata.csv").write_text(buffer.getvalue(), encoding="utf-8")
    return read_table(out)


@dataclass(frozen=True)
class _Photograph:
    """One photograph of a lesion.

    Attributes:
        image: Pixels, uint8 [H, W, 3].
        mask: Mask of the lesion, bool [H, W].
        quality: Quality of the JPEG file, 1 to 95.
        cells: Cells of its row.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    quality: int
    cells: dict[str, str]


def _photograph_patients(count: int, seed: int, size: tuple[int, int]) -> Iterator[_Photograph]:
    """Yield photographs lesion by lesion; lesions of one patient follow each other."""
    rng = np.random.default_rng([seed, 1])
    done = lesions = patients = 0
    person: dict[str, str] = {}
    left = 0
    while done < count:
        dx = (
            CLASSES[lesions]
            if lesions < len(CLASSES)
            else str(rng.choice(list(SHARES), p=list(SHARES.values())))
        )
        # Age and skin type belong to the patient, so all lesions of a patient share
        # them.
        if left == 0:
            person = {
                "patient_id": f"P{patients:05d}",
                "age": str(int(np.clip(rng.normal(_AGE[dx], 14), 18, 92))),
                "sex": str(rng.choice(("female", "male"))),
                "fitzpatrick": str(rng.choice(6, p=SKIN_TYPES) + 1),
            }
            patients += 1
            left = int(rng.choice((1, 2, 3), p=(0.8, 0.14, 0.06)))
        lesion = draw_lesion(
            int(rng.integers(_LARGEST_SEED)),
            dx=dx,
            fitzpatrick=int(person["fitzpatrick"]),
            width=size[0],
            height=size[1],
        )
        cells = {
            **person,
            "lesion_id": f"L{lesions:05d}",
            "dx": dx,
            "severity": str(lesion.severity),
            "site": str(rng.choice(SITES)),
        }
        # Keep one image for every class that is not drawn yet.
        shots = (
            int(rng.choice((1, 2, 3), p=(0.78, 0.17, 0.05)))
            if count - done > len(CLASSES) - lesions
            else 1
        )
        for shot in range(min(shots, count - done)):
            yield _photograph(lesion, shot, rng, cells)
            done += 1
        lesions += 1
        left -= 1


def _photograph(
    lesion: Lesion, shot: int, rng: np.random.Generator, cells: dict[str, str]
) -> _Photograph:
    """Return the drawing; for `shot` > 0, change its framing, light and compression."""
    if shot == 0:
        return _Photograph(lesion.image, lesion.mask, 92, cells)
    height, width = lesion.mask.shape
    # Repeat photographs differ in framing, light and compression, as in a clinic.
    zoom = rng.uniform(0.84, 0.96)
    crop_width, crop_height = int(width * zoom), int(height * zoom)
    left, top = (
        int(rng.integers(width - crop_width + 1)),
        int(rng.integers(height - crop_height + 1)),
    )
    box = (left, top, left + crop_width, top + crop_height)
    image = (
        Image.fromarray(lesion.image).crop(box).resize((width, height), Image.Resampling.BICUBIC)
    )
    mask = (
        Image.fromarray(lesion.mask.astype(np.uint8) * 255)
        .crop(box)
        .resize((width, height), Image.Resampling.NEAREST)
    )
    pixels, inside = np.asarray(image).astype(np.float32), np.asarray(mask) > 0
    if rng.random() < 0.5:
        pixels, inside = pixels[:, ::-1], inside[:, ::-1]
    if rng.random() < 0.5:
        pixels, inside = pixels[::-1], inside[::-1]
    pixels = pixels * rng.uniform(0.92, 1.06, size=3).astype(np.float32)
    return _Photograph(
        np.clip(pixels + 0.5, 0, 255).astype(np.uint8), inside, int(rng.integers(72, 92)), cells
    )


def _save(folder: Path, number: int, photograph: _Photograph) -> dict[str, str]:
    """Write image and mask, and return the cells of the row."""
    name = f"D{number:06d}"
    image, mask = f"images/{name}.jpg", f"masks/{name}.png"
    Image.fromarray(photograph.image).save(
        folder / image, quality=photograph.quality, subsampling=0
    )
    Image.fromarray(photograph.mask.astype(np.uint8) * 255).convert("1").save(folder / mask)
    return {
        **photograph.cells,
        "image_id": name,
        "image": image,
        "mask": mask,
        "source": "procedural",
        "licence": "CC0-1.0",
    }
