"""Find the nodes that stay in float32 at every precision: heads of `ood` and `cam` tasks."""

import json
from collections import defaultdict
from typing import TYPE_CHECKING

from dermedge_export.graph.seal import METADATA_KEY

if TYPE_CHECKING:
    import onnx

EXACT_KINDS = ("ood", "cam")
"""Task kinds whose head computes in float32.

A distance is a difference of large sums. No mean hides the rounding of a class activation
map, as it does for the logits.
"""


def exact_nodes(model: "onnx.ModelProto") -> list[str]:
    """Return the nodes that only outputs of `EXACT_KINDS` depend on, in graph order.

    Args:
        model: A sealed fp32 model, whose metadata name the kind of each output.

    Example:
        >>> import onnx
        >>> model = onnx.parser.parse_model('''
        ...     <ir_version: 9, opset_import: ["" : 19]>
        ...     g (float[2] x) => (float[2] y, float[2] ood)
        ...     { y = Relu (x) a = Abs (y) ood = Sqrt (a) }''')
        >>> for node in model.graph.node:
        ...     node.name = node.op_type
        >>> tasks = [{"name": "y", "kind": "embed"}, {"name": "ood", "kind": "ood"}]
        >>> onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps({"tasks": tasks})})
        >>> exact_nodes(model)
        ['Abs', 'Sqrt']
    """
    exact = {name for name, kind in output_kinds(model).items() if kind in EXACT_KINDS}
    outputs = {output.name for output in model.graph.output}
    readers: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            readers[name].append(index)
    found: dict[int, str] = {}
    for index, node in reversed(list(enumerate(model.graph.node))):
        if all(
            name in exact or (name not in outputs and found.keys() >= set(readers[name]))
            for name in node.output
        ):
            found[index] = node.name
    return [found[index] for index in sorted(found)]


def output_kinds(model: "onnx.ModelProto") -> dict[str, str]:
    """Return the task kind of each output, as far as the model's metadata say.

    Args:
        model: The model.
    """
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return {task["name"]: task["kind"] for task in json.loads(entry.value)["tasks"]}
    return {}
