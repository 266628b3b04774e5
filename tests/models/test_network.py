from collections.abc import Mapping
from typing import Any

import pytest
import torch

from dermedge.models.network import Backbone, Coral, Network, feature_map
from dermedge.models.new_spec import check_input
from dermedge_runtime.decode import decode, ordinal_level
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support.small import pixels

LEVELS = tuple(Label(str(level), f"severity {level}") for level in range(4))
DIAGNOSIS = Task(
    "diagnosis",
    "classify",
    (Label("nv", "nevus"), Label("mel", "melanoma"), Label("df", "fibroma")),
)
TASKS = (
    DIAGNOSIS,
    Task("malignancy", "binary"),
    Task("severity", "ordinal", LEVELS),
    Task("lesion", "segment"),
    Task("features", "embed"),
)
SEGMENT = TASKS[3:4]

# Name, arguments, side. The layouts of the last map are, in this order: NCHW, NCHW with
# features widened after pooling, NHWC, tokens with a class token, and tokens with a class
# token and four registers.
BACKBONES: tuple[tuple[str, Mapping[str, Any], int], ...] = (
    ("test_efficientnet", {}, 64),
    ("mobilenetv3_small_050", {}, 64),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1), "window_size": 2},
        64,
    ),
    ("test_vit", {"img_size": 64}, 64),
    (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 56, "depth": 1, "embed_dim": 48, "num_heads": 2},
        56,
    ),
)
each_backbone = pytest.mark.parametrize(
    ("name", "args", "size"), BACKBONES, ids=[name for name, _, _ in BACKBONES]
)


def network(
    name: str, args: Mapping[str, Any], tasks: tuple[Task, ...] = TASKS, stages: int | None = None
) -> Network:
    torch.manual_seed(0)
    return Network(Backbone(name, args, stages=stages), tasks).eval()


@each_backbone
@torch.no_grad()
def test_every_task_has_the_output_that_the_device_decodes(
    name: str, args: Mapping[str, Any], size: int
) -> None:
    outputs = network(name, args)(pixels(2, size))
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {
        "diagnosis": (2, 3),
        "malignancy": (2, 1),
        "severity": (2, 3),
        "lesion": (2, 1, size // 4, size // 4),
        "features": (2, outputs["features"].shape[1]),
    }
    assert torch.allclose(outputs["features"].norm(dim=1), torch.ones(2))
    spec = Spec("all", "1", TASKS, Preprocess(size))
    prediction = decode({task: output[1].numpy() for task, output in outputs.items()}, spec, {})
    assert prediction.severity in range(4)
    assert len(prediction.labels) == 3


@each_backbone
@torch.no_grad()
def test_one_pass_through_the_backbone_serves_maps_and_pooled_features(
    name: str, args: Mapping[str, Any], size: int
) -> None:
    model, image = network(name, args), pixels(2, size)
    passes: list[int] = []
    first = next(module for module in model.backbone.modules() if not list(module.children()))
    handle = first.register_forward_hook(lambda *_: passes.append(1))
    outputs = model(image)
    handle.remove()
    assert passes == [1]
    pooled = model.backbone(model.normalised(image))
    assert torch.equal(outputs["diagnosis"], model.heads["diagnosis"](pooled))
    assert torch.equal(outputs["features"], torch.nn.functional.normalize(pooled, dim=1))
    plain = network(name, args, TASKS[:2])
    plain.load_state_dict(
        {key: value for key, value in model.state_dict().items() if key in plain.state_dict()}
    )
    for task, output in plain(image).items():
        assert torch.equal(output, outputs[task])


@pytest.mark.parametrize(
    ("name", "args", "size"), BACKBONES[2:], ids=[name for name, _, _ in BACKBONES[2:]]
)
@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0)])
@torch.no_grad()
def test_a_map_from_tokens_or_nhwc_keeps_positions(
    name: str, args: Mapping[str, Any], size: int, down: int, right: int
) -> None:
    """A change in one corner of the image changes the map most in that corner."""
    model, image = network(name, args, SEGMENT), pixels(1, size)
    other, side = image.clone(), size // 4
    corner = other[:, down * (size - side) :, right * (size - side) :][:, :side, :side]
    corner.copy_(255 - corner)
    before, after = (
        feature_map(model.backbone, model.backbone.forward_features(model.normalised(picture)))
        for picture in (image, other)
    )
    quarters = torch.nn.functional.adaptive_avg_pool2d(
        (before - after).abs().mean((0, 1))[None], 2
    )[0]
    assert quarters.argmax() == 2 * down + right


def test_weights_of_heads_keep_the_names_in_existing_model_folders() -> None:
    names = {
        name for name in network("test_efficientnet", {}).state_dict() if name.startswith("heads.")
    }
    assert {
        "heads.diagnosis.weight",
        "heads.diagnosis.bias",
        "heads.malignancy.weight",
        "heads.malignancy.bias",
    } < names
    assert names - {
        name for name in names if name.startswith(("heads.diagnosis", "heads.malignancy"))
    } == {
        "heads.severity.score.weight",
        "heads.severity.biases",
        "heads.lesion.weight",
        "heads.lesion.bias",
    }


def test_severity_logits_share_one_score_and_are_ordered() -> None:
    head = Coral(8, 5)
    logits = head(torch.randn(6, 8) * 3)
    assert logits.shape == (6, 4)
    assert (logits.diff(dim=1) < 0).all()
    gaps = logits - logits[:, :1]
    assert torch.allclose(gaps, gaps[:1].expand_as(gaps), atol=1e-5)
    order = torch.argsort(logits[:, 0])
    levels = [ordinal_level(row.tolist()) for row in logits[order]]
    assert levels == sorted(levels)


@torch.no_grad()
def test_a_truncated_backbone_segments_on_its_last_stage() -> None:
    model, image = network("test_efficientnet", {}, TASKS, stages=2), pixels(2, 64)
    outputs = model(image)
    assert outputs["lesion"].shape == (2, 1, 16, 16)
    inner = model.backbone.forward_features(model.normalised(image))
    assert torch.equal(outputs["malignancy"], model.heads["malignancy"](inner.mean((2, 3))))


class TestRefusals:
    def test_a_side_that_is_no_multiple_of_4(self) -> None:
        model = network("test_efficientnet", {}, SEGMENT)
        with pytest.raises(UsageError, match="divisible by 4, not 66"):
            check_input(model, "test_efficientnet", 66)
        check_input(network("test_efficientnet", {}, TASKS[:3]), "test_efficientnet", 66)

    def test_arguments_that_timm_cannot_build_a_network_with(self) -> None:
        with pytest.raises(UsageError, match=r"timm refuses .*Change the arguments"):
            network("nextvit_small", {"depths": [1, 1, 2, 1]})

    def test_a_backbone_without_a_feature_map(self) -> None:
        model = network(
            "coat_lite_tiny",
            {"img_size": 32, "embed_dims": (8, 8, 8, 8), "serial_depths": (1, 1, 1, 1)},
            SEGMENT,
        )
        with pytest.raises(UsageError, match="CoaT gives no square feature map"):
            check_input(model, "coat_lite_tiny", 32)
