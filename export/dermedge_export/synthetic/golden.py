"""Draw golden cases: lesions with the numbers that every platform must compute."""

import io
from collections.abc import Iterator, Mapping

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
from dermedge_runtime.upright import MIN_SIDE

COUNT = 6
"""Number of golden cases: one per class."""
_SMALLEST_DRAWING = 32
Pixels = NDArray[np.uint8]


def golden_cases(
    spec: Spec, reference: Run, candidate: Run, postprocessing: Mapping[str, Postprocessing]
) -> list[Case]:
    """Draw the golden images, and run the student and the artifact on each.

    One image is larger than the network's input in both directions, one is smaller if
    the input is over 16 px. One has alpha, so that the background counts, one is very
    dark, one very bright, and one is grey and wide.

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
        ['nv-192x256', 'mel-alpha-256x192']
    """
    cases = []
    for name, pixels in _draw_images(spec.preprocess.size):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", optimize=True)
        tensor = preprocess(png.getvalue(), spec.preprocess, exact=True)
        expected = _run_one(candidate, tensor)
        prediction = decode(expected, spec, postprocessing).to_json()
        cases.append(
            Case(
                name,
                png.getvalue(),
                tensor,
                _run_one(reference, tensor),
                expected,
                drop_volatile(prediction),
            )
        )
    return cases


def _draw_images(size: int) -> Iterator[tuple[str, Pixels]]:
    """Yield a name and the pixels of each image: grey [H, W], RGB or RGB with alpha.

    Args:
        size: S, side of the network's input in pixels.
    """
    larger = max(192, size * 9 // 8)
    smaller = max(MIN_SIDE, min(97, size // 2)), max(MIN_SIDE, min(131, size * 2 // 3))
    plan = (
        ("", larger, larger * 4 // 3),
        ("alpha", 256, 192),
        ("dark", 224, 224),
        ("bright", 201, 267),
        ("small", *smaller),
        ("grey", 192, 341),
    )
    for number, (dx, (kind, height, width)) in enumerate(zip(CLASSES, plan, strict=True)):
        pixels = _draw(number, dx, height, width)
        if kind == "alpha":
            pixels = np.dstack((pixels, _vignette(height, width)))
        elif kind == "dark":
            pixels = pixels // 12
        elif kind == "bright":
            pixels = 255 - (255 - pixels) // 12
        elif kind == "grey":
            pixels = np.asarray(Image.fromarray(pixels).convert("L"))
        yield "-".join(filter(None, (dx, kind, f"{height}x{width}"))), pixels


def _draw(number: int, dx: str, height: int, width: int) -> Pixels:
    """Draw a lesion of any size: a very small one is every second or later pixel."""
    step = -(-_SMALLEST_DRAWING // min(height, width))
    lesion = draw_lesion(
        seeds.GOLDEN[number],
        dx=dx,
        fitzpatrick=number % 6 + 1,
        height=height * step,
        width=width * step,
    )
    return np.ascontiguousarray(lesion.image[::step, ::step])


def _vignette(height: int, width: int) -> Pixels:
    """Return alpha that is opaque in the middle and transparent in the corners."""
    y, x = np.mgrid[:height, :width]
    far = ((2 * x + 1) / width - 1) ** 2 + ((2 * y + 1) / height - 1) ** 2
    alpha: Pixels = np.clip(255 * (1.75 - 1.25 * far), 0, 255).astype(np.uint8)
    return alpha


def _run_one(run: Run, tensor: Pixels) -> dict[str, NDArray[np.float32]]:
    return {name: np.asarray(output[0], np.float32) for name, output in run(tensor[None]).items()}
