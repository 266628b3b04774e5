"""Assign rows to train, val and test, with no lesion or patient in two splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pandas as pd

from dermedge.data.columns import match_columns
from dermedge.data.sources import read_source
from dermedge.data.split_checks import check_split
from dermedge.data.table import SPLITS, Table, digests, groups, parse_table
from dermedge.data.table_file import FILES, TextTable, write_text
from dermedge_runtime.errors import UsageError

FRACTIONS = (0.7, 0.15, 0.15)
"""Default shares of train, val and test."""


def assign_splits(
    frame: pd.DataFrame,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    *,
    content: "pd.Series[str] | None" = None,
) -> "pd.Series[str]":
    """Assign a split to every row that has none.

    - Whole groups (see `groups`) are assigned, in an order drawn from the seed.
    - Groups are stratified by the diagnosis and malignancy of their rarest row. A
      stratum of three or more groups reaches every split.
    - A row without a split joins the split of its group.
    - Other rows are never added to an existing val or test split, so that published
      results stay comparable.

    Args:
        frame: Rows of a table.
        fractions: Shares of train, val and test among each stratum's images. A split
            with share 0 stays empty.
        seed: Random seed of the order. The order of the rows does not matter.
        content: Digest of each row's image; see `groups`.

    Returns:
        "train", "val" or "test" per row, with the frame's index.

    Raises:
        UsageError: The fractions are not three shares that sum to 1.

    Examples:
        >>> from dermedge.data.table import groups, read_table
        >>> frame = read_table("lesions").frame
        >>> splits = assign_splits(frame, fractions=(0.5, 0.25, 0.25), seed=1)
        >>> int(splits.groupby(groups(frame)).nunique().max())
        1
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"The fractions are {tuple(fractions)}. Give three shares between 0 and 1, of train, "
            "val and test, that sum to 1."
        )
    share = dict(zip(SPLITS, fractions, strict=True))
    existing = frame["split"]
    fixed = {name for name in SPLITS[1:] if (existing == name).any()}
    # With official val and test splits, train is the only split that may grow.
    open_splits = [name for name in SPLITS if share[name] > 0 and name not in fixed] or ["train"]
    rows = frame[["dx"]].assign(
        group=groups(frame, content), split=existing, stratum=_strata(frame)
    )
    by_group = _summarize_groups(rows)
    # A hash of the seed and the group id is a random order that other rows do not
    # change.
    by_group["order"] = [sha256(f"{seed}:{group}".encode()).hexdigest() for group in by_group.index]
    assigned = _assign_groups(by_group.sort_values(["rank", "order"]), open_splits, share)
    return existing.where(existing != "", rows["group"].map(assigned)).astype("str").rename("split")


def _summarize_groups(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per group: rank of its stratum, size, existing split, labels.

    The stratum with the fewest groups has rank 0. A group belongs to the rarest stratum
    among its rows, so that rare classes are assigned first.
    """
    counts = rows.groupby("stratum")["group"].nunique()
    by_rarity = sorted(counts.index, key=lambda name: (counts[name], name))
    ranks = {stratum: rank for rank, stratum in enumerate(by_rarity)}
    by_group = (
        rows.assign(rank=rows["stratum"].map(ranks))
        .groupby("group")
        .agg(
            rank=("rank", "min"),
            size=("rank", "size"),
            existing=("split", _find_existing_split),
            labels=("dx", frozenset),
        )
    )
    by_group["label"] = by_group["rank"].map(
        {rank: stratum.rpartition("|")[0] for stratum, rank in ranks.items()}
    )
    return by_group


def _assign_groups(
    by_group: pd.DataFrame, open_splits: Sequence[str], share: Mapping[str, float]
) -> dict[str, str]:
    """Return the split of each group.

    A group goes to a split that has no image of the group's label yet. Of several such
    splits, the one with the largest share is taken. If every split has one, the group
    goes to the split that lacks most of its share of the stratum.

    Args:
        by_group: One row per group, sorted by stratum, then in random order.
        open_splits: Splits to which groups may be added.
        share: Share of each split.
    """
    # `covered` holds (label, split) of every image that has a split. The first groups
    # of a stratum go to splits that it does not cover, so that three groups reach all
    # splits.
    fixed = by_group[by_group["existing"] != ""]
    assigned = {str(group): str(split) for group, split in fixed["existing"].items()}
    covered = {
        (label, split)
        for labels, split in zip(fixed["labels"], fixed["existing"], strict=True)
        for label in labels
    }
    for _, stratum in by_group.groupby("rank"):
        sizes = stratum.groupby("existing")["size"].sum()
        lacking = {
            name: share[name] * float(sizes.sum()) - float(sizes.get(name, 0)) for name in SPLITS
        }
        for group, row in stratum[stratum["existing"] == ""].iterrows():
            uncovered = [name for name in open_splits if (row["label"], name) not in covered]
            split = (
                max(uncovered, key=share.__getitem__)
                if uncovered
                else max(open_splits, key=lacking.__getitem__)
            )
            assigned[str(group)] = split
            lacking[split] -= row["size"]
            covered |= {(label, split) for label in row["labels"]}
    return assigned


def _strata(frame: pd.DataFrame) -> "pd.Series[str]":
    """Return diagnosis and malignancy of each row as one text."""
    malignant = frame["malignant"].map({0.0: "benign", 1.0: "malignant"}).fillna("")
    return frame["dx"] + "|" + malignant


def _find_existing_split(splits: "pd.Series[str]") -> str:
    """Return the split that a group is already in, "" if none of its rows has one.

    A group that is in several splits counts as train, because nothing is measured
    there.
    """
    existing = {split for split in splits if split}
    return existing.pop() if len(existing) == 1 else ("train" if existing else "")


def with_split(table: Table, seed: int = 0) -> Table:
    """Return the table with a split in every row.

    Existing splits are kept, and byte-identical images are in one split. A table whose
    rows all have a split is returned unchanged, even if a split is empty;
    `Table.select_split` reports that when the split is needed.

    Args:
        table: The data set.
        seed: Random seed of `assign_splits`.

    Raises:
        DataError: An image is missing.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> sorted(set(with_split(read_table("lesions")).frame["split"]))
        ['test', 'train', 'val']
    """
    if (table.frame["split"] != "").all():
        return table
    content = digests(table).loc[table.frame["image_id"]].to_numpy()
    by_row = pd.Series(content, index=table.frame.index, dtype="str")
    splits = assign_splits(table.frame, seed=seed, content=by_row)
    return table.replace(table.frame.assign(split=splits))


@dataclass(frozen=True)
class SplitReport:
    """The result of `split_data`.

    Attributes:
        out: Table file that was written.
        images: Number of rows.
        groups: Number of groups: rows that share a lesion, a patient or an image file.
        kept: Number of rows that had a split and kept it.
        counts: Split -> diagnosis -> images.
        warnings: Groups that are too large, and splits that are uneven, empty or lack a
            class; see `check_split`.

    Examples:
        >>> SplitReport("split.csv", 3, 2, 0, {"train": {"nv": 3}}).counts["train"]
        {'nv': 3}
    """

    out: str
    images: int
    groups: int
    kept: int
    counts: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...] = ()


def split_data(
    data: str | Path,
    out: str | Path | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    redo: bool = False,
    overwrite: bool = False,
) -> SplitReport:
    """Write a table in which every row has a split.

    All other cells stay as they are. Byte-identical images are in one split.

    Args:
        data: Folder or table file.
        out: Table to write, a .csv or .parquet file in the same folder, because image
            paths are relative to that folder. None writes to the table itself; class
            folders get a `metadata.csv`.
        fractions: Shares of train, val and test.
        seed: Random seed of the order in which groups are assigned.
        redo: Discard all existing splits, including official ones.
        overwrite: Replace `out` if it exists.

    Raises:
        DataError: The table cannot be read, or an image is missing.
        UsageError: The fractions are invalid, `out` is in another folder or has another
            suffix, or `out` exists and `overwrite` is False.

    Examples:
        >>> from dermedge.data.draw import draw_data_set
        >>> _ = draw_data_set("few", count=12, size=(32, 32))
        >>> report = split_data("few", "few/split.csv", seed=1)
        >>> report.images, report.kept, sorted(report.counts)
        (12, 0, ['train', 'val'])
    """
    source = read_source(Path(data))
    target = find_target(source, out, overwrite)
    table = parse_table(source)
    table.log_notes()
    frame = table.frame.assign(split="") if redo else table.frame
    content = pd.Series(digests(table).to_numpy(), index=frame.index, dtype="str")
    splits = assign_splits(frame, fractions, seed, content=content)
    # The text of the file is written back, not the checked table: a user's own spelling
    # of a label or a number must survive.
    text = source.frame
    text[match_columns(text.columns, source.file).get("split", "split")] = splits.to_numpy()
    write_text(target, text)
    written = parse_table(read_source(target)).frame
    return SplitReport(
        out=str(target),
        images=len(written),
        groups=int(groups(frame, content).nunique()),
        kept=int((frame["split"] != "").sum()),
        counts={
            str(name): {str(dx): int(n) for dx, n in rows["dx"].value_counts().items()}
            for name, rows in written.groupby("split")
        },
        warnings=tuple(
            finding.message
            for finding in check_split(frame, splits, fractions, content=content)
            if finding.level != "info"
        ),
    )


def find_target(source: TextTable, out: str | Path | None, overwrite: bool) -> Path:
    """Return the file that a changed table is written to; class folders get a table.

    Args:
        source: The table as it was read.
        out: File in the folder of the table, or None for the table itself.
        overwrite: Allow the file to exist.

    Raises:
        UsageError: The file is in another folder, has another suffix, or exists.
    """
    if source.root not in (source.file, source.file.parent):
        raise UsageError(
            f"{source.file} holds its images, so no table can be written beside them. Extract them "
            f"with `dermedge data add csv {source.file} -o OUT`, then use OUT."
        )
    file = source.file / FILES[0] if source.file.is_dir() else source.file
    target = Path(out) if out is not None else file
    if target.is_dir():
        target = target / file.name
    if target.resolve().parent != source.root.resolve():
        raise UsageError(
            f"{target} is not in {source.root}, but its image paths are relative to that folder. "
            "Write it there."
        )
    if target.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(
            f"{target} is neither .csv nor .parquet. Give the table one of these suffixes."
        )
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target} exists. Give another name with --out, or replace it with --overwrite."
        )
    return target
