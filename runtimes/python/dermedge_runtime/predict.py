"""Predict the images of files and folders with a bundle."""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import ImageError, UsageError
from dermedge_runtime.find_images import Skipped, find_images
from dermedge_runtime.image import Source
from dermedge_runtime.model import load
from dermedge_runtime.printable import printable_path
from dermedge_runtime.progress import Progress, no_progress

UNNAMED = "-"
LOGGER = logging.getLogger(__name__)


def predict(
    bundle: str | Path | Bundle,
    images: Source | Iterable[Source],
    *,
    engine: str | None = None,
    threads: int | None = None,
    exact: bool = False,
    progress: Progress | None = None,
    skipped: Skipped | None = None,
) -> Iterator[tuple[str, Prediction | ImageError]]:
    """Predict images one by one; yield the error of a bad image and continue.

    The images are listed and the engine is started when the first result is read.

    Args:
        bundle: Path of a bundle, or an opened one.
        images: One or more sources: a path of a file, a path of a folder (all images
            below it, by content, sorted), or any other source that `Model.predict` takes.
        engine: As in `load`.
        threads: As in `load`.
        exact: As in `Model.predict`.
        progress: Called after every image.
        skipped: Receives the files of folders that are no images, before the first
            result. Without it, a line about them is logged as a warning.

    Yields:
        The path of an image (`-` for a source that is not a path), and its prediction
        or its error.

    Raises:
        UsageError: A folder holds no image. Also as `load`.
        BundleError: As `load`.
        MissingExtraError: As `load`.
        EngineError: As `load`, or the engine fails.

    Example:
        >>> for name, prediction in predict("toy.dermedge", "lesion.png"):
        ...     print(name, prediction.labels[0].id)
        lesion.png bcc
    """
    found = Skipped() if skipped is None else skipped
    sources = list(list_sources(images, found))
    if skipped is None and found:
        LOGGER.warning("%s", found)
    report = progress or no_progress
    with load(bundle, engine=engine, threads=threads) as model:
        answers = model.stream((source for _, source in sources), on_error="return", exact=exact)
        for done, ((name, _), answer) in enumerate(zip(sources, answers, strict=True), start=1):
            report(done, len(sources), "images")
            yield name, answer


def list_sources(
    images: Source | Iterable[Source], skipped: Skipped
) -> Iterator[tuple[str, Source]]:
    """Yield the name and the source of each image; find the images of folders.

    Args:
        images: As in `predict`.
        skipped: Receives the files of folders that are no images.

    Raises:
        UsageError: A folder holds no image.

    Example:
        >>> [name for name, _ in list_sources(["lesion.png", b"encoded bytes"], Skipped())]
        ['lesion.png', '-']
    """
    if isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray)):
        images = [images]
    for source in images:
        if not isinstance(source, (str, os.PathLike)):
            yield UNNAMED, source
        # Unlike Path.is_dir, it does not fail for a name that the system refuses.
        elif os.path.isdir(source):  # noqa: PTH112
            found = find_images(Path(source), skipped)
            if not found:
                raise UsageError(
                    f"{printable_path(source)} holds no image. {skipped or 'It is empty.'} "
                    "Give a folder with images."
                )
            yield from ((str(path), path) for path in found)
        else:
            yield str(source), Path(source)
