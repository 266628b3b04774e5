"""Hybrid pretraining of teachers: self-supervision, labels of several sources, knowledge-guided prototypes."""

from dermedge.train.hybrid.pretrain import pretrain
from dermedge.train.hybrid.recipe import PRESETS, HybridRecipe

__all__ = ["PRESETS", "HybridRecipe", "pretrain"]
