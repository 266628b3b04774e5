"""How public data sets are published, as plain data; `dermedge.data.add` reads any of them.

A new set is a new file here with one `Layout`, and its line in `LAYOUTS`; other packages announce theirs by the
entry-point group `dermedge.datasets`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

LAYOUTS: Mapping[str, str] = {
    "csv": "dermedge.data.layouts.csv:LAYOUT",
    "ham10000": "dermedge.data.layouts.ham10000:LAYOUT",
    "isic2017": "dermedge.data.layouts.isic2017:LAYOUT",
    "isic2018": "dermedge.data.layouts.isic2018:LAYOUT",
    "isic2019": "dermedge.data.layouts.isic2019:LAYOUT",
    "pad_ufes_20": "dermedge.data.layouts.pad_ufes_20:LAYOUT",
}
"""Name of a published set -> where its layout is."""


@dataclass(frozen=True)
class Join:
    """A further table about the same images, joined where it is there; `key` is its column that names the image."""

    table: str
    key: str


@dataclass(frozen=True)
class Part:
    """One download of a set: a table of labels and the folders with its images.

    Patterns are those of `fnmatch`, ignore case, and match a name at any depth, since archives nest differently.

    Attributes:
        table: names of the table's file; the first that is found is read.
        images: names of the folders that the images lie in, at any depth below; empty where the table's paths tell.
        joins: further tables about the same images.
        masks: names of the folders that the masks lie in.
        split: the official split of these images: "val" or "test", or "" for those to train on.
    """

    table: tuple[str, ...]
    images: tuple[str, ...] = ()
    joins: tuple[Join, ...] = ()
    masks: tuple[str, ...] = ()
    split: str = ""


@dataclass(frozen=True)
class Layout:
    """A published set.

    Attributes:
        name: also the `source` of its rows, by which the taxonomy reads its labels.
        title: what people call it.
        licence: SPDX id where there is one.
        citation: what a user of the set must cite.
        homepage: where it is published.
        parts: its downloads; those that are not there are left out, but for the first.
        columns: column of our table -> column of theirs. `image` names the image, by file name with or without suffix.
        keep: columns of theirs that are carried along under their own name, to be looked at and never used.
        one_hot: columns that hold 1 for a row's label, instead of one column `dx`.
        otherwise: the label of a row without a 1 in `one_hot`.
        labels: labels of theirs -> diagnosis, before the taxonomy is asked.
        mask_suffix: what a mask's file name adds to its image's.
        ignore: file names among the images that are no images of the set.
    """

    name: str
    title: str
    licence: str
    citation: str
    homepage: str
    parts: tuple[Part, ...]
    columns: Mapping[str, str]
    keep: tuple[str, ...] = ()
    one_hot: tuple[str, ...] = ()
    otherwise: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    mask_suffix: str = "_segmentation"
    ignore: tuple[str, ...] = ()
