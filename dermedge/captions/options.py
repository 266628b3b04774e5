"""Define the options of `train_caption`."""

from dataclasses import dataclass

from dermedge_runtime.errors import UsageError

QUESTION = "Please describe this dermatology image:"
MAX_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Options of `train_caption`, with the values of DermINO's released code.

    Attributes:
        epochs: Passes over the train captions.
        batch_size: Captions per optimizer step.
        accumulate: Parts of a step that are computed one after another. More parts need
            less memory, and do not change the result.
        lr: Learning rate of the linear layer that makes the visual tokens.
        lora_lr: Learning rate of the LoRA weights.
        weight_decay: Weight decay of AdamW.
        visual_tokens: Tokens that an image becomes.
        rank: Rank of LoRA.
        alpha: Scale of LoRA, times its rank.
        dropout: Dropout in front of LoRA.
        max_tokens: Longest caption in tokens, in training and in decoding.
        bf16: Keep and compute the frozen language model in bfloat16.
        seed: Random seed of initialization, shuffling and dropout.

    Raises:
        UsageError: No training is possible with these values.

    Example:
        >>> CaptionOptions(epochs=3).rank
        8
        >>> CaptionOptions(batch_size=4, accumulate=3)
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: 4 captions per step cannot be divided into 3...
    """

    epochs: int = 2
    batch_size: int = 4
    accumulate: int = 1
    lr: float = 4e-4
    lora_lr: float = 8e-5
    weight_decay: float = 0.05
    visual_tokens: int = 8
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    max_tokens: int = MAX_TOKENS
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "accumulate", "visual_tokens", "rank", "max_tokens")
        rates = ("lr", "lora_lr")
        wrong = [name for name in counts if getattr(self, name) < 1]
        wrong += [name for name in rates if not 0 < getattr(self, name) < float("inf")]
        wrong += [] if 0 <= self.dropout < 1 else ["dropout"]
        if wrong:
            raise UsageError(
                f"{wrong[0]} is {getattr(self, wrong[0])}, which allows no training. Give at least "
                "1 for a number, a rate above 0, and a dropout below 1."
            )
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"{self.batch_size} captions per step cannot be divided into {self.accumulate} "
                "parts. Choose an --accumulate that divides --batch-size."
            )
