"""Find columns that predict the label, by their values or by being empty.

A model that reads such a column learns how the data were collected, not the skin. A
comparison of subgroups by such a column has the same fault.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dermedge.data.class_folders import names_diagnosis

SIGNIFICANCE = 1e-3
"""Largest corrected p-value that is reported."""
EFFECT = 0.2
"""Smallest difference of shares, or Cramer's V, that is reported."""
PINNED = 0.25
"""Smallest share of rows whose label a column's values determine."""
SEPARATES = 0.95
"""Smallest AUROC of a numeric column that is reported."""
_LEVELS = 50
_FEWEST = 8
_LABELS = frozenset(
    {"image_id", "image", "mask", "lesion_id", "patient_id", "dx", "malignant", "split", "caption"}
)


@dataclass(frozen=True)
class LabelLeak:
    """A column that predicts the label.

    Attributes:
        column: Name of the column.
        message: Sentence, without a full stop, on how the column predicts the label.
        count: Number of affected rows.

    Examples:
        >>> leak = LabelLeak("age", "age separates malignant from benign", 30)
        >>> leak.column
        'age'
    """

    column: str
    message: str
    count: int


def find_missing_value_leaks(frame: pd.DataFrame) -> list[LabelLeak]:
    """Find columns whose empty cells predict malignancy or the diagnosis.

    Malignancy is tested by Fisher's exact test on empty x malignant, the diagnosis by a
    chi-square test. Both count one row of each kind per group and are corrected for the
    number of tests (Bonferroni).

    A column is reported if p < 0.001 and the effect is large. For malignancy, all empty
    (or all filled) rows are of one side, or the shares differ by 0.2 or more. For the
    diagnosis, Cramer's V is 0.2 or more.

    Args:
        frame: Rows of a table, with a column `group`.

    Examples:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"group": range(60), "dx": ["nv"] * 30 + ["mel"] * 30})
        >>> frame["malignant"] = [0.0] * 30 + [1.0] * 30
        >>> frame["biopsy"] = [""] * 30 + ["yes"] * 30
        >>> find_missing_value_leaks(frame)[0].message[:45]
        'All 30 rows without biopsy are benign; of the'
    """
    candidates = []
    for column in frame.columns:
        empty = _is_empty(frame[column])
        if column not in _LABELS | {"group"} and empty.any() and not empty.all():
            candidates.append((str(column), empty))
    # Each column is tested twice, for malignancy and for the diagnosis. The p-values
    # are corrected for all of these tests.
    tests = 2 * max(1, len(candidates))
    leaks = []
    for column, empty in candidates:
        leak = _test_malignancy(frame, column, empty, tests) or _test_diagnosis(
            frame, column, empty, tests
        )
        if leak:
            leaks.append(leak)
    return leaks


def _test_malignancy(
    frame: pd.DataFrame, column: str, empty: "pd.Series[bool]", tests: int
) -> LabelLeak | None:
    from scipy.stats import fisher_exact

    known = frame["malignant"].notna()
    malignant = frame["malignant"] == 1
    rows = pd.DataFrame({"group": frame["group"], "empty": empty, "malignant": malignant})[known]
    # Several photographs of one lesion are one observation: without this, a few lesions
    # that were photographed often would make chance look significant.
    counts = _crosstab(rows.drop_duplicates()["empty"], rows.drop_duplicates()["malignant"])
    if counts.shape != (2, 2):
        return None
    p = min(1.0, float(fisher_exact(counts.to_numpy()).pvalue) * tests)
    shares = rows.groupby("empty")["malignant"].mean()
    without, filled = float(shares[True]), float(shares[False])
    pure = without in (0.0, 1.0) or filled in (0.0, 1.0)
    if p >= SIGNIFICANCE or not (pure or abs(without - filled) >= EFFECT):
        return None
    number = int(rows["empty"].sum())
    start = f"Of {number} rows without {column}, {without:.0%} are malignant"
    if without in (0.0, 1.0):
        start = f"All {number} rows without {column} are {_name_label('malignant', without)}"
    message = f"{start}; of the rows with it, {filled:.0%} are malignant (p = {p:.1g})"
    return LabelLeak(column, message, number)


def _test_diagnosis(
    frame: pd.DataFrame, column: str, empty: "pd.Series[bool]", tests: int
) -> LabelLeak | None:
    rows = pd.DataFrame({"group": frame["group"], "empty": empty, "dx": frame["dx"]})[
        frame["dx"] != ""
    ]
    counts = _crosstab(rows.drop_duplicates()["empty"], rows.drop_duplicates()["dx"])
    strength, p = _cramers_v(counts)
    p = min(1.0, p * tests)
    if p >= SIGNIFICANCE or strength < EFFECT:
        return None
    number = int(rows["empty"].sum())
    common = rows.loc[rows["empty"], "dx"].value_counts(normalize=True)
    message = (
        f"Empty cells of {column} predict the diagnosis: {common.iloc[0]:.0%} of the {number} rows "
        f"without it are {common.index[0]} (Cramer's V {strength:.2f}, p = {p:.1g})"
    )
    return LabelLeak(column, message, number)


def find_value_leaks(frame: pd.DataFrame) -> list[LabelLeak]:
    """Find columns whose values determine malignancy or the diagnosis.

    Only rows with a value count. A column of at most 50 values is reported if the
    values that occur with one label only cover a quarter of the rows. Such a value
    counts if chance is ruled out (Fisher's exact test, Bonferroni-corrected, p <
    0.001).

    A numeric column is reported if it separates malignant from benign rows with an
    AUROC of 0.95 or more.

    Args:
        frame: Rows of a table, with a column `group`.
    """
    leaks = []
    for column in frame.columns:
        if column in _LABELS | {"group"}:
            continue
        filled = frame[~_is_empty(frame[column])]
        if filled[column].nunique() < 2:
            continue
        leak = _test_separation(filled, str(column))
        if leak is None and filled[column].nunique() <= _LEVELS:
            leak = _test_values(filled, str(column), "malignant")
            leak = leak or _test_values(filled, str(column), "dx")
        if leak:
            leaks.append(leak)
    return leaks


def _test_values(frame: pd.DataFrame, column: str, label: str) -> LabelLeak | None:
    """Test if the values of a column that decide the label cover many rows."""
    known = frame[frame[label].notna()] if label == "malignant" else frame[frame[label] != ""]
    counts = _crosstab(known[column], known[label])
    if min(counts.shape, default=0) < 2:
        return None
    # One row of each kind per group, as for empty cells.
    unique = known.drop_duplicates(["group", column, label])
    decisive = _list_decisive_values(counts, _crosstab(unique[column], unique[label]), label)
    # One rare value of one label is normal, such as a site that two lesions have. A
    # column is a leak if such values decide the label of many rows.
    covered = sum(number for _, _, number in decisive)
    if covered < PINNED * len(known):
        return None
    decisive.sort(key=lambda item: -item[2])
    shown = "; ".join(f"{value} ({number}): all {name}" for value, name, number in decisive[:3])
    quantity = "malignancy" if label == "malignant" else "diagnosis"
    only = _describe_malignant_value(counts, label)
    message = f"{column} gives the {quantity} away in {covered} rows: {shown}{only}"
    return LabelLeak(column, message, covered)


def _list_decisive_values(
    counts: pd.DataFrame, groups: pd.DataFrame, label: str
) -> list[tuple[str, str, int]]:
    """Return the values that occur with one label only, beyond chance.

    Args:
        counts: Number of rows by value and label.
        groups: Number of groups by value and label.
        label: "malignant" or "dx".

    Returns:
        Value, name of its label, and number of rows.
    """
    from scipy.stats import hypergeom

    totals, population = groups.sum(axis=0), int(groups.to_numpy().sum())
    groups_by_value = groups.sum(axis=1).to_dict()
    decisive = []
    for value, row in counts.iterrows():
        labels = row[row > 0].index
        drawn = int(groups_by_value[value])
        if len(labels) != 1 or drawn < _FEWEST:
            continue
        # Probability that all `drawn` groups have this label by chance: the upper tail
        # of the hypergeometric distribution, which is the one-sided exact test of
        # Fisher, corrected for the number of values.
        tail = float(hypergeom.sf(drawn - 1, population, int(totals[labels[0]]), drawn))
        if tail * len(counts) < SIGNIFICANCE:
            decisive.append((str(value), _name_label(label, labels[0]), int(row.sum())))
    return decisive


def _describe_malignant_value(counts: pd.DataFrame, label: str) -> str:
    """Return words for a value that every malignant row has, "" if there is none."""
    if label != "malignant" or 1.0 not in counts.columns:
        return ""
    values = counts.index[counts[1.0] > 0]
    return f"; every malignant row has {values[0]}" if len(values) == 1 else ""


def _name_label(label: str, value: object) -> str:
    names = {1.0: "malignant", 0.0: "benign"}
    return names[float(str(value))] if label == "malignant" else str(value)


def _test_separation(frame: pd.DataFrame, column: str) -> LabelLeak | None:
    """Test whether a numeric column separates malignant from benign rows."""
    from scipy.stats import mannwhitneyu

    numbers = pd.to_numeric(frame[column], errors="coerce")
    malignant, benign = numbers[frame["malignant"] == 1], numbers[frame["malignant"] == 0]
    if numbers.isna().any() or numbers.nunique() <= 2 or min(len(malignant), len(benign)) < _FEWEST:
        return None
    result = mannwhitneyu(malignant, benign)
    # The U statistic, divided by the number of pairs, is the AUROC.
    auroc = float(result.statistic) / (len(malignant) * len(benign))
    auroc = max(auroc, 1 - auroc)
    if auroc < SEPARATES or result.pvalue >= SIGNIFICANCE:
        return None
    message = f"{column} separates malignant from benign with an AUROC of {auroc:.3f}"
    return LabelLeak(column, message, len(numbers))


def _is_empty(column: "pd.Series[str]") -> "pd.Series[bool]":
    return column.isna() | (column.astype("str").str.strip() == "")


def _crosstab(rows: "pd.Series[str]", columns: "pd.Series[str]") -> pd.DataFrame:
    return pd.crosstab(rows.to_numpy(), columns.to_numpy())


def _cramers_v(counts: pd.DataFrame) -> tuple[float, float]:
    """Return Cramer's V and the p-value of the chi-square test.

    A table with fewer than two rows or columns has no association: (0, 1).
    """
    from scipy.stats import chi2_contingency

    if min(counts.shape, default=0) < 2:
        return 0.0, 1.0
    result = chi2_contingency(counts.to_numpy())
    total = int(np.sum(counts.to_numpy())) * (min(counts.shape) - 1)
    return math.sqrt(float(result.statistic) / total), float(result.pvalue)


def add_file_columns(frame: pd.DataFrame, sizes: Sequence[str]) -> pd.DataFrame:
    """Return the rows with columns for folder, suffix and size of each image.

    Properties of files predict the label if, for example, each class was exported by
    another tool. A folder that is named after the row's diagnosis is its label, and is
    left empty.

    Args:
        frame: Rows of a table.
        sizes: Size of each image as text, such as "600x450".
    """
    paths = frame["image"].str.rpartition("/")
    suffix = paths[2].str.rpartition(".")[2].str.lower()
    pairs = list(zip(paths[0], frame["dx"], strict=True))
    named = {pair for pair in set(pairs) if names_diagnosis(*pair)}
    folders = ["" if pair in named else pair[0] for pair in pairs]
    columns = {"image folder": folders, "image suffix": suffix, "image size": list(sizes)}
    return pd.concat([frame, pd.DataFrame(columns).set_axis(frame.index)], axis=1)
