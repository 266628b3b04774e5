"""Make knowledge-guided prototypes, the initial rows of the label head.

The released code of DermINO (arXiv:2508.12190) embeds the disease names with CODER, a
term encoder trained on UMLS (Yuan et al., J. Biomed. Inform. 2022). Its prototypes are
L2-normalized and frozen. Here they come from any Hugging Face text encoder, from a file
of vectors, or from the project's taxonomy, which needs no download.
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

TOKENS = 32  # Length of a name in the released code; longer names are cut.
BATCH = 64


def make_prototypes(
    source: str, space: Sequence[str], width: int, seed: int = 0, mask_padding: bool = True
) -> Tensor:
    """Return one unit vector per class, [C, width], float32.

    Args:
        source: `taxonomy`, `random`, a .safetensors or .npz file with a vector per
            class id, or the name or folder of a Hugging Face text encoder.
        space: Ids of diagnoses.
        width: Width of the backbone's features.
        seed: Seed of `random`, and of the rotation into a wider space.
        mask_padding: Hide padding tokens from a text encoder. The released code does
            not, so its vectors depend on the number of padding tokens.

    Raises:
        DataError: The file or the encoder cannot be used.
        MissingExtraError: A text encoder is named and transformers is not installed.

    Example:
        >>> rows = make_prototypes("taxonomy", ["mel", "nv", "psoriasis"], width=8)
        >>> bool(rows[0] @ rows[1] > rows[0] @ rows[2])
        True
    """
    sources: Mapping[str, Callable[[], Floats]] = {
        "taxonomy": lambda: taxonomy_rows(space),
        "random": lambda: np.random.default_rng(seed).standard_normal((len(space), width)),
    }
    if source in sources:
        rows = sources[source]()
    elif Path(source).suffix in (".safetensors", ".npz"):
        rows = read_vectors(Path(source), space)
    else:
        rows = encode_names(source, [TAXONOMY[name].name for name in space], mask_padding)
    return torch.from_numpy(fit_width(rows, width, seed).astype(np.float32))


def taxonomy_rows(space: Sequence[str]) -> Floats:
    """Return rows whose cosine follows the distance of two diagnoses in the taxonomy.

    The cosine is the length of the shared part of both paths to the root, over the
    geometric mean of the two lengths. Diagnoses of different branches share the root
    only.
    """
    paths = {name: ["", *lineage(name)] for name in space}
    nodes = {
        node: index
        for index, node in enumerate(sorted({node for path in paths.values() for node in path}))
    }
    rows = np.zeros((len(space), len(nodes)))
    for row, name in enumerate(space):
        rows[row, [nodes[node] for node in paths[name]]] = 1
    return rows


def read_vectors(path: Path, space: Sequence[str]) -> Floats:
    """Read a file that holds one vector per class id.

    Raises:
        DataError: The file cannot be read, lacks a class, or holds unequal vectors.
    """
    try:
        vectors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else dict(np.load(path, allow_pickle=False))
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Give a .safetensors or .npz file of vectors."
        ) from error
    missing = [name for name in space if name not in vectors]
    widths = {array.shape for array in vectors.values()}
    if missing or len(widths) != 1 or len(next(iter(widths))) != 1:
        reason = (
            f"lacks {', '.join(missing[:3])}"
            if missing
            else f"has vectors of the shapes {sorted(widths)[:3]}"
        )
        raise DataError(
            f"{path} {reason}. It must hold one vector of one length for each of "
            f"{len(space)} diagnoses."
        )
    return np.stack([vectors[name] for name in space]).astype(np.float64)


def encode_names(encoder: str, names: Sequence[str], mask_padding: bool) -> Floats:
    """Return the pooled outputs of a Hugging Face text encoder for names.

    Weights are read from safetensors only. A name that is not a folder is searched in
    the local cache, then on the hub.

    Args:
        encoder: Name or folder of the encoder.
        names: Names of diagnoses, cut at 32 tokens.
        mask_padding: Hide padding tokens from the encoder.

    Raises:
        DataError: The encoder cannot be loaded, or has no pooled output.
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
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"There is no text encoder {encoder!r} ({reason}). Give its folder or hub name, a "
            "vector file, 'taxonomy' or 'random'."
        ) from error
    parts = []
    with torch.inference_mode():
        for first in range(0, len(names), BATCH):
            tokens = tokenizer(
                list(names[first : first + BATCH]),
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            )
            if not mask_padding:
                tokens["attention_mask"] = torch.ones_like(tokens["attention_mask"])
            pooled = getattr(model(**tokens), "pooler_output", None)
            if pooled is None:
                raise DataError(
                    f"The text encoder {encoder!r} has no pooled output. Give a BERT-like one."
                )
            parts.append(pooled.double().numpy())
    return np.concatenate(parts)


def fit_width(rows: Floats, width: int, seed: int) -> Floats:
    """Return rows [C, d] as unit vectors [C, width] with the same cosines.

    A random rotation keeps the cosines exactly if `width` is large enough. Otherwise
    the leading singular vectors keep them as well as that many dimensions can.
    """
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    if unit.shape[1] == width:
        return np.asarray(unit)
    # U S has the same cosines as the rows, in as few dimensions as possible.
    left, singular, _ = np.linalg.svd(unit, full_matrices=False)
    kept = (left * singular)[:, :width]
    if kept.shape[1] < width:
        rotation, _ = np.linalg.qr(
            np.random.default_rng(seed).standard_normal((width, kept.shape[1]))
        )
        kept = kept @ rotation.T
    return np.asarray(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12))
