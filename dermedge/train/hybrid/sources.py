"""Several tables as one stream of images: paths, what their labels say, and what their source could have said."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermedge.data.split import with_split
from dermedge.data.table import Table, digests, read_table, table_digest
from dermedge.train.hybrid.label_space import Flags, label_space, label_targets, sources_vocabulary
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import sha256_hex

UNREADABLE = 0.01  # of the rows; more is an error


@dataclass(frozen=True)
class Sources:
    """The training rows of all tables, in their order.

    Attributes:
        names: of the sources, in order of appearance.
        paths: of the images.
        ids: `table/image_id` of each row.
        codes: [N], index into `true` and `known`, which hold one row per source and diagnosis; 0 is unlabelled.
        true: multi-hot targets, bool [codes, C].
        known: the entries that count, bool [codes, C].
        counts: per source, images and labelled images, and how many classes it can label.
        split: (image_id, sha256, split) of every row of every table, for the leak checks of later steps.
        tables: digest of each table.
        licences: of the images.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    ids: tuple[str, ...]
    codes: NDArray[np.int64]
    true: Flags
    known: Flags
    counts: dict[str, dict[str, int]]
    split: tuple[tuple[str, str, str], ...]
    tables: tuple[str, ...]
    licences: tuple[str, ...]

    @property
    def labelled(self) -> int:
        """How many rows have a diagnosis."""
        return int((self.codes > 0).sum())

    @property
    def images_digest(self) -> str:
        """Identifies the image files themselves."""
        return sha256_hex("\n".join(sorted(digest for _, digest, _ in self.split)).encode())


def read_sources(data: Sequence[Path | str]) -> Sources:
    """Read the train rows of tables; a row's source is its `source` cell, else its table's name.

    An image that is in the val or test split of any table is left out of all, byte-identical copies too. A table that
    has neither a split nor a label is there to train on: all its rows are train.

    Raises:
        DataError: a table cannot be read, or nothing is left to train on.
    """
    parts = [_rows(_split(read_table(path))) for path in data]
    frame = pd.concat([part for part, _, _ in parts], ignore_index=True)
    held_out = set(frame.loc[frame["split"] != "train", "sha256"])
    train = frame[(frame["split"] == "train") & ~frame["sha256"].isin(held_out)]
    if train.empty:
        raise DataError(
            "The tables have no train rows: run `dermedge data split`, or fill their split columns."
        )
    space = label_space()
    codes = pd.Series(0, index=train.index, dtype="int64")
    true, known, counts = [np.zeros((1, len(space)), bool)], [np.zeros((1, len(space)), bool)], {}
    size = 1
    for name, rows in train.groupby("source", sort=False):
        diagnoses = sorted(set(rows["dx"]) - {""})
        vocabulary = sources_vocabulary(diagnoses)
        counts[str(name)] = {
            "images": len(rows),
            "labelled": int((rows["dx"] != "").sum()),
            "classes": len(diagnoses),
        }
        if diagnoses:
            positive, allowed = label_targets(diagnoses, vocabulary, space)
            true.append(positive)
            known.append(allowed)
            place = {dx: size + index for index, dx in enumerate(diagnoses)} | {"": 0}
            codes.loc[rows.index] = rows["dx"].map(place).astype("int64")
            size += len(diagnoses)
    return Sources(
        names=tuple(counts),
        paths=tuple(train["path"]),
        ids=tuple(train["id"]),
        codes=np.array(codes, np.int64),
        true=np.concatenate(true),
        known=np.concatenate(known),
        counts=counts,
        split=tuple(frame[["image_id", "sha256", "split"]].itertuples(index=False, name=None)),
        tables=tuple(digest for _, digest, _ in parts),
        licences=tuple(sorted({licence for _, _, found in parts for licence in found})),
    )


def _split(table: Table) -> Table:
    frame = table.frame
    if (frame["split"] == "").all() and (frame["dx"] == "").all():
        return table.replace(frame.assign(split="train"))
    return with_split(table)


def _rows(table: Table) -> tuple[pd.DataFrame, str, set[str]]:
    frame = table.frame
    rows: dict[str, Any] = {
        "image_id": frame["image_id"],
        "id": table.name + "/" + frame["image_id"],
        "path": [table.root / image for image in frame["image"]],
        "sha256": digests(table).loc[frame["image_id"]].to_numpy(),
        "dx": frame["dx"],
        "source": frame["source"].where(frame["source"] != "", table.name),
        "split": frame["split"],
    }
    return pd.DataFrame(rows), table_digest(table), set(frame["licence"]) - {""}
