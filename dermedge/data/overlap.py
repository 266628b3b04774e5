"""What a teacher has seen, by the names of the sets and by the digests of the images."""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dermedge.data.layouts import CONTAINS


@dataclass(frozen=True)
class TeacherImages:
    """What a model was trained on: names of sets, which may be patterns such as "isic*", and sha256 of image files."""

    sets: tuple[str, ...]
    digests: frozenset[str]


def images_seen_by(teacher: Path | str) -> TeacherImages:
    """What a teacher's or a student's folder says of its training: the sets of its `pretrained_on`, and its own images.

    A student's teacher is among its lineage, so that what that one has seen counts too.

    Raises:
        DataError: where the folder holds no model.
    """
    from dermedge.models.model_folder import load_model_folder

    model = load_model_folder(teacher)
    lineage = model.spec.lineage
    sets: list[str] = []
    for role in ("teacher", "student"):
        origin = lineage.get(role)
        told = origin.get("pretrained_on") if isinstance(origin, dict) else None
        sets += [str(name) for name in told or ()]
    return TeacherImages(tuple(dict.fromkeys(sets)), frozenset(model.training_images))


def related(source: str, seen: str) -> bool:
    """Whether two sets have images in common, as far as `CONTAINS` knows; `seen` may be a pattern."""
    source, seen = _plain(source), _plain(seen)
    names = {source, *_inside(source), *(name for name in CONTAINS if source in _inside(name))}
    return any(fnmatch.fnmatchcase(name, seen) for name in names)


def seen_sets(sources: Iterable[str], seen: TeacherImages) -> dict[str, str]:
    """Source -> the first set the model has seen that shares images with it; the others are left out."""
    pairs = ((source, name) for source in dict.fromkeys(sources) if source for name in seen.sets)
    found: dict[str, str] = {}
    for source, name in pairs:
        if related(source, name):
            found.setdefault(source, name)
    return found


def _inside(name: str) -> set[str]:
    inside: set[str] = set()
    waiting = list(CONTAINS.get(name, ()))
    while waiting:
        other = waiting.pop()
        if other not in inside:
            inside.add(other)
            waiting += CONTAINS.get(other, ())
    return inside


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
