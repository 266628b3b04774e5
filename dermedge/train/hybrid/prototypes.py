"""Knowledge-guided prototypes: where the rows of the label head start.

In the released code of DermINO (arXiv:2508.12190) they are embeddings of the disease names by CODER, a term encoder
trained on UMLS (Yuan et al., J. Biomed. Inform. 2022), L2-normalised and frozen. Here they may come from any text
encoder of Hugging Face, from a file of vectors, or from the project's own tree of diagnoses, which needs no download.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from dermedge.data.taxonomy import TAXONOMY, lineage
from dermedge_runtime.errors import DataError, MissingExtraError

Floats = NDArray[np.float64]

TOKENS = 32
BATCH = 64


def make_prototypes(source: str, space: Sequence[str], width: int, seed: int = 0) -> Tensor:
    """L2-normalised rows [C, width], float32, one per class of `space`.

    Args:
        source: `taxonomy`, `random`, a .safetensors or .npz file with a vector per class id, or the name or folder of a
            Hugging Face text encoder.
        space: ids of diagnoses.
        width: of the backbone's features.
        seed: of `random`, and of the rotation into a wider space.

    Raises:
        DataError: the file or the encoder cannot be used.
        MissingExtraError: a text encoder is asked for and transformers is not installed.
    """
    sources: Mapping[str, Callable[[], Floats]] = {
        "taxonomy": lambda: taxonomy_rows(space),
        "random": lambda: np.random.default_rng(seed).standard_normal((len(space), width)),
    }
    if source in sources:
        rows = sources[source]()
    elif Path(source).suffix in (".safetensors", ".npz"):
        rows = vectors_of_file(Path(source), space)
    else:
        rows = encoded_names(source, [TAXONOMY[name].name for name in space])
    return torch.from_numpy(fit_width(rows, width, seed).astype(np.float32))


def taxonomy_rows(space: Sequence[str]) -> Floats:
    """Rows whose cosine follows the distance in the tree of diagnoses: the shared part of two ways to the root, over
    the geometric mean of their lengths. Two diagnoses of different branches share the root only.
    """
    ways = {name: ["", *lineage(name)] for name in space}
    nodes = {
        node: index
        for index, node in enumerate(sorted({node for way in ways.values() for node in way}))
    }
    rows = np.zeros((len(space), len(nodes)))
    for row, name in enumerate(space):
        rows[row, [nodes[node] for node in ways[name]]] = 1
    return rows


def vectors_of_file(path: Path, space: Sequence[str]) -> Floats:
    """The vectors of a file that holds one array per class id. Raises DataError for one that lacks some."""
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else dict(np.load(path, allow_pickle=False))
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): give a .safetensors or .npz file of vectors."
        ) from error
    missing = [name for name in space if name not in found]
    widths = {array.shape for array in found.values()}
    if missing or len(widths) != 1 or len(next(iter(widths))) != 1:
        wrong = (
            f"lacks {', '.join(missing[:3])}"
            if missing
            else f"has vectors of the shapes {sorted(widths)[:3]}"
        )
        raise DataError(
            f"{path} {wrong}: it must hold one vector of one length for each of {len(space)} diagnoses."
        )
    return np.stack([found[name] for name in space]).astype(np.float64)


def encoded_names(encoder: str, names: Sequence[str]) -> Floats:
    """Pooled outputs of a Hugging Face text encoder, by name or local folder, for names of up to 32 tokens.

    Weights are read from safetensors only. A name that is not a folder is looked for in the local cache and, as the
    user named it, on the hub.

    Raises:
        DataError: the encoder cannot be loaded, or has no pooled output.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError("transformers", "text", "A text encoder") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(encoder)
        model = AutoModel.from_pretrained(encoder, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"There is no text encoder {encoder!r} ({first}): give its folder or hub name, a vector file, 'taxonomy' "
            "or 'random'."
        ) from error
    parts = []
    with torch.inference_mode():
        for first_row in range(0, len(names), BATCH):
            tokens = tokenizer(
                list(names[first_row : first_row + BATCH]),
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            )
            pooled = getattr(model(**tokens), "pooler_output", None)
            if pooled is None:
                raise DataError(
                    f"The text encoder {encoder!r} has no pooled output: give a BERT-like one."
                )
            parts.append(pooled.double().numpy())
    return np.concatenate(parts)


def fit_width(rows: Floats, width: int, seed: int) -> Floats:
    """Rows [C, d] as unit vectors [C, width] whose cosines are those of `rows`.

    Exactly, by a random rotation, where `width` has room for them; else as nearly as that many dimensions allow, by the
    leading singular vectors.
    """
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if unit.shape[1] == width:
        return np.asarray(unit)
    left, singular, _ = np.linalg.svd(unit, full_matrices=False)
    kept = (left * singular)[:, :width]
    if kept.shape[1] < width:
        rotation, _ = np.linalg.qr(
            np.random.default_rng(seed).standard_normal((width, kept.shape[1]))
        )
        kept = kept @ rotation.T
    return np.asarray(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12))
