"""Test `load` and `Model`: predictions, batches, streams and threads."""

import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.decode import Prediction
from dermedge_runtime.errors import BundleError, ImageError, MissingExtraError, UsageError
from dermedge_runtime.model import Model, load
from support import toy_onnx

IMAGES = [toy_onnx.draw_image(seed)[0] for seed in range(6)]
BAD = b"not an image"


def timeless(prediction: Prediction) -> Prediction:
    return replace(prediction, timing=None)


@pytest.fixture
def model(toy_bundle_path, fake_runtime):
    with Model(Bundle.open(toy_bundle_path), fake_runtime) as model:
        yield model


@pytest.fixture(scope="module")
def onnx_bundle(tmp_path_factory):
    return toy_onnx.write(tmp_path_factory.mktemp("bundle") / "toy.dermedge", toy_onnx.graph())


def test_predict_repeats_the_golden_predictions(model):
    for case in model.bundle.golden():
        data = model.predict(case.image, exact=True).to_json()
        assert {
            key: value for key, value in data.items() if key in case.prediction
        } == case.prediction
        assert data["labels"]
        outputs = model.outputs(case.image, exact=True)
        for name, expected in case.expected.items():
            np.testing.assert_array_equal(outputs[name], expected)


def test_a_prediction_has_its_provenance_and_its_timing(model):
    prediction = model.predict(IMAGES[0])
    assert prediction.provenance.bundle == model.bundle.id
    assert prediction.provenance.engine == "fake 1.0"
    assert prediction.timing.preprocess_ms > 0
    assert prediction.timing.engine_ms > 0


def test_batches_and_streams_equal_single_predictions(model, fake_runtime):
    single = [timeless(model.predict(image)) for image in IMAGES]
    assert len({prediction.malignancy for prediction in single}) == len(IMAGES)
    for size in (1, 2, 4, 6, 50):
        fake_runtime.batches.clear()
        assert [timeless(p) for p in model.predict_batch(IMAGES, batch_size=size)] == single
        assert max(fake_runtime.batches) == min(size, len(IMAGES))
    for ahead, workers in ((1, 1), (3, 2), (20, 4)):
        assert [
            timeless(p) for p in model.stream(iter(IMAGES), ahead=ahead, workers=workers)
        ] == single
    assert model.predict_batch([]) == []


def test_many_threads_get_the_predictions_of_one(onnx_bundle):
    with load(onnx_bundle, threads=1) as model:
        alone = [timeless(model.predict(image)) for image in IMAGES]
        order = [index % len(IMAGES) for index in range(96)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda index: timeless(model.predict(IMAGES[index])), order))
    assert together == [alone[index] for index in order]


def test_a_stream_reads_an_endless_source_only_as_far_as_needed(model):
    read = 0

    def source():
        nonlocal read
        for image in itertools.cycle(IMAGES):
            read += 1
            yield image

    for batch_size, ahead in ((1, 1), (1, 3), (4, 5)):
        read = 0
        stream = model.stream(source(), batch_size=batch_size, ahead=ahead)
        assert read == 0
        for given in range(1, 12):
            next(stream)
            assert read <= given - 1 + ahead
        stream.close()


def test_an_abandoned_stream_leaves_no_threads(model):
    stream = model.stream(itertools.cycle(IMAGES), workers=3)
    next(stream)
    assert any(thread.name.startswith("dermedge-prefetch") for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name.startswith("dermedge-prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_bad_image_is_raised_at_its_place(model, batch_size):
    given = []
    with pytest.raises(ImageError, match="not an image"):
        for prediction in model.stream([*IMAGES[:4], BAD, IMAGES[5]], batch_size=batch_size):
            given.append(timeless(prediction))
    assert given == [timeless(model.predict(image)) for image in IMAGES[:4]]
    with pytest.raises(ImageError, match="not an image"):
        model.predict_batch([IMAGES[0], BAD], batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_bad_image_is_returned_in_place_and_the_others_are_predicted(model, batch_size):
    images = [BAD, IMAGES[0], b"", BAD, IMAGES[1], IMAGES[2]]
    items = list(model.stream(images, batch_size=batch_size, on_error="return"))
    assert [isinstance(item, ImageError) for item in items] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert "is empty" in str(items[2])
    good = [timeless(item) for item in items if isinstance(item, Prediction)]
    assert good == [timeless(model.predict(image)) for image in IMAGES[:3]]


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"workers": 0}, {"batch_size": 4, "ahead": 3}, {"on_error": "ignore"}],
)
def test_a_stream_refuses_invalid_options_at_once(model, options):
    with pytest.raises(UsageError, match="Use"):
        model.stream(IMAGES, **options)


def test_run_refuses_images_of_another_type_or_shape(model):
    assert model.run(np.zeros((2, 32, 32, 3), np.uint8))["diagnosis"].shape == (2, 3)
    for images in (
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 3, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
    ):
        with pytest.raises(UsageError, match=r"takes uint8 \[N, 32, 32, 3\]"):
            model.run(images)


def test_a_closed_model_raises_a_usage_error(toy_bundle_path, fake_runtime):
    model = Model(Bundle.open(toy_bundle_path), fake_runtime)
    stream = model.stream(IMAGES)
    next(stream)
    model.close()
    model.close()
    assert fake_runtime.closed
    for use in (
        lambda: model.predict(IMAGES[0]),
        lambda: model.predict_batch(IMAGES),
        lambda: model.stream(IMAGES),
        lambda: next(stream),
        lambda: model.run(np.zeros((1, 32, 32, 3), np.uint8)),
        lambda: model.outputs(IMAGES[0]),
        lambda: model.__enter__(),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()


def test_load_takes_folders_zips_and_opened_bundles(onnx_bundle, tmp_path):
    onnx_bundle.save(tmp_path / "zipped.dermedge", zipped=True)
    expected = onnx_bundle.golden()[0].prediction["malignancy"]
    for source in (
        onnx_bundle,
        onnx_bundle.path,
        str(onnx_bundle.path),
        tmp_path / "zipped.dermedge",
    ):
        with load(source, threads=1) as model:
            score = model.predict(onnx_bundle.golden()[0].image, exact=True).malignancy
            assert score == pytest.approx(expected, abs=1e-5)


def test_load_refuses_unknown_engines_and_damaged_bundles(onnx_bundle, toy_bundle_path, tmp_path):
    with pytest.raises(
        UsageError, match=r"Unknown engine 'onxruntime'. Did you mean 'onnxruntime'\?"
    ):
        load(onnx_bundle, engine="onxruntime")
    with pytest.raises(UsageError, match="Unknown engine 'fake'"):
        load(toy_bundle_path)
    with pytest.raises(UsageError, match="threads is 0"):
        load(onnx_bundle, threads=0)
    (toy_bundle_path / "model.fake").write_bytes(b"changed")
    with pytest.raises(BundleError):
        load(toy_bundle_path)


def test_a_missing_engine_names_its_extra(onnx_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"dermedge\[onnxruntime\]") as caught:
        load(onnx_bundle)
    assert caught.value.exit_code == 4
