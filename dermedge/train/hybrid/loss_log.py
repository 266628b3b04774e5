"""Name, average and format the losses, and warn about a collapsed head."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dermedge.train.distributed import world_sum
from dermedge.train.hybrid.recipe import HybridRecipe

LOSSES = ("dino", "ibot", "koleo", "label", "pull")
# The iBOT loss counts unmasked crops as 0. Divided by the share of masked crops it is
# the cross entropy per masked crop, which compares with the logarithm of the number of
# outputs.
PER_MASKED_CROP = "ibot_per_masked_crop"
# Share of log(outputs). A head that gives equal outputs for every image has that loss.
COLLAPSED = 0.99
# A new head starts at that loss, so a warning needs some steps. With the temperatures
# of `tiny`, ViT-Ti is below 0.985 of it after 100 steps.
STEPS_BEFORE_WARNING = 100


@dataclass(frozen=True)
class StepLosses:
    """The losses of a step, their weighted sum and the share of masked crops.

    `values` is [7] in the order of `LOSSES`, then the sum, then the share.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> losses = {"dino": torch.tensor(5.0), "label": torch.tensor(0.5)}
        >>> step = StepLosses.of(losses, torch.tensor(5.5), mask=torch.zeros(2, 0))
        >>> ((step + step) / 2).named(PRESETS["mobile"])
        {'dino': 5.0, 'koleo': 0.0, 'label': 0.5, 'loss': 5.5}
    """

    values: Tensor

    @classmethod
    def zeros(cls, device: torch.device | str = "cpu") -> "StepLosses":
        """Return zeros, to add to."""
        return cls(torch.zeros(len(LOSSES) + 2, device=device))

    @classmethod
    def of(cls, losses: Mapping[str, Tensor], total: Tensor, mask: Tensor) -> "StepLosses":
        """Return the losses of one part; a loss that is not computed counts as 0."""
        zero = total.new_zeros(())
        row = [losses[name].detach() if name in losses else zero for name in LOSSES]
        masked = mask.any(1).float().mean() if mask.numel() else zero
        return cls(torch.stack([*row, total.detach(), masked.to(zero.dtype)]).float())

    def __add__(self, other: "StepLosses") -> "StepLosses":
        return StepLosses(self.values + other.values)

    def __truediv__(self, divisor: float) -> "StepLosses":
        return StepLosses(self.values / divisor)

    def mean_over_processes(self, world: int) -> "StepLosses":
        """Return the mean over all processes, on the CPU."""
        return StepLosses((world_sum(self.values) / world).cpu())

    def named(self, recipe: HybridRecipe) -> dict[str, float]:
        """Return the losses that the recipe uses, by name, rounded to 6 digits."""
        weights = loss_weights(recipe)
        *values, total, masked = self.values.tolist()
        named = {
            name: round(value, 6)
            for name, value in zip(LOSSES, values, strict=True)
            if weights[name]
        }
        named["loss"] = round(total, 6)
        if weights["ibot"] and masked:
            named[PER_MASKED_CROP] = round(values[LOSSES.index("ibot")] / masked, 6)
        return named


def loss_weights(recipe: HybridRecipe) -> dict[str, float]:
    """Return the weight of every loss."""
    return {
        "dino": recipe.dino,
        "ibot": recipe.ibot,
        "koleo": recipe.koleo,
        "label": recipe.label,
        "pull": recipe.pull if recipe.prototype_mode == "pulled" else 0.0,
    }


def format_losses(losses: Mapping[str, float]) -> str:
    """Format losses as one line.

    Example:
        >>> losses = {"ibot": 3.7, "label": 0.11, "loss": 3.81}
        >>> losses["ibot_per_masked_crop"] = 7.4
        >>> format_losses(losses)
        'ibot 7.40 per masked crop, label 0.11, loss 3.81'
    """
    words = []
    for name, value in losses.items():
        if name == "ibot" and PER_MASKED_CROP in losses:
            words.append(f"ibot {losses[PER_MASKED_CROP]:.2f} per masked crop")
        elif name not in (PER_MASKED_CROP, "images_per_second"):
            words.append(f"{name} {value:.2f}")
    return ", ".join(words)


def format_speed(images_per_second: float) -> str:
    """Format a speed with up to three decimals.

    Example:
        >>> format_speed(52.4), format_speed(3.14), format_speed(0.0312)
        ('52 images/s', '3.1 images/s', '0.031 images/s')
    """
    if images_per_second >= 10:
        return f"{images_per_second:.0f} images/s"
    digits = 1 if images_per_second >= 1 else 3
    return f"{images_per_second:.{digits}f} images/s"


def collapse_warnings(
    history: Sequence[Mapping[str, float]], recipe: HybridRecipe
) -> Iterator[str]:
    """Yield a warning for each collapsed head, whose outputs are equal for all images.

    Args:
        history: Mean losses of every epoch.
        recipe: Settings of the run.
    """
    if not history or len(history) * recipe.steps < STEPS_BEFORE_WARNING:
        return
    even = math.log(recipe.outputs)
    for name, key in (("dino", "dino"), ("ibot", PER_MASKED_CROP)):
        loss = history[-1].get(key, 0.0)
        if loss > COLLAPSED * even:
            yield (
                f"The {name} loss ended at {loss:.2f}. A head with equal outputs for every image "
                f"has {even:.2f}, so this loss has taught nothing. Train longer, or with a "
                "lower --temperature or --lr."
            )
