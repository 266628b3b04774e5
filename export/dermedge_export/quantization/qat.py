"""Quantization-aware training: a student with fake quantizers where onnxruntime computes in int8, and its int8 graph.

They stand on weights, at what convolutions and linear layers read, and at what convolutions write. Not NNCF's: those
leave what convolutions write before a GELU or SiLU in float, so that onnxruntime computes the convolutions in float too
(repvit_m0_9: 14.0 ms, against 7.3 ms so and 11.7 ms in fp32), and they compile C++ on the user's machine.
"""

import copy
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext
from dermedge_export.graph.trace import trace
from dermedge_export.target import Target
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import DermedgeError, MissingExtraError, UsageError
from dermedge_runtime.spec import Spec

LAYERS = ("conv2d", "linear")
CLIPS = ("relu", "relu6", "hardtanh", "clamp")  # computed by the int8 convolution before them
IDENTITIES = ("dropout", "feature_dropout", "alpha_dropout")  # in eval mode
TENSOR, CHANNEL = (
    "_fake_quantize_learnable_per_tensor_affine",
    "_fake_quantize_learnable_per_channel_affine",
)
BATCH = 16
FLOOR, TINY = (
    2.0**-12,
    1e-6,
)  # of a channel's scale, against the greatest of its layer: else no bias fits into int32
LIMIT = 2.0**31 - 128  # the greatest float32 that fits into int32
# Adam moves every parameter alike, a weight of 0.05 by a large share of itself, a scale's logarithm by a small one.
RATE = 10.0


def qat_graph(
    context: ExportContext, target: Target, candidate: Candidate
) -> tuple[bytes, tuple[str, ...]]:
    """Train the student with fake quantizers and export it as int8.

    Returns:
        The sealed graph, and the distributions that made it beside those of every ONNX artifact.

    Raises:
        UsageError: there is nothing to train on.
        DermedgeError: torch.export cannot follow this network.
        MissingExtraError: torch is not installed.
    """
    if context.retrain is None:
        raise UsageError(
            "Quantization-aware training needs labelled images: pass --data with the student's table."
        )
    module = fake_quantized(context.module, context.calibration, **candidate.options)
    trained = context.retrain(module, context.calibration, candidate)
    return integer_graph(
        trained, context.spec, target.opset, dynamic_batch=context.dynamic_batch
    ), ()


def fake_quantized(
    module: Any, calibration: Calibration, *, activations: str = "u8", reduce_range: bool = False
) -> Any:
    """A trainable twin of a module in eval mode: batch norms folded, fake quantizers inserted.

    Weights are quantized symmetrically per output channel, activations per tensor over their range on the calibration
    images. Scales are trained along with the weights (Esser et al., "Learned step size quantization", ICLR 2020), by
    their logarithms, so that one learning rate suits all of them; zero points stay.

    Args:
        module: from uint8 [N, S, S, 3] to logits by task; left alone.
        calibration: the images.
        activations: `u8` or `s8`.
        reduce_range: give weights 7 bits.

    Returns:
        A torch.fx.GraphModule of the same signature.

    Raises:
        DermedgeError: torch.export cannot follow this network.
        MissingExtraError: torch is not installed.
    """
    twin = _captured(module, calibration.images.shape[1:])
    _fold_norms(twin)
    layers = [
        node for node in twin.graph.nodes if _kind(node) in LAYERS and node.args[1].op == "get_attr"
    ]
    for place, bounds in _ranges(twin, _places(layers), calibration.images).items():
        _quantize_activation(twin, place, bounds, signed=activations == "s8")
    for layer in layers:
        _quantize_weight(twin, layer, limit=63 if reduce_range else 127)
    twin.graph.eliminate_dead_code()
    twin.delete_all_unused_submodules()
    twin.recompile()
    return twin


def _captured(module: Any, shape: tuple[int, ...]) -> Any:
    """The module as a graph of ATen operators, none of them in place, its batch size open."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            error.name or "torch", "export", "Quantization-aware training"
        ) from error
    example, batch = torch.zeros(2, *shape, dtype=torch.uint8), torch.export.Dim("batch", min=1)
    try:
        with quiet():
            # Another deep copy, for its parameters become the twin's.
            program = torch.export.export(
                copy.deepcopy(module), (example,), dynamic_shapes=({0: batch},)
            )
            exported: Any = program.module(check_guards=False)
    except Exception as error:  # torch.export has no common error
        raise DermedgeError(
            f"torch.export cannot follow this network ({error}): choose another int8 method."
        ) from error
    # A new one, for an exported module refuses train() and eval().
    twin = torch.fx.GraphModule(exported, exported.graph)
    for node in list(twin.graph.nodes):
        if _kind(node) == "_assert_tensor_metadata":  # it names the device that was exported on
            twin.graph.erase_node(node)
        elif _kind(node) in IDENTITIES:
            node.replace_all_uses_with(node.args[0])
        elif _kind(node).endswith("_"):
            _out_of_place(node)
    return twin


def _out_of_place(node: Any) -> None:
    """Swap an operator that overwrites its first argument for one that does not; what comes after reads the result."""
    import torch

    overload = str(node.target).rsplit(".", 1)[-1]
    node.target = getattr(getattr(torch.ops.aten, _kind(node)[:-1]), overload)
    for user in list(node.args[0].users):
        if node < user:
            user.replace_input_with(node.args[0], node)


def _fold_norms(twin: Any) -> None:
    """Fold every BatchNorm that follows a convolution into it; others stay as they are, their statistics frozen."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    for norm in [node for node in twin.graph.nodes if _kind(node) == "batch_norm"]:
        conv = norm.args[0]
        if _kind(conv) != "conv2d" or len(conv.users) > 1 or conv.args[1].op != "get_attr":
            continue
        weight, bias = (_tensor(twin, node) for node in (*conv.args[1:3], None)[:2])
        gamma, beta, mean, variance = (_tensor(twin, node) for node in norm.args[1:5])
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.args[7], gamma, beta)
        with twin.graph.inserting_before(conv):
            parts = [
                _attribute(twin, f"{conv.name}_{kind}", torch.nn.Parameter(value.detach().clone()))
                for kind, value in (("weight", weight), ("bias", bias))
            ]
        conv.args = (conv.args[0], *parts, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        twin.graph.erase_node(norm)


def _places(layers: Iterable[Any]) -> list[Any]:
    """Where activations are quantized: what layers read, and what convolutions and their clips write."""
    places: dict[Any, None] = {}
    for layer in layers:
        places[layer.args[0]] = None
        if _kind(layer) == "conv2d":
            after = next(iter(layer.users))
            result = after if len(layer.users) == 1 and _kind(after) in CLIPS else layer
            if any(user.op != "output" for user in result.users):
                places[result] = None
    return list(places)


def _ranges(
    twin: Any, places: list[Any], images: NDArray[np.uint8]
) -> dict[Any, tuple[float, float]]:
    """The least and the greatest value at every place over the images; 0 is always between them."""
    import torch

    wanted = dict.fromkeys(places, (0.0, 0.0))

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: Any) -> Any:
            value = super().run_node(n)
            if n in wanted:
                low, high = wanted[n]
                wanted[n] = min(low, value.min().item()), max(high, value.max().item())
            return value

    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            Watcher(twin).run(torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])))
    return wanted


def _quantize_activation(
    twin: Any, place: Any, bounds: tuple[float, float], *, signed: bool
) -> None:
    import torch

    low, high = bounds
    least = -128 if signed else 0
    scale = torch.tensor([(high - low or 1.0) / 255])
    zero = least + (-low / scale).round()
    with twin.graph.inserting_before(place.next):
        fake = _fake(twin, place, place.name, scale, zero, (least, least + 255))
    place.replace_all_uses_with(fake, delete_user_cb=lambda user: user is not fake)


def _quantize_weight(twin: Any, layer: Any, limit: int) -> None:
    import torch

    weight = _tensor(twin, layer.args[1]).detach()
    scale = weight.abs().flatten(1).amax(1) / limit
    scale = scale.clamp_min(max(scale.max().item() * FLOOR, TINY))
    with twin.graph.inserting_before(layer):
        fake = _fake(
            twin,
            layer.args[1],
            f"{layer.name}_weight",
            scale,
            torch.zeros_like(scale),
            (0, -limit, limit),
        )
    layer.args = (layer.args[0], fake, *layer.args[2:])


def _fake(twin: Any, value: Any, name: str, scale: Any, zero: Any, levels: tuple[int, ...]) -> Any:
    """A fake quantizer of `value` at the graph's insertion point; `levels` are the axis, if any, and the bounds."""
    import torch

    operation = getattr(torch, TENSOR if len(levels) == 2 else CHANNEL)
    log_scale = _attribute(twin, f"{name}_log_scale", torch.nn.Parameter(scale.log() / RATE))
    zero_point = _attribute(twin, f"{name}_zero_point", zero)
    step = twin.graph.call_function(
        torch.exp, (twin.graph.call_function(torch.mul, (log_scale, RATE)),)
    )
    return twin.graph.call_function(operation, (value, step, zero_point, *levels))


def integer_graph(trained: Any, spec: Spec, opset: int, *, dynamic_batch: bool = False) -> bytes:
    """What `fake_quantized` made, trained or not, as a sealed ONNX graph with int8 weights and int32 biases."""
    return trace(_with_integers(trained), spec, opset, dynamic_batch=dynamic_batch)


def _with_integers(trained: Any) -> Any:
    """A copy that only torch.onnx.export can run: QuantizeLinear and DequantizeLinear in place of fake quantizers."""
    import torch

    twin = copy.deepcopy(trained).cpu().eval()
    for node in list(twin.graph.nodes):
        if getattr(node.target, "__name__", "") == TENSOR:
            value, scale, zero, (low, _) = node.args[0], *_parameters(twin, node), node.args[3:]
            zero = zero.to(torch.int8 if low < 0 else torch.uint8)
            with twin.graph.inserting_before(node):
                parts = [
                    _attribute(twin, f"{node.name}_{i}", part.squeeze())
                    for i, part in enumerate((scale, zero))
                ]
                quantized = twin.graph.call_function(_rounded, (value, *parts))
            node.replace_all_uses_with(quantized)
            twin.graph.erase_node(node)
    for node in list(twin.graph.nodes):
        if getattr(node.target, "__name__", "") == CHANNEL:
            _integer_layer(twin, next(iter(node.users)), node)
    twin.graph.eliminate_dead_code()
    twin.recompile()
    return twin


def _integer_layer(twin: Any, layer: Any, fake: Any) -> None:
    """Give a layer int8 weights, and an int32 bias in steps of its sums, without which engines compute it in float."""
    import torch

    scale = _parameters(twin, fake)[0]
    low, high = fake.args[4:]
    weight = _tensor(twin, fake.args[0]).detach()
    bias = _tensor(twin, (*layer.args[2:3], None)[0])
    levels = (
        (weight / scale.view(-1, *(1,) * (weight.ndim - 1))).round().clamp(low, high).to(torch.int8)
    )
    linear = _kind(layer) == "linear"
    with twin.graph.inserting_before(layer):
        weights = _stored(
            twin, f"{layer.name}_weight", levels.T if linear else levels, scale, axis=int(linear)
        )
        biases = None
        if bias is not None:
            step = _tensor(twin, layer.args[0].args[1]) * scale
            biases = _stored(
                twin,
                f"{layer.name}_bias",
                (bias.detach() / step).round().clamp(-LIMIT, LIMIT).int(),
                step,
                axis=0,
            )
        if linear:
            # As torch.onnx.export writes it itself, but for a transpose that would hide the weights from engines.
            result = twin.graph.call_function(torch.matmul, (layer.args[0], weights))
            result = (
                twin.graph.call_function(torch.add, (result, biases))
                if biases is not None
                else result
            )
        else:
            result = twin.graph.call_function(
                layer.target, (layer.args[0], weights, biases, *layer.args[3:])
            )
    layer.replace_all_uses_with(result)
    twin.graph.erase_node(layer)


def _stored(twin: Any, name: str, levels: Any, scale: Any, axis: int) -> Any:
    """A node for a constant that is stored as integers."""
    parts = [
        _attribute(twin, f"{name}_{kind}", value)
        for kind, value in (
            ("levels", levels.contiguous()),
            ("step", scale),
            ("zero", (scale * 0).to(levels.dtype)),
        )
    ]
    return twin.graph.call_function(_dequantized, (*parts, axis))


def _rounded(value: Any, scale: Any, zero: Any) -> Any:
    from torch.onnx.ops import symbolic

    levels = symbolic("QuantizeLinear", (value, scale, zero), dtype=zero.dtype, shape=value.shape)
    return symbolic("DequantizeLinear", (levels, scale, zero), dtype=scale.dtype, shape=value.shape)


def _dequantized(levels: Any, scale: Any, zero: Any, axis: int) -> Any:
    from torch.onnx.ops import symbolic

    return symbolic(
        "DequantizeLinear",
        (levels, scale, zero),
        {"axis": axis},
        dtype=scale.dtype,
        shape=levels.shape,
    )


def _parameters(twin: Any, fake: Any) -> tuple[Any, Any]:
    """Scale and zero point of a fake quantizer."""
    _, step, zero, *_ = fake.args
    log_scale = _tensor(twin, step.args[0].args[0]).detach()
    return (log_scale * RATE).exp(), _tensor(twin, zero)


def _kind(node: Any) -> str:
    """The name of an ATen operator, empty for other nodes."""
    return str(getattr(getattr(node.target, "overloadpacket", None), "__name__", ""))


def _tensor(twin: Any, node: Any) -> Any:
    return None if node is None else operator.attrgetter(node.target)(twin)


def _attribute(twin: Any, name: str, tensor: Any) -> Any:
    """A node, at the graph's insertion point, for a new parameter or buffer."""
    import torch

    register = (
        twin.register_parameter if isinstance(tensor, torch.nn.Parameter) else twin.register_buffer
    )
    register(name, tensor)
    return twin.graph.get_attr(name)
