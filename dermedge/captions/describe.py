"""Measure colours, border and size of a lesion, and put a row of a table into words.

The sentences test the machinery of captions: they say what the table and the mask hold,
in a few phrasings. They are not the language of dermatologists.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge.data.taxonomy import diagnosis_name

# Our own prototypes of the colours of lesions, and the share of a lesion from which a
# colour is named.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "black": (40, 32, 32),
    "dark brown": (95, 62, 48),
    "light brown": (165, 118, 90),
    "pink": (205, 140, 135),
    "red": (185, 70, 70),
    "blue-grey": (112, 122, 142),
    "white": (235, 222, 216),
}
COLOUR_SHARE = 0.15
MOST_COLOURS = 3
# Squared perimeter by area of a disc whose perimeter is counted in pixel edges: a disc
# of radius r has 8 r edges. An irregular border has over 1.3 times as many for its area.
DISC = 64 / np.pi
IRREGULAR = 1.3
# Diameter of a lesion by the longer side of the image.
SMALL, LARGE = 0.25, 0.5
PEOPLE = {"female": "woman", "male": "man"}

# Sentences of clauses. A clause is left out if one of its fields is unknown, and a
# sentence if its first clause is.
Phrasing = tuple[tuple[str, ...], ...]
PHRASINGS: tuple[Phrasing, ...] = (
    (
        ("{diagnosis}", " of the {site}", " in {person}"),
        ("the lesion is {size}", " and {colours}"),
        ("the border is {border}",),
    ),
    (
        ("this image shows {diagnosis}", " on the {site}", " of {person}"),
        ("it is {colours}", ", with a border that is {border}"),
        ("the lesion is {size}",),
    ),
    (
        ("the diagnosis is {diagnosis}", ", found on the {site}"),
        ("the patient is {person}",),
        ("the lesion has {border} edges", " and is {size}"),
        ("its colour is {colours}",),
    ),
)
HELD_OUT: tuple[Phrasing, ...] = (
    (
        ("a {size} lesion", " of the {site}", ", {colours}", ", whose outline is {border}"),
        ("this is consistent with {diagnosis}", " in {person}"),
    ),
    (
        ("seen in {person}", ": a lesion on the {site}"),
        ("its colours are {colours}", " and its edge is {border}"),
        ("most likely diagnosis: {diagnosis}",),
    ),
)
"""Phrasings of the test split, which training never sees."""


@dataclass(frozen=True)
class Appearance:
    """Colours, border and size of a lesion, as words.

    Example:
        >>> Appearance(("dark brown",), "regular", "small").border
        'regular'
    """

    colours: tuple[str, ...]
    border: str
    size: str


def measure_lesion(image: NDArray[np.uint8], inside: NDArray[np.bool_]) -> Appearance | None:
    """Measure a lesion by its mask.

    Args:
        image: RGB [S, S, 3] of the whole photograph, padded to a square.
        inside: Mask bool [S, S] of the lesion.

    Returns:
        Its appearance, None for an empty mask.

    Example:
        >>> image = np.full((64, 64, 3), 100, np.uint8)
        >>> rows, columns = np.mgrid[:64, :64] - 32
        >>> measure_lesion(image, rows**2 + columns**2 < 10**2)
        Appearance(colours=('blue-grey',), border='regular', size='medium-sized')
    """
    area = int(inside.sum())
    if not area:
        return None
    prototypes = np.array(list(COLOURS.values()), np.float64)
    distance = np.linalg.norm(image[inside][:, None] - prototypes, axis=2)
    shares = np.bincount(distance.argmin(axis=1), minlength=len(prototypes)) / area
    order = np.argsort(-shares, kind="stable")[:MOST_COLOURS]
    names = list(COLOURS)
    colours = tuple(names[index] for index in order if shares[index] >= COLOUR_SHARE)
    framed = np.pad(inside, 1).astype(np.int8)
    edges = sum(int(np.abs(np.diff(framed, axis=axis)).sum()) for axis in (0, 1))
    border = "irregular" if edges**2 / area > IRREGULAR * DISC else "regular"
    diameter = 2 * np.sqrt(area / np.pi) / len(inside)
    size = "small" if diameter < SMALL else "large" if diameter > LARGE else "medium-sized"
    return Appearance(colours, border, size)


def write_caption(row: Mapping[str, Any], appearance: Appearance | None, *, held_out: bool) -> str:
    """Put a row of a table and the appearance of its lesion into words.

    The phrasing is drawn by the image's id. What is unknown is left out.

    Args:
        row: Cells of the row.
        appearance: Result of `measure_lesion`.
        held_out: Use the phrasings that training never sees.

    Returns:
        The caption, "" if nothing is known.

    Example:
        >>> row = {"image_id": "a", "dx": "mel", "site": "back", "sex": "male", "age": 45.0}
        >>> write_caption(row, None, held_out=False)
        'This image shows melanoma on the back of a 45-year-old man.'
    """
    facts = _list_facts(row, appearance)
    phrasings = HELD_OUT if held_out else PHRASINGS
    drawn = int(sha256(str(row["image_id"]).encode()).hexdigest(), 16) % len(phrasings)
    sentences = [_write_sentence(clauses, facts) for clauses in phrasings[drawn]]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences if text)


def _list_facts(row: Mapping[str, Any], appearance: Appearance | None) -> dict[str, str]:
    """Return the known facts of a row by the names of the clauses' fields."""
    age = row["age"]
    # NaN, the unknown age, differs from itself.
    years = f"{age:.0f}-year-old " if age == age else ""
    person = f"{years}{PEOPLE.get(row['sex'], 'patient')}"
    known_person = bool(years) or row["sex"] in PEOPLE
    facts = {
        "diagnosis": diagnosis_name(row["dx"]),
        "site": row["site"],
        "person": f"{_article(person)} {person}" if known_person else "",
    }
    if appearance is not None:
        *others, last = appearance.colours or ("",)
        colours = f"{', '.join(others)} and {last}" if others else last
        facts |= {"colours": colours, "border": appearance.border, "size": appearance.size}
    return {name: text for name, text in facts.items() if text}


def _article(noun: str) -> str:
    # 8, 11, 18 and 80 to 89 begin with a vowel when spoken.
    return "an" if noun.startswith(("8", "11-", "18-")) else "a"


def _write_sentence(clauses: tuple[str, ...], facts: Mapping[str, str]) -> str:
    first, *others = (_fill(clause, facts) for clause in clauses)
    return first + "".join(others) if first else ""


def _fill(clause: str, facts: Mapping[str, str]) -> str:
    try:
        return clause.format_map(facts)
    except KeyError:
        return ""
