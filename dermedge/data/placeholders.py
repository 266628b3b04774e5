"""Recognise the words and numbers that tables write where a value is not known."""

import unicodedata

# A word that may also be a value of its own, such as 0, 99 or 999, is not listed: a
# lesion may have the number 0. A group that such an id makes too large is reported by
# `split_checks`. Neither are two letters, which may be a patient's initials.
_WORDS = """
na n/a n.a. n.a n/d n/k nan nil none null undefined undef
unknown unk unkn not_known unspecified not_specified not_available unavailable
not_applicable not_recorded not_reported not_provided not_given no_data no_value missing
anonymous anonymous_patient anonymized anonymised anon tbd to_be_determined blank
unassigned redacted withheld #n/a #na #null! #value! <na> <none> <null> (null) (none) (blank)
(missing) [null] [none]
"""
# Codes of statistics programs. As an id or a measured value none of them is meaningful.
_CODES = "-1 -9 -99 -999 -9999 -1.0 -9.0 -99.0 -999.0 -9999.0"
UNKNOWN = frozenset(word.replace("_", " ") for word in f"{_WORDS} {_CODES}".split())
"""Cells that count as empty, in lower case. Cells of punctuation only do, too."""


def is_unknown(cell: str) -> bool:
    """Return whether a cell says that its value is not known.

    Case, width and white space do not matter. A cell of punctuation only, such as "?",
    "-" or ".", is unknown too.

    Args:
        cell: Text of a cell.

    Examples:
        >>> [is_unknown(cell) for cell in ("-1", " Not available ", "?", "")]
        [True, True, True, True]
        >>> [is_unknown(cell) for cell in ("0", "999", "nevus")]
        [False, False, False]
    """
    text = unicodedata.normalize("NFKC", cell).casefold()
    text = text.replace("_", " ").replace("\N{MINUS SIGN}", "-")
    # Zero-width characters (Cf) come with cells that were copied from a web page.
    text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    text = " ".join(text.split())
    return text in UNKNOWN or all(unicodedata.category(letter)[0] == "P" for letter in text)
