"""Compare a data set with the images that a teacher was trained on."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dermedge.data.layouts import CONTAINS
from dermedge.models.folder_metadata import read_metadata


@dataclass(frozen=True)
class TeacherImages:
    """The training images of a model, as far as its folder names them.

    Attributes:
        sets: Names of data sets, which may be patterns such as "isic*".
        digests: sha256 (hex) of image files.

    Examples:
        >>> images = TeacherImages(("isic*",), frozenset())
        >>> match_sets(["ham10000", "ddi"], images)
        {'ham10000': 'isic*'}
    """

    sets: tuple[str, ...]
    digests: frozenset[str]


def read_teacher_images(teacher: Path | str) -> TeacherImages:
    """Read from a model folder which sets and images the model was trained on.

    The lineage of a student contains its teacher, so the sets of that teacher count
    too.

    Args:
        teacher: Folder of a teacher or a student.

    Raises:
        DataError: The folder holds no model.

    Examples:
        >>> len(read_teacher_images("teacher").digests) > 0
        True
    """
    metadata = read_metadata(teacher)
    lineage = metadata.spec.lineage
    sets: list[str] = []
    for role in ("teacher", "student"):
        origin = lineage.get(role)
        names = origin.get("pretrained_on") if isinstance(origin, dict) else None
        sets += [str(name) for name in names or ()]
    return TeacherImages(tuple(dict.fromkeys(sets)), frozenset(metadata.training_images))


def share_images(source: str, pattern: str) -> bool:
    """Return True if `CONTAINS` says that two data sets have images in common.

    Args:
        source: Name of a data set.
        pattern: Name or pattern of another; case, blanks, `_` and `-` do not matter.

    Examples:
        >>> share_images("ham10000", "isic2019")
        True
        >>> share_images("ddi", "isic*")
        False
    """
    # The pattern must match the set, a set that it contains, or a set that contains it.
    # Two sets inside a third one need not overlap: DDI and Fitzpatrick17k are both part
    # of SkinCAP.
    source, pattern = _normalize(source), _normalize(pattern)
    containing = (name for name in CONTAINS if source in _list_contained(name))
    names = {source, *_list_contained(source), *containing}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def match_sets(sources: Iterable[str], teacher: TeacherImages) -> dict[str, str]:
    """Map each source to the first set of the teacher with which it shares images.

    Sources that share no images with any set of the teacher are left out.
    """
    matches: dict[str, str] = {}
    for source in dict.fromkeys(sources):
        for name in teacher.sets:
            if source and share_images(source, name):
                matches.setdefault(source, name)
    return matches


def _list_contained(name: str) -> set[str]:
    """Return the sets that a set contains, also through other sets."""
    contained: set[str] = set()
    waiting = list(CONTAINS.get(name, ()))
    while waiting:
        other = waiting.pop()
        if other not in contained:
            contained.add(other)
            waiting += CONTAINS.get(other, ())
    return contained


def _normalize(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
