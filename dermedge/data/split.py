"""Train, val and test, so that no lesion and no patient stands on two sides."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pandas as pd

from dermedge.data.table import SPLITS, Table, digests, find_table, groups, read_table, read_text
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write

FRACTIONS = (0.7, 0.15, 0.15)


def assign_splits(
    frame: pd.DataFrame,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    *,
    content: "pd.Series[str] | None" = None,
) -> "pd.Series[str]":
    """A split for every row; rows that have one keep it.

    Whole groups (see `groups`) are dealt out, stratum by stratum (diagnosis and malignancy of a group's rarest row),
    in an order drawn from the seed. A stratum of three or more groups reaches every split. A row without a split whose
    group has one joins it. Other rows are never added to an existing val or test split, so that published numbers stay
    comparable.

    Args:
        frame: rows of a table.
        fractions: shares of train, val and test among each stratum's images; a split with share 0 stays empty.
        seed: of the order; the result does not depend on the order of the rows.
        content: passed on to `groups`.

    Returns:
        "train", "val" or "test" per row, with the frame's index.

    Raises:
        UsageError: for fractions that are not three shares that sum to 1.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UsageError(
            f"The fractions {tuple(fractions)} are no shares: give train, val and test, with sum 1."
        )
    existing = frame["split"]
    fixed = {name for name in SPLITS[1:] if (existing == name).any()}
    open_splits = [
        name
        for name, share in zip(SPLITS, fractions, strict=True)
        if share > 0 and name not in fixed
    ]
    open_splits = open_splits or ["train"]
    share = dict(zip(SPLITS, fractions, strict=True))
    rows = frame[["dx"]].assign(
        group=groups(frame, content), split=existing, stratum=_strata(frame)
    )
    counts = rows.groupby("stratum")["group"].nunique()
    ranks = {
        stratum: rank
        for rank, stratum in enumerate(sorted(counts.index, key=lambda name: (counts[name], name)))
    }
    by_group = (
        rows.assign(rank=rows["stratum"].map(ranks))
        .groupby("group")
        .agg(
            rank=("rank", "min"),
            size=("rank", "size"),
            owner=("split", _owner),
            labels=("dx", frozenset),
        )
    )
    by_group["label"] = by_group["rank"].map(
        {rank: stratum.rpartition("|")[0] for stratum, rank in ranks.items()}
    )
    by_group["order"] = [sha256(f"{seed}:{group}".encode()).hexdigest() for group in by_group.index]
    chosen = _deal(by_group.sort_values(["rank", "order"]), open_splits, share)
    return existing.where(existing != "", rows["group"].map(chosen)).astype("str").rename("split")


def _deal(
    by_group: pd.DataFrame, open_splits: Sequence[str], share: Mapping[str, float]
) -> dict[str, str]:
    """Group -> split.

    A split without any image of the stratum's label comes first, the largest share before the others; then the one that
    lacks most of its share of the stratum.
    """
    owned = by_group[by_group["owner"] != ""]
    chosen = {str(group): str(owner) for group, owner in owned["owner"].items()}
    there = {
        (label, owner)
        for labels, owner in zip(owned["labels"], owned["owner"], strict=True)
        for label in labels
    }
    for _, stratum in by_group.groupby("rank"):
        sizes = stratum.groupby("owner")["size"].sum()
        lacks = {
            name: share[name] * float(sizes.sum()) - float(sizes.get(name, 0)) for name in SPLITS
        }
        for group, row in stratum[stratum["owner"] == ""].iterrows():
            without = [name for name in open_splits if (row["label"], name) not in there]
            split_data = (
                max(without, key=share.__getitem__)
                if without
                else max(open_splits, key=lacks.__getitem__)
            )
            chosen[str(group)] = split_data
            lacks[split_data] -= row["size"]
            there |= {(label, split_data) for label in row["labels"]}
    return chosen


def _strata(frame: pd.DataFrame) -> "pd.Series[str]":
    malignant = frame["malignant"].map({0.0: "benign", 1.0: "malignant"}).fillna("")
    return frame["dx"] + "|" + malignant


def _owner(splits: "pd.Series[str]") -> str:
    """The split that a group already stands in; train where it stands in several, since train is never measured on."""
    there = {split_data for split_data in splits if split_data}
    return there.pop() if len(there) == 1 else ("train" if there else "")


def with_split(table: Table, seed: int = 0) -> Table:
    """The table with every row in a split: existing ones are kept, the others are dealt out by `assign_splits`, with
    byte-identical images in one split.

    A table whose rows all have a split is returned unchanged, even if it has no test rows, say; `Table.of` reports that
    when they are needed.

    Args:
        table: any table.
        seed: of the order in which groups are dealt out.

    Raises:
        DataError: an image is missing.
    """
    if (table.frame["split"] != "").all():
        return table
    content = digests(table).loc[table.frame["image_id"]].to_numpy()
    by_row = pd.Series(content, index=table.frame.index, dtype="str")
    return table.replace(
        table.frame.assign(split=assign_splits(table.frame, seed=seed, content=by_row))
    )


@dataclass(frozen=True)
class SplitReport:
    """The table that `split` wrote.

    Attributes:
        out: its file.
        images: rows.
        groups: sets of rows that share a lesion, a patient or an image, each in one split.
        kept: rows that had a split and kept it.
        counts: split -> diagnosis -> images.
    """

    out: str
    images: int
    groups: int
    kept: int
    counts: Mapping[str, Mapping[str, int]]


def split_data(
    data: str | Path,
    out: str | Path | None = None,
    *,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    redo: bool = False,
    overwrite: bool = False,
) -> SplitReport:
    """Write a table with every row in a split, all other cells as they were; byte-identical images stay in one split.

    Args:
        data: folder or table file.
        out: the table to write, a .csv or .parquet file in the same folder (its paths are relative to that); None for
            the table itself.
        fractions: shares of train, val and test.
        seed: of the order in which groups are dealt out.
        redo: forget the existing splits, official ones too.
        overwrite: replace `out` where it exists.

    Raises:
        DataError: as `read_table`, and for images that are missing.
        UsageError: for bad fractions, an `out` elsewhere, or one that exists.
    """
    source = find_table(Path(data))
    target = Path(out) if out is not None else source
    if target.is_dir():
        target = target / source.name
    if target.resolve().parent != source.resolve().parent:
        raise UsageError(
            f"{target} is not in {source.parent}, which its image paths are relative to: write it there."
        )
    if target.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(
            f"{target} is neither .csv nor .parquet: give the table one of these names."
        )
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target} exists: give another name with --out, or --overwrite to replace it."
        )
    table = read_table(source)
    frame = table.frame.assign(split="") if redo else table.frame
    content = pd.Series(digests(table).to_numpy(), index=frame.index, dtype="str")
    splits = assign_splits(frame, fractions, seed, content=content)
    text, _ = read_text(source)
    text["split"] = splits.to_numpy()
    buffer = io.BytesIO()
    if target.suffix.lower() == ".csv":
        text.to_csv(buffer, index=False, lineterminator="\n", encoding="utf-8")
    else:
        text.to_parquet(buffer, index=False)
    atomic_write(target, buffer.getvalue())
    written = read_table(target).frame
    return SplitReport(
        out=str(target),
        images=len(written),
        groups=int(groups(frame, content).nunique()),
        kept=int((frame["split"] != "").sum()),
        counts={
            str(name): {str(dx): int(n) for dx, n in rows["dx"].value_counts().items()}
            for name, rows in written.groupby("split")
        },
    )
