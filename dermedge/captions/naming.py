"""Check which diagnosis and which body site a caption names."""

import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge.data.taxonomy import find_named, lineage, split_diagnoses

Floats = NDArray[np.float64]


def names_diagnosis(caption: str, diagnosis: str) -> bool:
    """Return True if a caption names a diagnosis and no other one.

    A narrower diagnosis counts as the diagnosis. A wider one beside it is no
    contradiction. Of several diagnoses, one is enough, and each is allowed.

    Args:
        caption: The text.
        diagnosis: Id of the taxonomy, or several that `;` separates.

    Example:
        >>> names_diagnosis("A superficial basal cell carcinoma.", "bcc")
        True
        >>> names_diagnosis("A nevus; a melanoma cannot be excluded.", "nv")
        False
    """
    right = split_diagnoses(diagnosis)
    wider = {step for one in right for step in lineage(one)}
    named = find_named(caption)
    narrower = {other for other in named if not set(right).isdisjoint(lineage(other))}
    return bool(narrower) and named <= narrower | wider


def names_site(caption: str, site: str, sites: Collection[str]) -> bool:
    """Return True if a caption names a body site and no other one.

    Args:
        caption: The text.
        site: The right site.
        sites: All sites of the table. Of names inside each other the longest counts.

    Example:
        >>> names_site("Papule on the Upper Back.", "upper back", ["back", "upper back"])
        True
    """
    ordered = sorted(map(str.casefold, sites), key=len, reverse=True)
    pattern = f"(?<!\\w)({'|'.join(map(re.escape, ordered))})(?!\\w)"
    return set(re.findall(pattern, caption.casefold())) == {site.casefold()}


def check_names(
    captions: Sequence[str], diagnoses: Sequence[str], sites: Sequence[str]
) -> tuple[Floats, Floats]:
    """Return 1.0 for each caption that names the row's diagnosis, and its site.

    Args:
        captions: Captions [N].
        diagnoses: Ids of the taxonomy [N], "" if unknown.
        sites: Body sites [N], "" if unknown.

    Returns:
        Two arrays [N], NaN where the diagnosis or the site is unknown.

    Example:
        >>> diagnosis, site = check_names(["A melanoma of the back."], ["mel"], [""])
        >>> diagnosis.tolist(), bool(np.isnan(site[0]))
        ([1.0], True)
    """
    known = set(sites) - {""}
    return (
        np.array(
            [
                names_diagnosis(caption, dx) if dx else np.nan
                for caption, dx in zip(captions, diagnoses, strict=True)
            ],
            np.float64,
        ),
        np.array(
            [
                names_site(caption, site, known) if site else np.nan
                for caption, site in zip(captions, sites, strict=True)
            ],
            np.float64,
        ),
    )
