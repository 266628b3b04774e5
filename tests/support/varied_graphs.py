"""Networks of random weights, their exported graphs, and graphs with one fault each.

They serve the tests of the fp32 gate: a good export must pass, a faulty one must fail.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from dermedge.models import Network, TrainedModel
from dermedge.models.network import Backbone, Coral
from dermedge_export.context import inference_copy
from dermedge_export.graph.seal import seal
from dermedge_export.graph.trace import tuple_of
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import CPU
from dermedge_export.toolchain import quiet
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Label, Preprocess, Spec, Task

SIZE = 64
LABELS = tuple(Label(f"class{k}", f"class {k}", k == 1) for k in range(7))
TASKS = (
    Task("diagnosis", "classify", LABELS),
    Task("malignancy", "binary"),
    Task("severity", "ordinal", LABELS[:4]),
    Task("lesion", "segment"),
    Task("embedding", "embed"),
)
SPEC = Spec("varied", "1", TASKS, Preprocess(SIZE))
BACKBONES: Mapping[str, Mapping[str, object]] = {
    "mobilenetv2_050": {},
    "resnet10t": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": SIZE, "depth": 4},
    "repvgg_a0": {},
}
Outputs = Mapping[str, NDArray[np.float32]]
EPSILON = 1e-3


def lesions(count: int) -> NDArray[np.uint8]:
    """Draw lesions and preprocess them, uint8 [count, S, S, 3]."""
    return np.stack([preprocess(draw_lesion(seed).image, SPEC.preprocess) for seed in range(count)])


def augmented(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change each image's colours at random, turn it, and add noise."""
    shape = (len(images), 1, 1, 3)
    changed = images * rng.uniform(0.4, 1.3, shape) + rng.uniform(-60, 60, shape)
    changed = changed + rng.normal(0, 1, images.shape) * rng.uniform(0, 40, (len(images), 1, 1, 1))
    turned = np.stack([np.rot90(image, k % 4) for k, image in enumerate(changed)])
    return turned.clip(0, 255).astype(np.uint8)


def varied_model(
    backbone: str, seed: int, images: NDArray[np.uint8], *, narrow: bool = False
) -> TrainedModel:
    """Make a model of five tasks with random weights and logits of a random scale.

    Batch norms hold the statistics of augmented `images`, as after training with
    augmentation. The standard deviation of each head's logits over `images` is drawn
    from 0.1 to 300. Odd seeds centre the logits: a large common part cancels there,
    which magnifies rounding.

    Args:
        backbone: A key of `BACKBONES`, or any timm name.
        seed: Random seed of weights and scales.
        images: Preprocessed images, uint8 [N, S, S, 3].
        narrow: Take the batch statistics of `images` without augmentation. Untrained
            features of similar images are nearly constant, and batch norms then
            magnify what is left of them, rounding included: an ill-conditioned model.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    chosen = Backbone(backbone, BACKBONES.get(backbone, {}))
    network = Network(chosen, TASKS)
    pixels = torch.from_numpy(images)
    with torch.no_grad():
        for module in network.backbone.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                # Some families start the last gain of a branch at zero, which hides the
                # branch.
                module.weight.copy_(torch.exp(0.3 * torch.randn_like(module.weight)))
                module.bias.add_(0.2 * torch.randn_like(module.bias))
            gamma = getattr(module, "gamma", None)
            if isinstance(gamma, nn.Parameter):
                # A layer scale starts at 1e-6, which hides the branch too.
                gamma.copy_(0.3 * torch.exp(0.3 * torch.randn_like(gamma)))
            if isinstance(module, nn.BatchNorm2d):
                # Without momentum, the running statistics are those of one pass.
                module.momentum = None
        network.train()
        network(pixels if narrow else torch.from_numpy(augmented(images, rng)))
        network.eval()
        for name, logits in network(pixels).items():
            head = network.heads[name]
            target = float(np.exp(rng.uniform(np.log(0.1), np.log(300))))
            _rescale(head, logits, target, centred=seed % 2 == 1)
    return TrainedModel(network, SPEC, chosen)


def _rescale(head: nn.Module, logits: torch.Tensor, target: float, *, centred: bool) -> None:
    linear = head.score if isinstance(head, Coral) else head
    if not isinstance(linear, nn.Linear | nn.Conv2d):
        return  # An embedding has unit length, so its scale has no effect.
    factor = target / float(logits.std(dim=0).mean().clamp_min(1e-12))
    linear.weight.mul_(factor)
    bias = head.biases if isinstance(head, Coral) else linear.bias
    shape = tuple(index for index in range(logits.ndim) if index != 1)
    middle = (logits.mean(dim=shape) - bias) * factor
    spread = target * torch.randn_like(bias)
    bias.copy_(spread - middle if centred else spread)


class GraphTemplate:
    """A backbone's graph, traced once and filled with the weights of many models.

    Tracing takes most of an export's time and does not depend on the weights. The
    result has the nodes and weights that `dermedge_export.graph.trace.trace` gives.
    """

    def __init__(self, model: TrainedModel) -> None:
        example = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
        with quiet():
            program = torch.onnx.export(
                tuple_of(inference_copy(model.module), [task.name for task in TASKS]),
                (example,),
                input_names=["image"],
                output_names=[task.name for task in TASKS],
                opset_version=CPU.opset,
                dynamo=True,
                external_data=False,
                verbose=False,
                optimize=False,
            )
        assert program is not None
        self.program = program
        self.traced = program.model_proto.SerializeToString()

    def graph(
        self,
        model: TrainedModel,
        fault: "Fault | None" = None,
        rng: np.random.Generator | None = None,
    ) -> bytes:
        """Return a model's fp32 graph, with a fault put in before folding."""
        rng = rng or np.random.default_rng(0)
        state = _state(model, fault, rng)
        proto = onnx.load_model_from_string(self.traced)
        for tensor in proto.graph.initializer:
            value = state.get(tensor.name.removeprefix("inner."))
            if value is not None:
                assert list(value.shape) == list(tensor.dims)
                tensor.CopyFrom(numpy_helper.from_array(value.numpy(), tensor.name))
        if fault is not None and fault.in_graph is not None:
            fault.in_graph(proto, rng)
        self.program.model = onnx_ir.serde.deserialize_model(proto)
        with quiet():
            self.program.optimize()
        return seal(self.program.model_proto, SPEC)


def _state(
    model: TrainedModel, fault: "Fault | None" = None, rng: np.random.Generator | None = None
) -> Mapping[str, torch.Tensor]:
    module = copy.deepcopy(model.module)
    if fault is not None and fault.in_module is not None and rng is not None:
        with torch.no_grad():
            fault.in_module(module, rng)
    network = inference_copy(module)
    return {**dict(network.named_buffers()), **network.state_dict()}


class GraphOutputs:
    """A graph's outputs for images, by onnxruntime on one thread, image by image."""

    def __init__(self, graph: bytes) -> None:
        self.graph = graph

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self.graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        names = [output.name for output in self._session.get_outputs()]
        rows = [self._session.run(names, {"image": image[None]}) for image in images]
        return {
            name: np.concatenate(part)
            for name, part in zip(names, zip(*rows, strict=True), strict=True)
        }


def _weights(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the initializers of 1000 numbers or more: the large weights."""
    return [tensor for tensor in proto.graph.initializer if np.prod(tensor.dims) >= 1000]


def _edit(tensor: onnx.TensorProto, change: Callable[[NDArray[np.float32]], None]) -> None:
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _flip_mantissa_bit(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    chosen = _weights(proto)

    def flip(array: NDArray[np.float32]) -> None:
        flat = array.reshape(-1)
        flat.view(np.uint32)[int(np.abs(flat).argmax())] ^= np.uint32(1 << 22)

    _edit(chosen[int(rng.integers(len(chosen)))], flip)


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]


def _rescale_gain(norm: nn.BatchNorm2d) -> None:
    """Give a batch norm the gain that it would have with an epsilon of 1e-3."""
    variance = norm.running_var
    assert variance is not None
    norm.weight.mul_(torch.sqrt((variance + norm.eps) / (variance + EPSILON)))


def _set_epsilons(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f = EPSILON


def _layer_norms(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in proto.graph.node if node.op_type == "LayerNormalization"]


def _wrong_epsilons_in_module(module: nn.Module, rng: np.random.Generator) -> None:
    for norm in _batch_norms(module):
        _rescale_gain(norm)


def _wrong_epsilons_in_graph(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    _set_epsilons(_layer_norms(proto))


def _one_wrong_epsilon_in_module(module: nn.Module, rng: np.random.Generator) -> None:
    if norms := _batch_norms(module):
        _rescale_gain(norms[int(rng.integers(len(norms)))])


def _one_wrong_epsilon_in_graph(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    if norms := _layer_norms(proto):
        _set_epsilons([norms[int(rng.integers(len(norms)))]])


def _swap_channels(proto: onnx.ModelProto, rng: np.random.Generator) -> None:
    chosen = [tensor for tensor in _weights(proto) if tensor.dims[0] > 1]

    def swap(array: NDArray[np.float32]) -> None:
        first, second = rng.choice(array.shape[0], 2, replace=False)
        array[[first, second]] = array[[second, first]]

    _edit(chosen[int(rng.integers(len(chosen)))], swap)


def _drop_mean(module: nn.Module, rng: np.random.Generator) -> None:
    assert isinstance(module, Network)
    module.mean[0, int(rng.integers(3))] = 0.0


@dataclass(frozen=True)
class Fault:
    """An exporter's mistake, made in the torch module, the ONNX graph, or both."""

    name: str
    in_module: Callable[[nn.Module, np.random.Generator], None] | None = None
    in_graph: Callable[[onnx.ModelProto, np.random.Generator], None] | None = None


FAULTS = (
    # The highest mantissa bit of the largest weight of one layer, drawn at random.
    Fault("mantissa bit of one weight", in_graph=_flip_mantissa_bit),
    # 1e-3 where the network has 1e-5 (batch norms) or 1e-6 (layer norms).
    Fault("epsilon of all norms", _wrong_epsilons_in_module, _wrong_epsilons_in_graph),
    Fault("epsilon of one norm", _one_wrong_epsilon_in_module, _one_wrong_epsilon_in_graph),
    # Two output channels of one layer, drawn at random.
    Fault("two channels swapped", in_graph=_swap_channels),
    # The mean of one colour, which the normalisation subtracts.
    Fault("mean of one colour missing", _drop_mean),
)
