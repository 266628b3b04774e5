"""Skin type in the three ranges that sets with either scale of detail can be compared by."""

import pandas as pd

RANGES = {"12": "I-II", "34": "III-IV", "56": "V-VI"}
"""DDI's codes of skin tone -> the Fitzpatrick types they stand for."""


def skin_tones(frame: pd.DataFrame) -> "pd.Series[str]":
    """I-II, III-IV or V-VI for every row of a table, "" where unknown.

    From `fitzpatrick` where it is known, else from the column `skin_tone` that DDI's rows have: a set that tells only
    the range has no `fitzpatrick`, since either type would be a guess.
    """
    ranges = list(RANGES.values())
    known = frame["fitzpatrick"].map(
        lambda value: "" if value != value else ranges[(int(value) - 1) // 2]
    )
    if "skin_tone" not in frame:
        return known.astype("str")
    return known.where(known != "", frame["skin_tone"].map(RANGES).fillna("")).astype("str")
