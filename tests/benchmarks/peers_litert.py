"""Build and open LiteRT contenders as the quickstarts of litert-torch and litert-quantizer do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from peers_engine import Inputs, Opened

from dermedge_runtime.errors import DataError

TFLITE = "model.tflite"


class Context(Protocol):
    """The part of `Work` that is read here."""

    @property
    def student(self) -> Path: ...

    @property
    def inputs(self) -> Inputs: ...

    def artifact(self, name: str) -> Path: ...


def build_litert(context: Context, artifact: Path) -> None:
    import litert_torch
    import torch
    from peers_network import plain

    example = torch.from_numpy(context.inputs.calibration()[0])
    litert_torch.convert(plain(context.student), (example,)).export(str(artifact / TFLITE))


def build_static(context: Context, artifact: Path) -> None:
    from litert_quantizer import recipe

    _quantize(context, artifact, recipe.static_wi8_ai8())


def build_dynamic(context: Context, artifact: Path) -> None:
    from litert_quantizer import recipe

    _quantize(context, artifact, recipe.dynamic_wi8_afp32())


def _quantize(context: Context, artifact: Path, recipe: Any) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from litert_quantizer.quantizer import Quantizer

    model = context.artifact("litert") / TFLITE
    if not model.is_file():
        raise DataError(f"{model} is missing, because litert-torch failed. Nothing to quantize.")
    (name,) = Interpreter(str(model)).get_signature_runner().get_input_details()
    quantizer = Quantizer(str(model), recipe)
    ranges = None
    if quantizer.need_calibration:
        samples = [{name: image} for image in context.inputs.calibration()]
        ranges = quantizer.calibrate({"serving_default": samples})
    quantizer.quantize(ranges).export_model(str(artifact / TFLITE), overwrite=True)


def open_litert(context: Context, artifact: Path, threads: int) -> Opened:
    """Open a LiteRT file; an int8 input is quantized before the timed engine call."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(artifact / TFLITE), num_threads=threads)
    interpreter.allocate_tensors()
    signature = interpreter.get_signature_runner()
    (source,) = signature.get_input_details().values()
    results = [details for _, details in sorted(signature.get_output_details().items())]
    del signature  # while it exists, the interpreter refuses `invoke`

    def prepare(images: Any) -> Any:
        pixels, (scale, zero) = context.inputs.normalised(images), source["quantization"]
        if not scale:
            return pixels
        limits = np.iinfo(source["dtype"])
        levels = np.round(pixels / scale + zero).clip(limits.min, limits.max)
        return levels.astype(source["dtype"])

    def infer(pixels: Any) -> list[Any]:
        interpreter.set_tensor(source["index"], pixels)
        interpreter.invoke()
        return [_dequantized(interpreter.get_tensor(one["index"]), one) for one in results]

    def predict(data: bytes) -> Any:
        return infer(prepare(context.inputs.decoded(data)[None]))

    return Opened(context.inputs, infer, prepare=prepare, predict=predict)


def _dequantized(values: Any, details: Mapping[str, Any]) -> Any:
    scale, zero = details["quantization"]
    return (values.astype(np.float32) - zero) * scale if scale else values
