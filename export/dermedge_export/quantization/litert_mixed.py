"""Choose the operators of a LiteRT model that stay in fp32.

The sweep runs on the LiteRT model itself, with the kernels that it ships for. So it
needs no map from the layers of another format, and it measures what these kernels round.
"""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.litert import import_litert
from dermedge_export.graph.read_litert import layer_of, read_litert
from dermedge_export.quantization.litert import (
    Ranges,
    int8_operators,
    int8_recipe,
    quantize_litert,
)
from dermedge_export.quantization.sensitivity import Outputs, Reader, choose_kept
from dermedge_export.toolchain import silence
from dermedge_runtime.hardware import usable_cores
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Spec


def sensitive_operators(
    model: bytes,
    spec: Spec,
    images: NDArray[np.uint8],
    ranges: Ranges,
    *,
    remaining: float,
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Return the operators of a LiteRT model that should stay in fp32.

    With these operators in fp32, at most the share `remaining` of the drift of the
    fully quantized model remains, as far as `choose_kept` can achieve it.

    Args:
        model: The fp32 LiteRT model.
        spec: The model's contract.
        images: Calibration images, uint8 [N, S, S, 3].
        ranges: Ranges of the model's tensors on these images.
        remaining: The share of the drift that may remain.
        progress: Receives the progress of the sweep.

    Raises:
        MissingExtraError: litert-quantizer is not installed.
        DermedgeError: litert-quantizer fails on this model, or the model gives NaN or
            Inf.
    """

    def quantize(kept: Collection[str]) -> bytes:
        return quantize_litert(model, spec, int8_recipe(model, kept=kept), ranges)

    return choose_kept(
        quantize,
        model,
        images,
        remaining=remaining,
        progress=progress,
        reader=litert_reader(model, spec),
    )


def litert_reader(model: bytes, spec: Spec) -> Reader:
    """Return the functions by which the sweep reads and runs a LiteRT model.

    Args:
        model: The fp32 LiteRT model.
        spec: The model's contract, which names the kind of each output.
    """
    kinds = {task.name: task.kind for task in spec.tasks}
    layers = [one.name for one in int8_operators(model)]
    return Reader(
        run=_run,
        kinds=lambda model: kinds,
        operators=lambda model: {one.name: one.kind for one in read_litert(model)},
        layers=lambda operators, quantized: layers,
        label=layer_of,
    )


def _run(model: bytes, images: NDArray[np.uint8]) -> Outputs:
    """Return the outputs [N, ...] by name; images run in batches of 1."""
    interpreters = import_litert("ai_edge_litert.interpreter")
    with silence():
        interpreter = interpreters.Interpreter(model_content=model, num_threads=usable_cores())
        run = interpreter.get_signature_runner()
        rows = [run(**{INPUT: image[None]}) for image in images]
    return {
        name: np.concatenate([row[name] for row in rows]).astype(np.float64) for name in rows[0]
    }
