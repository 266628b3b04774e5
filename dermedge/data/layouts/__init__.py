r"""Describe how public data sets are published, as plain data that `add_data` reads.

To add a set, write one module here with a `Layout` and add its name to `LAYOUTS`.
Another package adds its layouts by the entry-point group `dermedge.datasets`. A layout
is `verified` after someone has run it on the real download. Until then, `evidence`
names its sources, and `add_data` warns that nobody has run it.

Examples:
    A folder `photos` with a table `labels.csv`, whose columns `id` and `diagnosis` hold
    the name of the image and its label:

    >>> import shutil
    >>> from pathlib import Path
    >>> Path("download/photos").mkdir(parents=True)
    >>> _ = shutil.copy("lesion.png", "download/photos/x1.png")
    >>> _ = Path("download/labels.csv").write_text("id,diagnosis\nx1,brown spot\n")
    >>> layout = Layout(
    ...     name="clinic",
    ...     title="Photographs of our clinic",
    ...     licence="CC0-1.0",
    ...     citation="Our clinic (2026).",
    ...     homepage="https://example.org",
    ...     parts=(Part(table=("labels.csv",), images=("photos",)),),
    ...     columns={"image": "id", "dx": "diagnosis"},
    ...     labels={"brown spot": "solar_lentigo"},
    ... )
    >>> from dermedge.data.importing.add import add_data
    >>> add_data(layout, "download", "clinic").labels
    {'solar_lentigo': 1}
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# fmt: off
_NAMES = (
    "csv", "acne04", "ddi", "derm7pt", "dermnet", "fitzpatrick17k", "ham10000",
    "isic2016_segmentation", "isic2017", "isic2017_segmentation", "isic2018",
    "isic2018_segmentation", "isic2019", "med_node", "pad_ufes_20", "ph2", "scin", "sd198",
    "skincap", "waterloo",
)
# fmt: on

LAYOUTS: Mapping[str, str] = {name: f"dermedge.data.layouts.{name}:LAYOUT" for name in _NAMES}
"""Name of a published set -> module and attribute of its layout."""

CONTAINS: Mapping[str, tuple[str, ...]] = {
    # HAM10000 is the training set of ISIC 2018 and a part of ISIC 2019. MSK is a part
    # of ISIC 2017 and of ISIC 2019.
    "isic2018": ("ham10000",),
    "isic2019": ("isic2018", "isic2017"),
    "isic2017": ("isic2017_segmentation", "isic2016_segmentation"),
    "isic2018_segmentation": ("isic2017", "ham10000"),
    # SkinCAP encoded the images of these two sets again, so digests do not match.
    "skincap": ("fitzpatrick17k", "ddi"),
    # Both sets took images from DermQuest.
    "sd198": ("waterloo",),
}
"""Set -> sets of which it contains all or some images.

The papers of the sets are the source. Digests were not compared.
"""


@dataclass(frozen=True)
class Join:
    """A further table about the same images, joined if its file exists.

    Attributes:
        table: Name of the further table's file.
        key: Column of the further table that names the image, or the value of `on`.
        on: Column of the part's table that `key` refers to; by default the column that
            names the image.

    Examples:
        >>> Join("scin_labels.csv", "case_id", on="case_id").table
        'scin_labels.csv'
    """

    table: str
    key: str
    on: str = ""


@dataclass(frozen=True)
class Part:
    r"""One download of a set: a table and folders of images, or images alone.

    Patterns are those of `fnmatch`, ignore case, and match a name at any depth, because
    archives nest differently. "*" matches any folder below the source.

    Attributes:
        table: Names of the table's file; the first that exists is read. Empty if `path`
            holds everything.
        images: Names of the folders of the images, at any depth. Empty if the table
            holds paths.
        joins: Further tables about the same images.
        masks: Names of the folders of the masks.
        masks_beside: A mask is in the folder of its image.
        split: Official split of these images: "val" or "test", or "" for training
            images.
        splits: Split -> file whose first column lists the rows of the table in that
            split; 0 is the first row.
        line: Regular expression of a row, for a table that is not CSV. Its named groups
            are the columns.
        path: Regular expression of an image's path below the source, with /, for images
            without a table. The image's name starts where the match starts, and the
            named groups are the columns. `(?<![^/])` matches the start of a folder's
            name.
        instead: The part is read only if all parts before it are missing.

    Examples:
        >>> Part(table=("labels.csv",), images=("photos*",)).name
        'labels.csv'
    """

    table: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    joins: tuple[Join, ...] = ()
    masks: tuple[str, ...] = ()
    masks_beside: bool = False
    split: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    line: str = ""
    path: str = ""
    instead: bool = False

    @property
    def name(self) -> str:
        """Name of the file or folder by which this part is found."""
        return (self.table or self.images)[0]


@dataclass(frozen=True)
class Layout:
    """A description of a published set.

    Attributes:
        name: Name of the layout, and the `source` of its rows, by which the taxonomy
            reads its labels.
        title: Common name of the set.
        licence: Licence of the set, as an SPDX id if there is one.
        citation: Reference that a user of the set must cite.
        homepage: Address where the set is published.
        parts: Downloads of the set; missing ones are left out.
        columns: Column of our table -> column of the set. `image` names the image, by
            its file name with or without suffix.
        fallbacks: Column of our table -> column of the set that is read for a row whose
            cell in `columns` is empty or missing.
        views: Column of the set that names an image -> the view that it shows, for rows
            with several images. The view is kept as `view`.
        keep: Columns of the set that are copied under their own name. They are for
            people and are never used as inputs.
        one_hot: Columns that hold 1 for the label of a row, instead of one column `dx`.
        otherwise: Label of a row without a label.
        weighted: `dx` holds weights by label, such as `{'Eczema': 0.6, 'Psoriasis':
            0.4}`. The label with the largest weight is read, the first among equals. Of
            a list such as `['Eczema', 'Psoriasis']` all labels are read.
        values: Column of our table -> cell of the set -> cell of ours; case does not
            matter.
        labels: Label of the set -> diagnosis; takes precedence over the taxonomy.
        open_labels: A label that the taxonomy does not know is counted and leaves the
            diagnosis empty, instead of being an error. It is for lists of labels that
            are too long or too free to be complete.
        image_suffix: End of an image's file stem that its mask's does not have.
        mask_suffix: End of a mask's file stem that its image's does not have.
        ignore: Patterns of file names among the images that are not images of the set.
        modality: `dermoscopic` or `clinical` if all images of the set are that, otherwise
            "".
        expected: Number of published images, None if it is not known.
        verified: Someone has run this layout on the real download.
        evidence: Sources of the layout.

    Examples:
        >>> from dermedge.data.layouts.ham10000 import LAYOUT
        >>> LAYOUT.columns["site"], LAYOUT.expected
        ('localization', 10015)
    """

    name: str
    title: str
    licence: str
    citation: str
    homepage: str
    parts: tuple[Part, ...]
    columns: Mapping[str, str]
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    views: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    one_hot: tuple[str, ...] = ()
    otherwise: str = ""
    weighted: bool = False
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    open_labels: bool = False
    image_suffix: str = ""
    mask_suffix: str = "_segmentation"
    ignore: tuple[str, ...] = ()
    modality: str = ""
    expected: int | None = None
    verified: bool = False
    evidence: str = ""
