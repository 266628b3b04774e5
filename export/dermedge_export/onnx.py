"""ONNX: one graph from uint8 pixels to named logits, the same bytes for the same weights and versions."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from dermedge_export.exporter import Built, Exportable
from dermedge_export.target import Target
from dermedge_runtime.errors import DermedgeError, MissingExtraError
from dermedge_runtime.spec import Artifact, to_json

PATH = "model.onnx"
IR_VERSION = 9  # the newest that onnxruntime 1.17 reads
METADATA_KEY = "dermedge.spec"


def export_onnx(source: Exportable, target: Target, *, dynamic_batch: bool = False) -> Built:
    """Trace a module to ONNX: input `image` uint8 [N, S, S, 3], one float32 output per task, normalisation inside.

    Args:
        source: a torch module that maps uint8 [N, S, S, 3] to a dict of logits by task, and its spec.
        target: gives the opset.
        dynamic_batch: leave N open; by default it is 1, which engines plan better for.

    Raises:
        MissingExtraError: torch or onnx is not installed.
    """
    try:
        import onnx
        import torch
    except ImportError as error:
        raise MissingExtraError(error.name or "torch", "export", "Export to ONNX") from error
    names = [task.name for task in source.spec.tasks]
    size = source.spec.preprocess.size
    # A batch of 1 would be burnt in as a constant where it ought to stay open.
    example = torch.zeros(2 if dynamic_batch else 1, size, size, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            _tuple_of(source.module, names),
            (example,),
            input_names=["image"],
            output_names=names,
            opset_version=target.opset,
            dynamo=True,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None,
            verbose=False,
        )
    if program is None:
        raise DermedgeError(
            "torch.onnx.export gave no program: check that its version is one that constraints.txt names."
        )
    model = program.model_proto
    _strip(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "dermedge", version("dermedge")
    model.graph.name = source.spec.name
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(to_json(source.spec), sort_keys=True, ensure_ascii=False)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    artifact = Artifact(
        target=target.name,
        format=target.format,
        path=PATH,
        precision="fp32",
        requires=target.requires,
        toolchain={name: version(name) for name in ("dermedge", "torch", "onnx", "onnxscript")},
        details={"opset": target.opset, "ir_version": IR_VERSION, "batch": "dynamic" if dynamic_batch else 1},
    )
    return Built(artifact, {PATH: model.SerializeToString(deterministic=True)})


def _tuple_of(module: Any, names: list[str]) -> Any:
    """The module with its outputs in the order of the tasks; an exporter would sort a dict's keys its own way."""
    import torch

    class Ordered(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.inner(image)
            return tuple(outputs[name] for name in names)

    return Ordered().eval()


def _strip(model: Any) -> None:
    """Drop what names the exporting machine's source files, so that the bytes do not depend on a folder."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.onnx prints its progress and warns about itself; neither is news to the user."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
