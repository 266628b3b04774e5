"""Write the prompt around the visual tokens, and turn captions into tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dermedge.captions.options import QUESTION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE = "<dermedge-image>"
"""Place of the visual tokens in the text of a prompt."""


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the visual tokens, and the id that ends a caption.

    Example:
        >>> Prompt(before=(1, 5), after=(7,), end=2).end
        2
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int


def make_prompt(tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    """Return the prompt in the chat format of a language model.

    For Mistral it is `<s>[INST] IMAGE Please describe ...: [/INST]`, as in DermINO's
    released code, which writes "descript". A model without a chat format gets its
    beginning token, the image and the question.
    """
    text = f"{IMAGE} {QUESTION}"
    if tokenizer.chat_template:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
        )
    else:
        text = f"{tokenizer.bos_token or ''}{text}\n"
    before, _, after = text.partition(IMAGE)

    def encode(part: str) -> tuple[int, ...]:
        return tuple(tokenizer(part, add_special_tokens=False)["input_ids"])

    return Prompt(encode(before), encode(after), int(tokenizer.eos_token_id))


def encode_captions(
    tokenizer: "PreTrainedTokenizerBase", captions: Sequence[str], end: int, max_tokens: int
) -> tuple[list[list[int]], int]:
    """Return the token ids of captions with their end, and the number that were cut.

    A caption of more than `max_tokens` is cut and has no end, so that the model does
    not learn to stop there.
    """
    encoded: list[list[int]] = []
    for caption in captions:
        ids = list(tokenizer(caption, add_special_tokens=False)["input_ids"])
        encoded.append([*ids, end][:max_tokens])
    return encoded, sum(ids[-1] != end for ids in encoded)
