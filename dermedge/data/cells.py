"""Understand the spellings of ages, sexes, skin types and other cells of a table."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dermedge.data.messages import quote
from dermedge_runtime.errors import DataError

SHOWN = 4
"""Number of different spellings that a note lists."""
WIDEST_RANGE = 20
"""Largest width in years of a range of ages that is read as its middle."""

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits in lower case -> our name."""

_SEXES = {
    **dict.fromkeys(("m", "male", "man", "männlich", "masculino", "masculin", "homme"), "male"),
    **dict.fromkeys(("f", "female", "woman", "w", "weiblich", "femenino"), "female"),
    **dict.fromkeys(("feminino", "féminin", "femme"), "female"),
}
_TRUTH = {
    **dict.fromkeys(("1", "true", "t", "yes", "y", "malignant"), "1"),
    **dict.fromkeys(("0", "false", "f", "no", "n", "benign"), "0"),
    "1.0": "1.0",
    "0.0": "0.0",
}
_MODALITIES = {
    **dict.fromkeys(("dermoscopic", "dermoscopy", "dermoscope", "dermatoscopic"), "dermoscopic"),
    **dict.fromkeys(("dermatoscopy", "dermatoscope", "derm"), "dermoscopic"),
    **dict.fromkeys(("clinical", "clinic", "macroscopic", "macro"), "clinical"),
    **dict.fromkeys(("photo", "photograph", "smartphone"), "clinical"),
}
_ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}

_NUMBER = r"(\d+(?:[.,]\d+)?)"
_YEARS = r"(?:\s*(?:years?|yrs?|y\.?\s?o\.?|y/o|y)(?:\s*old)?)?"
_DASH = r"\s*(?:[-\u2010-\u2015]|to)\s*"
_AT_LEAST = re.compile(
    rf"(?:(?:>=?|\u2265|over)\s*{_NUMBER}{_YEARS}"
    rf"|{_NUMBER}{_YEARS}\s*(?:\+|plus|(?:and|or)\s(?:over|older|above|more)){_YEARS})"
)
_AGE = re.compile(rf"(?:~|ca\.?|circa|about|approx\.?)?\s*{_NUMBER}{_YEARS}")
_YOUNG = re.compile(_NUMBER + r"\s*(months?|mos?|weeks?|wks?|days?)(?:\s*old)?")
_RANGE = re.compile(_NUMBER + _DASH + _NUMBER + _YEARS)
_DECADE = re.compile(r"(\d0)s")
_PER_YEAR = {"m": 12, "w": 52.18, "d": 365.25}

_TYPE_WORDS = re.compile(r"fitzpatrick|skin|photo|types?|typ|fst")
_TYPE = r"(iv|vi?|i{1,3}|[1-6])"
_TWO_TYPES = re.compile(_TYPE + r"\s*(?:[-/\u2010-\u2015]|to|or|and)\s*" + _TYPE)


def understand_column(
    column: str, cells: Sequence[str], where: Sequence[str]
) -> tuple[list[str], str]:
    """Return the cells of a column in the one spelling that a table should have.

    Args:
        column: malignant, severity, age, sex, fitzpatrick, modality or split.
        cells: Cells of the column, "" where unknown.
        where: Place of every row, for messages.

    Returns:
        The cells, and a note on those that changed, "" if none did. Numbers are text
        that `float` reads.

    Raises:
        DataError: A cell is not understood.

    Examples:
        >>> understand_column("age", ["53", "90+", "50-59"], ["row 2", "row 3", "row 4"])
        (['53', '90', '54.5'], "age: '90+' was read as '90', '50-59' as '54.5'.")
    """
    read, advice = _COLUMNS[column]
    meanings: dict[str, str] = {"": ""}
    for cell, at in zip(cells, where, strict=True):
        if cell not in meanings:
            meaning = read(cell)
            if meaning is None:
                raise DataError(f"{at}: {column} is {quote(cell)}. Write {advice}.")
            meanings[cell] = meaning
    return [meanings[cell] for cell in cells], describe_readings(column, cells, meanings)


def describe_readings(column: str, cells: Sequence[str], meanings: Mapping[str, str]) -> str:
    """Return a sentence on the cells whose meaning is spelled otherwise, "" if none is.

    Examples:
        >>> describe_readings("sex", ["F", "F", "male"], {"F": "female", "male": "male"})
        "sex: 'F' was read as 'female' (2 cells)."
    """
    changed = Counter(cell for cell in cells if meanings[cell] != cell)
    if not changed:
        return ""
    parts = [
        f"{quote(cell)}{'' if index else ' was read'} as "
        f"{quote(meanings[cell]) if meanings[cell] else 'unknown'}"
        + (f" ({count} cells)" if count > 1 else "")
        for index, (cell, count) in enumerate(changed.most_common(SHOWN))
    ]
    rest = len(changed) - SHOWN
    if rest > 0:
        parts.append(f"and {rest} other {'spelling' if rest == 1 else 'spellings'}")
    return f"{column}: {', '.join(parts)}."


def _read_number(low: float, high: float, *, whole: bool) -> Callable[[str], str | None]:
    """Return a reader of numbers that keeps a spelling that `float` reads."""

    def read(cell: str) -> str | None:
        # Tables with ; have a decimal comma in many countries.
        text = re.sub(r"^(\d+),(\d+)$", r"\1.\2", cell)
        try:
            value = float(text)
        except ValueError:
            return None
        allowed = low <= value <= high and not (whole and value != int(value))
        return text if allowed else None

    return read


def _read_age(cell: str) -> str | None:
    number = _read_number(0, 120, whole=False)
    plain = number(cell)
    if plain is not None:
        return plain
    text = cell.casefold()
    if match := _AT_LEAST.fullmatch(text) or _AGE.fullmatch(text):
        return number(next(group for group in match.groups() if group))
    if match := _YOUNG.fullmatch(text):
        return number(f"{_to_float(match[1]) / _PER_YEAR[match[2][0]]:.3g}")
    if match := _DECADE.fullmatch(text):
        return number(f"{int(match[1]) + 4.5:g}")
    if match := _RANGE.fullmatch(text):
        low, high = _to_float(match[1]), _to_float(match[2])
        return number(f"{(low + high) / 2:g}") if 0 < high - low <= WIDEST_RANGE else None
    return None


def _to_float(text: str) -> float:
    return float(text.replace(",", "."))


def _read_sex(cell: str) -> str | None:
    text = cell.casefold()
    # Tables disagree on the meaning of 0, 1 and 2.
    return None if _is_number(text) else _SEXES.get(text, text)


def _is_number(text: str) -> bool:
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _read_skin_type(cell: str) -> str | None:
    plain = _read_number(1, 6, whole=True)(cell)
    if plain is not None:
        return plain
    words = _TYPE_WORDS.sub("", cell.casefold()).strip(" _:.-")
    if re.fullmatch(_TYPE, words):
        return _ROMAN.get(words, words)
    return "" if _TWO_TYPES.fullmatch(words) else None


def _read_truth(cell: str) -> str | None:
    return _TRUTH.get(cell.casefold())


def _read_modality(cell: str) -> str | None:
    # The ISIC archive writes "clinical: close-up" and "clinical: overview".
    return _MODALITIES.get(cell.casefold().partition(":")[0].strip())


def _read_split(cell: str) -> str | None:
    return SPLIT_NAMES.get(cell.casefold())


_COLUMNS: Mapping[str, tuple[Callable[[str], str | None], str]] = {
    "malignant": (_read_truth, "1, 0 or nothing"),
    "severity": (_read_number(0, 100, whole=True), "a level: 0, 1, 2, ..., or nothing"),
    "age": (_read_age, "years, from 0 to 120, or nothing"),
    "sex": (_read_sex, "male or female: 0, 1 and 2 mean different sexes in different tables"),
    "fitzpatrick": (_read_skin_type, "a skin type from 1 to 6, or nothing"),
    "modality": (_read_modality, "dermoscopic or clinical, or nothing"),
    "split": (_read_split, "train, val or test, or leave it empty"),
}
"""Column -> function that returns the one spelling, None if it finds none; advice."""
