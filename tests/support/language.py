"""A small language model with random weights and a tokenizer of whole words."""

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from dermedge.captions.describe import HELD_OUT, PHRASINGS
from dermedge.captions.language_model import SAMPLE
from dermedge.captions.options import QUESTION
from dermedge.captions.prompt import IMAGE
from dermedge.captions.table import caption_data
from dermedge.data.draw import draw_data_set

HIDDEN = 32
SPECIAL = ("<s>", "</s>", "<unk>")


@functools.cache
def captioned(base: Path) -> Path:
    """Return a data set of 40 drawn lesions with captions and splits."""
    folder = base / "captioned"
    draw_data_set(folder, count=40, seed=5, size=(48, 36))
    caption_data(folder, overwrite=True)
    return folder


@functools.cache
def language_model_folder(base: Path) -> Path:
    """Return the folder of a Llama with two layers; `base` is that of the test session."""
    folder = base / "language-model"
    save_language_model(folder)
    return folder


def save_language_model(folder: Path, *, words: Sequence[str] = (), seed: int = 0) -> Path:
    """Write a language model with a byte-level tokenizer, trained on a few sentences."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    clauses = [
        clause
        for phrasing in (*PHRASINGS, *HELD_OUT)
        for sentence in phrasing
        for clause in sentence
    ]
    tokenizer.train_from_iterator([*clauses, QUESTION, IMAGE, SAMPLE, *words], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=True,
        initializer_range=0.1,  # With the usual 0.02, all tokens stay about equally probable.
    )
    logging.disable_progress_bar()
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
