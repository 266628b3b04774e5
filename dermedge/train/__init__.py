"""Verbs that make models: pretrain or fine-tune a teacher, distil a student."""

from dermedge.train.distill import distill
from dermedge.train.finetune import finetune
from dermedge.train.loop import Schedule

__all__ = ["Schedule", "distill", "finetune"]
