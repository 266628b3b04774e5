"""The captioner: image features, visual tokens, and a language model with LoRA."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermedge.captions.options import CaptionOptions
from dermedge.captions.prompt import Prompt
from dermedge_runtime.errors import DataError, MissingExtraError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROJECTIONS = ("q_proj", "v_proj")
"""Layers that get LoRA: queries and values of the attention."""
IGNORED = -100
"""Target of a position without a caption token."""


class Captioner(nn.Module):
    """A linear layer from features to visual tokens, and a language model with LoRA.

    Only the linear layer and LoRA are trained. They stay in float32.

    Args:
        language: The frozen language model.
        width: Width D of the features.
        prompt: Tokens around the visual tokens.
        options: Number of visual tokens, and the settings of LoRA.

    Raises:
        DataError: The language model has no layers that LoRA can be added to.
        MissingExtraError: peft is not installed.

    Example:
        >>> from dermedge.captions.language_model import (
        ...     find_language_model, load_language_model,
        ... )
        >>> from dermedge.captions.prompt import make_prompt
        >>> files = find_language_model("language-model")
        >>> language, tokenizer = load_language_model(files, bf16=False)
        >>> captioner = Captioner(language, 16, make_prompt(tokenizer), CaptionOptions())
        >>> features = torch.rand(2, 16)
        >>> tuple(captioner.visual_tokens(features).shape)
        (2, 8, 32)
    """

    language: Any  # A module with the methods of a language model of transformers.

    def __init__(
        self, language: "PreTrainedModel", width: int, prompt: Prompt, options: CaptionOptions
    ) -> None:
        super().__init__()
        self.prompt = prompt
        self.count = options.visual_tokens
        self.hidden = int(language.get_input_embeddings().weight.shape[1])
        self.projection = nn.Linear(width, self.count * self.hidden)
        self.language = add_lora(language, options)

    def visual_tokens(self, features: Tensor) -> Tensor:
        """Return visual tokens [N, T, H] of features [N, D]."""
        tokens: Tensor = self.projection(features)
        return tokens.view(-1, self.count, self.hidden)

    def embed_prompt(self, features: Tensor) -> Tensor:
        """Return the prompt with the visual tokens of each image, [N, P, H]."""
        before, after = (self._embed(part) for part in (self.prompt.before, self.prompt.after))
        visual = self.visual_tokens(features).to(before.dtype)
        count = len(features)
        return torch.cat([before.expand(count, -1, -1), visual, after.expand(count, -1, -1)], dim=1)

    def forward(self, features: Tensor, captions: Tensor) -> Tensor:
        """Return the negative log-likelihood [N] of each caption, summed over its tokens.

        Args:
            features: Features [N, D].
            captions: Token ids [N, L], `IGNORED` after the end of a caption.
        """
        prompt = self.embed_prompt(features)
        text = self.language.get_input_embeddings()(captions.clamp(min=0))
        # Rows are padded on the right, so a caption never sees the padding, and no
        # attention mask is needed.
        logits = self.language(
            inputs_embeds=torch.cat([prompt, text.to(prompt.dtype)], dim=1), use_cache=False
        ).logits
        # The logits at a position predict the next token.
        predicted = logits[:, prompt.shape[1] - 1 : -1].float()
        loss = F.cross_entropy(
            predicted.flatten(0, 1), captions.flatten(), ignore_index=IGNORED, reduction="none"
        )
        return loss.view_as(captions).sum(1)

    @torch.inference_mode()
    def generate(self, features: Tensor, max_tokens: int) -> list[list[int]]:
        """Return the token ids of a caption per image, by greedy decoding with a cache.

        Args:
            features: Features [N, D].
            max_tokens: Largest number of tokens. A caption that ends earlier has its
                end token last.
        """
        from transformers import GenerationConfig

        prompt = self.embed_prompt(features)
        # A new configuration, because the one of the model may sample or penalize.
        greedy = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.prompt.end,
            pad_token_id=self.prompt.end,
        )
        mask = torch.ones(prompt.shape[:2], dtype=torch.long, device=prompt.device)
        ids = self.language.generate(
            inputs_embeds=prompt, attention_mask=mask, generation_config=greedy
        )
        return [cut_at_end(row, self.prompt.end) for row in ids.tolist()]

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name: the linear layer and LoRA."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def load_trained(self, weights: dict[str, Tensor]) -> None:
        """Set the trained parameters.

        Raises:
            DataError: The weights are those of another captioner.
        """
        own = self.trained()
        if {name: p.shape for name, p in own.items()} != {n: w.shape for n, w in weights.items()}:
            raise DataError(
                "The weights of the captioner do not fit its language model and its teacher. Give "
                "those that it was trained with."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])

    def _embed(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings [1, L, H] of token ids."""
        table = self.language.get_input_embeddings()
        found: Tensor = table(torch.tensor(ids, dtype=torch.long, device=table.weight.device))
        return found[None]


def add_lora(language: "PreTrainedModel", options: CaptionOptions) -> nn.Module:
    """Add LoRA to the attention's queries and values of a frozen language model.

    A model that names these layers otherwise gets LoRA where peft adds it by default.

    Raises:
        DataError: peft knows no layer of this model.
        MissingExtraError: peft is not installed.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingExtraError("peft", "captions", "A captioner") from error
    names = {name.rpartition(".")[2] for name, _ in language.named_modules()}
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(PROJECTIONS) if names.issuperset(PROJECTIONS) else None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21.2 reads an attribute that transformers has renamed
            # (https://github.com/huggingface/peft, src/peft/peft_model.py).
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            found: nn.Module = get_peft_model(language, config)
    except ValueError as error:
        raise DataError(
            f"LoRA cannot be added to this language model ({first_line(error)}). Choose another "
            "one, such as a Llama or a Mistral."
        ) from error
    # peft keeps LoRA in float32 by default, also if the model is in bfloat16.
    return found


def cut_at_end(ids: list[int], end: int) -> list[int]:
    """Return the ids up to the first end, which is kept.

    Example:
        >>> cut_at_end([5, 6, 2, 2], end=2), cut_at_end([5, 6], end=2)
        ([5, 6, 2], [5, 6])
    """
    return ids[: ids.index(end) + 1] if end in ids else ids


def pad_captions(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return token ids [N, L], padded with `IGNORED` on the right.

    Example:
        >>> pad_captions([[5, 6], [7]]).tolist()
        [[5, 6], [7, -100]]
    """
    length = max(map(len, rows))
    return torch.tensor([[*row, *[IGNORED] * (length - len(row))] for row in rows])
