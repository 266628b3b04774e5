"""Write ONNX models as reproducible bytes, with the model spec in their metadata."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dermedge_runtime.errors import DermedgeError
from dermedge_runtime.packages import dermedge_version
from dermedge_runtime.spec import Spec, to_json

if TYPE_CHECKING:
    import onnx

IR_VERSION = 9  # the newest version that onnxruntime 1.17 reads
METADATA_KEY = "dermedge.spec"


def seal(model: "onnx.ModelProto", spec: Spec) -> bytes:
    """Serialize a model to bytes that depend only on its mathematics and on `spec`.

    Names of folders of this machine are removed, the spec is written into the
    metadata, shapes are inferred, and the model is checked.

    Args:
        model: The model; it is changed in place.
        spec: The model's contract.

    Raises:
        DermedgeError: The model is not valid ONNX.

    Example:
        >>> import onnx
        >>> from dermedge_runtime.bundle import Bundle
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[2] x) => (float[2] y) { y = Relu (x) }''')
        >>> sealed = seal(model, Bundle.open("toy.dermedge").spec)
        >>> onnx.load_model_from_string(sealed).metadata_props[0].key
        'dermedge.spec'
    """
    import onnx

    strip(model)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "dermedge", dermedge_version()
    model.graph.name = spec.name
    entry = model.metadata_props.add()
    entry.key = METADATA_KEY
    entry.value = json.dumps(to_json(spec), sort_keys=True, ensure_ascii=False)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DermedgeError(
            f"The exported graph is not valid ONNX ({error}). Export with another precision."
        ) from error
    sealed: bytes = model.SerializeToString(deterministic=True)
    return sealed


def strip(model: "onnx.ModelProto") -> None:
    """Remove the notes in a model, which name source files of this machine."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    _strip_items([graph])
    _strip_items(graph.node)
    _strip_items((*graph.value_info, *graph.input, *graph.output, *graph.initializer))
    for function in model.functions:
        _strip_items([function])
        _strip_items(function.node)


def _strip_items(
    items: "Iterable[onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto"
    " | onnx.FunctionProto]",
) -> None:
    for item in items:
        item.doc_string = ""
        del item.metadata_props[:]
