"""Decoding a table equals the scalar decoding that ships to devices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dermedge_export.evaluation.predictions import Predictions, decode_table, ordinal_levels
from dermedge_runtime.activations import sigmoid, softmax
from dermedge_runtime.decode import decode, ordinal_level, segment_mask
from dermedge_runtime.decode import sigmoid as scalar_sigmoid
from dermedge_runtime.decode import softmax as scalar_softmax
from dermedge_runtime.spec import Conformal, Label, Postprocessing, Preprocess, Spec, Task

SIZE, CELLS = 16, 4
LABELS = tuple(
    Label(name, name, malignant)
    for name, malignant in (("nv", False), ("mel", True), ("df", None), ("bcc", True))
)
LEVELS = tuple(Label(name, name, None) for name in ("mild", "moderate", "severe", "extreme"))
DIAGNOSIS = Task("diagnosis", "classify", LABELS)
MALIGNANCY = Task("malignancy", "binary")
TASKS = (
    DIAGNOSIS,
    MALIGNANCY,
    Task("severity", "ordinal", LEVELS),
    Task("lesion", "segment"),
    Task("embedding", "embed"),
)
SHAPES = {
    "diagnosis": (4,),
    "malignancy": (1,),
    "severity": (3,),
    "lesion": (1, CELLS, CELLS),
    "embedding": (5,),
}
# Extreme values reach the overflow of exp; the short list makes ties frequent.
LOGITS = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(-30, 30, width=32),
    st.sampled_from([-1e4, -1.0, -(2.0**-70), -0.0, 0.0, 2.0**-149, 2.0**-70, 0.5, 1.0, 88.0, 1e4]),
)
TEMPERATURES = st.one_of(st.none(), st.floats(0.05, 20))
ULP = 1e-15  # numpy's exp and math.exp may differ in the last bit


def table(tasks: tuple[Task, ...], count: int, draw: st.DrawFn) -> Predictions:
    outputs = {
        task.name: draw(arrays(np.float32, (count, *SHAPES[task.name]), elements=LOGITS))
        for task in tasks
    }
    names = tuple(f"i{n}" for n in range(count))
    return Predictions(names, outputs, np.full(count, -1), np.full(count, np.nan), np.array(names))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Spec, Predictions, dict[str, Postprocessing]]:
    """Draw a model of some tasks, its outputs for up to four images, and a fit."""
    chosen = draw(st.sets(st.sampled_from(range(len(TASKS))), min_size=1))
    tasks = tuple(TASKS[index] for index in sorted(chosen))
    spec = Spec("model", "1", tasks, Preprocess(SIZE))
    thresholds = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
    fitted = {
        task.name: Postprocessing(draw(TEMPERATURES), draw(thresholds))
        for task in tasks
        if draw(st.booleans())
    }
    return spec, table(tasks, draw(st.integers(1, 4)), draw), fitted


def leads_by_rounding_only(probabilities: np.ndarray) -> bool:
    ordered = np.sort(probabilities)
    return bool(0 < ordered[-1] - ordered[-2] < ULP)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_a_decoded_table_equals_the_prediction_of_each_image(
    case: tuple[Spec, Predictions, dict[str, Postprocessing]],
) -> None:
    spec, predictions, fitted = case
    decoded = decode_table(predictions, spec, fitted)
    for row in range(len(predictions)):
        outputs = {name: output[row] for name, output in predictions.outputs.items()}
        one = decode(outputs, spec, fitted)
        if spec.diagnosis is not None:
            expected = {label.id: label.probability for label in one.labels}
            found = decoded.probabilities[row]
            np.testing.assert_allclose(
                found, [expected[name] for name in decoded.names], rtol=1e-12, atol=1e-300
            )
            if not leads_by_rounding_only(found):
                assert decoded.names[decoded.predicted[row]] == one.labels[0].id
        if one.malignancy is None:
            assert np.isnan(decoded.scores[row])
        else:
            assert decoded.scores[row] == pytest.approx(one.malignancy, rel=1e-12, abs=1e-300)
            assert decoded.threshold == one.threshold
            if one.threshold is not None and abs(one.malignancy - one.threshold) > ULP:
                malignant = decoded.scores[row] >= one.threshold
                assert one.decision == ("malignant" if malignant else "benign")
        if one.severity is not None:
            assert decoded.graded is not None
            assert decoded.graded.predicted[row] == one.severity
        if one.embedding is not None:
            assert decoded.embedding is not None
            assert tuple(decoded.embedding[row].tolist()) == one.embedding
        if "lesion" in fitted and fitted["lesion"].threshold is not None:
            # The gate compares masks on the output's own grid.
            temperature = fitted["lesion"].temperature or 1.0
            expected_mask = segment_mask(
                outputs["lesion"][0], CELLS, temperature, fitted["lesion"].threshold
            )
            assert decoded.outlined is not None
            np.testing.assert_array_equal(decoded.outlined.inside[row], expected_mask)


@given(arrays(np.float32, (3, 4), elements=LOGITS), st.floats(0.05, 20))
def test_activations_of_arrays_equal_those_of_numbers(logits: np.ndarray, temperature: float):
    wide = logits.astype(np.float64)
    for row, found in zip(wide.tolist(), softmax(wide, temperature), strict=True):
        np.testing.assert_allclose(found, scalar_softmax(row, temperature), rtol=1e-12, atol=1e-300)
    for number, found in zip(wide.ravel().tolist(), sigmoid(wide).ravel(), strict=True):
        assert found == pytest.approx(scalar_sigmoid(number), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_a_positive_logit_whose_probability_rounds_to_one_half_adds_no_level(temperature: float):
    logits = [3.0, 1e-20, -2.0]
    assert ordinal_level(logits, temperature) == 1
    assert ordinal_levels(np.array([logits]), temperature).tolist() == [1]


def test_softmax_lets_nan_and_infinity_through():
    found = softmax(np.array([[np.nan, 0.0], [np.inf, 0.0], [1.0, 1.0]]))
    assert np.isnan(found[:2]).all()
    assert found[2].tolist() == [0.5, 0.5]


def test_activations_keep_the_type_of_their_logits():
    logits = np.zeros((1, 2), np.float32)
    assert softmax(logits).dtype == sigmoid(logits).dtype == np.float32


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_a_table_has_the_sets_decisions_and_flags_of_each_image(method):
    labels = tuple(Label(name, name, malignant=name == "b") for name in "abcd")
    spec = Spec(
        "toy", "1", (Task("type", "classify", labels), Task("foreign", "ood")), Preprocess(16)
    )
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (60, 4)).astype(np.float32).round(0)  # with ties
    foreign = rng.normal(0, 1, (60, 1)).astype(np.float32)
    table = Predictions(
        tuple(map(str, range(60))),
        {"type": logits, "foreign": foreign},
        np.zeros(60, np.int64),
        np.zeros(60),
        np.arange(60).astype(str),
    )
    sets = Conformal(method, 0.9, (0.6, 0.8, None, 0.7), penalty=0.05, free=1)
    fitted = {
        "type": Postprocessing(1.4, 0.2, 0.5, sets),
        "foreign": Postprocessing(ood_threshold=1.0),
    }
    decoded = decode_table(table, spec, fitted)
    for row in range(60):
        one = decode({"type": logits[row], "foreign": foreign[row]}, spec, fitted)
        members = {
            label.id for label, inside in zip(labels, decoded.sets[row], strict=True) if inside
        }
        assert members == set(one.conformal_set)
        assert decoded.referred[row] == (one.decision == "refer")
        assert (decoded.ood[row], decoded.ood_scores[row]) == (one.ood, one.ood_score)
    assert 0 < decoded.referred.sum() < 60 and 0 < decoded.ood.sum() < 60
    assert decoded.sets.sum(axis=1).min() < decoded.sets.sum(axis=1).max()
