"""Columns that tell the answer: by their values, or by being empty.

A model, or a person comparing subgroups, that sees such a column measures how the data were collected, not the skin.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

SIGNIFICANCE = 1e-3
EFFECT = 0.2
PINNED = 0.25
SEPARATES = 0.95
_LEVELS = 50
_FEWEST = 8
_LABELS = frozenset(
    {"image_id", "image", "mask", "lesion_id", "patient_id", "dx", "malignant", "split", "caption"}
)


@dataclass(frozen=True)
class Leak:
    """One column that tells the label, with the sentence that says how, and the rows it concerns."""

    column: str
    message: str
    count: int
    p: float


def missingness(frame: pd.DataFrame) -> list[Leak]:
    """Columns whose emptiness predicts malignancy or diagnosis.

    For malignancy Fisher's exact test on empty x malignant, for the diagnosis a chi-square test, both with one row of
    each kind per group and Bonferroni-corrected. Reported where p < 0.001 and either all empty (or all filled) rows are
    of one side, or the shares differ by 0.2 (for the diagnosis: Cramer's V of 0.2).

    Args:
        frame: rows of a table, with a column `group`.
    """
    candidates = []
    for column in frame.columns:
        empty = _empty(frame[column])
        if column not in _LABELS | {"group"} and empty.any() and not empty.all():
            candidates.append((str(column), empty))
    tests = 2 * max(1, len(candidates))
    leaks = []
    for column, empty in candidates:
        leak = _empty_by_malignancy(frame, column, empty, tests) or _empty_by_diagnosis(
            frame, column, empty, tests
        )
        if leak:
            leaks.append(leak)
    return leaks


def _empty_by_malignancy(
    frame: pd.DataFrame, column: str, empty: "pd.Series[bool]", tests: int
) -> Leak | None:
    from scipy.stats import fisher_exact

    known = frame["malignant"].notna()
    rows = pd.DataFrame(
        {"group": frame["group"], "empty": empty, "malignant": frame["malignant"] == 1}
    )[known]
    counts = _table(rows.drop_duplicates()["empty"], rows.drop_duplicates()["malignant"])
    if counts.shape != (2, 2):
        return None
    p = min(1.0, float(fisher_exact(counts.to_numpy()).pvalue) * tests)
    shares = rows.groupby("empty")["malignant"].mean()
    without, others = float(shares[True]), float(shares[False])
    pure = without in (0.0, 1.0) or others in (0.0, 1.0)
    if p >= SIGNIFICANCE or not (pure or abs(without - others) >= EFFECT):
        return None
    number = int(rows["empty"].sum())
    start = f"Of {number} rows without {column}, {without:.0%} are malignant"
    if without in (0.0, 1.0):
        start = f"All {number} rows without {column} are {_side('malignant', without)}"
    return Leak(
        column, f"{start}, of those with it {others:.0%} are malignant (p = {p:.1g})", number, p
    )


def _empty_by_diagnosis(
    frame: pd.DataFrame, column: str, empty: "pd.Series[bool]", tests: int
) -> Leak | None:
    rows = pd.DataFrame({"group": frame["group"], "empty": empty, "dx": frame["dx"]})[
        frame["dx"] != ""
    ]
    counts = _table(rows.drop_duplicates()["empty"], rows.drop_duplicates()["dx"])
    strength, p = _cramer(counts)
    p = min(1.0, p * tests)
    if p >= SIGNIFICANCE or strength < EFFECT:
        return None
    number = int(rows["empty"].sum())
    common = rows.loc[rows["empty"], "dx"].value_counts(normalize=True)
    return Leak(
        column,
        f"Whether {column} is empty tells the diagnosis: {common.iloc[0]:.0%} of the {number} rows without it are "
        f"{common.index[0]} (Cramer's V {strength:.2f}, p = {p:.1g})",
        number,
        p,
    )


def giveaways(frame: pd.DataFrame) -> list[Leak]:
    """Columns whose values give malignancy or the diagnosis away, over the rows where they are filled.

    A column of few values does so where values that occur with one side only, none of them by chance (Fisher's exact
    test, Bonferroni-corrected, p < 0.001), cover a quarter of the rows; a numeric one where it separates malignant from
    benign with an AUROC of 0.95.

    Args:
        frame: rows of a table, with a column `group`.
    """
    leaks = []
    for column in frame.columns:
        if column in _LABELS | {"group"}:
            continue
        filled = frame[~_empty(frame[column])]
        if filled[column].nunique() < 2:
            continue
        leak = _separating(filled, str(column))
        if leak is None and filled[column].nunique() <= _LEVELS:
            leak = _pinning(filled, str(column), "malignant") or _pinning(filled, str(column), "dx")
        if leak:
            leaks.append(leak)
    return leaks


def _pinning(frame: pd.DataFrame, column: str, label: str) -> Leak | None:
    from scipy.stats import hypergeom

    known = frame[frame[label].notna()] if label == "malignant" else frame[frame[label] != ""]
    counts = _table(known[column], known[label])
    if min(counts.shape, default=0) < 2:
        return None
    groups = _table(
        *(known.drop_duplicates(["group", column, label])[name] for name in (column, label))
    )
    totals, population = groups.sum(axis=0), int(groups.to_numpy().sum())
    pinned: list[tuple[str, str, int, float]] = []
    drawn_by_value = groups.sum(axis=1).to_dict()
    for value, row in counts.iterrows():
        of_one = row[row > 0]
        drawn = int(drawn_by_value[value])
        if len(of_one) != 1 or drawn < _FEWEST:
            continue
        side = of_one.index[0]
        chance = float(hypergeom.sf(drawn - 1, population, int(totals[side]), drawn)) * len(counts)
        if chance < SIGNIFICANCE:
            pinned.append((str(value), _side(label, side), int(row.sum()), chance))
    covered = sum(number for _, _, number, _ in pinned)
    if covered < PINNED * len(known):
        return None
    pinned.sort(key=lambda item: -item[2])
    shown = "; ".join(f"{value} ({number}): all {side}" for value, side, number, _ in pinned[:3])
    what = "malignancy" if label == "malignant" else "diagnosis"
    message = f"{column} gives the {what} away in {covered} rows: {shown}{_only(counts, label)}"
    return Leak(column, message, covered, max(chance for *_, chance in pinned))


def _only(counts: pd.DataFrame, label: str) -> str:
    """The other direction: every malignant row has one value."""
    if label != "malignant" or 1.0 not in counts.columns:
        return ""
    values = counts.index[counts[1.0] > 0]
    return f"; every malignant row has {values[0]}" if len(values) == 1 else ""


def _side(label: str, value: object) -> str:
    return (
        {1.0: "malignant", 0.0: "benign"}[float(str(value))] if label == "malignant" else str(value)
    )


def _separating(frame: pd.DataFrame, column: str) -> Leak | None:
    from scipy.stats import mannwhitneyu

    numbers = pd.to_numeric(frame[column], errors="coerce")
    malignant, benign = numbers[frame["malignant"] == 1], numbers[frame["malignant"] == 0]
    if numbers.isna().any() or numbers.nunique() <= 2 or min(len(malignant), len(benign)) < _FEWEST:
        return None
    result = mannwhitneyu(malignant, benign)
    auroc = float(result.statistic) / (len(malignant) * len(benign))
    if max(auroc, 1 - auroc) < SEPARATES or result.pvalue >= SIGNIFICANCE:
        return None
    message = (
        f"{column} separates malignant from benign with an AUROC of {max(auroc, 1 - auroc):.3f}"
    )
    return Leak(column, message, len(numbers), float(result.pvalue))


def _empty(column: "pd.Series[str]") -> "pd.Series[bool]":
    return column.isna() | (column.astype("str").str.strip() == "")


def _table(rows: "pd.Series[str]", columns: "pd.Series[str]") -> pd.DataFrame:
    return pd.crosstab(rows.to_numpy(), columns.to_numpy())


def _cramer(counts: pd.DataFrame) -> tuple[float, float]:
    """Cramer's V and the p-value of the chi-square test; (0, 1) where there is nothing to compare."""
    from scipy.stats import chi2_contingency

    if min(counts.shape, default=0) < 2:
        return 0.0, 1.0
    result = chi2_contingency(counts.to_numpy())
    smaller = min(counts.shape) - 1
    return math.sqrt(float(result.statistic) / (int(np.sum(counts.to_numpy())) * smaller)), float(
        result.pvalue
    )


def derived(frame: pd.DataFrame, sizes: Sequence[str]) -> pd.DataFrame:
    """The table with what a file tells besides its picture: its folder, its suffix, its size in pixels."""
    paths = frame["image"].str.rpartition("/")
    suffix = paths[2].str.rpartition(".")[2].str.lower()
    told = pd.DataFrame(
        {"image folder": paths[0], "image suffix": suffix, "image size": list(sizes)}
    )
    return pd.concat([frame, told.set_axis(frame.index)], axis=1)
