"""Run an ONNX graph with onnxruntime and read its intermediate tensors."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge_export.graph.fp16 import float_tensors
from dermedge_runtime.signature import INPUT
from dermedge_runtime.telemetry import import_silently

if TYPE_CHECKING:
    import onnxruntime

# A tensor's range is far from the limit of fp16 or far beyond it, so few images
# suffice.
MAX_IMAGES = 32


def open_session(graph: bytes, *, optimized: bool) -> "onnxruntime.InferenceSession":
    """Open an ONNX model on the CPU without log output.

    Args:
        graph: The ONNX model.
        optimized: Let onnxruntime fuse operators. Otherwise it computes the
            operators one by one, and every tensor of the graph exists.
    """
    onnxruntime = import_silently("onnxruntime")
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    # The arena keeps the largest amount of memory that a run has needed; each graph
    # runs briefly.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def watch_tensors(
    graph: bytes, names: Sequence[str], images: NDArray[np.uint8]
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield the float tensors called `names` for each image, one image at a time.

    Args:
        graph: The fp32 ONNX model.
        names: Tensors of the graph, intermediate ones included.
        images: uint8 [N, S, S, 3].
    """
    import onnx

    model = onnx.load_model_from_string(graph)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in names
        if name not in known
    )
    session = open_session(model.SerializeToString(), optimized=True)
    for image in images:
        yield session.run(list(names), {INPUT: image[None]})


def evenly_spaced(images: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """Return at most `most` of the images [N, S, S, 3], evenly spaced, in order."""
    count = min(most, len(images))
    spaced: NDArray[np.uint8] = images[
        np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    ]
    return spaced


def peak(values: NDArray[np.float32]) -> np.float32:
    """Return the largest magnitude; NaN if a value is NaN."""
    return np.float32(np.maximum(values.max(initial=0), -values.min(initial=0)))


def activation_peaks(graph: bytes, images: NDArray[np.uint8]) -> dict[str, float]:
    """Measure the largest magnitude of every float activation of an fp32 ONNX graph.

    Args:
        graph: The ONNX model, shapes inferred.
        images: uint8 [N, S, S, 3]; at most 32, evenly spaced, are used.

    Returns:
        The peak by tensor name; NaN if the tensor holds a NaN on one of the images.
    """
    import onnx

    model = onnx.load_model_from_string(graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    names = sorted(float_tensors(model) - constants)
    chosen = evenly_spaced(images, MAX_IMAGES)
    peaks = np.zeros(len(names), np.float32)
    for values in watch_tensors(graph, names, chosen):
        peaks = np.maximum(peaks, [peak(value) for value in values])
    return {name: float(value) for name, value in zip(names, peaks, strict=True)}


def rounded_runner(
    graph: bytes,
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]:
    """Return a function that runs a typed graph and rounds every fp16 tensor to fp16.

    The function maps uint8 [N, S, S, 3] to float32 outputs [N, ...] by task. A value
    that overflows fp16 becomes infinite, as in an engine that computes in fp16.
    """
    import onnx

    # onnxruntime's CPU kernels compute most fp16 operators in fp32. Its InsertCast pass
    # drops the casts between them at every optimization level, which hides an overflow
    # (microsoft/onnxruntime#8018, #11831). With optimizers off it cannot drop a tensor
    # that two operators with fp16 kernels pass on. One such operator alone becomes fp32
    # again, hence two Identity nodes behind every fp16 tensor. Before deleting them,
    # check that tests/export/test_fp16.py::TestRounding passes without them.
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    halves = float_tensors(model, onnx.TensorProto.FLOAT16)
    nodes = []
    for node in model.graph.node:
        rounded = [name for name in node.output if name in halves]
        node.output[:] = [f"{name}.exact" if name in rounded else name for name in node.output]
        nodes.append(node)
        for name in rounded:
            nodes.append(onnx.helper.make_node("Identity", [f"{name}.exact"], [f"{name}.held"]))
            nodes.append(onnx.helper.make_node("Identity", [f"{name}.held"], [name]))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    names = [output.name for output in model.graph.output]
    session = open_session(model.SerializeToString(), optimized=False)

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        rows = [session.run(names, {INPUT: image[None]}) for image in images]
        columns = zip(*rows, strict=True)
        return {name: np.concatenate(column) for name, column in zip(names, columns, strict=True)}

    return run
