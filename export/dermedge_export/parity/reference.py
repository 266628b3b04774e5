"""Read and write the student's predictions that a bundle carries.

A device that has the images can compare its engine with them, without torch. Images are
named by the first digits of their SHA-256, so the file holds no picture and no patient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation.predictions import Predictions
from dermedge_runtime.canonical_json import canonical_json, parse_json
from dermedge_runtime.errors import BundleError
from dermedge_runtime.report import DIGEST_PREFIX, REFERENCE_REPORT
from dermedge_runtime.spec import AGAIN, Json, Postprocessing, take, to_json

Rows = list[list[float]]

SCHEMA = "dermedge.reference/1"
WIDEST = 512  # values per image of an output that is still stored


@dataclass(frozen=True, eq=False)
class Reference:
    """Predictions of the fp32 student for N images.

    Attributes:
        basis: Name of the images, such as `test split of ham10000`.
        images: First 16 hexadecimal digits of each image file's SHA-256.
        outputs: Logits by task, float32 [N, K].
        postprocessing: Fitted for the student, by task.

    Example:
        >>> logits = {"diagnosis": np.zeros((1, 2), np.float32)}
        >>> reference = Reference("test split", ("0123456789abcdef",), logits, {})
        >>> reference.locate(["0123456789abcdef" + "0" * 48, "f" * 64]).tolist()
        [0, -1]
    """

    basis: str
    images: tuple[str, ...]
    outputs: Mapping[str, NDArray[np.float32]]
    postprocessing: Mapping[str, Postprocessing]

    def locate(self, digests: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each image in this reference.

        Args:
            digests: SHA-256 of each image file, in hexadecimal.

        Returns:
            Rows, int64 [len(digests)]; -1 for an image that the reference lacks.
        """
        rows = {image: index for index, image in enumerate(self.images)}
        return np.array([rows.get(digest[:DIGEST_PREFIX], -1) for digest in digests], np.int64)


def reference_file(
    predictions: Predictions,
    digests: Sequence[str],
    fitted: Mapping[str, Postprocessing],
    basis: str,
) -> bytes:
    """Return the student's predictions as the file `reports/reference.json`.

    The same predictions give the same bytes. Outputs of more than 512 values per image
    (masks, most embeddings) would take megabytes and are left out. A device is not
    checked by these tasks.

    Args:
        predictions: Predictions of the student.
        digests: SHA-256 of each image's file, in the order of the predictions.
        fitted: Postprocessing of the student; the tasks that it names are stored.
        basis: Name of the images.

    Returns:
        Canonical JSON.

    Raises:
        UsageError: An output is NaN or infinite.
    """
    tasks = [task for task in fitted if _is_small(predictions.outputs[task])]
    content = {
        "schema": SCHEMA,
        "basis": basis,
        "images": [digest[:DIGEST_PREFIX] for digest in digests],
        "outputs": {task: _list_rows(predictions.outputs[task]) for task in tasks},
        "postprocessing": {task: to_json(fitted[task]) for task in tasks},
    }
    return canonical_json(content)


def read_reference(data: bytes) -> Reference:
    """Read the content of `reports/reference.json`.

    Raises:
        BundleError: The schema is unknown, or an output does not fit the images.
    """
    content: Json = parse_json(data, REFERENCE_REPORT, BundleError)
    schema = take(content, "schema", str, REFERENCE_REPORT)
    if schema != SCHEMA:
        raise BundleError(
            f"{REFERENCE_REPORT} has schema {schema!r}, and this dermedge reads {SCHEMA!r}. "
            "Upgrade dermedge."
        )
    images = tuple(take(content, "images", list, REFERENCE_REPORT))
    return Reference(
        basis=take(content, "basis", str, REFERENCE_REPORT),
        images=images,
        outputs={
            task: _read_array(task, rows, len(images))
            for task, rows in take(content, "outputs", dict, REFERENCE_REPORT).items()
        },
        postprocessing={
            task: Postprocessing.from_json(entry)
            for task, entry in take(content, "postprocessing", dict, REFERENCE_REPORT).items()
        },
    )


def _is_small(output: NDArray[np.float32]) -> bool:
    return output.ndim == 2 and output.shape[1] <= WIDEST


def _list_rows(output: NDArray[np.float32]) -> Rows:
    return [[_shortest(value) for value in row] for row in np.asarray(output, np.float32)]


def _shortest(value: np.float32) -> float:
    """Return the double with the fewest digits that reads back as this float32."""
    short = float(str(value))
    return short if np.float32(short) == value else float(value)


def _read_array(task: str, rows: Rows, count: int) -> NDArray[np.float32]:
    try:
        array = np.array(rows, np.float32)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"The output {task!r} in {REFERENCE_REPORT} is not a table of numbers ({error}). "
            f"{AGAIN}"
        ) from error
    if array.ndim != 2 or len(array) != count:
        raise BundleError(
            f"The output {task!r} in {REFERENCE_REPORT} has shape {array.shape} for {count} "
            f"images. {AGAIN}"
        )
    return array
