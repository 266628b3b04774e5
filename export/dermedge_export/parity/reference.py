"""The student's own answers, which travel in the bundle: a device that has the images can be gated without torch.

Images are named by the first digits of their SHA-256, so the file holds no picture and no patient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.evaluation.predictions import Predictions
from dermedge_runtime.canonical_json import canonical_json, parse_json
from dermedge_runtime.errors import BundleError
from dermedge_runtime.report import DIGEST_PREFIX, REFERENCE_REPORT
from dermedge_runtime.spec import Json, Postprocessing, take, to_json

SCHEMA = "dermedge.reference/1"
WIDEST = 512
AGAIN = "export the model again."


@dataclass(frozen=True, eq=False)
class Reference:
    """What the fp32 student answered for N images.

    `images` are the first 16 hexadecimal digits of each image file's SHA-256, `outputs` logits float32 [N, ...] by
    task, `postprocessing` what was fitted for the student, `basis` names the images (`test split of ham10000`).
    """

    basis: str
    images: tuple[str, ...]
    outputs: Mapping[str, NDArray[np.float32]]
    postprocessing: Mapping[str, Postprocessing]

    def locate(self, digests: Sequence[str]) -> NDArray[np.int64]:
        """Where each image, named by its SHA-256, stands in this reference, int64 [len(digests)]; -1 if nowhere."""
        place = {image: index for index, image in enumerate(self.images)}
        return np.array([place.get(digest[:DIGEST_PREFIX], -1) for digest in digests], np.int64)


def reference_file(
    predictions: Predictions,
    digests: Sequence[str],
    fitted: Mapping[str, Postprocessing],
    basis: str,
) -> bytes:
    """The student's answers as the file `reports/reference.json`, the same bytes for the same answers.

    Args:
        predictions: of the student.
        digests: SHA-256 of each image's file, in the order of the predictions.
        fitted: the student's own postprocessing. The tasks that it names travel, but for those of more than 512 values
            per image, masks and most embeddings, which would be megabytes; a device cannot be gated by these.
        basis: what the images are.

    Raises:
        UsageError: an output is NaN or infinite.
    """
    tasks = [task for task in fitted if _travels(predictions.outputs[task])]
    content = {
        "schema": SCHEMA,
        "basis": basis,
        "images": [digest[:DIGEST_PREFIX] for digest in digests],
        "outputs": {task: _rows(predictions.outputs[task]) for task in tasks},
        "postprocessing": {task: to_json(fitted[task]) for task in tasks},
    }
    return canonical_json(content)


def read_reference(data: bytes) -> Reference:
    """The content of `reports/reference.json`.

    Raises:
        BundleError: another schema, or outputs that do not fit the images.
    """
    content: Json = parse_json(data, REFERENCE_REPORT, BundleError)
    schema = take(content, "schema", str, REFERENCE_REPORT)
    if schema != SCHEMA:
        raise BundleError(
            f"{REFERENCE_REPORT} has schema {schema!r}, and this dermedge reads {SCHEMA!r}: upgrade dermedge."
        )
    images = tuple(take(content, "images", list, REFERENCE_REPORT))
    return Reference(
        basis=take(content, "basis", str, REFERENCE_REPORT),
        images=images,
        outputs={
            task: _array(task, rows, len(images))
            for task, rows in take(content, "outputs", dict, REFERENCE_REPORT).items()
        },
        postprocessing={
            task: Postprocessing.from_json(entry)
            for task, entry in take(content, "postprocessing", dict, REFERENCE_REPORT).items()
        },
    )


def _travels(output: NDArray[np.float32]) -> bool:
    return output.ndim == 2 and output.shape[1] <= WIDEST


def _rows(output: NDArray[np.float32]) -> list[list[float]]:
    return [[_shortest(value) for value in row] for row in np.asarray(output, np.float32)]


def _shortest(value: np.float32) -> float:
    """A double that reads back as this very float32, and that is written with few digits where there is one."""
    short = float(str(value))
    return short if np.float32(short) == value else float(value)


def _array(task: str, rows: Any, count: int) -> NDArray[np.float32]:
    try:
        array = np.array(rows, np.float32)
    except (TypeError, ValueError) as error:
        raise BundleError(
            f"The output {task!r} in {REFERENCE_REPORT} is no table of numbers ({error}); {AGAIN}"
        ) from error
    if array.ndim != 2 or len(array) != count:
        raise BundleError(
            f"The output {task!r} in {REFERENCE_REPORT} has shape {array.shape} for {count} images; {AGAIN}"
        )
    return array
