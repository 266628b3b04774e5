"""Check the recipe of hybrid pretraining, and how each of its choices changes the training."""

import inspect
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from lightly.transforms import GaussianBlur
from lightning_fabric import Fabric
from timm.layers import DropPath
from torch import nn

from dermedge.cli.pretrain import command
from dermedge.models.backbone import Backbone
from dermedge.models.network import Network
from dermedge.train.hybrid.crops import CropBatch, make_transforms
from dermedge.train.hybrid.loss_log import (
    STEPS_BEFORE_WARNING,
    StepLosses,
    collapse_warnings,
    format_speed,
)
from dermedge.train.hybrid.model import Branch, HybridStudent, LabelHead
from dermedge.train.hybrid.prepare import FEATURES, make_branches
from dermedge.train.hybrid.pretrain import pretrain
from dermedge.train.hybrid.recipe import (
    LIMITS,
    PRESETS,
    ExecutionOptions,
    HybridRecipe,
    make_recipe,
)
from dermedge.train.hybrid.schedule import rates
from dermedge.train.hybrid.sources import Sources
from dermedge.train.hybrid.step import Learner, clip_gradients, make_learner, train_step
from dermedge_runtime.errors import UsageError

VIT = Backbone(
    "vit_tiny_patch16_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2},
)
SMALL = {"outputs": 32, "hidden": 24, "bottleneck": 16, "size": 32, "local_size": 16}


def recipe(preset: str = "dermnio-base", **changes: Any) -> HybridRecipe:
    return replace(PRESETS[preset], precision="32-true", **{**SMALL, **changes})


class TestFields:
    def test_every_field_is_an_option_with_help_and_every_option_a_field_or_keyword(self) -> None:
        options = {parameter.name for parameter in command.params}
        names = {item.name for item in fields(HybridRecipe)}
        assert names <= options
        assert all(LIMITS[name].help.endswith(".") for name in names)
        keywords = set(inspect.signature(pretrain).parameters)
        keywords |= {item.name for item in fields(ExecutionOptions)}
        assert options - names - keywords == {"preset", "as_json"}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"epochs": 0}, "--epochs cannot be 0. Give a value at least 1"),
            ({"lr": 0.0}, "--lr cannot be 0.0. Give a value above 0"),
            ({"blur": (0.5, 1.5, 0.5)}, "--blur cannot be 1.5. Give a value at least 0"),
            ({"mask_ratio": (0.5, 0.1)}, "Give the smaller value first"),
            ({"clip_per": "head"}, "--clip-per cannot be 'head'. Use one of module, model"),
            ({"accumulate": 3}, "2048 images has no 3 equal parts"),
            ({"dino": 0.0, "ibot": 0.0, "label": 0.0}, "All losses have weight 0"),
            ({"precision": "fp8"}, "Unknown precision 'fp8'"),
        ],
    )
    def test_an_invalid_value_is_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            replace(PRESETS["dermnio-base"], **changes)

    def test_a_preset_made_for_one_image_size_follows_the_size(self) -> None:
        assert make_recipe("tiny", size=64).backbone_args == {"img_size": 64}
        assert make_recipe("tiny", size=64, backbone="resnet18").backbone_args == {}
        given = make_recipe("tiny", size=64, backbone_args={"img_size": 32})
        assert given.backbone_args == {"img_size": 32}
        with pytest.raises(UsageError, match="Preset 'huge' is unknown"):
            make_recipe("huge")


class TestTemperature:
    @pytest.mark.parametrize("preset", ["tiny", "mobile"])
    def test_two_temperatures_change_during_the_run(self, preset: str) -> None:
        changed = make_recipe(preset, temperature=(0.04, 0.07))
        assert rates(changed, 0).temperature == pytest.approx(0.04)
        assert 0.04 < rates(changed, changed.steps).temperature < 0.07
        assert rates(changed, changed.total - 1).temperature == pytest.approx(0.07)

    @pytest.mark.parametrize("preset", ["tiny", "mobile"])
    def test_the_temperature_of_a_preset_is_constant(self, preset: str) -> None:
        steps = range(0, PRESETS[preset].total, 10)
        assert {rates(PRESETS[preset], step).temperature for step in steps} == {0.02}

    def test_two_temperatures_without_a_warm_up_are_refused(self) -> None:
        with pytest.raises(UsageError, match="Give --temperature-warmup"):
            make_recipe("tiny", temperature=(0.04, 0.07), temperature_warmup=0.0)


def branches(chosen: HybridRecipe) -> tuple[Branch, Branch]:
    """Return the branches of student and teacher, as `pretrain` creates them."""
    chosen = replace(chosen, label=0.0)
    student, teacher = make_branches(Network(VIT, (FEATURES,)), VIT, chosen, seed=0)
    return student.branch, teacher


def drop_rates(branch: Branch) -> list[float]:
    """Return the rates of both residual branches of every block."""
    found = []
    for block in branch.trunk.timm.blocks:
        for path in (block.drop_path1, block.drop_path2):
            found.append(path.drop_prob if isinstance(path, DropPath) else 0.0)
    return found


class TestDropPath:
    def test_every_block_has_the_rate_as_in_the_released_code(self) -> None:
        student, _ = branches(recipe())
        assert drop_rates(student) == [0.4] * 8

    def test_a_ramp_rises_from_zero(self) -> None:
        student, _ = branches(recipe(drop_path=0.3, drop_path_mode="ramp"))
        assert drop_rates(student) == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])

    def test_the_teacher_drops_nothing(self) -> None:
        _, teacher = branches(recipe())
        assert drop_rates(teacher) == [0.0] * 8


@pytest.mark.parametrize(
    ("preset", "expected"),
    [("dermnio-base", [0.0, 0.9, 0.5]), ("small", [0.0, 0.9, 0.5]), ("tiny", [1.0, 0.1, 0.5])],
)
def test_each_crop_is_blurred_with_the_recipes_probability(
    preset: str, expected: list[float]
) -> None:
    found = []
    for view in make_transforms(PRESETS[preset], VIT):
        blurs = [step for step in view.transform.transforms if isinstance(step, GaussianBlur)]
        found += [blur.prob for blur in blurs]
    assert found == expected


class TestCheckpointing:
    @pytest.mark.parametrize(("enabled", "calls"), [(False, 1), (True, 2)])
    def test_every_block_is_computed_again_in_the_backward_pass(
        self, enabled: bool, calls: int
    ) -> None:
        branch, _ = branches(recipe(checkpoint_activations=enabled))
        counts = [0] * 4

        def count(index: int) -> Any:
            def hook(*_: object) -> None:
                counts[index] += 1

            return hook

        for index, block in enumerate(branch.trunk.timm.blocks):
            block.register_forward_pre_hook(count(index))
        branch.trunk(torch.randn(2, 3, 32, 32)).pooled.sum().backward()
        assert counts == [calls] * 4

    def test_a_backbone_that_cannot_recompute_is_a_usage_error(self) -> None:
        branch = Branch(Backbone("mobilenetv2_035"), recipe(ibot=0.0), 0.0)

        def refuse(enable: bool) -> None:
            raise AssertionError("not supported")

        branch.trunk.timm.set_grad_checkpointing = refuse
        with pytest.raises(UsageError, match="cannot recompute activations"):
            branch.trunk.checkpoint_activations()


def learner(chosen: HybridRecipe) -> Learner:
    """Return a learner on the CPU, whose gradients are large and unequal."""
    nothing = np.zeros((1, 4), bool)
    sources = Sources((), (), (), np.zeros(1, np.int64), nothing, nothing, {}, (), (), ())
    torch.manual_seed(0)
    student = HybridStudent(
        Branch(VIT, chosen, 0.0),
        LabelHead(torch.randn(4, 24), replace(chosen, prototype_mode="learnable")),
    )
    found = make_learner(
        Fabric(accelerator="cpu", devices=1), chosen, sources, student, Branch(VIT, chosen, 0.0)
    )
    for factor, part in enumerate(student.parts(), 1):
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.grad = factor * torch.randn_like(parameter)
    return found


def norms(modules: list[nn.Module]) -> list[float]:
    grads = [[p.grad for p in part.parameters() if p.grad is not None] for part in modules]
    return [float(torch.nn.utils.get_total_norm(part)) for part in grads]


class TestClipping:
    def test_backbone_and_heads_are_clipped_separately(self) -> None:
        made = learner(recipe())
        modules = list(made.student.parts())
        assert min(norms(modules)) > 3
        clip_gradients(made)
        assert norms(modules) == pytest.approx([3.0] * 4, rel=1e-4)

    def test_a_small_gradient_is_not_changed(self) -> None:
        made = learner(recipe())
        head = list(made.student.parts())[-1]
        for parameter in head.parameters():
            assert parameter.grad is not None
            parameter.grad *= 1e-3
        before = norms([head])
        clip_gradients(made)
        assert norms([head]) == before

    def test_the_model_can_be_clipped_as_a_whole(self) -> None:
        made = learner(recipe(clip_per="model"))
        clip_gradients(made)
        total = math.hypot(*norms(list(made.student.parts())))
        assert total == pytest.approx(3.0, rel=1e-4)

    def test_a_step_clips_before_the_weights_change(self) -> None:
        made = learner(recipe(clip=1e-3))
        made.optimizer.zero_grad()
        found: list[float] = []
        made.optimizer.optimizer.register_step_pre_hook(
            lambda *_: found.extend(norms(list(made.student.parts())))
        )
        crops = torch.randn(4, 3, 32, 32), torch.randn(2, 3, 16, 16)
        masked = torch.ones(4, 16, dtype=torch.bool)
        batch = CropBatch(*crops, masked, rows=torch.zeros(2, dtype=torch.long), unreadable=())
        train_step(made, [batch], 0, rates(made.recipe, 0))
        backbone, dino, ibot, _ = found  # no row has a label
        assert [backbone, dino, ibot] == pytest.approx([1e-3] * 3, rel=1e-2)


class TestCollapse:
    EVEN = math.log(32)

    def of(self, ibot: float, masked: float) -> StepLosses:
        mask = torch.zeros(10, 4, dtype=torch.bool)
        mask[: round(10 * masked), 0] = True
        losses = {"dino": torch.tensor(0.5 * self.EVEN), "ibot": torch.tensor(ibot)}
        return StepLosses.of(losses, torch.tensor(ibot), mask)

    def test_ibot_is_reported_per_masked_crop(self) -> None:
        named = self.of(0.3 * self.EVEN, masked=0.3).named(recipe(label=0.0, koleo=0.0))
        assert named["ibot"] == pytest.approx(0.3 * self.EVEN, abs=1e-5)
        assert named["ibot_per_masked_crop"] == pytest.approx(self.EVEN, abs=1e-5)

    def test_a_collapsed_ibot_head_is_warned_about(self) -> None:
        chosen = recipe(steps=STEPS_BEFORE_WARNING)
        history = [self.of(0.3 * self.EVEN, masked=0.3).named(chosen)]
        (warning,) = collapse_warnings(history, chosen)
        assert "The ibot loss ended at 3.47" in warning

    def test_a_head_that_learned_gives_no_warning(self) -> None:
        chosen = recipe(steps=STEPS_BEFORE_WARNING)
        history = [self.of(0.2 * self.EVEN, masked=0.3).named(chosen)]
        assert list(collapse_warnings(history, chosen)) == []

    def test_a_run_of_few_steps_gives_no_warning(self) -> None:
        chosen = recipe(steps=STEPS_BEFORE_WARNING - 1)
        history = [self.of(0.3 * self.EVEN, masked=0.3).named(chosen)]
        assert list(collapse_warnings(history, chosen)) == []
        assert len(list(collapse_warnings(history * 2, chosen))) == 1

    def test_a_step_without_masks_reports_no_loss_per_masked_crop(self) -> None:
        assert "ibot_per_masked_crop" not in self.of(0.0, masked=0.0).named(recipe())


def test_a_slow_run_shows_decimals() -> None:
    assert format_speed(0.24) == "0.240 images/s"
    assert format_speed(8.0) == "8.0 images/s"
