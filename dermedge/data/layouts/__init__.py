"""How public data sets are published, as plain data; `dermedge.data.add` reads any of them.

A new set is a new file here with one `Layout`, and its line in `LAYOUTS`; other packages announce theirs by the
entry-point group `dermedge.datasets`. A layout is `verified` once someone has run it on the real download; until then
`evidence` says what it rests on, and `add` says that nobody has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

LAYOUTS: Mapping[str, str] = {
    name: f"dermedge.data.layouts.{name}:LAYOUT"
    for name in (
        *(
            "csv",
            "acne04",
            "ddi",
            "derm7pt",
            "dermnet",
            "fitzpatrick17k",
            "ham10000",
            "isic2016_segmentation",
        ),
        *(
            "isic2017",
            "isic2017_segmentation",
            "isic2018",
            "isic2018_segmentation",
            "isic2019",
            "med_node",
        ),
        *("pad_ufes_20", "ph2", "scin", "sd198", "skincap", "waterloo"),
    )
}
"""Name of a published set -> where its layout is."""

CONTAINS: Mapping[str, tuple[str, ...]] = {
    # HAM10000 is the training set of 2018, and with the MSK images, which 2017 took too, part of 2019's.
    "isic2018": ("ham10000",),
    "isic2019": ("isic2018", "isic2017"),
    "isic2017": ("isic2017_segmentation", "isic2016_segmentation"),
    "isic2018_segmentation": ("isic2017", "ham10000"),
    # Its pictures were taken from these two and saved anew.
    "skincap": ("fitzpatrick17k", "ddi"),
    # Both took pictures from DermQuest.
    "sd198": ("waterloo",),
}
"""Set -> sets with which it has images in common, all of theirs or some; from the papers, not checked by digest."""


@dataclass(frozen=True)
class Join:
    """A further table about the same images, joined where it is there.

    Attributes:
        table: name of its file.
        key: its column that names the image, or what `on` names.
        on: the column of the part's table that `key` answers to; by default the one that names the image.
    """

    table: str
    key: str
    on: str = ""


@dataclass(frozen=True)
class Part:
    r"""One download of a set: a table of labels and the folders with its images; or, without a table, the images alone.

    Patterns are those of `fnmatch`, ignore case, and match a name at any depth, since archives nest differently; "*"
    stands for any place below the source.

    Attributes:
        table: names of the table's file; the first that is found is read. Empty where `path` tells everything.
        images: names of the folders that the images lie in, at any depth below; empty where the table's paths tell.
        joins: further tables about the same images.
        masks: names of the folders that the masks lie in.
        masks_beside: a mask lies in its image's folder.
        split: the official split of these images: "val" or "test", or "" for those to train on.
        splits: split -> file whose first column lists the table's rows (0 is the first) that are in it.
        line: of a table that is no CSV, a regular expression for a row, whose named groups are the columns.
        path: without a table, a regular expression found in an image's path (with /) below the source, from where its
            name begins; its named groups are the columns. `(?<![^/])` stands for the start of a folder's name.
        instead: read only where none of the parts before it is there.
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
        """The file or folder by which one tells whether this part is there."""
        return (self.table or self.images)[0]


@dataclass(frozen=True)
class Layout:
    """A published set.

    Attributes:
        name: also the `source` of its rows, by which the taxonomy reads its labels.
        title: what people call it.
        licence: SPDX id where there is one.
        citation: what a user of the set must cite.
        homepage: where it is published.
        parts: its downloads; those that are not there are left out.
        columns: column of our table -> column of theirs. `image` names the image, by file name with or without suffix.
        views: where a row has several images, column of theirs that names one -> what it shows, kept as `view`.
        keep: columns of theirs that are carried along under their own name, to be looked at and never used.
        one_hot: columns that hold 1 for a row's label, instead of one column `dx`.
        otherwise: the label of a row without any.
        weighted: `dx` holds weights by label, such as `{'Eczema': 0.6, 'Psoriasis': 0.4}`; the first of the heaviest is
            taken.
        values: column of our table -> cell of theirs -> cell of ours, where they write something else; case is ignored.
        labels: labels of theirs -> diagnosis, before the taxonomy is asked.
        open_labels: a label that the taxonomy does not know leaves the diagnosis empty and is counted, instead of being
            refused; for lists too long, or too free, to be complete.
        image_suffix: what an image's file name adds to what its mask's name is made of.
        mask_suffix: what a mask's file name adds to that.
        ignore: file names among the images that are no images of the set.
        expected: how many images were published, where that is known.
        verified: someone has run this layout on the real download.
        evidence: what it rests on.
    """

    name: str
    title: str
    licence: str
    citation: str
    homepage: str
    parts: tuple[Part, ...]
    columns: Mapping[str, str]
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
    expected: int | None = None
    verified: bool = False
    evidence: str = ""
