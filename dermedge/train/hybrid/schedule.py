"""Compute the rates of each step, and group the parameters by their rates."""

import math
from typing import NamedTuple, TypedDict

from torch import nn
from torch.optim import Optimizer

from dermedge.train.hybrid.recipe import HybridRecipe

WITHOUT_DECAY = ("cls_token", "reg_token", "mask_token", "pos_embed")


class Rates(NamedTuple):
    """Learning rate, weight decay, and the teacher's momentum and temperature.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> recipe = PRESETS["dermnio-base"]
        >>> first, last = rates(recipe, 0), rates(recipe, recipe.total - 1)
        >>> round(first.temperature, 2), round(last.temperature, 2)
        (0.04, 0.07)
    """

    lr: float
    weight_decay: float
    momentum: float
    temperature: float


class ParameterGroup(TypedDict):
    """A parameter group of the optimizer.

    `lr_factor` and `decay` are its factors on learning rate and weight decay.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> groups = parameter_groups(nn.Linear(3, 2), PRESETS["tiny"])
        >>> [(tuple(group["params"][0].shape), group["decay"]) for group in groups]
        [((2, 3), 1.0), ((2,), 0.0)]
    """

    params: list[nn.Parameter]
    lr_factor: float
    decay: float


def rates(recipe: HybridRecipe, step: int) -> Rates:
    """Return the rates of a step.

    The learning rate warms up linearly and falls on a cosine. Weight decay and momentum
    follow cosines over the whole run, and the temperature a line over its warm-up. A
    warm-up longer than the run is cut to its length.

    Args:
        recipe: Settings of the run.
        step: Number of the step, from 0.

    Example:
        >>> from dermedge.train.hybrid.recipe import PRESETS
        >>> round(rates(PRESETS["dermnio-base"], 4_000).lr, 6)
        0.002828
    """
    total, share = recipe.total, step / max(1, recipe.total - 1)
    # The square root rule of DINOv2, at a reference batch of 1024.
    peak = recipe.lr * math.sqrt(recipe.batch_size / 1024)
    warmup = min(recipe.warmup * recipe.steps, total)
    rise = min(recipe.temperature_warmup * recipe.steps, total)
    if step < warmup:
        lr = peak * (step + 1) / warmup
    else:
        lr = _cosine(peak, min(peak, recipe.min_lr), (step - warmup) / max(1.0, total - warmup))
    cold, warm = recipe.temperature
    return Rates(
        lr,
        _cosine(*recipe.weight_decay, share),
        _cosine(*recipe.momentum, share),
        cold + (warm - cold) * min(1.0, step / rise if rise else 1.0),
    )


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))


def parameter_groups(module: nn.Module, recipe: HybridRecipe) -> list[ParameterGroup]:
    """Group trainable parameters by their factors on learning rate and weight decay.

    Vectors and tokens have no weight decay, as in timm. The patch embedding has a lower
    learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = recipe.patch_embed_lr if "patch_embed" in name else 1.0
            decays = parameter.ndim > 1 and not name.endswith((*WITHOUT_DECAY, "weight_g"))
            groups.setdefault((rate, float(decays)), []).append(parameter)
    return [
        ParameterGroup(params=parameters, lr_factor=rate, decay=decay)
        for (rate, decay), parameters in groups.items()
    ]


def apply_rates(optimizer: Optimizer, now: Rates) -> None:
    """Set the rates of a step in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = now.lr * group["lr_factor"]
        group["weight_decay"] = now.weight_decay * group["decay"]
