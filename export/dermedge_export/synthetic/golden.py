"""Draw golden cases: lesions with the numbers that every platform must compute."""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermedge_export.evaluation.predictions import Run
from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import CLASSES, draw_lesion
from dermedge_runtime.decode import decode
from dermedge_runtime.golden import Case, drop_volatile
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Postprocessing, Spec

# (height, width): landscape, portrait, square, odd sides, one smaller than most
# networks' input and one wide.
SHAPES = ((192, 256), (256, 192), (224, 224), (201, 267), (97, 131), (192, 341))


def golden_cases(
    spec: Spec, reference: Run, candidate: Run, postprocessing: Mapping[str, Postprocessing]
) -> list[Case]:
    """Draw a case per class and shape, and run the student and the artifact on each.

    Args:
        spec: Tasks and preprocessing.
        reference: The fp32 student, from uint8 [1, S, S, 3] to outputs [1, ...] by
            task.
        candidate: The artifact on this machine's engine.
        postprocessing: Postprocessing of the artifact's bundle, by task.

    Returns:
        Six cases: PNG, preprocessed tensor, both outputs, and the decoded prediction.

    Example:
        >>> from dermedge_runtime.spec import Preprocess, Task
        >>> spec = Spec("toy", "1", (Task("malignancy", "binary"),), Preprocess(32))
        >>> def run(images):
        ...     return {"malignancy": images.mean((1, 2, 3), np.float32)[:, None] - 128}
        >>> [case.name for case in golden_cases(spec, run, run, {})][:2]
        ['nv-192x256', 'mel-256x192']
    """
    cases = []
    for number, (dx, (height, width)) in enumerate(zip(CLASSES, SHAPES, strict=True)):
        lesion = draw_lesion(
            seeds.GOLDEN[number], dx=dx, fitzpatrick=number % 6 + 1, height=height, width=width
        )
        png = io.BytesIO()
        Image.fromarray(lesion.image).save(png, "PNG", optimize=True)
        tensor = preprocess(png.getvalue(), spec.preprocess, exact=True)
        expected = _run_one(candidate, tensor)
        prediction = decode(expected, spec, postprocessing).to_json()
        cases.append(
            Case(
                f"{dx}-{height}x{width}",
                png.getvalue(),
                tensor,
                _run_one(reference, tensor),
                expected,
                drop_volatile(prediction),
            )
        )
    return cases


def _run_one(run: Run, tensor: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    return {name: np.asarray(output[0], np.float32) for name, output in run(tensor[None]).items()}
