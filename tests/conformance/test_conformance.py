"""Test that the Python runtime gives what the conformance folder lists."""

import contextlib
import functools
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from conformance.drawing import random_bytes
from conformance.make import existing, make
from conformance.quality_cases import draw_box, draw_plane
from conformance.writing import FOLDER
from dermedge_runtime import errors, system_files
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import canonical_json, parse_json
from dermedge_runtime.decode import decode
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.golden import drop_volatile
from dermedge_runtime.image import decode as decode_file
from dermedge_runtime.model import load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.quality import (
    CUT_OFF,
    TOO_SMALL,
    QualityLimits,
    describe_lesion,
    describe_quality,
    measure_lesion,
    measure_quality,
)
from dermedge_runtime.spec import Postprocessing, Preprocess, Spec
from dermedge_runtime.verify import verify
from support import reference_quality, reference_resize

LEVELS = 4  # Largest difference between two decoders of JPEG, of 255.
LISTS = ("images", "resize", "quality", "json", "decode", "bundles", "verify", "predictions")
SMALL_FILE, SMALL_FOLDER = 130_000, 1_500_000


def cases(name):
    return json.loads((FOLDER / name).read_bytes())["cases"]


def named(name):
    return [pytest.param(case, id=case["name"]) for case in cases(name)]


def check_error(case, failure):
    assert type(failure.value).__name__ == case["error"]
    assert failure.value.exit_code == getattr(errors, case["error"]).exit_code
    for word in case["mentions"]:
        assert word in str(failure.value)


@pytest.fixture(scope="module")
def made():
    return make()


def test_the_committed_files_are_those_that_make_writes(made):
    committed = existing()
    assert sorted(made) == sorted(committed)
    assert [path for path, data in made.items() if committed[path] != data] == []


def test_the_folder_stays_small(made):
    assert max(map(len, made.values())) < SMALL_FILE
    assert sum(map(len, made.values())) < SMALL_FOLDER


@pytest.mark.parametrize("name", LISTS)
def test_names_are_unique_and_the_lists_are_strict_json(name):
    data = (FOLDER / f"{name}.json").read_bytes()
    parse_json(data, name, errors.UsageError)
    names = [case.get("name", str(case)) for case in json.loads(data)["cases"]]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", named("images.json"))
def test_an_image_becomes_its_tensor_or_is_refused(case):
    path, spec = FOLDER / case["image"], Preprocess.from_json(case["preprocess"])
    for source in (path, path.read_bytes()):
        if "error" in case:
            with pytest.raises(errors.ImageError) as failure:
                preprocess(source, spec, exact=True)
            check_error(case, failure)
            continue
        pixels = np.asarray(decode_file(source, background=spec.background).picture)
        assert pixels.shape[1::-1] == (case["pixels"]["width"], case["pixels"]["height"])
        if case.get("lossy"):
            stored = np.asarray(Image.open(FOLDER / case["decoded"]))
            assert np.abs(pixels.astype(int) - stored).max() <= LEVELS
            source = pixels = stored
        assert sha256_hex(pixels.tobytes()) == case["pixels"]["sha256"]
        tensor = preprocess(source, spec, exact=True)
        assert tensor.tobytes() == (FOLDER / case["tensor"]).read_bytes()


def test_no_two_turned_images_are_equal():
    names = [f"exif-{turn}-png" for turn in range(1, 9)]
    turned = [case for case in cases("images.json") if case["name"] in names]
    assert len({case["pixels"]["sha256"] for case in turned}) == len(turned) == 8


# `make` computes the digests with Pillow; the contract's own arithmetic is slow.
@pytest.mark.parametrize("case", cases("resize.json")[::10], ids=lambda case: str(case["seed"]))
def test_random_sizes_are_resized_as_the_contract_says(case):
    width, height, spec = case["width"], case["height"], case["preprocess"]
    pixels = random_bytes(case["seed"], width * height * 3).reshape(height, width, 3)
    square = reference_resize.square(pixels, spec["fit"], tuple(spec["background"]))
    tensor = reference_resize.resize(square, spec["size"])
    assert sha256_hex(np.ascontiguousarray(tensor).tobytes()) == case["sha256"]


QUALITY = cases("quality.json")


@pytest.mark.parametrize("case", [case for case in QUALITY if "lesion" in case])
def test_a_mask_has_its_measures_and_sentences(case):
    mask = draw_box(case["size"], case["box"])
    lesion = measure_lesion(mask)
    assert vars(lesion) == case["lesion"]
    # The contract's own words, pixel by pixel.
    assert vars(lesion) == reference_quality.measure_lesion(mask.tolist())
    limits = QualityLimits.from_json(case["limits"])
    assert list(describe_lesion(lesion, limits)) == case["sentences"]


@pytest.mark.parametrize("case", [case for case in QUALITY if "quality" in case])
def test_a_tensor_has_its_measures_and_sentences(case):
    size = case["size"]
    if "tensor" in case:
        data = (FOLDER / case["tensor"]).read_bytes()
        tensor = np.frombuffer(data, np.uint8).reshape(size, size, 3)
    else:
        tensor = draw_plane(size, case["seed"], case["base"], case["slope"], case["noise"])
    quality = measure_quality(tensor)
    assert vars(quality) == case["quality"]
    # The contract's own words, pixel by pixel.
    assert vars(quality) == reference_quality.measure(tensor[..., 1].tolist())
    limits = QualityLimits.from_json(case["limits"])
    assert list(describe_quality(quality, limits)) == case["sentences"]


def test_random_bytes_follow_the_recurrence():
    x, expected = 12, []
    for _ in range(50):
        x = (1664525 * x + 1013904223) % 2**32
        expected.append(x >> 24)
    assert random_bytes(12, 50).tolist() == expected


@pytest.mark.parametrize("case", named("json.json"))
def test_json_is_read_strictly_and_written_canonically(case):
    def canonical():
        return canonical_json(parse_json(case["text"].encode(), "text", errors.UsageError))

    if case["canonical"] is None:
        with pytest.raises(errors.UsageError):
            canonical()
    else:
        assert canonical().decode() == case["canonical"]


def to_array(output):
    # Strict JSON has no NaN and no infinity, so the list writes them as text.
    values = [float(value) for value in output["values"]]
    return np.array(values, np.float32).reshape(output["shape"])


def assert_same(actual, expected, within):
    """Compare JSON values; numbers may differ by `within`."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(actual[key], value, within)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, within)
    elif isinstance(expected, float):
        assert math.isclose(actual, expected, rel_tol=0, abs_tol=within)
    else:
        assert actual == expected


@pytest.mark.parametrize("case", named("decode.json"))
def test_outputs_decode_to_the_prediction_or_are_refused(case):
    spec = Spec.from_json(case["spec"])
    fitted = {
        task: Postprocessing.from_json(value) for task, value in case["postprocessing"].items()
    }
    outputs = {task: to_array(output) for task, output in case["outputs"].items()}
    if "error" in case:
        with pytest.raises(errors.EngineError) as failure:
            decode(outputs, spec, fitted)
        check_error(case, failure)
        return
    prediction = decode(outputs, spec, fitted)
    assert_same(drop_volatile(prediction.to_json()), case["prediction"], 1e-12)
    if prediction.mask is not None:
        assert sha256_hex(prediction.mask.astype(np.uint8).tobytes()) == case["mask_sha256"]
    assert (prediction.cam is None) == ("cam" not in case)
    if prediction.cam is not None:
        assert prediction.cam.tolist() == to_array(case["cam"]).tolist()


@pytest.mark.parametrize("case", named("bundles.json"))
def test_a_bundle_opens_or_is_refused(case):
    if case["error"] is None:
        assert Bundle.open(FOLDER / case["bundle"]).spec.name == "small"
        return
    with pytest.raises(errors.BundleError) as failure:
        Bundle.open(FOLDER / case["bundle"])
    check_error(case, failure)


@pytest.mark.parametrize("case", cases("verify.json"), ids=lambda case: case["bundle"])
def test_verify_gives_each_check_its_status(case):
    pytest.importorskip("onnxruntime")
    report = verify(FOLDER / case["bundle"])
    assert report.status == case["status"]
    checks = [{"name": check.name, "status": check.status} for check in report.checks]
    assert checks == case["checks"]
    detail = next((check.detail for check in report.checks if check.status != "passed"), "")
    for word in case["mentions"]:
        assert word in detail


@pytest.fixture(scope="module")
def models():
    """Return a function that loads each bundle once, or skips without its engine."""
    with contextlib.ExitStack() as opened:

        @functools.cache
        def load_once(bundle):
            try:
                return opened.enter_context(load(FOLDER / bundle))
            except errors.MissingExtraError as error:
                return pytest.skip(str(error))

        yield load_once


@pytest.mark.parametrize(
    "case", cases("predictions.json"), ids=lambda case: f"{case['bundle']}-{case['image']}"
)
def test_a_bundle_predicts_what_is_listed(case, models):
    prediction = models(case["bundle"]).predict(FOLDER / case["image"], exact=True)
    assert_same(drop_volatile(prediction.to_json()), case["prediction"], 1e-6)
    np.testing.assert_allclose(prediction.cam, to_array(case["cam"]), rtol=0, atol=1e-6)


def test_predictions_judge_the_size_of_the_lesion():
    for bundle in {case["bundle"] for case in cases("predictions.json")}:
        said = {
            sentence
            for case in cases("predictions.json")
            if case["bundle"] == bundle
            for sentence in case["prediction"].get("quality", ())
        }
        assert {TOO_SMALL, CUT_OFF} < said


def test_every_kind_of_task_is_predicted_by_each_bundle():
    for case in cases("predictions.json"):
        assert all(
            case["prediction"][field] is not None
            for field in ("decision", "severity", "mask_fraction", "embedding")
        )


@pytest.mark.parametrize(
    "port", ["web/src/names.ts", "android/core/src/main/kotlin/dermedge/FileNames.kt"]
)
def test_every_port_ignores_the_same_system_files(port):
    source = (FOLDER.parents[1] / "runtimes" / port).read_text(encoding="utf-8")
    lists = source[source.index('"__macosx"') : source.index('".~lock."') + len('".~lock."')]
    listed = {
        name.replace("\\r", "\r").replace("\\$", "$") for name in re.findall(r'"([^"]+)"', lists)
    }
    assert listed == {*system_files._SYSTEM_NAMES, *system_files._SYSTEM_PREFIXES}
