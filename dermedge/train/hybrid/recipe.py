"""Define the settings of hybrid pretraining and its presets.

The module imports no torch, because the command line offers every field as an option.

Source of the defaults: "DermINO: Hybrid Pretraining for a Versatile Dermatology
Foundation Model" (arXiv:2508.12190) and its released code, which is DINOv2
(Oquab et al., arXiv:2304.07193) with a label loss. docs/pretraining.md lists each
difference from the released code.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from dermedge.train.precisions import check_precision
from dermedge_runtime.errors import UsageError

PrototypeMode = Literal["frozen", "learnable", "pulled"]
DropPathMode = Literal["uniform", "ramp"]
ClipPer = Literal["module", "model"]
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass(frozen=True)
class Limits:
    """Help text and range of a recipe field.

    The range holds for a number, or for each element of a tuple.
    `low` and `high` are inclusive bounds, `above` is an exclusive lower bound.

    Example:
        >>> limits = LIMITS["local_size"]
        >>> limits.allow(8), limits.describe()
        (False, 'at least 16 and at most 4096')
    """

    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None

    def allow(self, value: float) -> bool:
        """Return True if a number lies in the range."""
        return not (
            (self.low is not None and value < self.low)
            or (self.high is not None and value > self.high)
            or (self.above is not None and value <= self.above)
        )

    def describe(self) -> str:
        """Return the range as text, for messages."""
        parts = (
            ("above", self.above),
            ("at least", self.low),
            ("at most", self.high),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in parts if bound is not None)


def setting(default: Any, help: str, **limits: float) -> Any:
    """Return a dataclass field with its default, its help text and its range."""
    return field(default=default, metadata={"limits": Limits(help, **limits)})


@dataclass(frozen=True)
class HybridRecipe:
    """All settings that decide what hybrid pretraining computes.

    Lengths of schedules are in epochs of `steps` optimizer steps. The text of each
    field gives its meaning and unit, and `dermedge pretrain --help` prints it.

    Raises:
        UsageError: A field is out of range, or two fields contradict each other.

    Example:
        >>> recipe = HybridRecipe("vit_small_patch14_dinov2", epochs=2, steps=50)
        >>> recipe.total
        100
        >>> PRESETS["dermnio-base"].drop_path_mode
        'uniform'
    """

    backbone: str = field(
        metadata={
            "limits": Limits(
                "timm name of the backbone. A backbone that is no vision transformer trains "
                "without the masked-patch loss."
            )
        }
    )
    backbone_args: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"limits": Limits("Arguments of timm.create_model, such as img_size.")},
    )
    size: int = setting(
        224,
        "Side of the two global crops and of the teacher's input, in pixels.",
        low=16,
        high=4096,
    )
    local_size: int = setting(98, "Side of the local crops, in pixels.", low=16, high=4096)
    local_crops: int = setting(8, "Number of local crops per image.", low=0)
    global_scale: tuple[float, float] = setting(
        (0.32, 1.0),
        "Smallest and largest share of the image area in a global crop.",
        above=0,
        high=1,
    )
    local_scale: tuple[float, float] = setting(
        (0.05, 0.32),
        "Smallest and largest share of the image area in a local crop.",
        above=0,
        high=1,
    )
    # The released code names 1, .1 and .5, but inherits DINOv2's inverted probability:
    # github.com/facebookresearch/dinov2/pull/411. These are the values in effect.
    blur: tuple[float, float, float] = setting(
        (0.0, 0.9, 0.5),
        "Probability of Gaussian blur in the first global, second global and local crops.",
        low=0,
        high=1,
    )
    dino: float = setting(1.0, "Weight of the loss between crops; 0 disables it.", low=0)
    ibot: float = setting(1.0, "Weight of the masked-patch loss; 0 disables it.", low=0)
    koleo: float = setting(0.1, "Weight of the entropy regularizer; 0 disables it.", low=0)
    label: float = setting(1.0, "Weight of the label loss; 0 disables it.", low=0)
    outputs: int = setting(65_536, "Number of outputs of the DINO and iBOT heads.", low=2)
    hidden: int = setting(2048, "Width of the hidden layers of both heads.", low=1)
    bottleneck: int = setting(256, "Width of the last hidden layer of both heads.", low=1)
    mask_probability: float = setting(
        0.5, "Share of global crops with masked patches.", low=0, high=1
    )
    mask_ratio: tuple[float, float] = setting(
        (0.1, 0.5), "Smallest and largest share of masked patches in a masked crop.", low=0, high=1
    )
    prototypes: str = setting(
        "taxonomy",
        "Initial rows of the label head: taxonomy, random, a .safetensors or .npz file with a "
        "vector per diagnosis, or a Hugging Face text encoder by name or folder.",
    )
    prototype_mode: PrototypeMode = setting(  # noqa: RUF009
        "frozen",
        "Training of these rows: frozen as released, learnable, or pulled towards the start.",
    )
    mask_padding: bool = setting(
        True,
        "Hide padding tokens from the text encoder. The released code lets it attend to them.",
    )
    pull: float = setting(
        1.0, "Weight of the squared distance to the initial rows, for mode pulled.", low=0
    )
    momentum: tuple[float, float] = setting(
        (0.992, 1.0), "First and last momentum of the teacher's moving average.", low=0, high=1
    )
    temperature: tuple[float, float] = setting(
        (0.04, 0.07),
        "First and last temperature of the teacher's assignments. Small batches need low ones.",
        above=0,
    )
    temperature_warmup: float = setting(
        30.0, "Epochs of linear change from the first to the last temperature.", low=0
    )
    student_temperature: float = setting(0.1, "Temperature of the student's softmax.", above=0)
    lr: float = setting(
        2e-3, "Learning rate at a batch of 1024; scaled by sqrt(batch / 1024).", above=0
    )
    min_lr: float = setting(1e-6, "Learning rate at the end.", low=0)
    warmup: float = setting(10.0, "Epochs of rising learning rate.", low=0)
    weight_decay: tuple[float, float] = setting(
        (0.04, 0.2), "First and last weight decay, on a cosine.", low=0
    )
    clip: float = setting(3.0, "Largest L2 norm of the gradient; 0 disables clipping.", low=0)
    clip_per: ClipPer = setting(  # noqa: RUF009
        "module",
        "Clip the backbone and each head separately (module, as released), or by one norm "
        "over all of them (model).",
    )
    drop_path: float = setting(0.4, "Rate of stochastic depth in the student.", low=0, high=0.99)
    drop_path_mode: DropPathMode = setting(  # noqa: RUF009
        "uniform",
        "Rate per block: the full rate in every block (uniform, as released), or rising "
        "linearly from 0 to it (ramp).",
    )
    # In its first steps the teacher is random, so prototypes would learn noise.
    freeze_last_layer: int = setting(
        1, "Epochs in which the last layer of both heads does not train.", low=0
    )
    patch_embed_lr: float = setting(
        0.2, "Factor on the learning rate of the patch embedding.", low=0
    )
    batch_size: int = setting(2048, "Images per optimizer step, over all processes.", low=2)
    accumulate: int = setting(1, "Gradient accumulation steps; more need less memory.", low=1)
    epochs: int = setting(100, "Number of epochs.", low=1)
    steps: int = setting(400, "Optimizer steps per epoch.", low=1)
    precision: str = setting("bf16-mixed", "Numeric precision, as Lightning Fabric names it.")
    checkpoint_activations: bool = setting(
        False, "Recompute activations in the backward pass, to save memory."
    )

    def __post_init__(self) -> None:
        """Check all fields."""
        check_precision(self.precision)
        self._check_choices()
        self._check_ranges()
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"A batch of {self.batch_size} images has no {self.accumulate} equal parts. Give "
                "an --accumulate that divides --batch-size."
            )
        if not (self.dino or self.ibot or self.label):
            raise UsageError(
                "All losses have weight 0. Give --dino, --ibot or --label a weight above 0."
            )
        if self.temperature[0] != self.temperature[1] and not self.temperature_warmup:
            raise UsageError(
                f"The temperature cannot change from {self.temperature[0]} to "
                f"{self.temperature[1]} in 0 epochs. Give --temperature-warmup, or two equal "
                "temperatures."
            )

    def _check_choices(self) -> None:
        """Raise UsageError for a value that its Literal type does not list."""
        for name, kind in typing.get_type_hints(type(self)).items():
            options = get_args(kind) if typing.get_origin(kind) is Literal else ()
            if options and getattr(self, name) not in options:
                raise UsageError(
                    f"{option_name(name)} cannot be {getattr(self, name)!r}. Use one of "
                    f"{', '.join(options)}."
                )

    def _check_ranges(self) -> None:
        """Raise UsageError for a number out of range, or a range in falling order."""
        for name, limits in LIMITS.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, (int, float)) and not limits.allow(number):
                    raise UsageError(
                        f"{option_name(name)} cannot be {number}. Give a value {limits.describe()}."
                    )
        for name in ("global_scale", "local_scale", "mask_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise UsageError(
                    f"{option_name(name)} cannot be {low} {high}. Give the smaller value first."
                )

    @property
    def total(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.epochs * self.steps

    @property
    def self_supervised(self) -> bool:
        """True if a loss needs the moving-average teacher."""
        return bool(self.dino or self.ibot)


LIMITS: Mapping[str, Limits] = MappingProxyType(
    {item.name: item.metadata["limits"] for item in fields(HybridRecipe)}
)


@dataclass(frozen=True)
class ExecutionOptions:
    """Settings of a pretraining run that do not change its result.

    Attributes:
        workers: Processes that cut crops, per training process. None takes all cores
            but one.
        strategy: `auto`, `ddp` or `fsdp`; without effect in a single process.
        accelerator: Device as Lightning Fabric names it: `auto`, `cpu` or `cuda`.
        checkpoint_minutes: Longest time between two checkpoints. One is also written
            after every epoch.

    Raises:
        UsageError: The strategy is unknown.

    Example:
        >>> ExecutionOptions(workers=2).checkpoint_minutes
        10.0
    """

    workers: int | None = None
    strategy: str = "auto"
    accelerator: str = "auto"
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        """Check the strategy."""
        if self.strategy not in STRATEGIES:
            raise UsageError(
                f"Strategy {self.strategy!r} is unknown. Use one of {', '.join(STRATEGIES)}."
            )


def option_name(name: str) -> str:
    """Return the command-line option of a recipe field.

    Example:
        >>> option_name("local_size")
        '--local-size'
    """
    return "--backbone-arg" if name == "backbone_args" else f"--{name.replace('_', '-')}"


def make_recipe(preset: str, **changes: Any) -> HybridRecipe:
    """Return a preset with some fields changed.

    Another backbone drops the preset's `backbone_args`. If the preset creates its
    backbone for one image size, `size` changes that too.

    Args:
        preset: Key of `PRESETS`.
        changes: Field name -> new value.

    Raises:
        UsageError: The preset is unknown, or the fields contradict each other.

    Example:
        >>> make_recipe("tiny", size=64).backbone_args
        {'img_size': 64}
    """
    if preset not in PRESETS:
        raise UsageError(f"Preset {preset!r} is unknown: use one of {', '.join(PRESETS)}.")
    base = PRESETS[preset]
    args = {} if "backbone" in changes else dict(base.backbone_args)
    if "img_size" in args and "size" in changes:
        args["img_size"] = changes["size"]
    args |= changes.pop("backbone_args", {})
    return replace(base, **changes, backbone_args=args)


# `dermnio-base` reproduces the released settings. `small` scales the heads with the
# backbone. `tiny` and `mobile` are sized for two CPU cores. They keep the ramped drop
# path, the clipping of the whole model and the blur of the DINO paper. Their published
# numbers were measured with these. A batch of 64 gives only 128 class tokens.
# At the published temperature the teacher's assignments become uniform, and the student
# collapses. A temperature of 0.02 prevents that. The warm-up of the temperature has no
# effect in these two presets, unless two different temperatures are given.
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
            blur=(1.0, 0.1, 0.5),
            outputs=2048,
            hidden=512,
            bottleneck=128,
            clip_per="model",
            drop_path=0.1,
            drop_path_mode="ramp",
            warmup=2.0,
            temperature=(0.02, 0.02),
            temperature_warmup=6.0,
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
            blur=(1.0, 0.1, 0.5),
            ibot=0.0,
            outputs=256,
            hidden=512,
            bottleneck=128,
            momentum=(0.97, 1.0),
            temperature=(0.02, 0.02),
            temperature_warmup=2.0,
            clip_per="model",
            drop_path=0.0,
            drop_path_mode="ramp",
            weight_decay=(0.04, 0.04),
            warmup=2.0,
            batch_size=64,
            epochs=6,
            steps=50,
            precision="32-true",
        ),
    }
)
