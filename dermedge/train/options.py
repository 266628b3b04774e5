"""Options that fine-tuning and distillation share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dermedge.train.loop import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The network to train, its initial weights and its schedule.

    Attributes:
        backbone: timm name or student preset. None takes the name that `init` holds.
        backbone_args: Arguments of `timm.create_model`.
        stages: Number of the backbone's stages to keep, counted from the input. None
            keeps all.
        init: Initial weights: `none` (random), `hub` (timm's published weights), a
            safetensors file, or a model folder. A folder with the same backbone is
            copied, and a wider backbone of the same family is pruned.
        name: Name of the model. None derives it from the backbone's.
        balance: Train for balanced accuracy (by logit adjustment) instead of accuracy.
        schedule: Number of epochs, batch size and learning rate.
        seed: Random seed for shuffling, augmentation and initialization.
        ood: Give a student the task `ood`, which scores how foreign an image is. Its
            head is fitted on the train images after training.
        foreign: Folders or table files of images that this score must flag, such as
            clinical photographs for a model of dermoscopic images. Their train rows are
            used. Without a table, drawn images without skin are used.

    Example:
        >>> from dataclasses import replace
        >>> short = TrainingOptions(backbone="test_vit", schedule=Schedule(epochs=8))
        >>> replace(short, seed=1).schedule.epochs
        8
    """

    backbone: str | None = None
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    stages: int | None = None
    init: str = "none"
    name: str | None = None
    balance: bool = True
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    ood: bool = True
    foreign: Sequence[Path | str] = ()
