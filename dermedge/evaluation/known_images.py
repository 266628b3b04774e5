"""Find known images: those that a bundle's model was trained or selected on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dermedge.data.table import Table, digests
from dermedge.evaluation.scores import RowMask
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.report import DIGEST_PREFIX, TRAINING_IMAGES, VALIDATION_IMAGES


@dataclass(frozen=True, eq=False)
class KnownImages:
    """Known images among the N images of a table: the model has used their files.

    Attributes:
        training: True [N] for images that the model was trained on. The images that
            decided when training stopped count. None if the bundle does not list them.
        validation: True [N] for images that selected the model or fitted its
            postprocessing. None if the bundle lists neither these nor its training
            images.

    Examples:
        >>> import numpy as np
        >>> int(KnownImages(np.array([True, False]), None).training.sum())
        1
    """

    training: RowMask | None
    validation: RowMask | None


def find_known_images(bundle: Bundle, table: Table) -> KnownImages:
    """Find the rows of a table that the model has used, by the image files' digests.

    The same image is found under any name, and in any table or split.

    Args:
        bundle: The opened bundle, which carries digests of the images it has used.
        table: The images, each in a split.

    Raises:
        DataError: An image file is missing or unreadable.

    Examples:
        >>> from dermedge import Bundle
        >>> from dermedge.data.table import read_table
        >>> from dermedge.data.split import with_split
        >>> table = with_split(read_table("lesions"))
        >>> known = find_known_images(Bundle.open("toy.dermedge"), table)
        >>> int(known.training.sum())  # The toy was trained on other lesions.
        0
    """
    prefixes = [digest[:DIGEST_PREFIX] for digest in digests(table)]
    training = _match_list(bundle, TRAINING_IMAGES, prefixes)
    validation = _match_list(bundle, VALIDATION_IMAGES, prefixes)
    if training is not None:
        # The training images include the val split of the training, which selected the
        # epoch. Bundles of older versions list no other validation images.
        stopped = training & (table.frame["split"] == "val").to_numpy()
        validation = stopped if validation is None else validation | stopped
    return KnownImages(training, validation)


def describe_known_images(known: KnownImages, count: int) -> Iterator[str]:
    """Yield a warning for each way in which the model has used the evaluated images.

    Args:
        known: The images that the model has used.
        count: Number of evaluated images.

    Examples:
        >>> import numpy as np
        >>> rows = np.array([True, False])
        >>> next(describe_known_images(KnownImages(rows, None), 2))
        'The model was TRAINED ON 1 of these 2 images. ...'
    """
    if known.training is None:
        yield (
            f"The bundle has no {TRAINING_IMAGES}, so it is unknown if the model was trained on "
            "these images."
        )
    elif known.training.any():
        yield (
            f"The model was TRAINED ON {int(known.training.sum())} of these {count} images. Their "
            "scores do not predict its accuracy on new patients."
        )
    if known.validation is not None and known.validation.any():
        yield (
            f"{int(known.validation.sum())} of these {count} images selected the model or fitted "
            "its postprocessing, so its scores on them are too high. Report the test split instead."
        )


def describe_unmapped(unmapped: Mapping[str, int]) -> Iterator[str]:
    """Yield a warning if some images have a diagnosis that no label covers.

    Args:
        unmapped: Number of such images by diagnosis.

    Examples:
        >>> next(describe_unmapped({"bcc": 2, "psoriasis": 1}))
        'Left out: 3 images whose diagnosis no label of the model covers (bcc 2, ...).'
    """
    if unmapped:
        named = ", ".join(f"{dx} {number}" for dx, number in unmapped.items())
        yield (
            f"Left out: {sum(unmapped.values())} images whose diagnosis no label of the model "
            f"covers ({named})."
        )


def _match_list(bundle: Bundle, path: str, prefixes: Sequence[str]) -> RowMask | None:
    """Compare digest prefixes with a list in the bundle; None if it has none."""
    if path not in bundle.files:
        return None
    # `read` verifies the checksum, so a changed list raises an error.
    listed = set(bundle.read(path).decode("ascii", "replace").split())
    return np.array([prefix in listed for prefix in prefixes], bool)
