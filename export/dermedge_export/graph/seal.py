"""Make ONNX bytes reproducible: drop machine names, mirror the spec into the metadata, check the model."""

import json
from importlib.metadata import version
from typing import Any

from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.spec import Spec, to_json

IR_VERSION = 9  # the newest that onnxruntime 1.17 reads
METADATA_KEY = "dermedge.spec"


def seal(model: Any, spec: Spec) -> bytes:
    """An ONNX model as bytes that depend on nothing but its mathematics and `spec`: what names the exporting machine's
    folders is dropped, the spec mirrored into its metadata, shapes inferred, everything checked.

    Raises:
        DermedgeError: the model is not valid ONNX.
    """
    import onnx

    strip(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "dermedge", version("dermedge")
    model.graph.name = spec.name
    entry = model.metadata_props.add()
    entry.key, entry.value = (
        METADATA_KEY,
        json.dumps(to_json(spec), sort_keys=True, ensure_ascii=False),
    )
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DermedgeError(
            f"The exported graph is not valid ONNX ({error}): export with another precision."
        ) from error
    sealed: bytes = model.SerializeToString(deterministic=True)
    return sealed


def strip(model: Any) -> None:
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
