"""Test the quality of photographs: what a prediction says about them."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from conftest import FakeRuntime, toy_content
from dermedge_export.quality_limits import PIXEL_LIMITS
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.model import Model
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.quality import (
    BLURRED,
    GLARE,
    TOO_BRIGHT,
    TOO_DARK,
    QualityLimits,
    describe_quality,
    measure_quality,
)
from dermedge_runtime.spec import Preprocess

PHOTO = Image.fromarray(draw_lesion(3, fitzpatrick=3, height=300, width=400).image)


def found(photo, size=160, limits=PIXEL_LIMITS):
    return describe_quality(measure_quality(preprocess(photo, Preprocess(size=size))), limits)


def with_reflection(photo):
    pixels = np.array(photo)
    pixels[60:200, 130:270] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [96, 128, 160, 224, 384])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda photo: photo.point(lambda value: value // 5), TOO_DARK),
        (lambda photo: photo.point(lambda value: 225 + value // 9), TOO_BRIGHT),
        (with_reflection, GLARE),
        (lambda photo: photo.filter(ImageFilter.GaussianBlur(9)), BLURRED),
    ],
)
def test_a_bad_photograph_gets_its_sentence_at_every_size(change, sentence, size):
    assert found(PHOTO, size) == ()
    assert sentence in found(change(PHOTO), size)


def test_motion_in_one_direction_counts_as_blur():
    pixels = np.asarray(PHOTO).astype(float)
    for axis in (0, 1):
        moved = np.mean([np.roll(pixels, shift, axis) for shift in range(24)], axis=0)
        assert BLURRED in found(Image.fromarray(moved.astype(np.uint8)))


def test_a_limit_that_is_null_judges_nothing():
    black = Image.new("RGB", (64, 64))
    assert found(black, limits=QualityLimits()) == ()
    assert found(black, limits=QualityLimits(dark=1)) == (TOO_DARK,)


def test_a_prediction_has_the_sentences_of_the_limits_in_its_bundle(tmp_path):
    black = np.zeros((64, 64, 3), np.uint8)
    write_bundle(tmp_path / "judged.dermedge", **toy_content(), quality=PIXEL_LIMITS)
    bundle = Bundle.open(tmp_path / "judged.dermedge")
    assert bundle.quality == PIXEL_LIMITS
    with Model(bundle, FakeRuntime()) as model:
        assert TOO_DARK in model.predict(black).to_json()["quality"]
    write_bundle(tmp_path / "plain.dermedge", **toy_content())
    plain = Bundle.open(tmp_path / "plain.dermedge")
    assert plain.quality is None
    with Model(plain, FakeRuntime()) as model:
        assert "quality" not in model.predict(black).to_json()
