"""Test segmentation on a frozen backbone: masks, feature maps and decoders."""

import numpy as np
import pytest
from PIL import Image

from dermedge.data.draw import draw_data_set
from dermedge.data.masks import read_mask
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.models import load_model_folder
from dermedge.probing.linear import LinearRecipe
from dermedge.probing.options import ProbeOptions
from dermedge.probing.probe import probe
from dermedge.probing.segment import (
    FeatureMaps,
    count_pixels,
    fit_decoders,
    make_decoders,
    read_masks,
)
from dermedge_runtime.errors import DataError
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Preprocess
from support.untrained import CNN, VIT, teacher

FEW = {"replicates": 50}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segment")
    draw_data_set(folder / "lesions", count=72, seed=5, size=(96, 72))
    teacher(folder / "cnn", CNN, size=64, stages=4)
    teacher(folder / "vit", VIT, size=64, args={"img_size": 64, "depth": 4})
    return folder


@pytest.mark.parametrize("backbone", ["cnn", "vit"])
def test_decoders_predict_masks_better_than_any_constant_guess(place, backbone):
    report = probe(
        place / backbone,
        place / "lesions",
        ProbeOptions(protocol="segment", epochs=12, batch_size=16, lr=3e-3, **FEW),
    )
    masks = read_masks(
        with_split(read_table(place / "lesions")).select_split("test"), Preprocess(64)
    )
    everything = np.mean([2 * mask.sum() / (mask.size + mask.sum()) for mask in masks])
    linear, upernet = report.results
    assert (linear.name, upernet.name) == ("linear", "upernet")
    assert list(upernet.metrics) == ["mean_iou", "dice", "jaccard", "pixel_accuracy"]
    # All inside gives the best Dice without looking, all outside the best accuracy.
    assert upernet.metrics["dice"].value > everything + 0.1
    assert upernet.metrics["pixel_accuracy"].value > 1 - masks.mean() + 0.03
    assert all(
        result.metrics["mean_iou"].value > (1 - masks.mean()) / 2 + 0.03
        for result in report.results
    )
    assert (upernet.recall, upernet.fairness, upernet.threshold) == ({}, (), None)
    assert report.images["test"] == len(masks)


def test_two_runs_are_identical_and_a_head_does_not_depend_on_the_others(place):
    options = {"protocol": "segment", "epochs": 2, "batch_size": 16, **FEW}
    both = probe(place / "cnn", place / "lesions", ProbeOptions(**options))
    assert probe(place / "cnn", place / "lesions", ProbeOptions(**options)) == both
    (alone,) = probe(
        place / "cnn", place / "lesions", ProbeOptions(heads=("upernet",), **options)
    ).results
    assert alone == both.results[1]


def test_the_amount_of_memory_does_not_change_the_maps(place):
    student, table = (
        load_model_folder(place / "cnn"),
        with_split(read_table(place / "lesions")).select_split("val"),
    )
    batches = [np.array([3, 0]), np.array([1, 2, 4])]
    passes, found = [], []
    row = sum(
        level[0].numel() * 2 for level in next(FeatureMaps(student, (1, 2), table).batches(batches))
    )
    for room in (5 * row, 2 * row, 0):
        maps = FeatureMaps(student, (1, 2), table, room=room)
        own = maps._compute_maps
        counted = []
        maps._compute_maps = lambda images, own=own, counted=counted: (
            counted.append(len(images)) or own(images)
        )
        found.append([maps_of for _ in range(2) for maps_of in maps.batches(batches)])
        passes.append(sum(counted))
    assert passes == [5, 5 + 3, 10]
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            for one, two in zip(left, right, strict=True):
                np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=2e-3, atol=1e-3)


def test_pixel_counts_add_up_to_the_size_of_the_mask(place):
    student, table = (
        load_model_folder(place / "cnn"),
        with_split(read_table(place / "lesions")).select_split("val"),
    )
    masks = read_masks(table, student.spec.preprocess)
    decoders, levels = make_decoders(student, ("linear",), 0)
    maps = FeatureMaps(student, levels, table)
    fit_decoders(decoders, maps, masks, recipe=LinearRecipe(1, 8, 1e-3))
    counts = count_pixels(decoders, maps, masks, batch=3)["linear"]
    assert counts.shape == (len(masks), 2, 2)
    # The union of one class is the complement of the intersection of the other.
    assert (counts[:, 0, 0] + counts[:, 1, 1] == 64 * 64).all()
    assert (counts[:, 1, 0] <= masks.sum((1, 2))).all()
    next(decoders["linear"].parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match=r"not finite at the end of epoch 1 of the decoder linear"):
        fit_decoders(decoders, maps, masks, recipe=LinearRecipe(3, 8, 1e-3))


def test_a_rate_of_zero_leaves_the_weights_of_a_decoder(place):
    student = load_model_folder(place / "cnn")
    table = with_split(read_table(place / "lesions")).select_split("val")
    masks = read_masks(table, student.spec.preprocess)

    def weight(**recipe):
        decoders, levels = make_decoders(student, ("linear",), 0)
        fit_decoders(
            decoders,
            FeatureMaps(student, levels, table),
            masks,
            recipe=LinearRecipe(batch_size=len(masks), lr=1e-3, **recipe),
        )
        return decoders["linear"].layers[2].weight

    # With one batch per epoch, the cosine is at 0 in the second of two epochs.
    assert weight(epochs=2, half_period=1).equal(weight(epochs=1))
    assert not weight(epochs=2).equal(weight(epochs=1))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_mask_is_cropped_and_resized_like_its_image(tmp_path, fit):
    shape = np.zeros((90, 140), np.uint8)
    shape[20:70, 10:95] = 255
    Image.fromarray(shape).save(tmp_path / "mask.png")
    Image.fromarray(shape // 255).save(tmp_path / "ones.png")
    Image.fromarray(shape).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(shape).save(tmp_path / "lossy.jpg", quality=60)
    spec = Preprocess(64, fit, background=(255, 255, 255))
    black = preprocess(
        np.stack([shape] * 3, -1), Preprocess(64, fit, background=(0, 0, 0)), exact=True
    )[..., 0]
    mask = read_mask(tmp_path / "mask.png", spec)
    assert mask.dtype == bool
    assert (mask == (black >= 128)).all()
    assert (read_mask(tmp_path / "ones.png", spec) == mask).all()
    assert (read_mask(tmp_path / "bits.png", spec) == mask).all()
    assert (read_mask(tmp_path / "lossy.jpg", spec) == mask).mean() > 0.995
    assert 0.1 < mask.mean() < 0.7


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"The mask .*mask\.png cannot be used"):
        read_mask(tmp_path / "mask.png", Preprocess(64))
    with pytest.raises(DataError, match="does not exist"):
        read_mask(tmp_path / "nothing.png", Preprocess(64))


def test_rows_without_a_mask_are_left_out(place, tmp_path):
    import pandas as pd

    frame = with_split(read_table(place / "lesions")).frame
    frame.loc[frame.index % 2 == 0, "mask"] = ""
    for folder in ("images", "masks"):
        (tmp_path / folder).symlink_to(place / "lesions" / folder)
    pd.DataFrame(frame).to_csv(tmp_path / "metadata.csv", index=False)
    options = ProbeOptions(protocol="segment", heads=("linear",), epochs=1, **FEW)
    report = probe(place / "cnn", tmp_path, options)
    assert sum(report.images.values()) == 36
    assert report.results[0].train_images == report.images["train"]
    assert report.warnings[0].startswith("Left out:")
