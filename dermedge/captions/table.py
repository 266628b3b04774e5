"""`caption_data`: write captions into a table from its other columns and its masks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dermedge.captions.describe import Appearance, measure_lesion, write_caption
from dermedge.data.columns import match_columns
from dermedge.data.masks import read_mask
from dermedge.data.sources import read_source
from dermedge.data.split import find_target, with_split
from dermedge.data.table import Table, parse_table
from dermedge.data.table_file import write_text
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.spec import Preprocess

# The whole photograph, padded to a square, so that sizes of lesions can be compared.
MEASURED = Preprocess(128, fit="pad")
PURPOSE = (
    "These captions repeat the table and the mask in a few phrasings. They test captioning; they "
    "are no clinical language."
)


@dataclass(frozen=True)
class CaptionTableReport:
    """The result of `caption_data`.

    Attributes:
        out: Table file that was written.
        images: Number of rows.
        written: Number of captions that were written.
        kept: Number of rows that had a caption, which is unchanged.
        measured: Number of rows whose lesion was measured by its mask.
        examples: The first written caption of each split.
        purpose: What the captions are for.

    Example:
        >>> CaptionTableReport("a.csv", 2, 1, 1, 0, {}).written
        1
    """

    out: str
    images: int
    written: int
    kept: int
    measured: int
    examples: dict[str, str]
    purpose: str = PURPOSE


def caption_data(
    data: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CaptionTableReport:
    """Write a table in which every row has a caption.

    A caption names what the row holds of diagnosis, site, age and sex. Colours, border
    and size are measured from the image and its mask. Rows of the test split get
    phrasings that no other split has. A row without a split is assigned one. A caption
    that exists is kept.

    Args:
        data: Folder or table file.
        out: Table to write, a .csv or .parquet file in the same folder, because image
            paths are relative to that folder. None writes to the table itself.
        overwrite: Replace `out` if it exists.
        progress: Called after every row.

    Raises:
        DataError: The table, an image or a mask cannot be read.
        UsageError: `out` is in another folder or has another suffix, or exists and
            `overwrite` is False.

    Example:
        >>> from dermedge.data.draw import draw_data_set
        >>> _ = draw_data_set("drawn", count=12, size=(32, 32))
        >>> report = caption_data("drawn", "drawn/captions.csv")
        >>> report.written, report.kept
        (12, 0)
    """
    source = read_source(Path(data))
    target = find_target(source, out, overwrite)
    table = with_split(parse_table(source))
    table.log_notes()
    report = progress or no_progress
    frame, captions, measured, kept = table.frame, [], 0, 0
    for cells, appearance in zip(frame.to_dict("records"), _measure(table), strict=True):
        row = {str(name): cell for name, cell in cells.items()}
        own = row["caption"].strip()
        kept += bool(own)
        measured += appearance is not None
        captions.append(own or write_caption(row, appearance, held_out=row["split"] == "test"))
        report(len(captions), len(frame), "captions")
    text = source.frame
    columns = match_columns(text.columns, source.file)
    text[columns.get("split", "split")] = frame["split"].to_numpy()
    text[columns.get("caption", "caption")] = captions
    write_text(target, text)
    first = dict(zip(reversed(frame["split"].tolist()), reversed(captions), strict=True))
    return CaptionTableReport(
        str(target), len(frame), sum(map(bool, captions)) - kept, kept, measured, first
    )


def _measure(table: Table) -> Iterator[Appearance | None]:
    """Yield the appearance of each row's lesion, None without a mask or a caption."""
    for image, mask, caption in table.frame[["image", "mask", "caption"]].itertuples(index=False):
        if not mask or caption.strip():
            yield None
            continue
        pixels = preprocess(table.path(image), MEASURED)
        yield measure_lesion(pixels, read_mask(table.path(mask), MEASURED, table.path(image)))
