"""Store arrays of augmented views on disk, by image and view number."""

import json
import logging
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from dermedge_runtime.canonical_json import canonical_json, pretty_json
from dermedge_runtime.files import atomic_write, sha256_hex

LOGGER = logging.getLogger(__name__)
Arrays = Mapping[str, NDArray[Any]]
Views = Sequence[int]
# Chunks that stay mapped into memory. Each holds an open file, and many systems allow a
# process 1024 of them.
OPEN_CHUNKS = 200


class ViewStore:
    """Arrays of views in a folder, memory-mapped; each view is written once.

    Views are written in chunks, each a safetensors file that appears whole or not at
    all. Several processes may therefore fill one store. A chunk whose checksum is wrong
    is deleted when the store is opened, so that its views are computed again.

    Args:
        folder: Folder of all stores.
        key: Everything that determines the content, apart from image and view number.
            A store with another key is another folder.

    Example:
        >>> store = ViewStore(Path("cache"), {"size": 32})
        >>> store.missing(["a", "b"], views=2)
        {'a': (0, 1), 'b': (0, 1)}
        >>> store.add(["a", "b"], (0, 1), {"image": np.zeros((4, 32, 32, 3), np.uint8)})
        >>> store.missing(["a", "c"], views=2), store.read("ba", 1, ["image"])["image"].shape
        ({'c': (0, 1)}, (2, 32, 32, 3))
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder = folder / sha256_hex(canonical_json(key))[:16]
        self._places: dict[tuple[str, int], tuple[Path, int]] = {}
        self._open = lru_cache(OPEN_CHUNKS)(_map_chunk)
        if not (self.folder / "key.json").is_file():
            atomic_write(self.folder / "key.json", pretty_json(dict(key)))
        self.refresh()

    @property
    def name(self) -> str:
        """Digest of the key: the name of the store's own folder."""
        return self.folder.name

    def refresh(self) -> None:
        """Register the chunks that other processes have written."""
        known = {path for path, _ in self._places.values()}
        for path in sorted(set(self.folder.glob("*.safetensors")) - known):
            self._register(path)

    def missing(self, images: Sequence[str], views: int) -> dict[str, tuple[int, ...]]:
        """Return the view numbers below `views` that each image lacks, if it lacks any."""
        lacking = (
            (image, tuple(view for view in range(views) if (image, view) not in self._places))
            for image in images
        )
        return {image: numbers for image, numbers in lacking if numbers}

    def add(self, images: Sequence[str], views: Views, arrays: Arrays) -> None:
        """Write one chunk.

        Args:
            images: Digests of n images.
            views: View numbers.
            arrays: Arrays [n * len(views), ...] by name, the views of an image together.

        Raises:
            DermedgeError: The disk is full, or the folder cannot be written.
        """
        held = {"images": list(images), "views": list(views)}
        path = self.folder / f"{sha256_hex(canonical_json(held))[:32]}.safetensors"
        metadata = {
            "images": json.dumps(held["images"]),
            "views": json.dumps(held["views"]),
            "crc32": str(_checksum(arrays)),
        }
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        atomic_write(path, save(contiguous, metadata))
        self._open.cache_clear()
        self._place(path, metadata)

    def read(self, images: Sequence[str], view: int, names: Collection[str]) -> Arrays:
        """Return arrays [N, ...] by name for view `view` of some images.

        Raises:
            KeyError: The store lacks one of the views.
        """
        places = [self._places[image, view] for image in images]
        return {
            name: np.stack([self._open(path)[name][position] for path, position in places])
            for name in names
        }

    def _register(self, path: Path) -> None:
        try:
            with safe_open(path, "np") as chunk:
                metadata = chunk.metadata() or {}
            whole = metadata["crc32"] == str(_checksum(load_file(path)))
        except (OSError, KeyError, SafetensorError):
            whole = False
        if whole:
            self._place(path, metadata)
        else:
            LOGGER.warning("%s is damaged. Its views are computed again.", path)
            path.unlink(missing_ok=True)

    def _place(self, path: Path, metadata: Mapping[str, str]) -> None:
        places = _positions(json.loads(metadata["images"]), json.loads(metadata["views"]))
        self._places.update({place: (path, row) for row, place in enumerate(places)})


def _positions(images: Sequence[str], views: Views) -> Iterator[tuple[str, int]]:
    return ((image, view) for image in images for view in views)


def _map_chunk(path: Path) -> dict[str, Any]:
    """Return slices by name, which read single rows of a memory-mapped file."""
    chunk: Any = safe_open(path, "np")
    return {name: chunk.get_slice(name) for name in chunk.keys()}  # noqa: SIM118


def _checksum(arrays: Arrays) -> int:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, value)
    return value
