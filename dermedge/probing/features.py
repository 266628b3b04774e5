"""Compute a teacher's pooled features of a table's images, and cache them on disk."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dermedge.data.table import Table, digests
from dermedge.evaluation.table_predictions import preprocess_table
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import atomic_write, sha256_hex
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import to_json

if TYPE_CHECKING:
    from dermedge.models import TrainedModel

Features = NDArray[np.float32]
SCHEMA = "dermedge.features/1"
BATCH = 64


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """Features [M, D], with the SHA-256 of the image file of each row.

    Examples:
        >>> CachedFeatures(("ab12",), np.zeros((1, 8), np.float32)).features.shape
        (1, 8)
    """

    digests: tuple[str, ...]
    features: Features


NO_FEATURES = CachedFeatures((), np.empty((0, 0), np.float32))


def extract_features(
    teacher: "TrainedModel",
    weights: str,
    table: Table,
    *,
    cache: Path,
    progress: Progress | None = None,
) -> Features:
    """Return the frozen teacher's pooled features [N, D] of a table's images.

    The features are the class token if the backbone pools by it. The cache holds one
    file per weights, backbone and preprocessing, which maps the digest of an image file
    to its features. Only images that it lacks go through the network. A damaged file is
    replaced.

    Args:
        teacher: The model; its own preprocessing is used.
        weights: SHA-256 of its weights file.
        table: The images.
        cache: Folder of the cache.
        progress: Called with the number of images done.

    Raises:
        DataError: An image is missing or unreadable, or a feature is NaN or infinite.
        DermedgeError: The cache cannot be written.

    Examples:
        >>> from dermedge.data.table import read_table
        >>> from dermedge.models import load_model_folder
        >>> teacher, table = load_model_folder("teacher"), read_table("lesions")
        >>> cache = Path("features")
        >>> features = extract_features(teacher, "1" * 64, table, cache=cache)
        >>> len(features), len(list(cache.iterdir()))
        (80, 1)
    """
    wanted = digests(table).tolist()
    path = cache / f"{_cache_key(teacher, weights)}.npz"
    cached = _read_cache(path)
    row_of = {digest: row for row, digest in enumerate(cached.digests)}
    # The first row of each image file that the cache lacks: duplicates are computed
    # once.
    first = {
        digest: row for row, digest in reversed(list(enumerate(wanted))) if digest not in row_of
    }
    new = sorted(first.values())
    if new:
        computed = _compute_features(teacher, table.replace(table.frame.iloc[new]), progress)
        merged = np.concatenate([cached.features, computed]) if cached.digests else computed
        cached = CachedFeatures((*cached.digests, *(wanted[row] for row in new)), merged)
        row_of = {digest: row for row, digest in enumerate(cached.digests)}
        _write_cache(path, cached)
    return cached.features[[row_of[digest] for digest in wanted]]


def _cache_key(teacher: "TrainedModel", weights: str) -> str:
    """Return a digest of everything that determines a feature, apart from the image."""
    return sha256_hex(
        canonical_json(
            {
                "schema": SCHEMA,
                "weights": weights,
                "backbone": to_json(teacher.backbone),
                "preprocess": to_json(teacher.spec.preprocess),
                # Another version of timm may compute the same backbone differently.
                "timm": version("timm"),
            }
        )
    )


def _compute_features(teacher: "TrainedModel", table: Table, progress: Progress | None) -> Features:
    """Compute the features [N, D] of every image of a table."""
    import torch

    # Features of a GPU and of a CPU differ in the last bits. They share a cache file:
    # the size of a batch changes the last bits too.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = teacher.module.eval().to(device)
    parts: list[Features] = []
    done = 0
    with torch.inference_mode():
        for chunk in _stack_batches(preprocess_table(table, teacher.spec.preprocess)):
            parts.append(network.features(torch.from_numpy(chunk).to(device)).float().cpu().numpy())
            done += len(chunk)
            if progress is not None:
                progress(done, len(table), "images")
    network.to("cpu")
    features = np.concatenate(parts)
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise DataError(
            f"The teacher's features of {int(bad.sum())} images are NaN or infinite, first those "
            f"of {table.frame['image_id'].iloc[int(bad.argmax())]!r}. Import or train the teacher "
            "again."
        )
    return features


def _stack_batches(images: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    while chunk := list(islice(images, BATCH)):
        yield np.stack(chunk)


def _read_cache(path: Path) -> CachedFeatures:
    """Read a cache file; return no features if it is missing or damaged."""
    try:
        # A zip file carries a checksum of each member, so damage raises an error here.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            digests, features = stored["digests"].tolist(), stored["features"]
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return NO_FEATURES
    valid = features.dtype == np.float32 and features.ndim == 2 and len(features) == len(digests)
    return CachedFeatures(tuple(digests), features) if valid else NO_FEATURES


def _write_cache(path: Path, cached: CachedFeatures) -> None:
    stream = io.BytesIO()
    np.savez(stream, digests=np.array(cached.digests), features=cached.features)
    atomic_write(path, stream.getvalue())
