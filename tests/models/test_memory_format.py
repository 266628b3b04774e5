"""Test that convolutions which oneDNN computes wrongly get contiguous pixels."""

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dermedge.models import Network, load_model_folder
from dermedge.models.backbone import Backbone
from dermedge.models.memory_format import guard_strided_pointwise
from dermedge.train.loop import Schedule
from dermedge_runtime.spec import Task
from support import small

# Seconds after which a child process counts as one that hangs.
HANGS = 300
# Backbones, and their strided 1x1 convolutions of fewer than 16 channels.
GUARDED = {
    "fastvit_t8": {"stem.0.conv_scale.conv"},
    "mobileone_s0": {"stem.conv_scale.conv"},
    "repvgg_a0": {"stem.conv_1x1.conv"},
    "gernet_s": {"stages.0.0.shortcut.conv"},
    "mobilenetv2_035": set(),
    "resnet10t": set(),
}


def contiguous_convolutions(network: Network) -> set[str]:
    """Return the names of the backbone's convolutions whose input is not channels-last."""
    found = set()

    def note(name: str, image: Tensor) -> None:
        if not image.is_contiguous(memory_format=torch.channels_last):
            found.add(name)

    for name, layer in network.backbone.named_modules():
        if isinstance(layer, nn.Conv2d):
            # Hooks run in the order of their registration, so this one runs last.
            layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
    network.train()(small.pixels(2, 64))
    return found


@pytest.mark.parametrize("name", GUARDED)
def test_only_the_convolutions_at_risk_leave_channels_last(name: str) -> None:
    network = Network(Backbone(name), (Task("malignancy", "binary"),))
    assert contiguous_convolutions(network) == GUARDED[name]


@pytest.mark.parametrize("channels", [1, 3, 7, 15])
def test_the_gradient_of_the_weights_is_right(channels: int) -> None:
    """Up to 7 channels on AVX2, and 15 on AVX-512, the unguarded layer crashes or hangs."""
    assert small.in_process(check_gradient, channels) == 0


def check_gradient(channels: int) -> None:
    signal.alarm(HANGS)
    torch.manual_seed(channels)
    layer = nn.Conv2d(channels, 48, 1, stride=2)
    image = torch.randn(8, channels, 48, 48)
    layer(image).square().sum().backward()
    expected = layer.weight.grad
    layer.zero_grad(set_to_none=True)
    guard_strided_pointwise(layer)
    for _ in range(4):
        layer.zero_grad()
        layer(image.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", ["fastvit_t8", "mobileone_s0"])
def test_training_does_not_crash(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    data = small.data_set(tmp_path_factory.getbasetemp())
    out = tmp_path_factory.mktemp(name)
    assert small.in_process(train, data, out / "model", name) == 0
    assert load_model_folder(out / "model").backbone.name == name


def train(data: Path, out: Path, name: str) -> None:
    """Train for one step."""
    signal.alarm(HANGS)
    schedule = Schedule(epochs=1, batch_size=32)
    small.train(data, out, backbone=name, backbone_args={}, schedule=schedule)
