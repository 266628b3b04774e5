import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import TOY_POSTPROCESSING, TOY_SPEC, FakeRuntime
from dermedge_export.synthetic.golden import golden_cases
from dermedge_export.synthetic.lesions import CLASSES
from dermedge_runtime.decode import decode
from dermedge_runtime.golden import Case, drop_volatile, golden_files, read_golden
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Fit, Preprocess, Spec

SPEC = Spec(TOY_SPEC.name, TOY_SPEC.version, TOY_SPEC.tasks, Preprocess(160))
WHITE = (255, 255, 255)


def reference(images):
    return {name: values + np.float32(0.125) for name, values in FakeRuntime().run(images).items()}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return golden_cases(SPEC, reference, FakeRuntime().run, TOY_POSTPROCESSING)


def pictures(cases: list[Case]) -> list[Image.Image]:
    return [Image.open(io.BytesIO(case.image)) for case in cases]


def named(cases: list[Case], word: str) -> Image.Image:
    [case] = [case for case in cases if word in case.name.split("-")]
    return Image.open(io.BytesIO(case.image))


def drawn(size: int, fit: Fit = "crop", background: tuple[int, int, int] = WHITE) -> list[Case]:
    spec = replace(SPEC, preprocess=Preprocess(size, fit, background=background))
    return golden_cases(spec, reference, FakeRuntime().run, {})


def test_cases_cover_classes_shapes_and_tones(cases: list[Case]) -> None:
    shapes = [picture.size for picture in pictures(cases)]
    assert {picture.format for picture in pictures(cases)} == {"PNG"}
    assert any(width > height for width, height in shapes)
    assert any(width < height for width, height in shapes)
    assert any(width == height for width, height in shapes)
    assert any(width % 2 and height % 2 for width, height in shapes)
    assert {case.name.partition("-")[0] for case in cases} == set(CLASSES)
    assert np.asarray(named(cases, "dark")).max() < 24
    assert np.asarray(named(cases, "bright")).min() > 230
    assert named(cases, "grey").mode == "L"
    assert named(cases, "alpha").mode == "RGBA"
    for kind in ("dark", "bright", "grey", "small"):
        assert np.asarray(named(cases, kind)).std() > 1, kind  # there is a lesion to see


@pytest.mark.parametrize("size", [16, 17, 31, 48, 224, 400])
def test_one_image_is_smaller_than_the_input_and_one_larger(size: int) -> None:
    cases = drawn(size)
    assert all(min(picture.size) >= 16 for picture in pictures(cases))
    # No image may have a side below 16 px, so none is smaller than an input of 16 px.
    assert max(named(cases, "small").size) < size or size < 18
    assert min(named(cases, "small").size) < size or size == 16
    assert min(pictures(cases)[0].size) > size


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_another_background_changes_the_tensor_of_an_image(fit: Fit) -> None:
    white, other = drawn(48, fit), drawn(48, fit, (250, 255, 255))
    differ = [a.name for a, b in zip(white, other, strict=True) if (a.tensor != b.tensor).any()]
    assert "mel-alpha-256x192" in differ
    assert fit == "pad" or len(differ) == 1


def test_all_cases_differ(cases: list[Case]) -> None:
    for part in ("name", "image"):
        assert len({getattr(case, part) for case in cases}) == len(cases)
    assert len({case.tensor.tobytes() for case in cases}) == len(cases)
    assert len({case.expected["diagnosis"].tobytes() for case in cases}) == len(cases)


def test_tensor_outputs_and_prediction_belong_to_the_image(cases: list[Case]) -> None:
    for case in cases:
        np.testing.assert_array_equal(
            case.tensor, preprocess(case.image, SPEC.preprocess, exact=True)
        )
        assert case.tensor.shape == (160, 160, 3)
        engine = FakeRuntime().run(case.tensor[None])
        for name, values in engine.items():
            np.testing.assert_array_equal(case.expected[name], values[0])
            np.testing.assert_array_equal(case.reference[name], values[0] + np.float32(0.125))
        prediction = decode(case.expected, SPEC, TOY_POSTPROCESSING)
        assert case.prediction == drop_volatile(prediction.to_json())
        assert case.prediction["threshold"] == TOY_POSTPROCESSING["malignancy"].threshold
        assert case.prediction["decision"] in ("malignant", "benign")


def test_the_same_model_gives_the_same_files_and_they_come_back(cases: list[Case]) -> None:
    files = golden_files(cases)
    assert files == golden_files(
        golden_cases(SPEC, reference, FakeRuntime().run, TOY_POSTPROCESSING)
    )
    back = read_golden(files.__getitem__)
    for case, again in zip(cases, back, strict=True):
        assert (case.name, case.image, case.prediction) == (
            again.name,
            again.image,
            again.prediction,
        )
        np.testing.assert_array_equal(case.tensor, again.tensor)
        for name in case.expected:
            np.testing.assert_array_equal(case.expected[name], again.expected[name])
            np.testing.assert_array_equal(case.reference[name], again.reference[name])
