"""Read several tables as one list of training images with label targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermedge.data.split import with_split
from dermedge.data.table import Table, digests, read_table, table_digest
from dermedge.train.hybrid.label_space import Flags, label_space, label_targets, source_vocabulary
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import sha256_hex

MAX_UNREADABLE = 0.01  # Share of rows that may fail to decode; more is an error.


@dataclass(frozen=True)
class Sources:
    """The training rows of all tables, in the tables' order.

    Attributes:
        names: Names of the sources, in order of appearance.
        paths: Image files, N.
        ids: `table/image_id` of each row.
        codes: Index of each row into `true` and `known`, [N]. Both hold one row per
            source and diagnosis; 0 is unlabelled.
        true: Multi-hot targets, bool [codes, C].
        known: Entries that count in the loss, bool [codes, C].
        counts: Per source, its images, its labelled images and its classes.
        split: (image_id, sha256, split) of every row of every table. Later commands use
            it to find leaks.
        tables: Digest of each table.
        licences: Licences of the images.

    Example:
        >>> sources = read_sources(["lesions"])
        >>> targets = sources.true[sources.codes[0]]
        >>> [name for name, flag in zip(label_space(), targets, strict=True) if flag]
        ['melanocytic', 'nv']
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
        """Number of rows with a diagnosis."""
        return int((self.codes > 0).sum())

    @property
    def images_digest(self) -> str:
        """Digest of all image files."""
        return sha256_hex("\n".join(sorted(digest for _, digest, _ in self.split)).encode())


def read_sources(data: Sequence[Path | str]) -> Sources:
    """Read the train rows of tables.

    A row's source is its `source` cell, or else its table's name. An image in the val
    or test split of any table is left out of all tables, and so are byte-identical
    copies. All rows of a table without splits and labels are train rows.

    Args:
        data: Folders or table files of data sets.

    Raises:
        DataError: A table cannot be read, or there are no train rows.

    Example:
        >>> sources = read_sources(["lesions"])
        >>> sources.names, sources.labelled == len(sources.paths)
        (('procedural',), True)
    """
    parts = [_list_rows(_assign_splits(read_table(path))) for path in data]
    frame = pd.concat([part for part, _, _ in parts], ignore_index=True)
    # Compared by content, because sources copy images from each other under new names.
    held_out = set(frame.loc[frame["split"] != "train", "sha256"])
    train = frame[(frame["split"] == "train") & ~frame["sha256"].isin(held_out)]
    if train.empty:
        raise DataError(
            "The tables have no train rows. Run `dermedge data split`, or fill their split columns."
        )
    codes, true, known, counts = _encode_labels(train)
    return Sources(
        names=tuple(counts),
        paths=tuple(train["path"]),
        ids=tuple(train["id"]),
        codes=codes,
        true=true,
        known=known,
        counts=counts,
        split=tuple(frame[["image_id", "sha256", "split"]].itertuples(index=False, name=None)),
        tables=tuple(digest for _, digest, _ in parts),
        licences=tuple(sorted({licence for _, _, licences in parts for licence in licences})),
    )


def _encode_labels(
    train: pd.DataFrame,
) -> tuple[NDArray[np.int64], Flags, Flags, dict[str, dict[str, int]]]:
    """Return `codes`, `true`, `known` and `counts` of `Sources`."""
    space = label_space()
    # Row 0 of the tables is for unlabelled rows: no target, and no entry that counts.
    unlabelled = np.zeros((1, len(space)), bool)
    codes = pd.Series(0, index=train.index, dtype="int64")
    true, known = [unlabelled], [unlabelled]
    counts: dict[str, dict[str, int]] = {}
    size = 1
    for name, rows in train.groupby("source", sort=False):
        diagnoses = sorted(set(rows["dx"]) - {""})
        vocabulary = source_vocabulary(diagnoses)
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
    return np.array(codes, np.int64), np.concatenate(true), np.concatenate(known), counts


def _assign_splits(table: Table) -> Table:
    frame = table.frame
    if (frame["split"] == "").all() and (frame["dx"] == "").all():
        return table.replace(frame.assign(split="train"))
    return with_split(table)


def _list_rows(table: Table) -> tuple[pd.DataFrame, str, set[str]]:
    frame = table.frame
    rows: dict[str, object] = {
        "image_id": frame["image_id"],
        "id": table.name + "/" + frame["image_id"],
        "path": [table.root / image for image in frame["image"]],
        "sha256": digests(table).loc[frame["image_id"]].to_numpy(),
        "dx": frame["dx"],
        "source": frame["source"].where(frame["source"] != "", table.name),
        "split": frame["split"],
    }
    return pd.DataFrame(rows), table_digest(table), set(frame["licence"]) - {""}
