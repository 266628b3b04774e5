"""Insert trainable fake quantizers into a student, where onnxruntime computes in int8.

Fake quantizers are on weights, on the inputs of convolutions and linear layers, and on
the outputs of convolutions. Two libraries offer the same, and neither fits:

- NNCF leaves the output of a convolution before a GELU or SiLU in float, so onnxruntime
  computes the convolution in float as well. For repvit_m0_9 that takes 14.0 ms, against
  7.3 ms with the placement here and 11.7 ms in fp32. NNCF also compiles C++ on the
  user's machine.
- PT2E (`torchao.quantization.pt2e.prepare_qat_pt2e`) takes scales from moving averages.
  Measured with torchao 0.18 and torch 2.15 on two convolutions and a linear layer: no
  scale is a parameter, so scales cannot be trained along with the weights. The graph of
  `convert_pt2e` keeps biases in float, so onnxruntime 1.32 computes the linear layer in
  float. Before torch 2.15, `torch.onnx.export` had no translation for that graph at all
  (pytorch/pytorch#143954). Try it again once it can train scales and quantize biases.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext
from dermedge_export.quantization.fx import (
    CHANNEL,
    TENSOR,
    add_tensor,
    aten_name,
    node_at,
    optional_node_at,
    stored_tensor,
)
from dermedge_export.quantization.integer import integer_graph
from dermedge_export.target import Target
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import DermedgeError, MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch

LAYERS = ("conv2d", "linear")
CLIPS = ("relu", "relu6", "hardtanh", "clamp")  # the int8 convolution before them computes them
IDENTITIES = ("dropout", "feature_dropout", "alpha_dropout")  # in eval mode
BATCH = 16
# The smallest scale of a channel: as a share of the largest in its layer, and as an
# absolute number. The int32 bias of a channel with a smaller scale would overflow.
LEAST_SHARE, LEAST_SCALE = 2.0**-12, 1e-6
# Adam changes every parameter by about the learning rate. That is a large relative
# change for a weight of 0.05, and a small one for the logarithm of a scale. So the
# parameter is log(scale) / RATE, and the logarithm changes RATE times faster.
RATE = 10.0


def qat_graph(context: ExportContext, target: Target, candidate: Candidate) -> bytes:
    """Train the student with fake quantizers, and return its sealed int8 graph.

    Raises:
        UsageError: There is no data to train on.
        DermedgeError: torch.export cannot trace this network.
        MissingExtraError: torch is not installed.
    """
    if context.retrain is None:
        raise UsageError(
            "Quantization-aware training needs labelled images. Pass --data with the student's "
            "table."
        )
    module = fake_quantized(context.module, context.calibration, **candidate.options)
    # Training changes the module's parameters, never its graph.
    trained = cast("torch.fx.GraphModule", context.retrain(module, context.calibration, candidate))
    return integer_graph(trained, context.spec, target.opset, dynamic_batch=context.dynamic_batch)


def fake_quantized(
    module: "torch.nn.Module",
    calibration: Calibration,
    *,
    activations: Literal["u8", "s8"] = "u8",
    reduce_range: bool = False,
) -> "torch.fx.GraphModule":
    """Return a trainable copy of a module with folded batch norms and fake quantizers.

    Weights are quantized symmetrically per output channel, activations per tensor over
    their range on the calibration images. Scales are trained along with the weights
    (Esser et al., "Learned step size quantization", ICLR 2020). Their logarithms are
    the parameters, so that one learning rate suits all of them. Zero points stay.

    Args:
        module: Maps uint8 [N, S, S, 3] to logits by task, in eval mode; it is not
            changed.
        calibration: The images.
        activations: `u8` for x86, `s8` for ARM.
        reduce_range: Quantize weights to 7 bits, for CPUs without VNNI, on which sums
            of 8-bit products saturate.

    Returns:
        A module with the same signature.

    Raises:
        DermedgeError: torch.export cannot trace this network.
        MissingExtraError: torch is not installed.

    Example:
        >>> import torch
        >>> from dermedge_export.calibration import synthetic_calibration
        >>> from dermedge_runtime.spec import Preprocess
        >>> class Linear(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = torch.nn.Linear(3, 1)
        ...     def forward(self, image):
        ...         return {"malignancy": self.head(image.float().mean((1, 2)))}
        >>> images = synthetic_calibration(Preprocess(32), 2)
        >>> module = fake_quantized(Linear().eval(), images)
        >>> sorted(name for name, _ in module.named_parameters() if "log_scale" in name)
        ['linear_weight_log_scale', 'mean_log_scale']
    """
    twin = _capture(module, calibration.images.shape[1:])
    _fold_norms(twin)
    layers = [
        node
        for node in twin.graph.nodes
        if aten_name(node) in LAYERS and node_at(node, 1).op == "get_attr"
    ]
    ranges = _measure_ranges(twin, _activation_places(layers), calibration.images)
    for place, bounds in ranges.items():
        _quantize_activation(twin, place, bounds, signed=activations == "s8")
    for layer in layers:
        _quantize_weight(twin, layer, limit=63 if reduce_range else 127)
    twin.graph.eliminate_dead_code()
    twin.delete_all_unused_submodules()
    twin.recompile()
    return twin


def _capture(module: "torch.nn.Module", shape: tuple[int, ...]) -> "torch.fx.GraphModule":
    """Return the module as a graph of functional ATen operators, batch size open."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(
            error.name or "torch", "export", "Quantization-aware training"
        ) from error
    example, batch = torch.zeros(2, *shape, dtype=torch.uint8), torch.export.Dim("batch", min=1)
    try:
        with quiet():
            # The exported module shares its parameters with its source, hence the copy.
            program = torch.export.export(
                copy.deepcopy(module), (example,), dynamic_shapes=({0: batch},)
            )
            exported = program.module(check_guards=False)
    except Exception as error:  # torch.export has no base class for its errors
        raise DermedgeError(
            f"torch.export cannot trace this network ({error}). Choose another int8 method."
        ) from error
    # An exported module refuses train() and eval(); a GraphModule made from its graph
    # does not.
    assert isinstance(exported, torch.fx.GraphModule)
    twin = torch.fx.GraphModule(exported, exported.graph)
    for node in list(twin.graph.nodes):
        kind = aten_name(node)
        if kind == "_assert_tensor_metadata":  # it fixes the device that was exported on
            twin.graph.erase_node(node)
        elif kind in IDENTITIES:
            node.replace_all_uses_with(node_at(node, 0))
        elif kind.endswith("_"):
            _make_functional(node)
    return twin


def _make_functional(node: "torch.fx.Node") -> None:
    """Replace an in-place operator; later users of its input read its result."""
    import torch

    overload = str(node.target).rsplit(".", 1)[-1]
    node.target = getattr(getattr(torch.ops.aten, aten_name(node)[:-1]), overload)
    overwritten = node_at(node, 0)
    for user in list(overwritten.users):
        if node < user:
            user.replace_input_with(overwritten, node)


def _fold_norms(twin: "torch.fx.GraphModule") -> None:
    """Fold batch norms into the convolutions before them; others stay, frozen."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    for norm in [node for node in twin.graph.nodes if aten_name(node) == "batch_norm"]:
        conv = node_at(norm, 0)
        # A convolution with a second user would pass that user the normalized values.
        if aten_name(conv) != "conv2d" or len(conv.users) > 1 or node_at(conv, 1).op != "get_attr":
            continue
        bias_node = optional_node_at(conv, 2)
        gamma, beta, mean, variance = (
            stored_tensor(twin, node_at(norm, position)) for position in range(1, 5)
        )
        weight, bias = fuse_conv_bn_weights(
            stored_tensor(twin, node_at(conv, 1)),
            None if bias_node is None else stored_tensor(twin, bias_node),
            mean,
            variance,
            float(str(norm.args[7])),
            gamma,
            beta,
        )
        with twin.graph.inserting_before(conv):
            parts = [
                add_tensor(twin, f"{conv.name}_{kind}", torch.nn.Parameter(value.detach().clone()))
                for kind, value in (("weight", weight), ("bias", bias))
            ]
        conv.args = (conv.args[0], *parts, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        twin.graph.erase_node(norm)


def _activation_places(layers: Iterable["torch.fx.Node"]) -> list["torch.fx.Node"]:
    """Return the nodes whose output is quantized.

    These are the inputs of the layers, and the outputs of convolutions, behind the clip
    if one follows directly. The outputs of the model stay in float.
    """
    places: dict[torch.fx.Node, None] = {}
    for layer in layers:
        places[node_at(layer, 0)] = None
        if aten_name(layer) == "conv2d":
            after = next(iter(layer.users))
            result = after if len(layer.users) == 1 and aten_name(after) in CLIPS else layer
            if any(user.op != "output" for user in result.users):
                places[result] = None
    return list(places)


def _measure_ranges(
    twin: "torch.fx.GraphModule", places: list["torch.fx.Node"], images: NDArray[np.uint8]
) -> Mapping["torch.fx.Node", tuple[float, float]]:
    """Return the least and the greatest value at every place; the range includes 0."""
    import torch

    ranges = dict.fromkeys(places, (0.0, 0.0))

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n in ranges:
                low, high = ranges[n]
                ranges[n] = min(low, value.min().item()), max(high, value.max().item())
            return value

    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            batch = np.ascontiguousarray(images[start : start + BATCH])
            Watcher(twin).run(torch.from_numpy(batch))
    return ranges


def _quantize_activation(
    twin: "torch.fx.GraphModule",
    place: "torch.fx.Node",
    bounds: tuple[float, float],
    *,
    signed: bool,
) -> None:
    """Let all users of a node read its output through a fake quantizer."""
    import torch

    low, high = bounds
    least = -128 if signed else 0
    scale = torch.tensor([(high - low or 1.0) / 255])
    zero = least + (-low / scale).round()
    with twin.graph.inserting_before(place.next):
        fake = _add_fake_quantizer(twin, place, place.name, scale, zero, (least, least + 255))
    place.replace_all_uses_with(fake, delete_user_cb=lambda user: user is not fake)


def _quantize_weight(twin: "torch.fx.GraphModule", layer: "torch.fx.Node", limit: int) -> None:
    """Let a layer read its weights through a fake quantizer, -limit to limit."""
    import torch

    source = node_at(layer, 1)
    scale = stored_tensor(twin, source).detach().abs().flatten(1).amax(1) / limit
    scale = scale.clamp_min(max(scale.max().item() * LEAST_SHARE, LEAST_SCALE))
    zero = torch.zeros_like(scale)
    with twin.graph.inserting_before(layer):
        fake = _add_fake_quantizer(
            twin, source, f"{layer.name}_weight", scale, zero, (0, -limit, limit)
        )
    layer.args = (layer.args[0], fake, *layer.args[2:])


def _add_fake_quantizer(
    twin: "torch.fx.GraphModule",
    value: "torch.fx.Node",
    name: str,
    scale: "torch.Tensor",
    zero: "torch.Tensor",
    levels: tuple[int, ...],
) -> "torch.fx.Node":
    """Return a fake quantizer of `value` at the graph's insertion point.

    `levels` are the axis, if there is one, and the least and greatest level.
    """
    import torch

    operation = getattr(torch, TENSOR if len(levels) == 2 else CHANNEL)
    log_scale = add_tensor(twin, f"{name}_log_scale", torch.nn.Parameter(scale.log() / RATE))
    zero_point = add_tensor(twin, f"{name}_zero_point", zero)
    exponent = twin.graph.call_function(torch.mul, (log_scale, RATE))
    step = twin.graph.call_function(torch.exp, (exponent,))
    return twin.graph.call_function(operation, (value, step, zero_point, *levels))
