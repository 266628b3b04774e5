"""Compute convolution, pooling and upsampling of Core ML programs with torch.

Parameters are those of Core ML's Model Intermediate Language (MIL).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def _padding(
    x: "torch.Tensor",
    kernel: Sequence[int],
    strides: Sequence[int],
    pad_type: str,
    pad: Sequence[int] | None,
    dilations: Sequence[int],
) -> list[int]:
    """Return the padding before and behind each spatial axis, in MIL's order."""
    if pad_type == "custom":
        return list(pad or [0] * 2 * len(kernel))
    if pad_type == "valid":
        return [0] * 2 * len(kernel)
    pads: list[int] = []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        pads += (more, less) if pad_type == "same_lower" else (less, more)
    return pads


def _padded(x: "torch.Tensor", pad: list[int], value: float = 0.0) -> "torch.Tensor":
    """Pad `x`; MIL lists the first spatial axis first, and torch the last."""
    from torch.nn import functional

    if not any(pad):
        return x
    pairs = [pad[index : index + 2] for index in range(0, len(pad), 2)]
    return functional.pad(x, [number for pair in reversed(pairs) for number in pair], value=value)


def conv(
    x: "torch.Tensor",
    weight: "torch.Tensor",
    bias: "torch.Tensor | None" = None,
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> "torch.Tensor":
    """Convolve; torch pads both sides equally, so unequal padding is a step before."""
    from torch.nn import functional

    kernel = weight.shape[2:]
    strides, dilations = strides or [1] * len(kernel), dilations or [1] * len(kernel)
    pads = _padding(x, kernel, strides, pad_type, pad, dilations)
    even: list[int] | int = pads[::2]
    if pads[::2] != pads[1::2]:
        x, even = _padded(x, pads), 0
    convolve = functional.conv1d if len(kernel) == 1 else functional.conv2d
    return convolve(x, weight, bias, strides, even, dilations, groups)


def conv_transpose(
    x: "torch.Tensor",
    weight: "torch.Tensor",
    bias: "torch.Tensor | None" = None,
    pad: list[int] | None = None,
    output_shape: list[int] | None = None,
    pad_type: str = "valid",
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    groups: int = 1,
) -> "torch.Tensor":
    """Convolve transposed without padding, then crop to the size that MIL states."""
    from torch.nn import functional

    strides, dilations = strides or [1, 1], dilations or [1, 1]
    full = functional.conv_transpose2d(x, weight, bias, strides, 0, 0, groups, dilations)
    top, bottom, left, right = _padding(x, weight.shape[2:], strides, pad_type, pad, dilations)
    height, width = (
        output_shape[-2:]
        if output_shape
        else (full.shape[2] - top - bottom, full.shape[3] - left - right)
    )
    return full[:, :, top : top + height, left : left + width]


def avg_pool(
    x: "torch.Tensor",
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> "torch.Tensor":
    """Pool averages; padding counts as zeros unless it is excluded."""
    import torch
    from torch.nn import functional

    strides = strides or [1] * len(kernel_sizes)
    pads = _padding(x, kernel_sizes, strides, pad_type, pad, [1] * len(kernel_sizes))
    pooled = functional.avg_pool2d(_padded(x, pads), kernel_sizes, strides, 0, ceil_mode)
    if not exclude_padding_from_average or not any(pads):
        return pooled
    inside = _padded(torch.ones_like(x), pads)
    return pooled / functional.avg_pool2d(inside, kernel_sizes, strides, 0, ceil_mode)


def max_pool(
    x: "torch.Tensor",
    kernel_sizes: list[int],
    strides: list[int] | None = None,
    pad_type: str = "valid",
    pad: list[int] | None = None,
    ceil_mode: bool = False,
) -> "torch.Tensor":
    """Pool maxima; padding counts as minus infinity."""
    from torch.nn import functional

    strides = strides or [1] * len(kernel_sizes)
    pads = _padding(x, kernel_sizes, strides, pad_type, pad, [1] * len(kernel_sizes))
    return functional.max_pool2d(
        _padded(x, pads, float("-inf")), kernel_sizes, strides, 0, 1, ceil_mode
    )


def upsample_bilinear(
    x: "torch.Tensor",
    scale_factor_height: float = 1,
    scale_factor_width: float = 1,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> "torch.Tensor":
    """Upsample [N, C, H, W]; `check_arguments` has checked `half_pixel_centers`."""
    from torch.nn import functional

    return functional.interpolate(
        x,
        scale_factor=(float(scale_factor_height), float(scale_factor_width)),
        mode="bilinear",
        align_corners=align_corners,
    )
