"""Read the captions of a table."""

from dataclasses import dataclass
from pathlib import Path

from dermedge.data.split import with_split
from dermedge.data.table import LOGGER, Table, read_table
from dermedge_runtime.errors import DataError

MOST_WORDS = 2000
"""Longest caption in words. A longer cell is a document, or a broken table."""


@dataclass(frozen=True, eq=False)
class CaptionRows:
    """Rows of a table with a caption.

    Attributes:
        table: The rows, each with a split.
        without: Number of rows of the table without a caption, which are left out.

    Example:
        >>> from dermedge.data.draw import draw_data_set
        >>> _ = draw_data_set("drawn", count=12, size=(32, 32))
        >>> read_captions("drawn")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.DataError: drawn/metadata.csv has no captions...
    """

    table: Table
    without: int

    def select(self, split: str) -> Table:
        """Return the rows of a split.

        Raises:
            DataError: The split has no caption.
        """
        return self.table.select_split(split)


def read_captions(data: str | Path) -> CaptionRows:
    """Read the rows of a table that have a caption. Blanks around a caption are dropped.

    Args:
        data: Folder or table file of a data set. A table without splits is split by
            lesion and patient.

    Raises:
        DataError: No row has a caption, or a caption has more than 2,000 words.
    """
    table = with_split(read_table(data))
    captions = table.frame["caption"].map(lambda cell: " ".join(cell.split()))
    known = captions != ""
    if not known.any():
        raise DataError(
            f"{table.file} has no captions. Fill the column 'caption', or write captions from the "
            f"other columns with `dermedge data caption {table.file}`."
        )
    words = captions.str.count(" ") + 1
    if words.max() > MOST_WORDS:
        row = int(words.argmax())
        raise DataError(
            f"{table.file}: the caption of {table.frame['image_id'].iloc[row]!r} has "
            f"{int(words.max())} words. Shorten it to {MOST_WORDS} words, or empty the cell."
        )
    rows = table.replace(table.frame.assign(caption=captions)[known])
    without = len(table) - len(rows)
    if without:
        LOGGER.info("%s: %d of %d rows have no caption.", table.file, without, len(table))
    return CaptionRows(rows, without)
