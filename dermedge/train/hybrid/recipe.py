"""The settings of hybrid pretraining, and its presets.

Source of the defaults: "DermINO: Hybrid Pretraining for a Versatile Dermatology Foundation Model" (arXiv:2508.12190)
and its released code, itself DINOv2's (Oquab et al., arXiv:2304.07193) with a label loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, get_args

from dermedge.train.loop import PRECISIONS
from dermedge_runtime.errors import UsageError

PrototypeMode = Literal["frozen", "learnable", "pulled"]


@dataclass(frozen=True)
class HybridRecipe:
    """Everything that decides what hybrid pretraining computes. Lengths of schedules are in epochs of `steps` steps.

    Attributes:
        backbone: timm name.
        backbone_args: arguments of `timm.create_model`.
        size: side of the two global crops in pixels, and of the teacher's input.
        local_size: side of the local crops.
        local_crops: local crops per image.
        global_scale: share of the picture's area that a global crop covers, least and most.
        local_scale: the same for a local crop.
        dino: weight of the cross entropy between class tokens of crops.
        ibot: weight of the cross entropy of masked patches; 0 for a backbone without patch tokens.
        koleo: weight of the entropy regulariser.
        label: weight of the label loss.
        outputs: prototypes of the DINO head, and of the iBOT head.
        hidden: width of the heads' hidden layers.
        bottleneck: width of the heads' last hidden layer.
        mask_probability: share of global crops with masked patches.
        mask_ratio: share of a masked crop's patches, least and most.
        prototypes: where the label head's rows start: `taxonomy`, `random`, a vector file, or a text encoder.
        prototype_mode: `frozen` as released, `learnable`, or `pulled` towards the start.
        pull: weight of the squared distance to the start, for `pulled`.
        momentum: of the teacher's moving average, first and last (cosine).
        temperature: of the teacher's softmax, first and last, reached linearly after `temperature_warmup` epochs.
        student_temperature: of the student's softmax.
        lr: learning rate at a batch of 1024; it is scaled by sqrt(batch / 1024).
        min_lr: its end.
        warmup: epochs of linear warm-up.
        weight_decay: first and last (cosine).
        clip: largest norm of the gradient.
        drop_path: rate of stochastic depth in the student.
        freeze_last_layer: epochs in which the heads' last layer stays as it is.
        patch_embed_lr: factor on the learning rate of the patch embedding.
        batch_size: images per optimiser step, over all processes.
        accumulate: parts that a step's images are worked off in, to save memory.
        epochs: how many.
        steps: optimiser steps per epoch.
        precision: of Fabric, `bf16-mixed` for example.
        checkpoint_activations: recompute activations in the backward pass, to save memory.
    """

    backbone: str
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224
    local_size: int = 98
    local_crops: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    label: float = 1.0
    outputs: int = 65_536
    hidden: int = 2048
    bottleneck: int = 256
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    prototypes: str = "taxonomy"
    prototype_mode: PrototypeMode = "frozen"
    pull: float = 1.0
    momentum: tuple[float, float] = (0.992, 1.0)
    temperature: tuple[float, float] = (0.04, 0.07)
    temperature_warmup: float = 30.0
    student_temperature: float = 0.1
    lr: float = 2e-3
    min_lr: float = 1e-6
    warmup: float = 10.0
    weight_decay: tuple[float, float] = (0.04, 0.2)
    clip: float = 3.0
    drop_path: float = 0.4
    freeze_last_layer: int = 1
    patch_embed_lr: float = 0.2
    batch_size: int = 2048
    accumulate: int = 1
    epochs: int = 100
    steps: int = 400
    precision: str = "bf16-mixed"
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"Precision {self.precision!r} is unknown: use one of {', '.join(PRECISIONS)}."
            )
        if self.prototype_mode not in get_args(PrototypeMode):
            raise UsageError(
                f"Prototypes cannot be {self.prototype_mode!r}: use one of {', '.join(get_args(PrototypeMode))}."
            )
        if self.epochs < 1 or self.steps < 1 or self.batch_size < 2 or not self.lr > 0:
            raise UsageError(
                f"{self.epochs} epochs of {self.steps} steps of {self.batch_size} images at a rate of {self.lr} train "
                "nothing: give at least 1 epoch of 1 step of 2 images, and a rate above 0."
            )
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise UsageError(
                f"A batch of {self.batch_size} images cannot be worked off in {self.accumulate} equal parts: give an "
                "--accumulate that divides --batch-size."
            )
        if not (self.dino or self.ibot or self.label):
            raise UsageError(
                "All losses have the weight 0: give --dino, --ibot or --label a weight above 0."
            )

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.epochs * self.steps

    @property
    def self_supervised(self) -> bool:
        """Whether any term needs the moving-average teacher."""
        return bool(self.dino or self.ibot)


# `small` and `tiny` scale the heads with the backbone; `tiny` and `mobile` are what two CPU cores manage.
# A batch of 64 gives 128 class tokens: a cold teacher keeps its assignments from becoming uniform, which the student's
# soon would too. `mobile` is a short run and has a short moving average.
PRESETS: Mapping[str, HybridRecipe] = MappingProxyType(
    {
        "dermnio-base": HybridRecipe("vit_base_patch14_dinov2", {"img_size": 224}),
        "small": HybridRecipe(
            "vit_small_patch14_dinov2",
            {"img_size": 224},
            outputs=16_384,
            drop_path=0.2,
            batch_size=512,
        ),
        "tiny": HybridRecipe(
            "vit_tiny_patch16_224",
            {"img_size": 112},
            size=112,
            local_size=48,
            local_crops=4,
            outputs=2048,
            hidden=512,
            bottleneck=128,
            drop_path=0.1,
            warmup=2.0,
            temperature=(0.02, 0.02),
            temperature_warmup=0.0,
            batch_size=64,
            epochs=20,
            steps=100,
            precision="32-true",
        ),
        "mobile": HybridRecipe(
            "mobilenetv2_100",
            size=96,
            local_size=48,
            local_crops=2,
            ibot=0.0,
            outputs=256,
            hidden=512,
            bottleneck=128,
            momentum=(0.97, 1.0),
            temperature=(0.02, 0.02),
            temperature_warmup=0.0,
            drop_path=0.0,
            weight_decay=(0.04, 0.04),
            warmup=2.0,
            batch_size=64,
            epochs=6,
            steps=50,
            precision="32-true",
        ),
    }
)
