"""BERTScore of captions, with the weights of a local text encoder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.errors import DataError, first_line

BATCH = 32
LONGEST = 512


def bert_f1(captions: Sequence[str], references: Sequence[str], encoder: Path) -> Floats:
    """Return the F-measure [N] of BERTScore, with the encoder's last layer and no weights.

    Each token is matched with the most similar token of the other text. The published
    scores use another layer for each encoder, so values compare only for one encoder.

    Args:
        captions: Captions [N].
        references: References [N].
        encoder: Folder of a Hugging Face text encoder, with safetensors and tokenizer.

    Raises:
        DataError: The folder holds no text encoder.

    Source: Zhang et al., BERTScore, ICLR 2020.
    """
    left, right = _encode(captions, encoder), _encode(references, encoder)
    scores = []
    for ours, theirs in zip(left, right, strict=True):
        if not len(ours) or not len(theirs):
            scores.append(0.0)
            continue
        similarity = ours @ theirs.T
        precision, recall = similarity.max(axis=1).mean(), similarity.max(axis=0).mean()
        scores.append(2 * precision * recall / max(precision + recall, 1e-9))
    return np.array(scores, np.float64)


def _encode(texts: Sequence[str], encoder: Path) -> list[Floats]:
    """Return unit vectors [tokens, D] of each text, without special tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True)
        model = AutoModel.from_pretrained(
            encoder, use_safetensors=True, local_files_only=True
        ).eval()
    except Exception as error:  # transformers raises many types for missing files
        raise DataError(
            f"There is no text encoder in {encoder} ({first_line(error)}). Give the folder of a "
            "BERT-like encoder."
        ) from error
    found: list[Floats] = []
    for first in range(0, len(texts), BATCH):
        batch = tokenizer(
            list(texts[first : first + BATCH]),
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        special = batch.pop("special_tokens_mask").bool()
        with torch.inference_mode():
            hidden = torch.nn.functional.normalize(model(**batch).last_hidden_state, dim=-1)
        words = batch["attention_mask"].bool() & ~special
        found += [row[own].double().numpy() for row, own in zip(hidden, words, strict=True)]
    return found
