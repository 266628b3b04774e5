"""Keep channels-last training safe where oneDNN's kernels are not.

`Network` feeds its backbone channels-last pixels, because the permuted uint8 images
have that layout. Time of a training step against contiguous pixels (medians of 7 steps
in turns, 16 images, torch 2.15, one thread of an AMD EPYC with AVX2):

| backbone | channels-last / contiguous |
|---|---|
| mobilenetv2_100, 96 px | 0.72 |
| fastvit_t8, 64 px | 0.78 |
| mobileone_s0, 64 px | 0.79 |
| repvit_m0_9, 96 px | 0.79 |
| efficientnet_lite0, 96 px | 0.82 |
| mobilenetv4_conv_small, 96 px | 0.84 |
| convnext_atto, 96 px | 0.97 |
| repvgg_a0, 64 px | 0.98 |
| edgenext_xx_small, 96 px | 1.01 |
| resnet18, 96 px | 1.12 |

In fastvit, mobileone and repvgg the guarded convolution alone is contiguous. If its
output stays contiguous, so does the rest of the network, and the first two take 0.96
and 1.04.
"""

from torch import Tensor, channels_last, nn

# oneDNN processes input channels in blocks of 8 (AVX2) or 16 (AVX-512).
CHANNEL_BLOCK = 16


def guard_strided_pointwise(module: nn.Module) -> None:
    """Run a network's strided 1x1 convolutions of few channels on contiguous input.

    Given channels-last input of fewer channels than one block, oneDNN's gradient of the
    weights writes past its buffer. Training then crashes, hangs or gets wrong gradients
    (uxlfoundation/oneDNN#6035). Such convolutions are branches of the stem in FastViT,
    MobileOne and RepVGG, and a shortcut in GENet. Their output is channels-last again.

    Args:
        module: The network; it is changed in place. Names of weights stay the same.

    Example:
        >>> import torch
        >>> convolution = nn.Conv2d(3, 8, 1, stride=2)
        >>> guard_strided_pointwise(convolution)
        >>> output = convolution(torch.zeros(1, 3, 8, 8))
        >>> output.is_contiguous(memory_format=torch.channels_last)
        True
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and _is_unsafe(layer):
            layer.register_forward_pre_hook(_to_contiguous)
            layer.register_forward_hook(_to_channels_last)


def _is_unsafe(layer: nn.Conv2d) -> bool:
    """Return True if oneDNN may compute the layer with the kernel that overflows."""
    return (
        layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        # The kernel computes no grouped convolutions.
        and layer.groups == 1
        and layer.in_channels < CHANNEL_BLOCK
    )


def _to_contiguous(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(value.contiguous() for value in inputs)


def _to_channels_last(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.contiguous(memory_format=channels_last)
