"""Convert a torch module into a sealed fp32 LiteRT model (`.tflite`)."""

import importlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from dermedge_export.graph.seal import METADATA_KEY
from dermedge_export.toolchain import quiet, silence
from dermedge_runtime.errors import MissingExtraError, UsageError, first_line
from dermedge_runtime.packages import dermedge_version
from dermedge_runtime.signature import INPUT
from dermedge_runtime.spec import Spec, to_json

if TYPE_CHECKING:
    import torch

EXTRA = "litert-export"
# Operators as torch, jax and the converter name them in their messages.
OPERATOR = re.compile(r"(?:aten|prims|torchvision|tfl|stablehlo)[.:]+\w+")
SETTINGS = {
    # litert-torch reads both at every call. They turn off its report of progress, and
    # its changes of torch's loggers, which would last.
    "LITERT_TORCH_SHOW_PROGRESS": "n",
    "LITERT_TORCH_SILENCE_TORCH_LOGS": "n",
    # The converter's C++ part writes to stderr unless this is 3.
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
ALIGNMENT = 16
CHANNELS = 3
ELEMENTWISE = ("ADD", "DIV", "MUL", "SUB")


def trace_litert(module: "torch.nn.Module", spec: Spec) -> bytes:
    """Convert a module in eval mode into an fp32 LiteRT model.

    The model takes one image per call. Its signature names the input `image` and one
    output per task.

    Args:
        module: Maps uint8 [1, S, S, 3] to float32 outputs [1, ...] by task.
        spec: The model's contract: tasks, input size, metadata.

    Raises:
        MissingExtraError: torch or litert-torch is not installed.
        UsageError: LiteRT has no equivalent of an operator of the network.

    Example:
        >>> import torch
        >>> from dermedge_runtime.spec import Preprocess, Spec, Task
        >>> class Mean(torch.nn.Module):
        ...     def forward(self, image):
        ...         return {"malignancy": image.float().mean((1, 2, 3))[:, None]}
        >>> spec = Spec("mean", "1", (Task("malignancy", "binary"),), Preprocess(32))
        >>> model = trace_litert(Mean().eval(), spec)
        >>> model[4:8]
        b'TFL3'
    """
    torch = import_litert("torch")
    size = spec.preprocess.size
    example = {INPUT: torch.zeros(1, size, size, 3, dtype=torch.uint8)}
    with _conversion():
        litert_torch = import_litert("litert_torch")
        try:
            converted = litert_torch.convert(module, sample_kwargs=example).model_content()
        except Exception as error:
            raise _untraceable(error) from error
    return seal_litert(converted, spec)


def seal_litert(model: bytes, spec: Spec) -> bytes:
    """Write a LiteRT model as bytes that depend only on its mathematics and on `spec`.

    The spec is written into the metadata, where `dermedge.spec` names it.

    Args:
        model: The LiteRT model.
        spec: The model's contract.
    """
    flatbuffer = import_litert("ai_edge_litert.tools.flatbuffer_utils")
    schema = import_litert("ai_edge_litert.schema_py_generated")
    content = flatbuffer.read_model_from_bytearray(model)
    _widen_constants(content, spec.preprocess.size)
    content.description = f"dermedge {dermedge_version()}"
    text = json.dumps(to_json(spec), sort_keys=True, ensure_ascii=False)
    note = schema.MetadataT()
    note.name, note.buffer = METADATA_KEY, len(content.buffers)
    content.metadata = [
        *(other for other in content.metadata or () if _text(other.name) != METADATA_KEY),
        note,
    ]
    content.buffers.append(schema.BufferT(data=np.frombuffer(text.encode(), np.uint8)))
    return _serialize(content)


def _widen_constants(model: Any, size: int) -> None:
    """Repeat the constants of the normalization of pixels along a row of the image.

    XNNPACK computes a tensor [1, S, S, 3] and a constant [3] by steps of 3 values, and
    with a constant [1, 1, S, 3] by steps of a row. The values are the same. With 224
    pixels that saved 0.2 ms an operator of the 0.7 ms until the end of the first layer.
    """
    schema = import_litert("ai_edge_litert.schema_py_generated")
    codes = {getattr(schema.BuiltinOperator, name) for name in ELEMENTWISE}
    graph = model.subgraphs[0]
    uses = Counter(index for one in graph.operators for index in one.inputs)
    for one in graph.operators:
        shape = list(graph.tensors[one.outputs[0]].shape)
        code = model.operatorCodes[one.opcodeIndex].builtinCode
        if code not in codes or shape != [1, size, size, CHANNELS]:
            continue
        for index in one.inputs:
            constant = graph.tensors[index]
            data = model.buffers[constant.buffer].data
            shape = [1, 1, 1, *constant.shape][-4:]
            if data is not None and shape == [1, 1, 1, CHANNELS] and uses[index] == 1:
                constant.shape = [1, 1, size, CHANNELS]
                # Another tensor may have the same buffer.
                constant.buffer = len(model.buffers)
                model.buffers.append(schema.BufferT(data=np.tile(data, size)))


def import_litert(name: str) -> ModuleType:
    """Import a module that the extra `litert-export` installs, in silence.

    Raises:
        MissingExtraError: The module is not installed.
    """
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0].replace("_", "-")
        raise MissingExtraError(package, EXTRA, "Export to LiteRT") from error


@contextmanager
def _conversion() -> Iterator[None]:
    """Keep the converter from printing, and from leaving changes in this process."""
    before = {name: os.environ.get(name) for name in SETTINGS}
    handlers = list(logging.root.handlers)
    os.environ.update(SETTINGS)
    try:
        with silence():
            yield
    finally:
        logging.root.handlers[:] = handlers
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _untraceable(error: Exception) -> UsageError:
    """Return an error that names the operator that LiteRT lacks, if it is known."""
    text = " ".join(str(cause) for cause in (error, error.__cause__) if cause is not None)
    operator = OPERATOR.search(text)
    cause = f"the operator {operator[0]}" if operator else first_line(error)
    return UsageError(
        f"This network cannot be exported to LiteRT ({cause}). Choose another backbone, or a "
        "target in ONNX: --target android-onnx, web-onnx or cpu with --engine onnxruntime."
    )


def _serialize(model: Any) -> bytes:
    """Return a model as bytes in which the data of every tensor is aligned."""
    import flatbuffers

    class Builder(flatbuffers.Builder):  # type: ignore[misc]
        """Builder that aligns vectors of bytes, as the schema of the format demands.

        The generated code for Python ignores `force_align`
        (https://github.com/google/flatbuffers/issues/5839).
        """

        def StartVector(self, size: int, count: int, alignment: int) -> int:
            aligned = ALIGNMENT if size == 1 else alignment
            started: int = super().StartVector(size, count, aligned)
            return started

    for buffer in model.buffers:
        # The generated code writes anything but an array byte by byte, which takes eight
        # seconds for the weights of a MobileNetV2.
        if buffer.data is not None and not isinstance(buffer.data, np.ndarray):
            buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
    builder = Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
