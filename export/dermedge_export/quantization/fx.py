"""Read and extend torch.fx graphs of ATen operators."""

import operator
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch

# Names of torch's fake quantizers with one scale per tensor, and one per channel.
TENSOR = "_fake_quantize_learnable_per_tensor_affine"
CHANNEL = "_fake_quantize_learnable_per_channel_affine"


def aten_name(node: "torch.fx.Node") -> str:
    """Return the name of a node's ATen operator; empty for other nodes."""
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def function_name(node: "torch.fx.Node") -> str:
    """Return the name of the function that a node calls; empty for other nodes."""
    return str(getattr(node.target, "__name__", ""))


def node_at(node: "torch.fx.Node", position: int) -> "torch.fx.Node":
    """Return an argument of a node that is a node itself."""
    return cast("torch.fx.Node", node.args[position])


def optional_node_at(node: "torch.fx.Node", position: int) -> "torch.fx.Node | None":
    """Return an argument of a node, or None if it has no such argument."""
    return node_at(node, position) if position < len(node.args) else None


def stored_tensor(module: "torch.fx.GraphModule", node: "torch.fx.Node") -> "torch.Tensor":
    """Return the parameter or buffer that a `get_attr` node reads."""
    return cast("torch.Tensor", operator.attrgetter(cast(str, node.target))(module))


def add_tensor(
    module: "torch.fx.GraphModule", name: str, tensor: "torch.Tensor"
) -> "torch.fx.Node":
    """Register a parameter or buffer, and return a node that reads it.

    The node goes to the insertion point of the module's graph.
    """
    import torch

    if isinstance(tensor, torch.nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)
    return module.graph.get_attr(name)
