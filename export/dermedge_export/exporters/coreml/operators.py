"""The operators of a Core ML program in torch, one image at a time, computed in fp32.

Names and parameters are those of Core ML's Model Intermediate Language (MIL). Constants that describe come as plain
numbers, lists and strings; constants that are computed with, and all that flows, come as float32 tensors.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

Operator = Callable[..., Any]
# What only moves numbers about or chooses among them needs no rounding: they are rounded already.
MOVING = frozenset(
    (
        *(
            "concat",
            "expand_dims",
            "gather",
            "identity",
            "max_pool",
            "maximum",
            "minimum",
            "pad",
            "pixel_shuffle",
        ),
        *(
            "reduce_max",
            "reduce_min",
            "relu",
            "reshape",
            "reverse",
            "select",
            "slice_by_index",
            "slice_by_size",
        ),
        *(
            "split",
            "squeeze",
            "stack",
            "tile",
            "transpose",
            "upsample_nearest_neighbor",
            "argmax",
            "reduce_argmax",
        ),
    )
)


@cache
def operators() -> Mapping[str, Operator]:
    """Operators by MIL name."""
    import torch
    from torch.nn import functional

    return {
        "abs": lambda x: x.abs(),
        "add": lambda x, y: x + y,
        "avg_pool": _avg_pool,
        "batch_norm": lambda x, mean, variance, gamma=None, beta=None, epsilon=1e-5: (
            functional.batch_norm(x, mean, variance, gamma, beta, eps=epsilon)
        ),
        "cast": lambda x, dtype: x.trunc() if dtype.startswith(("int", "uint")) else x,
        "ceil": lambda x: x.ceil(),
        "clamped_relu": lambda x, alpha, beta: torch.where(x >= 0, x, alpha * x).clamp(max=beta),
        "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
        "concat": lambda values, axis, interleave=False: torch.cat(values, axis),
        "conv": _conv,
        "conv_transpose": _conv_transpose,
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
        "max_pool": _max_pool,
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
        "upsample_bilinear": lambda x, scale_factor_height=1, scale_factor_width=1, align_corners=True, **_: (
            functional.interpolate(
                x,
                scale_factor=(float(scale_factor_height), float(scale_factor_width)),
                mode="bilinear",
                align_corners=align_corners,
            )
        ),
        "upsample_nearest_neighbor": lambda x, scale_factor_height=1, scale_factor_width=1: (
            functional.interpolate(
                x,
                scale_factor=(float(scale_factor_height), float(scale_factor_width)),
                mode="nearest",
            )
        ),
    }


def _reduce(compute: Operator) -> Operator:
    def reduce(x: Any, axes: list[int] | None = None, keep_dims: bool = False) -> Any:
        return compute(x, list(axes) if axes is not None else list(range(x.ndim)), keep_dims)

    return reduce


def _along(value: Any, x: Any, axis: int | None) -> Any:
    """A scale or zero point, one number or one per channel along `axis`, broadcast over `x`."""
    if axis is None or not getattr(value, "ndim", 0):
        return value
    return value.reshape([-1 if index == axis % x.ndim else 1 for index in range(x.ndim)])


def _quantize(
    input: Any, scale: Any, output_dtype: str, zero_point: Any = 0, axis: int | None = None
) -> Any:
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    return ((input / _along(scale, input, axis)).round() + _along(zero_point, input, axis)).clamp(
        low, high
    )


def _padding(
    x: Any,
    kernel: list[int],
    strides: list[int],
    pad_type: str,
    pad: list[int] | None,
    dilations: Any,
) -> list[int]:
    """Begin and end of each spatial axis, in MIL's order."""
    if pad_type == "custom":
        return list(pad or [0] * 2 * len(kernel))
    if pad_type == "valid":
        return [0] * 2 * len(kernel)
    found: list[int] = []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        found += (more, less) if pad_type == "same_lower" else (less, more)
    return found


def _padded(x: Any, pad: list[int], value: float = 0.0) -> Any:
    """`x` padded as MIL says it: begin and end of the first spatial axis first, where torch begins with the last."""
    from torch.nn import functional

    if not any(pad):
        return x
    pairs = [pad[index : index + 2] for index in range(0, len(pad), 2)]
    return functional.pad(x, [number for pair in reversed(pairs) for number in pair], value=value)


def _conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Any:
    from torch.nn import functional

    kernel = weight.shape[2:]
    strides, dilations = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    pads = _padding(x, kernel, strides, pad_type, pad, dilations)
    even: list[int] | int = pads[::2]
    if pads[::2] != pads[1::2]:
        x, even = _padded(x, pads), 0
    convolve = functional.conv1d if len(kernel) == 1 else functional.conv2d
    return convolve(x, weight, bias, strides, even, dilations, groups)


def _conv_transpose(
    x: Any,
    weight: Any,
    bias: Any = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> Any:
    from torch.nn import functional

    strides, dilations = strides or [1, 1], dilations or [1, 1]
    whole = functional.conv_transpose2d(x, weight, bias, strides, 0, 0, groups, dilations)
    top, bottom, left, right = _padding(x, weight.shape[2:], strides, pad_type, pad, dilations)
    height, width = (
        output_shape[-2:]
        if output_shape
        else (whole.shape[2] - top - bottom, whole.shape[3] - left - right)
    )
    return whole[:, :, top : top + height, left : left + width]


def _avg_pool(
    x: Any,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Any:
    import torch
    from torch.nn import functional

    strides = strides or [1] * len(kernel_sizes)
    pads = _padding(x, kernel_sizes, strides, pad_type, pad, [1] * len(kernel_sizes))
    pooled = functional.avg_pool2d(_padded(x, pads), kernel_sizes, strides, 0, ceil_mode)
    if not exclude_padding_from_average or not any(pads):
        return pooled
    inside = _padded(torch.ones_like(x), pads)
    return pooled / functional.avg_pool2d(inside, kernel_sizes, strides, 0, ceil_mode)


def _max_pool(
    x: Any,
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> Any:
    from torch.nn import functional

    strides = strides or [1] * len(kernel_sizes)
    pads = _padding(x, kernel_sizes, strides, pad_type, pad, [1] * len(kernel_sizes))
    return functional.max_pool2d(
        _padded(x, pads, float("-inf")), kernel_sizes, strides, 0, 1, ceil_mode
    )


def _layer_norm(
    x: Any,
    axes: list[int] | None = None,
    gamma: Any = None,
    beta: Any = None,
    epsilon: float = 1e-5,
) -> Any:
    axes = list(axes) if axes is not None else list(range(x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    shape = [x.shape[axis] if axis in {a % x.ndim for a in axes} else 1 for axis in range(x.ndim)]
    if gamma is not None:
        normal = normal * gamma.reshape(shape)
    return normal if beta is None else normal + beta.reshape(shape)


def _expand_dims(x: Any, axes: list[int]) -> Any:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _gather(
    x: Any, indices: Any, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Any:
    import torch

    chosen = torch.as_tensor(indices).long()
    rows = x.index_select(axis, chosen.flatten() % x.shape[axis])
    axis %= x.ndim
    return rows.reshape([*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]])


def _pad(x: Any, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Any:
    from torch.nn import functional

    pairs = [pad[index : index + 2] for index in range(0, len(pad), 2)]
    flat = [number for pair in reversed(pairs) for number in pair]
    if mode == "constant":
        return functional.pad(x, flat, value=constant_val)
    while flat[-2:] == [0, 0] and len(flat) > 2:  # torch reflects and replicates spatial axes only
        flat = flat[:-2]
    return functional.pad(x, flat, mode="reflect" if mode == "reflect" else "replicate")


def _slice_by_index(
    x: Any,
    begin: list[int],
    end: list[int],
    stride: list[int] | None = None,
    begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None,
    squeeze_mask: list[bool] | None = None,
) -> Any:
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


def _indices(chosen: range) -> Any:
    import torch

    return torch.tensor(list(chosen), dtype=torch.long)
