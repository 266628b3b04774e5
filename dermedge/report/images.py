"""Which images a reader should see, and their thumbnails."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dermedge.data.table import Table
from dermedge.evaluation.report import EvaluatedImage, EvaluationReport
from dermedge_runtime.errors import ImageError
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Preprocess

SIDE = 160
QUALITY = 82
SHOWN = 6


@dataclass(frozen=True)
class Examples:
    """Some images of one kind. `word` marks each of them, `total` counts all of that kind among `among` images."""

    title: str
    meaning: str
    word: str
    tone: str
    total: int
    among: str
    images: tuple[EvaluatedImage, ...]


def choose(evaluation: EvaluationReport, shown: int = SHOWN) -> list[Examples]:
    """The images that tell most: malignant ones that were missed, confident mistakes, false alarms, confident
    successes.

    They are the extremes of each kind, not a sample, and no image is in two kinds. Kinds without an image are left out.
    """
    images, threshold = evaluation.images, evaluation.threshold
    scored = [
        i
        for i in images
        if i.malignancy is not None and i.malignant is not None and threshold is not None
    ]
    malignant, benign = [i for i in scored if i.malignant], [i for i in scored if not i.malignant]
    named = [
        i
        for i in images
        if i.label is not None and i.predicted is not None and i.probability is not None
    ]
    used: set[str] = set()

    def kind(
        title: str, meaning: str, word: str, tone: str, found: list[EvaluatedImage], among: str
    ) -> Examples:
        picked = _spread((i for i in found if i.image_id not in used), shown)
        used.update(image.image_id for image in picked)
        return Examples(title, meaning, word, tone, len(found), among, picked)

    def sure(image: EvaluatedImage) -> float:
        return -(image.probability or 0.0)

    def score(image: EvaluatedImage) -> float:
        return image.malignancy or 0.0

    limit = 0.0 if threshold is None else threshold
    missed = sorted((i for i in malignant if score(i) < limit), key=score)
    alarms = sorted((i for i in benign if score(i) >= limit), key=lambda i: -score(i))
    misjudged = {i.image_id for i in (*missed, *alarms)}
    kinds = [
        kind(
            "Malignant and missed",
            "Malignant images whose score stays below the threshold, the lowest scores first.",
            "missed",
            "failed",
            missed,
            f"{len(malignant):,} malignant images",
        ),
        kind(
            "Confident and wrong",
            "Wrong first diagnoses, the most probable first.",
            "wrong",
            "failed",
            sorted((i for i in named if i.label != i.predicted), key=sure),
            f"{len(named):,} labelled images",
        ),
        kind(
            "False alarms",
            "Benign images whose score reaches the threshold, the highest scores first.",
            "false alarm",
            "warn",
            alarms,
            f"{len(benign):,} benign images",
        ),
        kind(
            "Confident and right",
            "First diagnosis and decision both right, the most probable first.",
            "right",
            "plain",
            sorted(
                (i for i in named if i.label == i.predicted and i.image_id not in misjudged),
                key=sure,
            ),
            f"{len(named):,} labelled images",
        ),
    ]
    return [found for found in kinds if found.images]


def _spread(ordered: Iterable[EvaluatedImage], count: int) -> tuple[EvaluatedImage, ...]:
    """The first of every true diagnosis before the second of any, up to `count`."""
    seen: dict[str, int] = {}
    ranked = []
    for place, image in enumerate(ordered):
        seen[image.dx] = seen.get(image.dx, 0) + 1
        ranked.append((seen[image.dx], place, image))
    return tuple(image for _, _, image in sorted(ranked, key=lambda entry: entry[:2])[:count])


def thumbnail(path: Path, spec: Preprocess) -> str | None:
    """A small JPEG of the part of an image that the model sees, as a data URL; None where it cannot be read."""
    try:
        pixels = preprocess(path, replace(spec, size=SIDE))
    except ImageError:
        return None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnails(
    table: Table, examples: Sequence[Examples], spec: Preprocess
) -> dict[str, str | None]:
    """The thumbnail of every example, by `image_id`."""
    return {
        i.image_id: thumbnail(table.path(i.image), spec) for found in examples for i in found.images
    }
