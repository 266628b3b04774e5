"""Compute the operators of a Core ML program with torch, one image at a time, in fp32.

Names and parameters are those of Core ML's Model Intermediate Language (MIL). Constants
that describe an operator are plain numbers, lists and strings. Constants that are
computed with, and all other values, are float32 tensors.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from dermedge_export.exporters.coreml.convolution import (
    avg_pool,
    conv,
    conv_transpose,
    max_pool,
    upsample_bilinear,
)
from dermedge_runtime.errors import UsageError

if TYPE_CHECKING:
    import torch

Operator = Callable[..., "torch.Tensor | Sequence[torch.Tensor]"]
# These operators only move or select numbers, which are rounded already.
_MOVING_TABLE = """
concat expand_dims gather identity max_pool maximum minimum pad pixel_shuffle reduce_max
reduce_min relu reshape reverse select slice_by_index slice_by_size split squeeze stack
tile transpose upsample_nearest_neighbor argmax reduce_argmax
"""
MOVING = frozenset(_MOVING_TABLE.split())
# The values of arguments that are implemented, where an operator does not implement
# all. The simulation refuses a program with another value, as it does with unknown
# operators.
IMPLEMENTED: Mapping[str, Mapping[str, Sequence[object]]] = {
    "cast": {"dtype": ("fp16", "fp32", "int8", "int16", "int32", "uint8", "uint16")},
    "concat": {"interleave": (False,)},
    "gather": {"batch_dims": (0,), "validate_indices": (False,)},
    "gelu": {"mode": ("EXACT", "TANH_APPROXIMATION")},
    "pad": {"mode": ("constant", "reflect", "replicate")},
    "quantize": {"output_dtype": ("int8", "uint8")},
}


def check_arguments(kind: str, name: str, arguments: Mapping[str, object]) -> Operator:
    """Return the implementation of an operator, if it implements all of the arguments.

    Args:
        kind: The operator's MIL name.
        name: The operator's name in the program, for messages.
        arguments: Every argument by parameter. A tensor, or its name, is a value that
            flows in; everything else is a plain constant.

    Raises:
        UsageError: The operator, a parameter, or a parameter's value is not
            implemented.

    Example:
        >>> arguments = {"values": ("a", "b"), "axis": 1, "interleave": True}
        >>> try:
        ...     check_arguments("concat", "join", arguments)
        ... except UsageError as error:
        ...     print(str(error).partition(",")[0])
        The simulation of Core ML lacks interleave=True of concat (join)
    """
    known = operators()
    if kind not in known:
        raise _not_simulated(f"the operator {kind!r}")
    accepted = inspect.signature(known[kind]).parameters
    implemented = IMPLEMENTED.get(kind, {})
    for parameter, value in arguments.items():
        if parameter not in accepted:
            raise _not_simulated(f"{parameter} of {kind} ({name})")
        if parameter in implemented and value not in implemented[parameter]:
            raise _not_simulated(f"{parameter}={value!r} of {kind} ({name})")
    corners = bool(arguments.get("align_corners", True))
    if arguments.get("half_pixel_centers", not corners) is corners:
        # torch samples at pixel centres exactly when it does not align corners.
        raise _not_simulated(f"half_pixel_centers={corners} of {kind} ({name})")
    return known[kind]


def _not_simulated(what: str) -> UsageError:
    return UsageError(
        f"The simulation of Core ML lacks {what}, so the artifact's accuracy cannot be checked. "
        "Export for android or cpu, or take another backbone."
    )


@cache
def operators() -> Mapping[str, Operator]:
    """Return the implemented operators by MIL name."""
    import torch
    from torch.nn import functional

    return {
        "abs": lambda x: x.abs(),
        "add": lambda x, y: x + y,
        "avg_pool": avg_pool,
        "batch_norm": lambda x, mean, variance, gamma=None, beta=None, epsilon=1e-5: (
            functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)
        ),
        "cast": lambda x, dtype: x.trunc() if dtype.startswith(("int", "uint")) else x,
        "ceil": lambda x: x.ceil(),
        "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta),
        "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
        "concat": lambda values, axis, interleave=False: torch.cat(values, axis),
        "conv": conv,
        "conv_transpose": conv_transpose,
        "cos": lambda x: x.cos(),
        "dequantize": lambda input, scale, zero_point=0, axis=None: (
            (input - _along(zero_point, input, axis)) * _along(scale, input, axis)
        ),
        "einsum": lambda values, equation: torch.einsum(equation, *values),
        "elu": lambda x, alpha=1.0: functional.elu(x, alpha),
        "erf": lambda x: x.erf(),
        "exp": lambda x: x.exp(),
        "expand_dims": _expand_dims,
        "floor": lambda x: x.floor(),
        "floor_div": lambda x, y: (x / y).floor(),
        "gather": _gather,
        "gelu": lambda x, mode="EXACT": functional.gelu(
            x, approximate="none" if mode == "EXACT" else "tanh"
        ),
        "identity": lambda x: x,
        "instance_norm": lambda x, gamma=None, beta=None, epsilon=1e-5: functional.instance_norm(
            x, weight=gamma, bias=beta, eps=epsilon
        ),
        "inverse": lambda x, epsilon=1e-4: 1 / (x + epsilon),
        "l2_norm": lambda x, epsilon=1e-6: (
            x / (x.square().sum((-1, -2, -3), keepdim=True) + epsilon).sqrt()
        ),
        "layer_norm": _layer_norm,
        "leaky_relu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
        "linear": lambda x, weight, bias=None: functional.linear(x, weight, bias),
        "linear_activation": lambda x, alpha, beta=0.0: alpha * x + beta,
        "log": lambda x, epsilon=1e-45: (x + epsilon).log(),
        "matmul": lambda x, y, transpose_x=False, transpose_y=False: (
            (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)
        ),
        "max_pool": max_pool,
        "maximum": lambda x, y: torch.maximum(x, y),
        "minimum": lambda x, y: torch.minimum(x, y),
        "mul": lambda x, y: x * y,
        "pad": _pad,
        "pixel_shuffle": lambda x, upscale_factor: functional.pixel_shuffle(x, upscale_factor),
        "pow": lambda x, y: x**y,
        "prelu": lambda x, alpha: functional.prelu(x, alpha),
        "quantize": _quantize,
        "real_div": lambda x, y: x / y,
        "reduce_l2_norm": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
        "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
        "reduce_mean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
        "reduce_min": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
        "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
        "reduce_sum_square": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
        "relu": lambda x: x.relu(),
        "relu6": lambda x: functional.relu6(x),
        "reshape": lambda x, shape: x.reshape(
            [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
        ),
        "reverse": lambda x, axes=None: x.flip(axes if axes is not None else list(range(x.ndim))),
        "round": lambda x: x.round(),
        "rsqrt": lambda x, epsilon=1e-12: (x + epsilon).rsqrt(),
        "scaled_dot_product_attention": lambda query, key, value, attn_mask=None: (
            functional.scaled_dot_product_attention(query, key, value, attn_mask)
        ),
        "scaled_tanh": lambda x, alpha=1.0, beta=1.0: alpha * (beta * x).tanh(),
        "select": lambda cond, a, b: torch.where(cond.bool(), a, b),
        "sigmoid": lambda x: x.sigmoid(),
        "sigmoid_hard": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
        "sign": lambda x: x.sign(),
        "silu": lambda x: functional.silu(x),
        "sin": lambda x: x.sin(),
        "slice_by_index": _slice_by_index,
        "slice_by_size": lambda x, begin, size: x[
            tuple(slice(b, None if n == -1 else b + n) for b, n in zip(begin, size, strict=True))
        ],
        "softmax": lambda x, axis=-1: x.softmax(axis),
        "softplus": lambda x: functional.softplus(x),
        "softsign": lambda x: functional.softsign(x),
        "split": lambda x, axis, split_sizes=None, num_splits=None: x.split(
            split_sizes if split_sizes is not None else x.shape[axis] // num_splits, axis
        ),
        "sqrt": lambda x: x.sqrt(),
        "square": lambda x: x.square(),
        "squeeze": lambda x, axes=None: x.squeeze(tuple(axes)) if axes is not None else x.squeeze(),
        "stack": lambda values, axis: torch.stack(list(values), axis),
        "sub": lambda x, y: x - y,
        "tanh": lambda x: x.tanh(),
        "thresholded_relu": lambda x, alpha=1.0: torch.where(x >= alpha, x, 0.0),
        "tile": lambda x, reps: x.tile(reps),
        "transpose": lambda x, perm: x.permute(perm),
        "upsample_bilinear": upsample_bilinear,
        "upsample_nearest_neighbor": lambda x, scale_factor_height=1, scale_factor_width=1: (
            functional.interpolate(
                x,
                scale_factor=(float(scale_factor_height), float(scale_factor_width)),
                mode="nearest",
            )
        ),
    }


def _reduce(compute: Operator) -> Operator:
    """Return a reduction over `axes`, over all axes by default."""

    def reduce(
        x: "torch.Tensor", axes: list[int] | None = None, keep_dims: bool = False
    ) -> "torch.Tensor | Sequence[torch.Tensor]":
        return compute(x, list(axes) if axes is not None else list(range(x.ndim)), keep_dims)

    return reduce


def _along(
    value: "torch.Tensor | float", x: "torch.Tensor", axis: int | None
) -> "torch.Tensor | float":
    """Return a scale or zero point, for all channels or one each, shaped as `x`."""
    if axis is None or isinstance(value, (int, float)) or not value.ndim:
        return value
    return value.reshape([-1 if index == axis % x.ndim else 1 for index in range(x.ndim)])


def _quantize(
    input: "torch.Tensor",
    scale: "torch.Tensor | float",
    output_dtype: str,
    zero_point: "torch.Tensor | float" = 0,
    axis: int | None = None,
) -> "torch.Tensor":
    """Return quantized levels, as float32."""
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    return ((input / _along(scale, input, axis)).round() + _along(zero_point, input, axis)).clamp(
        low, high
    )


def _layer_norm(
    x: "torch.Tensor",
    axes: list[int] | None = None,
    gamma: "torch.Tensor | None" = None,
    beta: "torch.Tensor | None" = None,
    epsilon: float = 1e-5,
) -> "torch.Tensor":
    """Normalize over `axes`, over all axes by default."""
    axes = list(axes) if axes is not None else list(range(x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    shape = [x.shape[axis] if axis in {a % x.ndim for a in axes} else 1 for axis in range(x.ndim)]
    if gamma is not None:
        normal = normal * gamma.reshape(shape)
    return normal if beta is None else normal + beta.reshape(shape)


def _expand_dims(x: "torch.Tensor", axes: list[int]) -> "torch.Tensor":
    """Insert axes of size 1 at the positions that they have in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(
    x: "torch.Tensor",
    indices: "torch.Tensor | Sequence[int] | int",
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> "torch.Tensor":
    """Select slices along an axis; negative indices count from the end."""
    import torch

    chosen = torch.as_tensor(indices).long()
    rows = x.index_select(axis, chosen.flatten() % x.shape[axis])
    axis %= x.ndim
    return rows.reshape([*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]])


def _pad(
    x: "torch.Tensor", pad: list[int], mode: str = "constant", constant_val: float = 0.0
) -> "torch.Tensor":
    """Pad the last axes; MIL lists the first of them first, and torch the last."""
    from torch.nn import functional

    pairs = [pad[index : index + 2] for index in range(0, len(pad), 2)]
    flat = [number for pair in reversed(pairs) for number in pair]
    if mode == "constant":
        return functional.pad(x, flat, value=constant_val)
    # torch reflects and replicates spatial axes only, so unpadded outer axes are left
    # out.
    while flat[-2:] == [0, 0] and len(flat) > 2:
        flat = flat[:-2]
    return functional.pad(x, flat, mode="reflect" if mode == "reflect" else "replicate")


def _slice_by_index(
    x: "torch.Tensor",
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> "torch.Tensor":
    """Slice each axis as `begin:end:stride`; a mask opens an end or drops the axis."""
    never = [False] * x.ndim
    begin_mask, end_mask, squeeze_mask = (
        begin_mask or never,
        end_mask or never,
        squeeze_mask or never,
    )
    steps = stride or [1] * x.ndim
    for axis in range(x.ndim):
        size, step = x.shape[axis], steps[axis]
        if squeeze_mask[axis]:
            x = x.narrow(axis, begin[axis] % size, 1)
            continue
        start = None if begin_mask[axis] else begin[axis]
        stop = None if end_mask[axis] else end[axis]
        chosen = range(size)[slice(start, stop, step)]
        x = (
            x.index_select(axis, _indices(chosen))
            if step != 1
            else x.narrow(axis, chosen.start, len(chosen))
        )
    return x.squeeze(tuple(axis for axis in range(x.ndim) if squeeze_mask[axis]))


def _indices(chosen: range) -> "torch.Tensor":
    """Return the positions of a range as a tensor."""
    import torch

    return torch.tensor(list(chosen), dtype=torch.long)
