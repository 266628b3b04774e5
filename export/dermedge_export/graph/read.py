"""Read ONNX models through onnx_ir, which links tensors to the nodes around them."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    import onnx_ir


def read_graph(model: "onnx.ModelProto") -> "onnx_ir.Graph":
    """Return the main graph of a model for reading; the model keeps its own nodes.

    Element types and ranks are known for the tensors that shape inference has
    described. Weights are not copied.

    Example:
        >>> import onnx
        >>> graph = read_graph(onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[2] x) => (float[2] y) { a = Relu (x) y = Neg (a) }'''))
        >>> first, second = graph
        >>> [consumer.op_type for consumer in first.outputs[0].consumers()]
        ['Neg']
        >>> producer_type(second.inputs[0]), producer_type(first.inputs[0])
        ('Relu', '')
    """
    import onnx_ir

    return onnx_ir.from_proto(model).graph


def name_of(item: "onnx_ir.Node | onnx_ir.Value") -> str:
    """Return the name of a node or tensor; empty if it has none."""
    return item.name or ""


def input_at(node: "onnx_ir.Node", position: int) -> "onnx_ir.Value | None":
    """Return an input of a node; None if the node has no such input."""
    return node.inputs[position] if position < len(node.inputs) else None


def producer_type(value: "onnx_ir.Value | None") -> str:
    """Return the operator that produces a tensor; empty for inputs and constants."""
    producer = None if value is None else value.producer()
    return "" if producer is None else producer.op_type


def constant_value(value: "onnx_ir.Value | None") -> NDArray[np.number] | None:
    """Return the array of an initializer; None for a tensor that is computed."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    constant: NDArray[np.number] = value.const_value.numpy()
    return constant


def rank_of(value: "onnx_ir.Value | None") -> int:
    """Return the number of dimensions of a tensor; 0 if it is unknown."""
    return 0 if value is None or value.shape is None else len(value.shape)
