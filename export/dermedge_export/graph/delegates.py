"""Find what breaks on GPUs that compute in fp16, and split the means that overflow.

LiteRT's delegates offer such GPUs on phones and in browsers. The same file is right on
their CPUs, so neither the gate nor `verify` can see the fault on the exporting machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.fp16 import LARGEST, MARGIN
from dermedge_export.graph.read_litert import read_litert
from dermedge_export.graph.run import MAX_IMAGES, evenly_spaced, peak
from dermedge_export.toolchain import quiet
from dermedge_runtime.errors import DermedgeError

if TYPE_CHECKING:
    import torch

MEANS = ("mean", "adaptive_avg_pool2d")
ROWS, COLUMNS = 2, 3  # axes of a feature map [N, C, H, W]
# Operators that return an index, by name and overload. A GPU of Core AI computed wrong
# ones (apple/coreai-torch#116).
INDICES = ("argmax", "argmin", "max.dim", "min.dim", "topk", "sort", "argsort")


@dataclass(frozen=True)
class Hazard:
    """An operator that a GPU may compute wrongly in fp16.

    Attributes:
        layer: Path of the module that calls the operator.
        operator: Name of the ATen operator.
        reason: The reason, with the number that was measured.

    Example:
        >>> str(Hazard("blocks.0.se", "mean", "it sums up to 81,000"))
        'blocks.0.se (mean): it sums up to 81,000'
    """

    layer: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"{self.layer} ({self.operator}): {self.reason}"


def find_hazards(module: "torch.nn.Module", images: NDArray[np.uint8]) -> tuple[Hazard, ...]:
    """List the operators that a GPU may compute wrongly in fp16, in their order.

    The module runs in fp32. The function looks at each result, at the sums inside means
    and norms, and for operators that return an index.

    Args:
        module: Maps uint8 images [N, S, S, 3] to outputs by task, in eval mode; it is
            not changed.
        images: uint8 [N, S, S, 3]; at most 32, evenly spaced, are used.

    Raises:
        DermedgeError: torch.export cannot trace this network.

    Example:
        >>> import torch
        >>> class Brightness(torch.nn.Module):
        ...     def forward(self, image):
        ...         return {"malignancy": image.float().mean((1, 2, 3))[:, None]}
        >>> images = np.full((1, 32, 32, 3), 200, np.uint8)
        >>> [hazard.reason for hazard in find_hazards(Brightness().eval(), images)]
        ['its sum reaches 614,400, and fp16 ends at 65,504']
    """
    graph = _capture(module, images.shape[1:])
    results, sums = _measure(graph, images)
    beyond = {node for node, value in results.items() if _overflows(value)}
    hazards = []
    for node in graph.graph.nodes:
        name = _kind(node).partition(".")[0]
        if _overflows(sums.get(node)):
            reason = f"its sum reaches {sums[node]:,.0f}, and fp16 ends at {LARGEST:,.0f}"
        # Only the operator that leaves the range is named, not those that pass it on.
        elif node in beyond and not beyond.intersection(node.all_input_nodes):
            reason = f"its result reaches {results[node]:,.0f}, and fp16 ends at {LARGEST:,.0f}"
        elif name in INDICES or _kind(node) in INDICES:
            reason = "a GPU may return another index"
        else:
            continue
        hazards.append(Hazard(_layer(node), name, reason))
    return tuple(hazards)


def split_means(module: "torch.nn.Module", images: NDArray[np.uint8]) -> "torch.nn.Module":
    """Return a module whose global means do not overflow fp16 on the way.

    A mean over the columns and then over the rows sums a few dozen values at a time,
    instead of thousands. In fp32 the result differs by rounding only.

    Args:
        module: Maps uint8 images [N, S, S, 3] to outputs by task, in eval mode; it is
            not changed.
        images: uint8 [N, S, S, 3]; at most 32, evenly spaced, are used.

    Returns:
        The module itself if no global mean overflows.

    Raises:
        DermedgeError: torch.export cannot trace this network.
    """
    # LiteRT's GPU backends accumulate such sums in fp16. EfficientNet returns only NaN
    # there (google-ai-edge/LiteRT#9249). Delete this function once they accumulate in
    # fp32.
    import torch

    graph = _capture(module, images.shape[1:])
    _, sums = _measure(graph, images)
    wide = [node for node in sums if _overflows(sums[node]) and _is_global_mean(node)]
    for node in wide:
        with graph.graph.inserting_before(node):
            mean: Any = node.args[0]
            for axis in (COLUMNS, ROWS):
                mean = graph.graph.call_function(torch.ops.aten.mean.dim, (mean, [axis], True))
                mean.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
            if node.meta["val"].ndim == 2:
                mean = graph.graph.call_function(torch.ops.aten.flatten.using_ints, (mean, 1))
        node.replace_all_uses_with(mean)
        graph.graph.erase_node(node)
    if not wide:
        return module
    graph.recompile()
    return graph


def find_transposes(model: bytes) -> tuple[Hazard, ...]:
    """Return a hazard if a LiteRT model turns its feature maps for its convolutions.

    A converter that keeps torch's channels-first layout writes a transpose before and
    behind each convolution. They cost time on every delegate, and some refuse them.

    Args:
        model: The content of a `.tflite` file.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
    """
    operators = read_litert(model)
    turned = [one for one in operators if one.kind == "TRANSPOSE" and len(one.shape) == 4]
    convolutions = [one for one in operators if "CONV" in one.kind]
    if not convolutions or len(turned) < len(convolutions):
        return ()
    reason = f"{len(turned)} transposes of feature maps for {len(convolutions)} convolutions"
    return (Hazard(turned[0].name, "transpose", reason),)


def _capture(module: "torch.nn.Module", shape: Sequence[int]) -> "torch.fx.GraphModule":
    """Return the module as a graph of ATen operators for a batch of one."""
    import torch

    example = torch.zeros(1, *shape, dtype=torch.uint8)
    try:
        with quiet():
            exported = torch.export.export(module, (example,)).module(check_guards=False)
    except Exception as error:  # torch.export has no base class for its errors
        raise DermedgeError(
            f"torch.export cannot trace this network ({error}). Choose another backbone."
        ) from error
    assert isinstance(exported, torch.fx.GraphModule)
    # An exported module refuses eval(); a GraphModule made from its graph does not.
    return torch.fx.GraphModule(exported, exported.graph)


def _measure(
    graph: "torch.fx.GraphModule", images: NDArray[np.uint8]
) -> tuple[dict["torch.fx.Node", float], dict["torch.fx.Node", float]]:
    """Return the largest magnitude of each operator's result, and of its inner sums."""
    import torch

    results: dict[torch.fx.Node, float] = {}
    sums: dict[torch.fx.Node, float] = {}

    class Observer(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if _kind(n) and isinstance(result, torch.Tensor) and result.is_floating_point():
                arguments, _ = self.fetch_args_kwargs_from_env(n)
                if not _is_folded(n):
                    _note(results, n, result)
                for total in _inner_sums(_kind(n), arguments):
                    _note(sums, n, total)
            return result

    observer = Observer(graph)
    with torch.inference_mode():
        for image in evenly_spaced(images, MAX_IMAGES):
            observer.run(torch.from_numpy(image[None].copy()))
    return results, sums


def _note(peaks: dict["torch.fx.Node", float], node: "torch.fx.Node", value: Any) -> None:
    """Raise a node's peak to the largest magnitude of a tensor; NaN stays."""
    peaks[node] = float(np.maximum(peaks.get(node, 0.0), peak(value.numpy())))


def _inner_sums(kind: str, arguments: Sequence[Any]) -> "list[torch.Tensor]":
    """Return the sums that an operator computes before its result."""
    name = kind.partition(".")[0]
    x: Any = arguments[0] if arguments else None
    if name in ("mean", "sum") or (name in MEANS and _is_one(arguments[1])):
        axes = (ROWS, COLUMNS) if name == "adaptive_avg_pool2d" else _axes(arguments)
        # The terms of both signs count on their own, because a GPU adds in any order.
        return [x.float().clamp(min=0).sum(axes), x.float().clamp(max=0).sum(axes)]
    if name == "layer_norm":
        axes = tuple(range(-len(arguments[1]), 0))
        return [(x - x.mean(axes, keepdim=True)).square().sum(axes)]
    if name == "group_norm":
        groups = x.reshape(len(x), arguments[1], -1)
        return [(groups - groups.mean(-1, keepdim=True)).square().sum(-1)]
    if name == "linalg_vector_norm":
        return [x.square().sum(_axes((x, *arguments[2:])))]
    return []


def _axes(arguments: Sequence[Any]) -> tuple[int, ...]:
    """Return the axes of a reduction whose second argument may name them."""
    axes = arguments[1] if len(arguments) > 1 else None
    if isinstance(axes, int):
        return (axes,)
    return tuple(axes) if axes else tuple(range(arguments[0].ndim))


def _is_folded(node: "torch.fx.Node") -> bool:
    """Return whether a batch norm alone reads a node, so that exporters fold them."""
    return all(_kind(user).startswith("batch_norm") for user in node.users) and bool(node.users)


def _is_one(size: Any) -> bool:
    return tuple(size) == (1, 1) if isinstance(size, (list, tuple)) else size == 1


def _is_global_mean(node: "torch.fx.Node") -> bool:
    """Return whether a node averages each channel of a feature map [N, C, H, W]."""
    x: Any = node.args[0]
    rank = x.meta["val"].ndim
    if _kind(node).startswith("adaptive_avg_pool2d"):
        return True
    axes: Any = node.args[1] if len(node.args) > 1 else ()
    return _kind(node).startswith("mean") and rank == 4 and {a % 4 for a in axes} == {ROWS, COLUMNS}


def _overflows(value: float | None) -> bool:
    """Return whether a number is beyond half of fp16's range, or NaN."""
    return value is not None and not value <= MARGIN * LARGEST


def _kind(node: "torch.fx.Node") -> str:
    """Return name and overload of a node's ATen operator, such as `max.dim`."""
    return str(node.target).removeprefix("aten.") if node.op == "call_function" else ""


def _layer(node: "torch.fx.Node") -> str:
    """Return the path of the module that calls an operator."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack and stack[-1][0] else "network"
