"""Form the subgroups for checks of data, evaluation and the accuracy gate.

`dermedge data check`, `dermedge evaluate` and the accuracy gate all call
`subgroup_columns`, so they name and count the same subgroups.
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SUBGROUP_COLUMNS = ("fitzpatrick", "sex", "age_band", "site", "modality")
"""Columns of `subgroup_columns`, in the order of the reports."""

AGE_BANDS = ((0, "0-29"), (30, "30-49"), (50, "50-69"), (70, "70+"))
"""First age of a band in years, and the name of the band."""

SKIN_TYPES = ("I", "II", "III", "IV", "V", "VI")
"""Names of the Fitzpatrick skin types 1 to 6."""

RANGES = {"12": "I-II", "34": "III-IV", "56": "V-VI"}
"""Skin tone as DDI codes it, and the range of Fitzpatrick types that it covers."""


def subgroup_columns(frame: pd.DataFrame) -> dict[str, NDArray[np.str_]]:
    """Return the subgroup of every row, by column.

    The skin type is I to VI. It is a range (I-II, III-IV or V-VI) where the data set
    publishes only that.

    Args:
        frame: Rows of a table.

    Returns:
        One text array [N] for each of `SUBGROUP_COLUMNS`, "" where the value is
        unknown.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> columns = subgroup_columns(read_table("lesions").frame)
        >>> sorted(set(columns["age_band"].tolist()))
        ['0-29', '30-49', '50-69', '70+']
    """
    # A row with a range only is a subgroup of its own, such as V-VI: counting it as V
    # or as VI would be a guess.
    skin = [
        SKIN_TYPES[int(value) - 1] if not math.isnan(value) else tone
        for value, tone in zip(frame["fitzpatrick"], skin_tones(frame), strict=True)
    ]
    return {
        "fitzpatrick": np.array(skin, str),
        "sex": frame["sex"].to_numpy(str),
        "age_band": np.array([age_band(age) for age in frame["age"]], str),
        "site": frame["site"].to_numpy(str),
        "modality": frame["modality"].to_numpy(str),
    }


def subgroup_counts(frame: pd.DataFrame) -> dict[str, dict[str, dict[str, int]]]:
    """Count the images of every subgroup, and how many are malignant and benign.

    Args:
        frame: Rows of a table.

    Returns:
        Column -> subgroup -> counts of "images", "malignant" and "benign". The subgroup
        "" counts the rows without a value. Columns without any value are left out.
    """
    malignant = frame["malignant"].to_numpy()
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for column, values in subgroup_columns(frame).items():
        if (values != "").any():
            counts[column] = {
                str(value): {
                    "images": int((values == value).sum()),
                    "malignant": int((malignant[values == value] == 1).sum()),
                    "benign": int((malignant[values == value] == 0).sum()),
                }
                for value in np.unique(values)
            }
    return counts


def age_band(age: float) -> str:
    """Return the name of the age band of an age in years, "" for NaN."""
    return next((name for start, name in reversed(AGE_BANDS) if age >= start), "")


def skin_tones(frame: pd.DataFrame) -> "pd.Series[str]":
    """Return the skin tone range of every row: I-II, III-IV, V-VI, or "" if unknown.

    The range follows from `fitzpatrick` where that is known, otherwise from the column
    `skin_tone` in DDI's coding. A data set that publishes only ranges has no
    `fitzpatrick`, because either type of a range would be a guess.

    Args:
        frame: Rows of a table.

    Examples:
        >>> import pandas as pd
        >>> rows = {"fitzpatrick": [2.0, float("nan")], "skin_tone": ["", "56"]}
        >>> skin_tones(pd.DataFrame(rows)).tolist()
        ['I-II', 'V-VI']
    """
    ranges = list(RANGES.values())
    known = frame["fitzpatrick"].map(
        lambda value: "" if value != value else ranges[(int(value) - 1) // 2]
    )
    if "skin_tone" not in frame:
        return known.astype("str")
    return known.where(known != "", frame["skin_tone"].map(RANGES).fillna("")).astype("str")
