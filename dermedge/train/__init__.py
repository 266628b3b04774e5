"""Train models: fine-tune a teacher, distil a student."""

from dermedge.train.distill import DistillOptions, distill
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.loop import Schedule

__all__ = ["DistillOptions", "FinetuneOptions", "Schedule", "distill", "finetune"]
