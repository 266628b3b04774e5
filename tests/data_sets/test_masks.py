"""Read masks as they are stored, and in the frame of the network's input."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermedge.data.masks import decode_mask, output_grid, read_mask
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Preprocess


def store(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def test_a_mask_is_read_by_brightness_or_as_zeros_and_ones(tmp_path: Path) -> None:
    inside = np.zeros((40, 60), bool)
    inside[10:30, 5:20] = True
    for name, values in (
        ("white", inside * 255),
        ("ones", inside * 1),
        ("grey", np.where(inside, 128, 127)),
    ):
        assert np.array_equal(decode_mask(store(tmp_path / f"{name}.png", values)), inside), name
    assert not decode_mask(store(tmp_path / "black.png", inside * 0)).any()


def test_a_mask_is_cut_and_resized_like_its_image(tmp_path: Path) -> None:
    """A lesion in the right half of a wide image is in the right half of the centre crop."""
    wide = np.zeros((64, 128))
    wide[:, 64:] = 255
    path = store(tmp_path / "wide.png", wide)
    cropped = read_mask(path, Preprocess(32))
    assert cropped.shape == (32, 32)
    assert not cropped[:, :16].any()
    assert cropped[:, 16:].all()
    # Padding is white in images and outside the lesion in masks.
    padded = read_mask(path, Preprocess(32, "pad"))
    assert not padded[:8].any()
    assert not padded[24:].any()
    assert padded[8:24, 16:].all()
    assert read_mask(path, output_grid(Preprocess(64))).shape == (16, 16)


def test_a_damaged_mask_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"mask\.png cannot be used.*empty its cell"):
        decode_mask(tmp_path / "mask.png")
