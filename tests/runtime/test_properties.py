"""Test invariants of the runtime on generated inputs."""

import contextlib
import math
import shutil
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import folder_bytes
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import canonical_json, parse_json, pretty_json
from dermedge_runtime.container import check_names
from dermedge_runtime.decode import decode
from dermedge_runtime.errors import BundleError, EngineError, UsageError
from dermedge_runtime.preprocess import preprocess, reduced_scale
from dermedge_runtime.spec import Label, Postprocessing, Preprocess, Spec, Task, to_json
from support import reference_resize

FITS = st.sampled_from(("crop", "pad", "stretch"))
SIDES = st.integers(16, 160)
BYTES = st.integers(0, 255)


# ---- preprocessing


@given(SIDES, SIDES, st.integers(16, 97), FITS, st.tuples(BYTES, BYTES, BYTES), BYTES)
def test_preprocessing_is_the_integer_reference_for_any_size(
    height, width, size, fit, background, seed
):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    spec = Preprocess(size, fit, background=background)
    expected = reference_resize.resize(reference_resize.square(pixels, fit, background), size)
    np.testing.assert_array_equal(preprocess(pixels, spec), expected)


@given(st.integers(16, 9000), st.integers(16, 9000), st.integers(16, 1024), FITS)
def test_a_reduced_scale_keeps_the_crop_and_twice_the_size(width, height, size, fit):
    scale = reduced_scale(width, height, Preprocess(size, fit))
    assert scale in (1, 2, 4, 8)
    if scale > 1:
        assert min(width, height) >= 2 * size * scale
        assert width % scale == height % scale == 0
        assert fit == "stretch" or abs(width - height) // 2 % scale == 0


# ---- JSON


NUMBERS = st.one_of(
    st.integers(-(2**53) + 1, 2**53 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    # RFC 8785 writes these without a point, so they look like integers.
    st.floats(2.0**53, 1e21) | st.floats(-1e21, -(2.0**53)),
)
# Characters whose order differs between UTF-8 and UTF-16.
KEYS = st.text() | st.text(st.sampled_from("a\u20ac\ufb33\U0001f600"), max_size=2)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(VALUES)
def test_canonical_json_is_that_of_the_reference_package_and_reads_back(value):
    data = canonical_json(value)
    assert data == rfc8785.dumps(value)
    assert parse_json(data, "x", BundleError) == value
    assert canonical_json(parse_json(data, "x", BundleError)) == data
    assert parse_json(pretty_json(value), "x", BundleError) == value


FRAGMENTS = st.lists(
    st.sampled_from(
        ["{", "}", "[", "]", ",", ":", '"', "a", "\\u", "d800", "1", "-", "e9", ".", "true", "NaN"]
    ),
    max_size=20,
).map(lambda parts: "".join(parts).encode())


@given(st.one_of(st.binary(max_size=40), FRAGMENTS, VALUES.map(canonical_json)), st.data())
def test_any_bytes_are_parsed_or_refused_with_our_error(data, draw):
    if data:
        index, byte = draw.draw(st.integers(0, len(data) - 1)), draw.draw(BYTES)
        data = data[:index] + bytes([byte]) + data[index + 1 :]
    try:
        value = parse_json(data, "the manifest", BundleError)
    except BundleError as error:
        assert "the manifest is not valid JSON" in str(error)
    else:
        # Half a surrogate pair is read, but not written.
        with contextlib.suppress(UsageError):
            assert parse_json(pretty_json(value), "x", BundleError) == value


# ---- bundles


@pytest.fixture(scope="module")
def folder(pristine_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(pristine_toy, tmp_path_factory.mktemp("flip") / "toy.dermedge"))


@pytest.fixture(scope="module")
def zipped(pristine_toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flip") / "toy.zip"
    return Bundle.open(pristine_toy).save(out, zipped=True).path


def flip(data: bytes, index: int, mask: int) -> bytes:
    return data[:index] + bytes([data[index] ^ mask]) + data[index + 1 :]


@settings(max_examples=80)
@given(draw=st.data(), mask=st.integers(1, 255))
def test_any_changed_byte_of_a_folder_is_refused(folder, draw, mask):
    name = draw.draw(st.sampled_from(sorted(folder_bytes(folder))))
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(flip(data, draw.draw(st.integers(0, len(data) - 1)), mask))
    try:
        with pytest.raises(BundleError):
            Bundle.open(folder)
    finally:
        path.write_bytes(data)


@settings(max_examples=120)
@given(draw=st.data(), mask=st.integers(1, 255), at_headers=st.booleans())
def test_any_changed_byte_of_a_zip_is_refused_or_changes_no_content(
    zipped, pristine_toy, draw, mask, at_headers
):
    """Times and attributes in a zip's headers carry no content; all else is covered."""
    original, data = Bundle.open(pristine_toy), zipped.read_bytes()
    first = data.index(b"PK\x01\x02") if at_headers else 0
    path = zipped.with_name("changed.zip")
    path.write_bytes(flip(data, draw.draw(st.integers(first, len(data) - 1)), mask))
    try:
        changed = Bundle.open(path)
    except BundleError:
        return
    assert replace(changed, path=original.path) == original
    for name in original.files:
        assert changed.read(name) == original.read(name)


PARTS = st.text(st.sampled_from("ab.. /\\:~*CON\x00\n\u00e9\u0301\ud800"), max_size=6) | st.text()


@settings(max_examples=300)
@given(st.lists(PARTS, min_size=1, max_size=4).map("/".join))
def test_an_accepted_name_stays_inside_the_folder_on_every_system(name):
    try:
        check_names([name], "toy.dermedge")
    except BundleError:
        return
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(name)
        assert not path.is_absolute()
        assert not path.anchor
        assert ".." not in path.parts
    root = Path("/bundles/toy.dermedge")
    assert (root / name).resolve().is_relative_to(root)
    assert name.encode("utf-8").decode("utf-8") == name


@given(st.lists(st.sampled_from(["a", "A", "a/b", "A/b", "b", "a/B"]), min_size=2, max_size=4))
def test_accepted_names_are_distinct_files_on_every_system(names):
    try:
        check_names(names, "toy.dermedge")
    except BundleError:
        return
    folded = {name.casefold() for name in names}
    assert len(folded) == len(set(names))
    parents = {str(parent) for name in folded for parent in PurePosixPath(name).parents}
    assert not folded & parents


# ---- decoding

LABELS = (
    Label("nv", "Naevus", malignant=False),
    Label("mel", "Melanoma", malignant=True),
    Label("akiec", "Disputed", malignant=None),
    Label("bcc", "Carcinoma", malignant=True),
)
LEVELS = tuple(Label(str(level), str(level)) for level in range(4))
# Multiples of 1/64, so that no comparison hangs on the last bit of a float.
LOGITS = st.integers(-3200, 3200).map(lambda n: n / 64)
TEMPERATURES = st.sampled_from((None, 0.25, 1.0, 3.0))
THRESHOLDS = st.one_of(st.none(), st.integers(0, 64).map(lambda n: n / 64))


def vector(count: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(LOGITS, min_size=count, max_size=count).map(
        lambda values: np.array(values, np.float32)
    )


def spec(task: Task, size: int = 16) -> Spec:
    return Spec("toy", "1", (task,), Preprocess(size))


def logistic(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))


@given(vector(4), TEMPERATURES, THRESHOLDS)
def test_classify_is_a_softmax(logits, temperature, threshold):
    task = Task("diagnosis", "classify", LABELS)
    fitted = {"diagnosis": Postprocessing(temperature, threshold)}
    prediction = decode({"diagnosis": logits}, spec(task), fitted)
    z = logits.astype(np.float64) / (temperature or 1)
    expected = np.exp(z - np.logaddexp.reduce(z))
    order = np.argsort(-expected, kind="stable")
    found = {label.id: label.probability for label in prediction.labels}
    np.testing.assert_allclose([found[label.id] for label in LABELS], expected, atol=1e-12)
    np.testing.assert_allclose(
        [label.probability for label in prediction.labels], expected[order], atol=1e-12
    )
    assert prediction.malignancy == pytest.approx(min(1, expected[[1, 3]].sum()), abs=1e-12)
    check_decision(prediction, threshold)


@given(vector(1), TEMPERATURES, THRESHOLDS)
def test_binary_is_a_sigmoid(logits, temperature, threshold):
    fitted = {"malignancy": Postprocessing(temperature, threshold)}
    prediction = decode({"malignancy": logits}, spec(Task("malignancy", "binary")), fitted)
    expected = logistic(logits.astype(np.float64) / (temperature or 1))[0]
    assert prediction.malignancy == pytest.approx(expected, abs=1e-12)
    check_decision(prediction, threshold)


def check_decision(prediction, threshold):
    assert prediction.threshold == threshold
    if threshold is None:
        assert prediction.decision is None
    else:
        is_malignant = prediction.malignancy >= threshold
        assert prediction.decision == ("malignant" if is_malignant else "benign")


@given(vector(3), TEMPERATURES)
def test_ordinal_counts_the_cumulative_probabilities_above_a_half(logits, temperature):
    task = Task("severity", "ordinal", LEVELS)
    fitted = {"severity": Postprocessing(temperature)}
    prediction = decode({"severity": logits}, spec(task), fitted)
    cumulative = np.minimum.accumulate(logistic(logits.astype(np.float64) / (temperature or 1)))
    assert prediction.severity == (cumulative > 0.5).sum()


@settings(max_examples=30)
@given(st.integers(16, 40), st.integers(0, 999), TEMPERATURES, st.sampled_from((0.0, 0.3, 0.5, 1)))
def test_segment_is_a_bilinear_enlargement_of_a_sigmoid(size, seed, temperature, threshold):
    side = size // 4
    logits = np.random.default_rng(seed).normal(0, 4, (1, side, side)).astype(np.float32)
    fitted = {"lesion": Postprocessing(temperature, threshold)}
    prediction = decode({"lesion": logits}, spec(Task("lesion", "segment"), size), fitted)
    probability = logistic(logits[0].astype(np.float64) / (temperature or 1))
    centres = (np.arange(size) + 0.5) * side / size - 0.5
    across = np.stack([np.interp(centres, np.arange(side), row) for row in probability])
    full = np.stack([np.interp(centres, np.arange(side), column) for column in across.T], axis=1)
    clear = np.abs(full - threshold) > 1e-9
    assert prediction.mask.shape == (size, size)
    np.testing.assert_array_equal(prediction.mask[clear], (full >= threshold)[clear])


@given(st.integers(1, 9).flatmap(vector))
def test_embed_is_passed_through(values):
    prediction = decode({"features": values}, spec(Task("features", "embed")), {})
    assert prediction.embedding == tuple(float(value) for value in values)


@given(vector(4), st.sampled_from((math.nan, math.inf, -math.inf)), st.integers(0, 3))
def test_no_value_that_is_not_finite_is_decoded(logits, bad, index):
    logits[index] = bad
    with pytest.raises(EngineError, match="NaN or infinity"):
        decode({"diagnosis": logits}, spec(Task("diagnosis", "classify", LABELS)), {})


# ---- specs


@given(st.text(), st.text(), st.booleans() | st.none(), SIDES, FITS)
def test_a_spec_survives_json(title, use, malignant, size, fit):
    labels = (Label("a", title, malignant), Label("b", use))
    original = Spec("x", title, (Task("t", "classify", labels),), Preprocess(size, fit), use)
    data = parse_json(pretty_json(to_json(original)), "x", BundleError)
    assert Spec.from_json(data) == original
