"""How rates change from step to step, and which parameters they apply to."""

import math
from typing import Any, NamedTuple

from torch import nn

from dermedge.train.hybrid.recipe import HybridRecipe

WITHOUT_DECAY = ("cls_token", "reg_token", "mask_token", "pos_embed")


class Rates(NamedTuple):
    """What holds during one step."""

    lr: float
    weight_decay: float
    momentum: float
    temperature: float


def rates(recipe: HybridRecipe, step: int) -> Rates:
    """The rates of a step: warm-up and cosine for the learning rate, cosines for weight decay and momentum, a linear
    rise for the teacher's temperature. Warm-ups longer than the run are cut to its length.
    """
    total, share = recipe.total, step / max(1, recipe.total - 1)
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


def parameter_groups(module: nn.Module, recipe: HybridRecipe) -> list[dict[str, Any]]:
    """Groups for the optimiser, with factors on learning rate and weight decay: vectors and tokens do not decay, the
    patch embedding learns slower.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = recipe.patch_embed_lr if "patch_embed" in name else 1.0
            decays = parameter.ndim > 1 and not name.endswith((*WITHOUT_DECAY, "weight_g"))
            groups.setdefault((rate, float(decays)), []).append(parameter)
    return [
        {"params": found, "lr_factor": rate, "decay": decay}
        for (rate, decay), found in groups.items()
    ]


def apply_rates(optimizer: Any, now: Rates) -> None:
    """Set the rates of a step in every group."""
    for group in optimizer.param_groups:
        group["lr"] = now.lr * group["lr_factor"]
        group["weight_decay"] = now.weight_decay * group["decay"]
