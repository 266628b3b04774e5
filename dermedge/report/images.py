"""Choose example images for the page, make their thumbnails, draw class activation maps."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dermedge.data.table import Table
from dermedge.evaluation.report import EvaluatedImage, EvaluationReport
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import ScoredLabel, decode
from dermedge_runtime.errors import ImageError
from dermedge_runtime.overlay import draw_overlay
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Preprocess

SIDE = 160
QUALITY = 82
SHOWN = 6


@dataclass(frozen=True)
class Examples:
    """Example images of one kind, such as missed malignant images.

    Attributes:
        title: Heading.
        meaning: Explanation in one sentence.
        word: Label on each image.
        tone: CSS class of that label.
        total: Number of all images of this kind, shown or not.
        among: Images that the kind is a part of, such as "143 malignant images".
        images: The shown images.

    Examples:
        >>> kind = Examples("False alarms", "", "alarm", "warn", 2, "90 images", ())
        >>> kind.total
        2
    """

    title: str
    meaning: str
    word: str
    tone: str
    total: int
    among: str
    images: tuple[EvaluatedImage, ...]


@dataclass(frozen=True)
class Explained:
    """The class activation map of a golden case, drawn over its lesion.

    Attributes:
        name: Name of the golden case.
        url: The picture as a data URL.
        label: The most probable label, whose map it is.

    Examples:
        >>> Explained("nv-192x256", "data:", ScoredLabel("nv", "Naevus", 0.9)).label.id
        'nv'
    """

    name: str
    url: str
    label: ScoredLabel


def choose_examples(evaluation: EvaluationReport) -> list[Examples]:
    """Choose the most informative images of an evaluation, at most six of each kind.

    The kinds are missed malignant images, confident errors, false alarms and confident
    correct predictions. The images are the extremes of each kind, not a sample. No
    image is in two kinds. Kinds without an image are left out.

    Args:
        evaluation: The report.

    Examples:
        >>> from dermedge.workflows.evaluate import evaluate
        >>> kinds = choose_examples(evaluate("toy.dermedge", "lesions", replicates=10))
        >>> all(0 < len(kind.images) <= 6 for kind in kinds)
        True
    """
    used: set[str] = set()
    kinds = []
    # The kinds are sorted by their importance for patients, so an image of two kinds is
    # shown under the worse one.
    for kind in _sort_kinds(evaluation):
        images = _spread_diagnoses((i for i in kind.images if i.image_id not in used), SHOWN)
        used.update(image.image_id for image in images)
        if images:
            kinds.append(replace(kind, total=len(kind.images), images=images))
    return kinds


def _sort_kinds(evaluation: EvaluationReport) -> list[Examples]:
    """Return all images of each kind, the most informative first."""
    threshold = evaluation.threshold
    scored = [i for i in evaluation.images if i.malignancy is not None and i.malignant is not None]
    malignant = [i for i in scored if i.malignant and threshold is not None]
    benign = [i for i in scored if not i.malignant and threshold is not None]
    named = [
        i
        for i in evaluation.images
        if i.label is not None and i.predicted is not None and i.probability is not None
    ]
    limit = 0.0 if threshold is None else threshold
    # A referred image has no decision of the model that could be right or wrong.
    missed = [i for i in malignant if _score(i) < limit and not i.referred]
    alarms = [i for i in benign if _score(i) >= limit and not i.referred]
    # A correct diagnosis with a wrong decision is not a correct prediction.
    misjudged = {i.image_id for i in (*missed, *alarms)}
    wrong = [i for i in named if i.label != i.predicted]
    same = [i for i in named if i.label == i.predicted]
    right = [i for i in same if i.image_id not in misjudged and not i.referred]
    return [
        Examples(
            "Malignant and missed",
            "Malignant images with the decision benign, the lowest scores first.",
            "missed",
            "failed",
            0,
            f"{len(malignant):,} malignant images",
            tuple(sorted(missed, key=_score)),
        ),
        Examples(
            "Confident and wrong",
            "Wrong first diagnoses, the most probable first.",
            "wrong",
            "failed",
            0,
            f"{len(named):,} labelled images",
            tuple(sorted(wrong, key=_confidence, reverse=True)),
        ),
        Examples(
            "False alarms",
            "Benign images with the decision malignant, the highest scores first.",
            "false alarm",
            "warn",
            0,
            f"{len(benign):,} benign images",
            tuple(sorted(alarms, key=_score, reverse=True)),
        ),
        Examples(
            "Confident and correct",
            "Correct first diagnosis and correct decision, the most probable first.",
            "correct",
            "plain",
            0,
            f"{len(named):,} labelled images",
            tuple(sorted(right, key=_confidence, reverse=True)),
        ),
    ]


def _confidence(image: EvaluatedImage) -> float:
    return image.probability or 0.0


def _score(image: EvaluatedImage) -> float:
    return image.malignancy or 0.0


def _spread_diagnoses(ordered: Iterable[EvaluatedImage], count: int) -> tuple[EvaluatedImage, ...]:
    """Return the first images of every true diagnosis before the second of any."""
    seen: dict[str, int] = {}
    ranked = []
    for place, image in enumerate(ordered):
        seen[image.dx] = seen.get(image.dx, 0) + 1
        ranked.append((seen[image.dx], place, image))
    return tuple(image for _, _, image in sorted(ranked, key=lambda entry: entry[:2])[:count])


def make_thumbnail(path: Path, spec: Preprocess) -> str | None:
    """Make a small JPEG of the part of an image that the model sees, as a data URL.

    Args:
        path: The image file.
        spec: The model's preprocessing.

    Returns:
        The URL, None if the image is missing or unreadable.

    Examples:
        >>> from dermedge import Preprocess
        >>> make_thumbnail(Path("lesion.png"), Preprocess(48))[:23]
        'data:image/jpeg;base64,'
    """
    try:
        pixels = preprocess(path, replace(spec, size=SIDE))
    except ImageError:
        return None
    return _data_url(Image.fromarray(pixels))


def draw_explanations(bundle: Bundle) -> list[Explained]:
    """Draw the class activation maps of a bundle's golden cases over their lesions.

    Args:
        bundle: The bundle; the list is empty if it has no task of the kind `cam`.

    Examples:
        >>> draw_explanations(Bundle.open("toy.dermedge"))
        []
    """
    if not any(task.kind == "cam" for task in bundle.spec.tasks):
        return []
    drawn = []
    for case in bundle.golden():
        prediction = decode(case.expected, bundle.spec, bundle.postprocessing)
        if prediction.cam is not None:
            overlay = Image.fromarray(draw_overlay(case.tensor, prediction.cam))
            url = _data_url(overlay.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            drawn.append(Explained(case.name, url, prediction.labels[0]))
    return drawn


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def make_thumbnails(
    table: Table, examples: Sequence[Examples], spec: Preprocess
) -> dict[str, str | None]:
    """Make the thumbnail of every example, by `image_id`.

    Args:
        table: The table that the images come from.
        examples: The chosen images.
        spec: The model's preprocessing.

    Examples:
        >>> from dermedge import Preprocess
        >>> from dermedge.data.table import read_table
        >>> from dermedge.workflows.evaluate import evaluate
        >>> kinds = choose_examples(evaluate("toy.dermedge", "lesions", replicates=10))
        >>> urls = make_thumbnails(read_table("lesions"), kinds, Preprocess(48))
        >>> all(url.startswith("data:image/jpeg") for url in urls.values())
        True
    """
    return {
        image.image_id: make_thumbnail(table.path(image.image), spec)
        for kind in examples
        for image in kind.images
    }
