"""Pretrain teachers by self-supervision, labels of several sources, and prototypes."""

from dermedge.hybrid_recipe import PRESETS, ExecutionOptions, HybridRecipe
from dermedge.train.hybrid.pretrain import pretrain

__all__ = ["PRESETS", "ExecutionOptions", "HybridRecipe", "pretrain"]
