from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dermedge.models import Network, TrainedModel
from dermedge.models.backbone import Backbone, read_backbone
from dermedge.models.initialize import (
    BATCH_NORMS,
    has_identity_norms,
    is_prunable,
    load_backbone,
    narrow,
    prune,
    recalibrate_norms,
)
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support.small import NARROW, SIZE, WIDE, flat, pixels

TASKS = (
    Task("diagnosis", "classify", (Label("nv", "nevus", False), Label("mel", "melanoma", True))),
)
SPEC = Spec("wide", "1", TASKS, Preprocess(SIZE))
SHARED = Path(__file__).parents[3] / "shared" / "weights" / "mobilenetv2_100.imagenet.safetensors"


def network(name: str = NARROW, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network(Backbone(name), TASKS).eval()


def folded(seed: int = 0) -> Network:
    """Return a network whose BatchNorms only add a bias, as after folding."""
    made = network(seed=seed)
    for module in made.modules():
        if isinstance(module, BATCH_NORMS):
            torch.nn.init.normal_(module.bias, std=0.3)
            module.running_var.fill_(1 - module.eps)
    return made


def answers(made: Network, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return flat(made(images))


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


class TestRecalibration:
    def test_outputs_stay_the_same_in_eval_and_in_training_mode(self) -> None:
        made, images = folded(), pixels(48)
        before = answers(made, images)
        assert has_identity_norms(made)
        recalibrate_norms(made, images.split(16))
        assert not has_identity_norms(made)
        assert apart(answers(made, images), before) < 1e-4
        assert apart(answers(made.train(), images), before) < 1e-2

    def test_without_recalibration_training_mode_changes_the_outputs(self) -> None:
        made, images = folded(), pixels(48)
        assert apart(answers(made.train(), images), answers(folded(), images)) > 0.5

    def test_norms_with_statistics_keep_their_outputs(self) -> None:
        made, images = network(), pixels(48)
        for module in made.modules():
            if isinstance(module, BATCH_NORMS):
                torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
                torch.nn.init.uniform_(module.weight, 0.5, 2)
        before = answers(made, images)
        assert not has_identity_norms(made)
        recalibrate_norms(made, [images])
        assert apart(answers(made, images), before) < 1e-4
        assert apart(answers(made.train(), images), before) < 1e-2


@pytest.mark.skipif(not SHARED.is_file(), reason="needs ../shared/weights")
class TestSharedWeights:
    def test_the_metadata_names_backbone_and_normalization(self) -> None:
        backbone = read_backbone(SHARED, None)
        assert backbone == Backbone(
            "mobilenetv2_100", {"pad_type": "same"}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        )
        own = read_backbone(SHARED, Backbone("mobilenetv2_100", {"pad_type": "", "drop_rate": 0.2}))
        assert own.args == {"pad_type": "", "drop_rate": 0.2}

    def test_features_equal_the_original_models_before_and_after_recalibration(self) -> None:
        backbone = read_backbone(SHARED, None)
        made = Network(backbone, TASKS).eval()
        load_backbone(made, SHARED)
        original = timm.create_model("mobilenetv2_100", num_classes=1001, pad_type="same").eval()
        original.load_state_dict(load_file(SHARED))
        images = lesions(8, 96)
        with torch.no_grad():
            scaled = images.permute(0, 3, 1, 2) / 127.5 - 1
            expected = original.forward_head(original.forward_features(scaled), pre_logits=True)
            assert apart(made.features(images), expected) < 1e-5
            assert has_identity_norms(made)
            recalibrate_norms(made, images.split(4))
            assert apart(made.features(images), expected) < 1e-4
            assert apart(made.train().features(images), expected) < 1e-2


def lesions(count: int, size: int) -> torch.Tensor:
    from dermedge_export.synthetic.lesions import draw_lesion

    drawn = [
        preprocess(draw_lesion(seed, height=size, width=size).image, Preprocess(size))
        for seed in range(count)
    ]
    return torch.stack([torch.from_numpy(image) for image in drawn])


class TestFiles:
    def test_the_weights_file_of_a_model_folder_initializes_another_network(
        self, tmp_path: Path
    ) -> None:
        source, made = network(seed=1), network(seed=2)
        save_file(source.state_dict(), tmp_path / "weights.safetensors")
        load_backbone(made, tmp_path / "weights.safetensors")
        with torch.no_grad():
            torch.testing.assert_close(
                made.features(pixels(2)), source.features(pixels(2)), rtol=0, atol=0
            )

    def test_weights_of_another_architecture_are_refused(self, tmp_path: Path) -> None:
        made = network()
        before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
        save_file(network(WIDE).backbone.state_dict(), tmp_path / "wide.safetensors")
        with pytest.raises(
            DataError, match=r"wide\.safetensors does not fit the backbone: blocks\.1.*--backbone"
        ):
            load_backbone(made, tmp_path / "wide.safetensors")
        some = dict(list(made.backbone.state_dict().items())[:-3])
        save_file(some, tmp_path / "some.safetensors")
        with pytest.raises(DataError, match="missing or of another shape"):
            load_backbone(made, tmp_path / "some.safetensors")
        assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())

    def test_a_file_of_another_format_or_without_a_name_is_refused(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
        with pytest.raises(DataError, match=r"weights\.pt is not a safetensors file"):
            read_backbone(tmp_path / "weights.pt", None)
        save_file({"weight": torch.zeros(3)}, tmp_path / "nameless.safetensors")
        with pytest.raises(UsageError, match="--backbone"):
            read_backbone(tmp_path / "nameless.safetensors", None)


class TestPruning:
    def teacher(self, made: Network, name: str) -> TrainedModel:
        return TrainedModel(made, SPEC, Backbone(name), "teacher")

    def test_pruning_to_the_same_width_copies_the_weights(self) -> None:
        wide, made = network(WIDE, seed=1), network(WIDE, seed=2)
        narrow(self.teacher(wide, WIDE), made, SIZE)
        assert torch.equal(answers(made, pixels(4)), answers(wide, pixels(4)))

    def test_the_channels_of_smallest_norm_are_removed(self) -> None:
        """A narrow network, padded with unused channels, is restored exactly."""
        small, wide, made = network(NARROW, seed=1), network(WIDE, seed=2), network(NARROW, seed=3)
        inside = small.state_dict()
        with torch.no_grad():
            for name, tensor in wide.state_dict().items():
                block = tuple(slice(length) for length in inside[name].shape)
                tensor.mul_(0)
                tensor[block] = inside[name]
        before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
        torch.testing.assert_close(answers(wide, pixels(4)), answers(small, pixels(4)))
        narrow(self.teacher(wide, WIDE), made, SIZE)
        for name, tensor in made.state_dict().items():
            assert torch.equal(tensor, inside[name]), name
        assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())

    def test_only_heads_of_equal_tasks_are_copied(self) -> None:
        wide = network(WIDE, seed=1)
        three = replace(TASKS[0], labels=(*TASKS[0].labels, Label("bkl", "keratosis", False)))
        torch.manual_seed(4)
        made = Network(Backbone(NARROW), (three,))
        own = made.heads["diagnosis"].weight.clone()
        narrow(self.teacher(wide, WIDE), made, SIZE)
        assert torch.equal(made.heads["diagnosis"].weight, own)
        same = network(NARROW, seed=4)
        narrow(self.teacher(wide, WIDE), same, SIZE)
        assert torch.equal(same.heads["diagnosis"].weight, wide.heads["diagnosis"].weight)

    def test_a_truncated_student_starts_from_the_teachers_first_stages(self) -> None:
        wide = network(WIDE, seed=1)
        made = Network(Backbone(WIDE, stages=3), TASKS).eval()
        narrow(self.teacher(wide, WIDE), made, SIZE, stages=3)
        images = pixels(4)
        scaled = (images.permute(0, 3, 1, 2) - wide.mean) * wide.scale
        with torch.no_grad():
            inner = wide.backbone.forward_intermediates(
                scaled, indices=[2], intermediates_only=True
            )[0]
            torch.testing.assert_close(made.features(images), inner.mean((2, 3)))
        with pytest.raises(UsageError, match="5 stages to keep, not 9"):
            Network(Backbone(WIDE, stages=9), TASKS)

    def test_another_family_or_a_wider_student_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"differ in more than width.*--init none"):
            narrow(self.teacher(network(WIDE), WIDE), network("test_resnet"), SIZE)
        with pytest.raises(UsageError, match="could not be pruned"):
            narrow(self.teacher(network(NARROW), NARROW), network(WIDE), SIZE)
        assert is_prunable(Backbone(WIDE), NARROW, {})
        assert not is_prunable(Backbone(WIDE), "test_resnet", {})
        assert not is_prunable(Backbone(WIDE, {"pad_type": "same"}), "test_resnet", {})
        assert not is_prunable(Backbone(WIDE), None, {})

    def vit(self, size: int, seed: int = 0) -> tuple[Backbone, Network]:
        args = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": size}
        backbone = Backbone("vit_tiny_patch16_224", args)
        torch.manual_seed(seed)
        return backbone, Network(backbone, TASKS).eval()

    def test_a_transformer_starts_from_a_teacher_of_another_input_size(self) -> None:
        """Its positions are resized as timm resizes them; all other weights are copied."""
        (backbone, wide), (_, made) = self.vit(64, seed=1), self.vit(32, seed=2)
        before = wide.backbone.pos_embed.detach().clone()
        narrow(TrainedModel(wide, SPEC, backbone, "teacher"), made, 32)
        assert torch.equal(wide.backbone.pos_embed, before)
        resized = timm.layers.resample_abs_pos_embed(before, [2, 2])
        torch.testing.assert_close(made.backbone.pos_embed.detach(), resized)
        kept = wide.backbone.state_dict()
        for name, tensor in made.backbone.state_dict().items():
            assert name == "pos_embed" or torch.equal(tensor, kept[name]), name

    def test_a_size_at_which_pruning_fails_is_a_usage_error(self) -> None:
        (_, wide), (_, made) = self.vit(64), self.vit(32)
        with pytest.raises(UsageError, match=r"cannot be pruned at 32 x 32 pixels.*--init none"):
            prune(wide.backbone, made.backbone, 32)
