"""A teacher's pooled features of a table's images, computed once per image and kept on disk."""

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
from dermedge.evaluation.table_predictions import preprocessed
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
    """Features [M, D] by the sha256 of the image file they are of."""

    digests: tuple[str, ...]
    features: Features


NOTHING = CachedFeatures((), np.empty((0, 0), np.float32))


def extract_features(
    teacher: "TrainedModel",
    weights: str,
    table: Table,
    *,
    cache: Path,
    progress: Progress | None = None,
) -> Features:
    """The frozen teacher's pooled features [N, D] of a table's images: the class token, where its backbone pools by it.

    Args:
        teacher: the model; its own contracted preprocessing is used.
        weights: sha256 of its weights file.
        table: the images.
        cache: a folder that holds one file per weights, backbone and preprocessing, which maps the digest of an image
            file to its features: only images that it lacks go through the network, and are added. A file that is
            damaged is written anew.
        progress: told how many images are done.

    Raises:
        DataError: an image is missing or unreadable, or the teacher gives NaN or infinity.
        DermedgeError: the cache cannot be written.
    """
    wanted = digests(table).tolist()
    path = cache / f"{_key(teacher, weights)}.npz"
    kept = _read(path)
    place = {digest: row for row, digest in enumerate(kept.digests)}
    first = {
        digest: row for row, digest in reversed(list(enumerate(wanted))) if digest not in place
    }
    new = sorted(first.values())
    if new:
        found = _forward(teacher, table.replace(table.frame.iloc[new]), progress)
        merged = np.concatenate([kept.features, found]) if kept.digests else found
        kept = CachedFeatures((*kept.digests, *(wanted[row] for row in new)), merged)
        place = {digest: row for row, digest in enumerate(kept.digests)}
        _write(path, kept)
    return kept.features[[place[digest] for digest in wanted]]


def _key(teacher: "TrainedModel", weights: str) -> str:
    """What the features of an image depend on, beside its bytes."""
    return sha256_hex(
        canonical_json(
            {
                "schema": SCHEMA,
                "weights": weights,
                "backbone": to_json(teacher.backbone),
                "preprocess": to_json(teacher.spec.preprocess),
                "timm": version("timm"),
            }
        )
    )


def _forward(teacher: "TrainedModel", table: Table, progress: Progress | None) -> Features:
    """Features [N, D] of every image of a table, decoded by threads that work ahead."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = teacher.module.eval().to(device)
    parts: list[Features] = []
    done = 0
    with torch.inference_mode():
        for chunk in _chunks(preprocessed(table, teacher.spec.preprocess)):
            parts.append(network.features(torch.from_numpy(chunk).to(device)).float().cpu().numpy())
            done += len(chunk)
            if progress is not None:
                progress(done, len(table), "images")
    network.to("cpu")
    found = np.concatenate(parts)
    bad = ~np.isfinite(found).all(axis=1)
    if bad.any():
        raise DataError(
            f"The teacher's features of {int(bad.sum())} images hold NaN or infinity, those of "
            f"{table.frame['image_id'].iloc[int(bad.argmax())]!r} first: import or train the teacher again."
        )
    return found


def _chunks(images: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    while chunk := list(islice(images, BATCH)):
        yield np.stack(chunk)


def _read(path: Path) -> CachedFeatures:
    """What a cache file holds; nothing where there is none, or it is damaged (a zip file checks its own content)."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            digests, found = stored["digests"].tolist(), stored["features"]
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile):
        return NOTHING
    sound = found.dtype == np.float32 and found.ndim == 2 and len(found) == len(digests)
    return CachedFeatures(tuple(digests), found) if sound else NOTHING


def _write(path: Path, kept: CachedFeatures) -> None:
    stream = io.BytesIO()
    np.savez(stream, digests=np.array(kept.digests), features=kept.features)
    atomic_write(path, stream.getvalue())
