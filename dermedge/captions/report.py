"""Define the report of `evaluate_caption`, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

from dermedge.captions.predict import NOTICE
from dermedge_runtime.report import Interval

SCHEMA = "dermedge.captions/1"


@dataclass(frozen=True)
class CaptionExample:
    """An evaluated image with its reference, its generated caption and the baseline's.

    Example:
        >>> CaptionExample("a", "A nevus.", "A melanoma.", "A nevus.").image_id
        'a'
    """

    image_id: str
    reference: str
    generated_caption: str
    baseline: str


@dataclass(frozen=True)
class CaptionReport:
    """Report of a captioner on a table.

    Attributes:
        captioner: Name of the folder of the captioner.
        teacher: Name of the teacher.
        language_model: Name of the language model.
        data: Name of the table.
        data_digest: Digest of the table's content.
        split: The split, or `all`.
        images: Number of images with a caption.
        groups: Number of lesions or patients of these images.
        cut: Number of generated captions that were cut at the largest number of tokens.
        generated: Metrics of the generated captions, with 95 % intervals of a bootstrap
            over lesions or patients.
        baseline: The same metrics of the frequency baseline.
        reference: Share of the reference captions that name diagnosis and site: the
            most that a caption like them can reach.
        not_run: Reason by metric that was not computed.
        versions: Versions of the libraries that computed the metrics.
        examples: The first images.
        warnings: Reasons to trust the numbers less.
        notice: Sentence that goes with generated text.
        schema: Schema of this report as JSON.

    Example:
        >>> CaptionReport(
        ...     "run", "vit", "lm", "lesions", "", "test", 2, 2, 0, {}, {}, {}, {}, {}, (), ()
        ... ).notice.startswith("Generated text.")
        True
    """

    captioner: str
    teacher: str
    language_model: str
    data: str
    data_digest: str
    split: str
    images: int
    groups: int
    cut: int
    generated: Mapping[str, Interval]
    baseline: Mapping[str, Interval]
    reference: Mapping[str, Interval]
    not_run: Mapping[str, str]
    versions: Mapping[str, str]
    examples: tuple[CaptionExample, ...]
    warnings: tuple[str, ...]
    notice: str = NOTICE
    schema: str = SCHEMA
