"""Find masks that cannot be used, or that may not be what they seem."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dermedge.data.finding import Finding, count_items
from dermedge.data.images import ImageInspection
from dermedge.data.masks import Placed, open_mask, refusal
from dermedge.data.table import Table
from dermedge_runtime.errors import DataError
from dermedge_runtime.hardware import usable_cpus
from dermedge_runtime.prefetch import prefetch
from dermedge_runtime.printable import printable_path

FULL = 0.95
"""Share of the image above which a mask is reported as nearly full."""
_MOST_OF_BORDER = 0.5


@dataclass(frozen=True)
class MaskInspection:
    """The result of reading one mask.

    Attributes:
        mask: The mask's cell in the table, with escapes if it cannot be printed.
        problem: Reason why the mask cannot be used, "" for a usable one.
        inverted: Lesion and background seem to be swapped.
        encoding: Words for an unusual encoding, else "".
        placed: See `masks.Mask`.
        share: Share of the pixels inside the lesion, 0 to 1.
        border: Share of the border inside the lesion, 0 to 1.

    Example:
        >>> MaskInspection("masks/a.png", share=0.2).problem
        ''
    """

    mask: str
    problem: str = ""
    inverted: bool = False
    encoding: str = ""
    placed: Placed = ""
    share: float = 0.0
    border: float = 0.0


def inspect_masks(table: Table, inspections: Sequence[ImageInspection]) -> Iterator[MaskInspection]:
    """Read the mask of every row that has one, in the order of the rows.

    Args:
        table: The data set.
        inspections: One inspection per row.

    Example:
        >>> from dermedge.data.images import inspect_images
        >>> from dermedge.data.table import read_table
        >>> table = read_table("lesions")
        >>> masks = list(inspect_masks(table, inspect_images(table)))
        >>> 0 < masks[0].share < 1
        True
    """

    def inspect(row: tuple[str, str, bool]) -> MaskInspection:
        mask, image, readable = row
        path, name = table.path(mask), printable_path(mask)
        try:
            # The fault of an unreadable image is not reported as one of its mask.
            found = open_mask(path, table.path(image) if readable else None)
        except DataError as error:
            # The finding names the mask and gives the advice once for all masks.
            reason = str(error).removeprefix(refusal(path))
            reason = reason.removeprefix(f"{printable_path(path)} ").split(". ")[0].rstrip(".")
            return MaskInspection(name, problem=reason)
        return MaskInspection(
            name,
            inverted=found.inverted,
            encoding=found.encoding,
            placed=found.placed,
            share=float(found.inside.mean()),
            border=found.border_share,
        )

    frame = table.frame
    readable = [not one.problem for one in inspections]
    rows = [row for row in zip(frame["mask"], frame["image"], readable, strict=True) if row[0]]
    workers = usable_cpus()
    yield from prefetch(inspect, rows, workers=workers, ahead=2 * workers)


def check_masks(table: Table, inspections: Sequence[ImageInspection]) -> Iterator[Finding]:
    """Find masks that training refuses, and masks that may not be what they seem.

    Args:
        table: The data set.
        inspections: One inspection per row, in the order of the rows.
    """
    masks = list(inspect_masks(table, inspections))
    yield from count_items(
        "error",
        "bad_mask",
        ("mask", "masks"),
        "cannot be used. Replace the files or empty their cells.",
        [f"{one.mask}: {one.problem}" for one in masks if one.problem],
    )
    usable = [one for one in masks if not one.problem]
    yield from count_items(
        "error",
        "inverted_mask",
        ("mask seems", "masks seem"),
        "to have lesion and background swapped: the whole border is marked and an area inside is "
        "not. Swap them, or empty the cells.",
        [one.mask for one in usable if one.inverted],
    )
    yield from _check_areas(usable)
    yield from _check_places(usable)
    yield from count_items(
        "warning",
        "odd_mask",
        ("mask has", "masks have"),
        f"unusual values and {'are' if len(usable) > 1 else 'is'} read as follows. Check that "
        "this is the lesion.",
        [f"{one.mask}: {one.encoding}" for one in usable if one.encoding],
    )


def _check_areas(masks: Sequence[MaskInspection]) -> Iterator[Finding]:
    """Find masks that mark nothing, nearly everything, or most of the border."""
    yield from count_items(
        "warning",
        "empty_mask",
        ("mask is", "masks are"),
        "empty. Empty the cell if the lesion was not outlined; an image without a lesion does not "
        "count in the Dice coefficient.",
        [one.mask for one in masks if one.share == 0],
    )
    yield from count_items(
        "warning",
        "full_mask",
        ("mask covers", "masks cover"),
        f"more than {FULL:.0%} of the image. Check that the lesion is marked and not the "
        "background.",
        [f"{one.mask}: {one.share:.1%}" for one in masks if one.share > FULL],
    )
    wide = [one for one in masks if one.border > _MOST_OF_BORDER and one.share <= FULL]
    # A single lesion may reach over most of the border, but not most lesions of a set.
    if 2 * len(wide) > len(masks):
        yield from count_items(
            "warning",
            "wide_mask",
            ("further mask marks", "further masks mark"),
            "most of the border, so lesion and background may be swapped there, too. Swap them if "
            "the lesion is black.",
            [one.mask for one in wide if not one.inverted],
        )


def _check_places(masks: Sequence[MaskInspection]) -> Iterator[Finding]:
    """Find masks of turned images, whose own orientation is not stored."""
    yield from count_items(
        "warning",
        "turned_mask",
        ("mask has", "masks have"),
        "the size of the stored image and not of the upright one. They are turned by the EXIF "
        "orientation of their images.",
        [one.mask for one in masks if one.placed == "turned"],
    )
    yield from count_items(
        "warning",
        "unplaced_mask",
        ("mask belongs", "masks belong"),
        "to an image with an EXIF orientation, and the size does not say whether the mask was "
        "drawn upright. Upright is assumed; store the images upright to be sure.",
        [one.mask for one in masks if one.placed == "unknown"],
    )
