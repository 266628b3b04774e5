"""Decoders of frozen feature maps, and the choice of these maps."""

import pytest
import torch

from dermedge.models.decoders import LinearDecoder, UPerNet, decoder_levels, frozen_maps
from dermedge.models.network import Backbone, Network, feature_map
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Task

TASKS = (Task("embedding", "embed"),)


def network(name, stages=None, **args):
    torch.manual_seed(0)
    return Network(Backbone(name, args, stages=stages), TASKS).eval()


def noise(size, count=2):
    return torch.randint(
        0,
        256,
        (count, size, size, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize(
    ("name", "args", "levels", "scales"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}, (2, 5, 8, 11), (4, 2, 1, 0.5)),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 24}, (5, 11, 17, 23), (4, 2, 1, 0.5)),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}, (0, 1, 2), (2, 1, 0.5)),
        ("mobilenetv2_035", {}, (1, 2, 3, 4), (1, 1, 1, 1)),
        ("test_efficientnet", {}, (1, 2, 3, 4), (1, 1, 1, 1)),
        ("resnet10t", {}, (1, 2, 3, 4), (1, 1, 1, 1)),
        ("levit_128s", {}, (0, 1, 2), (1, 1, 1)),
        ("test_convnext", {}, (0, 1, 2, 3), (1, 1, 1, 1)),
    ],
)
def test_upernet_reads_quarters_of_a_transformer_and_the_last_stages_of_others(
    name, args, levels, scales
):
    own = network(name, **args)
    assert decoder_levels(own, None) == (levels, scales)
    size = 224 if name == "levit_128s" else 64
    with torch.no_grad():
        maps = frozen_maps(own, noise(size), levels)
        last = feature_map(own.backbone, own.backbone.forward_features(own.normalised(noise(size))))
    assert len(maps) == len(levels) + 1
    assert torch.equal(maps[-1], last)
    sides = [level.shape[-1] * scale for level, scale in zip(maps[:-1], scales, strict=True)]
    assert sides == sorted(sides, reverse=True)
    decoder = UPerNet([level.shape[1] for level in maps[:-1]], 2, scales=scales, channels=8)
    assert decoder(maps[:-1]).shape == (2, 2, int(sides[0]), int(sides[0]))


def test_a_truncated_backbone_gives_its_remaining_stages():
    own = network("mobilenetv2_035", stages=3)
    levels, scales = decoder_levels(own, 3)
    assert levels == (0, 1, 2)
    assert [level.shape[-1] for level in frozen_maps(own, noise(64), levels)[:-1]] == [32, 16, 8]
    assert scales == (1, 1, 1)
    with pytest.raises(UsageError, match="feature maps of 1 stages"):
        decoder_levels(network("mobilenetv2_035", stages=1), 1)


def test_a_family_without_intermediate_maps_is_refused_by_name():
    own = network("mobilenetv2_035")
    own.backbone = torch.nn.Sequential()
    with pytest.raises(UsageError, match="Sequential gives the feature maps of 0 stages"):
        decoder_levels(own, None)


def test_every_level_changes_the_output_and_is_trained():
    maps = [torch.randn(2, width, side, side) for width, side in ((4, 16), (6, 8), (8, 4), (10, 2))]
    decoder = UPerNet([4, 6, 8, 10], 3, channels=8).eval()
    for number in range(4):
        moved = [level + (index == number) for index, level in enumerate(maps)]
        assert not torch.allclose(decoder(maps), decoder(moved))
    decoder.train()(maps).square().mean().backward()
    silent = [
        name
        for name, weight in decoder.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ]
    assert silent == []


def test_coarse_levels_change_the_finest_level():
    maps = [torch.randn(2, width, side, side) for width, side in ((4, 16), (6, 8), (8, 4))]
    decoder = UPerNet([4, 6, 8], 2, channels=8).eval()
    with torch.no_grad():
        decoder.fuse[0].weight[:, 8:] = 0  # what the finest level says alone
    assert not torch.allclose(decoder(maps), decoder([*maps[:-1], maps[-1] + 1]))


def test_a_linear_decoder_classifies_each_grid_cell_separately():
    decoder = LinearDecoder(5, 2).eval()
    first, last = torch.randn(1, 5, 4, 4), torch.randn(1, 5, 3, 3)
    assert decoder([first, last]).shape == (1, 2, 3, 3)
    moved = last.clone()
    moved[..., 1, 2] += 1
    changed = (decoder([last]) != decoder([moved])).any(1)[0]
    assert changed.nonzero().tolist() == [[1, 2]]
