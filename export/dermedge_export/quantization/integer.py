"""Export modules with fake quantizers as ONNX graphs with integer weights."""

import copy
from typing import TYPE_CHECKING, cast

from dermedge_export.graph.trace import trace
from dermedge_export.quantization.fx import (
    CHANNEL,
    TENSOR,
    add_tensor,
    aten_name,
    function_name,
    node_at,
    optional_node_at,
    stored_tensor,
)
from dermedge_runtime.spec import Spec

if TYPE_CHECKING:
    import torch

LARGEST_INT32 = 2.0**31 - 128  # the largest float32 that fits into int32


def integer_graph(
    module: "torch.fx.GraphModule", spec: Spec, opset: int, *, dynamic_batch: bool = False
) -> bytes:
    """Return a module of `fake_quantized`, trained or not, as a sealed int8 ONNX graph.

    Args:
        module: The module; it is not changed.
        spec: The model's contract.
        opset: The ONNX opset.
        dynamic_batch: Leave the batch size open.
    """
    return trace(_with_integers(module), spec, opset, dynamic_batch=dynamic_batch)


def _with_integers(trained: "torch.fx.GraphModule") -> "torch.fx.GraphModule":
    """Return a copy with Q/DQ operators instead of fake quantizers.

    Only torch.onnx.export can run the copy.
    """
    import torch

    twin = copy.deepcopy(trained).cpu().eval()
    for node in list(twin.graph.nodes):
        if function_name(node) != TENSOR:
            continue
        scale, zero = _parameters(twin, node)
        signed = cast(int, node.args[3]) < 0
        zero = zero.to(torch.int8 if signed else torch.uint8)
        with twin.graph.inserting_before(node):
            parts = [
                add_tensor(twin, f"{node.name}_{index}", part.squeeze())
                for index, part in enumerate((scale, zero))
            ]
            quantized = twin.graph.call_function(_round_trip, (node.args[0], *parts))
        node.replace_all_uses_with(quantized)
        twin.graph.erase_node(node)
    for node in list(twin.graph.nodes):
        if function_name(node) == CHANNEL:
            _store_integers(twin, next(iter(node.users)), node)
    twin.graph.eliminate_dead_code()
    twin.recompile()
    return twin


def _store_integers(
    twin: "torch.fx.GraphModule", layer: "torch.fx.Node", fake: "torch.fx.Node"
) -> None:
    """Replace a layer by one that reads int8 weights and an int32 bias."""
    import torch

    scale, _ = _parameters(twin, fake)
    low, high = (cast(int, bound) for bound in fake.args[4:6])
    weight = stored_tensor(twin, node_at(fake, 0)).detach()
    column = scale.view(-1, *(1,) * (weight.ndim - 1))
    levels = (weight / column).round().clamp(low, high).to(torch.int8)
    linear = aten_name(layer) == "linear"
    bias_node, biases = optional_node_at(layer, 2), None
    with twin.graph.inserting_before(layer):
        weights = _add_stored(
            twin, f"{layer.name}_weight", levels.T if linear else levels, scale, axis=int(linear)
        )
        if bias_node is not None:
            # Integer kernels add the bias to sums of products of levels. One level of
            # such a sum is worth (scale of the input) x (scale of the channel). So the
            # bias must be stored in these steps. With a float bias, onnxruntime
            # computes the whole layer in float.
            step = stored_tensor(twin, node_at(node_at(layer, 0), 1)) * scale
            steps = (stored_tensor(twin, bias_node).detach() / step).round()
            biases = _add_stored(
                twin,
                f"{layer.name}_bias",
                steps.clamp(-LARGEST_INT32, LARGEST_INT32).int(),
                step,
                axis=0,
            )
        if linear:
            # torch.onnx.export writes the same for a linear layer, but with a Transpose
            # behind the weights, which hides from engines that they are constant.
            result = twin.graph.call_function(torch.matmul, (layer.args[0], weights))
            if biases is not None:
                result = twin.graph.call_function(torch.add, (result, biases))
        else:
            result = twin.graph.call_function(
                cast("torch._ops.OpOverload[..., torch.Tensor]", layer.target),
                (layer.args[0], weights, biases, *layer.args[3:]),
            )
    layer.replace_all_uses_with(result)
    twin.graph.erase_node(layer)


def _add_stored(
    twin: "torch.fx.GraphModule",
    name: str,
    levels: "torch.Tensor",
    scale: "torch.Tensor",
    axis: int,
) -> "torch.fx.Node":
    """Return a node for a constant that is stored as integers, scaled per channel."""
    stored = {"levels": levels.contiguous(), "step": scale, "zero": (scale * 0).to(levels.dtype)}
    parts = [add_tensor(twin, f"{name}_{kind}", value) for kind, value in stored.items()]
    return twin.graph.call_function(_dequantize, (*parts, axis))


def _round_trip(
    value: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor"
) -> "torch.Tensor":
    """Quantize and dequantize a tensor, as symbolic ONNX operators."""
    from torch.onnx.ops import symbolic

    levels = symbolic("QuantizeLinear", (value, scale, zero), dtype=zero.dtype, shape=value.shape)
    return symbolic("DequantizeLinear", (levels, scale, zero), dtype=scale.dtype, shape=value.shape)


def _dequantize(
    levels: "torch.Tensor", scale: "torch.Tensor", zero: "torch.Tensor", axis: int
) -> "torch.Tensor":
    """Dequantize stored levels, as a symbolic ONNX operator."""
    from torch.onnx.ops import symbolic

    return symbolic(
        "DequantizeLinear",
        (levels, scale, zero),
        {"axis": axis},
        dtype=scale.dtype,
        shape=levels.shape,
    )


def _parameters(
    twin: "torch.fx.GraphModule", fake: "torch.fx.Node"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return scale and zero point of a fake quantizer."""
    # The scale is exp(log_scale * rate), as `fake_quantized` builds it.
    product = node_at(node_at(fake, 1), 0)
    rate = cast(float, product.args[1])
    log_scale = stored_tensor(twin, node_at(product, 0)).detach()
    return (log_scale * rate).exp(), stored_tensor(twin, node_at(fake, 2))
