"""Map the labels of public data sets to one tree of diagnoses.

The tree is in `dermedge.data.diagnoses`, the labels are in `dermedge.data.aliases`.
"""

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from itertools import islice
from types import MappingProxyType

from dermedge.data.aliases import ALIASES, SOURCE_ALIASES
from dermedge.data.diagnoses import DIAGNOSES, Diagnosis
from dermedge.data.messages import quote
from dermedge_runtime.errors import DataError

__all__ = [
    "ALIASES",
    "SOURCE_ALIASES",
    "TAXONOMY",
    "Diagnosis",
    "find_named",
    "lineage",
    "malignancy",
    "project",
    "resolve",
    "split_diagnoses",
    "suggest",
]

TAXONOMY: Mapping[str, Diagnosis] = MappingProxyType(
    {diagnosis.id: diagnosis for diagnosis in DIAGNOSES}
)
"""Every diagnosis by its id."""


def _normalize(name: str) -> str:
    name = unicodedata.normalize("NFC", name).strip().casefold()
    return re.sub(r"[\s_-]+", " ", re.sub("['\u2019]", "", name))


# Ids come last, so that no name and no alias can hide an id.
_KNOWN: Mapping[str, str] = {
    **{_normalize(d.name): d.id for d in DIAGNOSES},
    **{_normalize(alias): target for alias, target in ALIASES.items()},
    **{_normalize(d.id): d.id for d in DIAGNOSES},
}
_KNOWN_BY_SOURCE: Mapping[str, Mapping[str, str]] = {
    source: {_normalize(alias): target for alias, target in aliases.items()}
    for source, aliases in SOURCE_ALIASES.items()
}


SEPARATOR = ";"
"""Character between the diagnoses of one row."""
UNKNOWN_SHOWN = 20
"""Number of unknown labels that a message lists."""
_LONGEST_NAME = 100
# Ids and labels of data sets that a text uses without naming a diagnosis.
_ADJECTIVES = frozenset(
    {
        *("acneiform", "adnexal", "benign", "benign dermal", "benign epidermal"),
        *("benign melanocytic", "bullous", "connective tissue", "deposition", "fibrous"),
        *("granulomatous", "haematologic", "healthy", "hypersensitivity", "infectious"),
        *("inflammatory", "keratinization", "keratinocytic", "light or pigment", "malignant"),
        *("malignant dermal", "malignant epidermal", "melanocytic", "mucosal", "neutrophilic"),
        *("non neoplastic", "normal", "other", "papulosquamous", "physical", "pigmentary"),
        *("premalignant or malignant", "sexually transmitted", "vascular", "vascular malignant"),
    }
)
_PLURALS = (("oses", "osis"), ("es", ""), ("s", ""))


def resolve(name: str, source: str | None = None) -> Diagnosis:
    """Return the diagnosis of a label, which is an id, a name or an alias.

    Case, blanks, `_`, `-`, apostrophes and a plural do not matter.

    Args:
        name: The label.
        source: The public set of the label, a key of `SOURCE_ALIASES`. The meaning of a
            label in its set takes precedence over the common names. An unknown set has
            only the common names.

    Raises:
        DataError: The taxonomy does not know the label.

    Examples:
        >>> resolve("Basal-cell carcinoma").id
        'bcc'
        >>> resolve("SCC", source="isic2019").malignant
        True
    """
    known = _find(_normalize(name), source)
    if known is not None:
        return TAXONOMY[known]
    raise DataError(describe_unknown_label(name))


def describe_unknown_label(name: str) -> str:
    """Return the message about a label that the taxonomy lacks.

    Examples:
        >>> describe_unknown_label("melonoma").partition("?")[0]
        "Label 'melonoma' is not in the taxonomy. Did you mean 'mel'"
    """
    similar = suggest(name)
    hint = (
        f"Did you mean {' or '.join(repr(id_) for id_ in similar)}? If not, use"
        if similar
        else "Use"
    )
    return (
        f"Label {quote(name)} is not in the taxonomy. {hint} an id of dermedge.data.TAXONOMY, a "
        "wider one such as 'other', or leave the cell empty."
    )


def _find(key: str, source: str | None) -> str | None:
    of_source = _KNOWN_BY_SOURCE.get(source or "", {}).get(key)
    if of_source is not None:
        return of_source
    singular = (key.removesuffix(end) + new for end, new in _PLURALS if key.endswith(end))
    return next((_KNOWN[name] for name in (key, *singular) if name in _KNOWN), None)


def is_known(name: str, source: str | None = None) -> bool:
    """Return True if `resolve` knows a label."""
    return _find(_normalize(name), source) is not None


def suggest(name: str) -> tuple[str, ...]:
    """Return up to three ids whose names resemble a label that the taxonomy lacks.

    Examples:
        >>> suggest("melonoma")[0], suggest("NotMelanoma")
        ('mel', ())
    """
    key = _normalize(name)
    # The opposite of a diagnosis resembles its name.
    if key.startswith(("non", "not", "no ")):
        return ()
    close = difflib.get_close_matches(key[:_LONGEST_NAME], _KNOWN, n=3, cutoff=0.7)
    return tuple(dict.fromkeys(_KNOWN[match] for match in close))


def describe_unknown(labels: Collection[str]) -> str:
    """Return a sentence that lists the first labels that the taxonomy lacks.

    Similar ids follow each label.

    Examples:
        >>> describe_unknown(["spot 7", "NotMelanoma"])
        "2 labels are not in the taxonomy: 'spot 7', 'NotMelanoma'."
    """
    shown = [
        quote(label) + (f" ({' or '.join(ids)}?)" if (ids := suggest(label)) else "")
        for label in islice(labels, UNKNOWN_SHOWN)
    ]
    rest = ", ..." if len(labels) > UNKNOWN_SHOWN else ""
    start = "1 label is" if len(labels) == 1 else f"{len(labels)} labels are"
    return f"{start} not in the taxonomy: {', '.join(shown)}{rest}."


def lineage(diagnosis: str) -> Iterator[str]:
    """Yield the ids from a diagnosis up to the root of its branch, itself first.

    Args:
        diagnosis: An id, a name or an alias.

    Examples:
        >>> list(lineage("lentigo_maligna"))
        ['lentigo_maligna', 'mel_in_situ', 'mel', 'melanocytic']
    """
    step: str | None = resolve(diagnosis).id
    while step is not None:
        yield step
        step = TAXONOMY[step].parent


def split_diagnoses(cell: str) -> tuple[str, ...]:
    """Return the diagnoses of a cell of the column `dx`, which `;` separates.

    Examples:
        >>> split_diagnoses("eczema; psoriasis"), split_diagnoses("")
        (('eczema', 'psoriasis'), ())
    """
    parts = (part.strip() for part in cell.split(SEPARATOR))
    return tuple(dict.fromkeys(part for part in parts if part))


def project(diagnosis: str, labels: Collection[str]) -> str | None:
    """Return the narrowest of `labels` that covers a diagnosis, None if none does.

    Several diagnoses have a label only if it is the same for each of them.

    Args:
        diagnosis: An id, a name or an alias, or several that `;` separates.
        labels: Ids of the taxonomy, such as the classes of a model.

    Examples:
        >>> project("sk", ["nv", "mel", "bkl"])
        'bkl'
        >>> project("sk;lplk", ["nv", "bkl"]), project("sk;nv", ["nv", "bkl"])
        ('bkl', None)
    """
    covering = {
        next((step for step in lineage(part) if step in labels), None)
        for part in split_diagnoses(diagnosis)
    }
    return covering.pop() if len(covering) == 1 else None


def diagnosis_name(diagnosis: str) -> str:
    """Return the name of a diagnosis, or the names of several, for people.

    Text that is no id of the taxonomy stays as it is.

    Examples:
        >>> diagnosis_name("mel"), diagnosis_name("bcc;nv")
        ('melanoma', 'basal cell carcinoma or melanocytic nevus')
    """
    return " or ".join(
        TAXONOMY[part].name if part in TAXONOMY else part for part in split_diagnoses(diagnosis)
    )


def malignancy(diagnosis: str) -> bool | None:
    """Return True or False if a diagnosis is malignant or benign, None if that is open.

    Of several diagnoses, all must be malignant, or all benign.

    Args:
        diagnosis: An id of the taxonomy, several that `;` separates, or "".

    Examples:
        >>> malignancy("mel"), malignancy("mel;bcc"), malignancy("mel;nv")
        (True, True, None)
    """
    values = {TAXONOMY[part].malignant for part in split_diagnoses(diagnosis)}
    return values.pop() if len(values) == 1 else None


def find_named(text: str) -> frozenset[str]:
    """Return the ids of the diagnoses that a text names, by name or alias.

    Of names inside each other the longest counts. Names of up to three letters and
    adjectives such as "benign" are not looked for.

    Examples:
        >>> sorted(find_named("A Basal-cell carcinoma; differential: seborrheic keratoses"))
        ['bcc', 'sk']
    """
    found = (match[1] for match in _names_pattern().finditer(_normalize(text)))
    return frozenset(id_ for name in found if (id_ := _find(name, None)) is not None)


@cache
def _names_pattern() -> re.Pattern[str]:
    """Return a pattern of all names and aliases, the longest first."""
    names = [name for name in _KNOWN if len(name) > 3 and name not in _ADJECTIVES]
    plurals = [
        name.removesuffix(new) + end
        for name in names
        for end, new in _PLURALS
        if name.endswith(new)
    ]
    longest_first = sorted({*names, *plurals}, key=len, reverse=True)
    return re.compile(f"(?<!\\w)({'|'.join(map(re.escape, longest_first))})(?!\\w)")
