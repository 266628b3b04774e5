"""`predict_caption`: describe images by a captioner."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dermedge.captions.folder import LoadedCaptioner, load_captioner
from dermedge_runtime.errors import ImageError
from dermedge_runtime.find_images import Skipped
from dermedge_runtime.image import Source
from dermedge_runtime.predict import list_sources
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress, no_progress

NOTICE = "Generated text. It may name findings that the image does not show."
"""Sentence that goes with every generated caption."""


@dataclass(frozen=True)
class GeneratedCaption:
    """A caption that a language model wrote for an image.

    Attributes:
        generated_caption: The text.
        tokens: Number of tokens.
        complete: False if the text was cut at the largest number of tokens.
        notice: Sentence to show with the text.

    Example:
        >>> caption = GeneratedCaption("A nevus of the back.", 7, True)
        >>> caption.notice.startswith("Generated text.")
        True
    """

    generated_caption: str
    tokens: int
    complete: bool
    notice: str = NOTICE


def predict_caption(
    captioner: Path | str,
    images: Source | Iterable[Source],
    *,
    teacher: Path | str | None = None,
    lm: Path | str | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    skipped: Skipped | None = None,
) -> Iterator[tuple[str, GeneratedCaption | ImageError]]:
    """Describe images one by one; yield the error of a bad image and continue.

    The text is the most probable one, token by token (greedy decoding).

    Args:
        captioner: Folder that `train_caption` wrote.
        images: As in `predict`.
        teacher: Folder of the teacher; by default where it was in training.
        lm: The language model; by default where it was in training.
        max_tokens: Largest number of tokens; by default that of the training.
        progress: Called after every image.
        skipped: As in `predict`.

    Yields:
        The path of an image, and its caption or its error.

    Raises:
        DataError: A part of the captioner is missing, or is not the one of the
            training.
        UsageError: A folder holds no image.

    Example:
        >>> from dermedge.captions.table import caption_data
        >>> from dermedge.captions.train import train_caption
        >>> from dermedge.data.draw import draw_data_set
        >>> _ = draw_data_set("drawn", count=24, size=(32, 32))
        >>> _ = caption_data("drawn", overwrite=True)
        >>> _ = train_caption("teacher", "language-model", "drawn", "captioner")
        >>> for name, caption in predict_caption("captioner", "lesion.png", max_tokens=3):
        ...     print(name, caption.tokens)
        lesion.png 3
    """
    sources = list(list_sources(images, Skipped() if skipped is None else skipped))
    loaded = load_captioner(captioner, teacher=teacher, lm=lm)
    report = progress or no_progress
    for done, (name, source) in enumerate(sources, start=1):
        yield name, _describe(loaded, source, max_tokens)
        report(done, len(sources), "images")


def _describe(
    loaded: LoadedCaptioner, source: Source, max_tokens: int | None
) -> GeneratedCaption | ImageError:
    try:
        image = preprocess(source, loaded.teacher.spec.preprocess)
    except ImageError as error:
        return error
    [(text, tokens, complete)] = loaded.generate(loaded.encode(image[None]), max_tokens)
    return GeneratedCaption(text, tokens, complete)
