"""Test decoding against hand-computed numbers."""

import json
import math

import numpy as np
import pytest

from dermedge_runtime.decode import (
    Provenance,
    Timing,
    decode,
    ordinal_level,
    segment_mask,
    sigmoid,
    softmax,
)
from dermedge_runtime.errors import EngineError
from dermedge_runtime.spec import Conformal, Label, Postprocessing, Preprocess, Spec, Task

LABELS = (
    Label("nv", "Naevus", malignant=False),
    Label("mel", "Melanoma", malignant=True),
    Label("akiec", "Actinic keratosis or Bowen's disease", malignant=None),
    Label("bcc", "Basal cell carcinoma", malignant=True),
)
DIAGNOSIS = Task("diagnosis", "classify", LABELS)
MALIGNANCY = Task("malignancy", "binary")
SEVERITY = Task(
    "severity", "ordinal", tuple(Label(f"s{level}", f"Level {level}") for level in range(4))
)
LESION = Task("lesion", "segment")
EMBEDDING = Task("features", "embed")
LABEL_IDS = ("mel", "nv", "bcc", "akiec")
LOGITS = np.array([1.0, 2.0, 0.5, 0.0], np.float32)


def spec(*tasks: Task, size: int = 16) -> Spec:
    return Spec("toy", "1", tasks, Preprocess(size))


def test_classify_is_softmax_with_temperature_most_probable_first():
    prediction = decode(
        {"diagnosis": LOGITS}, spec(DIAGNOSIS), {"diagnosis": Postprocessing(temperature=2.0)}
    )
    powers = [math.exp(z / 2) for z in (1, 2, 0.5, 0)]
    assert [label.id for label in prediction.labels] == ["mel", "nv", "akiec", "bcc"]
    expected = sorted((p / sum(powers) for p in powers), reverse=True)
    assert [label.probability for label in prediction.labels] == pytest.approx(expected, abs=1e-14)
    assert prediction.labels[0].name == "Melanoma"


def test_ties_keep_the_order_of_the_labels():
    prediction = decode({"diagnosis": np.zeros(4, np.float32)}, spec(DIAGNOSIS), {})
    assert [label.id for label in prediction.labels] == ["nv", "mel", "akiec", "bcc"]


def test_without_a_malignancy_task_malignant_labels_are_summed_and_disputed_ones_left_out():
    fitted = {"diagnosis": Postprocessing(threshold=0.6)}
    prediction = decode({"diagnosis": LOGITS}, spec(DIAGNOSIS), fitted)
    powers = [math.exp(z) for z in (1, 2, 0.5, 0)]
    assert prediction.malignancy == pytest.approx((powers[1] + powers[3]) / sum(powers), abs=1e-14)
    assert prediction.threshold == 0.6
    assert prediction.decision == "malignant"


def test_the_malignancy_task_comes_before_the_sum():
    outputs = {"diagnosis": LOGITS, "malignancy": np.array([-1.5], np.float32)}
    fitted = {
        "diagnosis": Postprocessing(threshold=0.1),
        "malignancy": Postprocessing(temperature=3.0, threshold=0.4),
    }
    prediction = decode(outputs, spec(DIAGNOSIS, MALIGNANCY), fitted)
    assert prediction.malignancy == pytest.approx(1 / (1 + math.exp(0.5)), abs=1e-14)
    assert prediction.threshold == 0.4
    assert prediction.decision == "benign"


def test_a_score_at_the_threshold_is_malignant():
    outputs = {"malignancy": np.zeros(1, np.float32)}
    assert (
        decode(outputs, spec(MALIGNANCY), {"malignancy": Postprocessing(threshold=0.5)}).decision
        == "malignant"
    )


def test_fields_that_were_not_fitted_are_none():
    prediction = decode(
        {"diagnosis": LOGITS, "lesion": np.ones((1, 4, 4), np.float32)},
        spec(DIAGNOSIS, LESION),
        {"lesion": Postprocessing()},
    )
    assert prediction.malignancy is not None
    empty = (
        "threshold",
        "decision",
        "mask",
        "refer_reason",
        "conformal_set",
        "ood",
        "ood_score",
        "severity",
        "embedding",
        "timing",
        "provenance",
    )
    assert [getattr(prediction, name) for name in empty] == [None] * len(empty)
    benign = Task(
        "diagnosis",
        "classify",
        (Label("a", "A", malignant=False), Label("b", "B", malignant=False)),
    )
    assert decode({"diagnosis": LOGITS[:2]}, spec(benign), {}).malignancy is None


# Probabilities 0.4, 0.3, 0.2 and 0.1 of mel, nv, bcc and akiec.
RANKED = np.log(np.array([0.3, 0.4, 0.1, 0.2], np.float32))


@pytest.mark.parametrize(
    ("conformal", "members"),
    [
        (Conformal("lac", 0.9, (0.65, 0.65, 0.65, 0.65)), ("mel",)),
        (Conformal("lac", 0.9, (0.75, 0.55, 0.95, 0.75)), ("nv", "akiec")),
        (Conformal("lac", 0.9, (0.1, 0.1, 0.1, 0.1)), ()),
        (Conformal("aps", 0.9, (0.75, 0.75, 0.75, 0.75)), ("mel", "nv")),
        (Conformal("aps", 0.9, (0.1, 0.3, None, 0.95)), ("bcc", "akiec")),
        (Conformal("raps", 0.9, (0.75, 0.75, 0.75, 0.75), penalty=0.1, free=1), ("mel",)),
        (Conformal("raps", 0.9, (0.75, 0.75, 0.75, 0.75), penalty=0.1, free=2), ("mel", "nv")),
        (Conformal("raps", 0.9, (1.05, 1.05, 1.25, 1.05), penalty=0.1, free=2), LABEL_IDS),
    ],
)
def test_a_label_is_in_the_set_up_to_its_quantile(conformal, members):
    fitted = {"diagnosis": Postprocessing(conformal=conformal)}
    prediction = decode({"diagnosis": RANKED}, spec(DIAGNOSIS), fitted)
    assert prediction.conformal_set == members


@pytest.mark.parametrize(
    ("score", "ood", "decision", "reason"),
    [
        (0.2, 0.0, "benign", None),
        (0.3, 0.0, "refer", "uncertain"),
        (0.79, 0.0, "refer", "uncertain"),
        (0.81, 0.0, "malignant", None),
        (0.2, 2.5, "refer", "ood"),
        (0.5, 2.5, "refer", "ood"),
        (0.9, 2.5, "refer", "ood"),
    ],
)
def test_a_score_between_the_thresholds_or_a_foreign_image_is_referred(
    score, ood, decision, reason
):
    outputs = {
        "malignancy": np.array([math.log(score / (1 - score))], np.float32),
        "foreign": np.array([ood], np.float32),
    }
    fitted = {
        "malignancy": Postprocessing(threshold=0.25, rule_in=0.8),
        "foreign": Postprocessing(ood_threshold=2.0),
    }
    prediction = decode(outputs, spec(MALIGNANCY, Task("foreign", "ood")), fitted)
    assert (prediction.decision, prediction.refer_reason) == (decision, reason)
    assert (prediction.ood, prediction.ood_score) == (ood > 2, ood)


@pytest.mark.parametrize(
    ("logits", "level"),
    [
        ([3, 1, -1], 2),
        ([-1, 3, 3], 0),  # the running minimum keeps later ones down
        ([3, -1, 3], 1),
        ([1, 1, 1], 3),
        ([0, -1, -2], 0),  # exactly one half is not above it
    ],
)
def test_ordinal_counts_probabilities_above_one_half(logits, level):
    assert ordinal_level(logits) == level
    outputs = {"severity": np.array(logits, np.float32)}
    assert (
        decode(outputs, spec(SEVERITY), {"severity": Postprocessing(temperature=5.0)}).severity
        == level
    )


def test_the_mask_is_the_enlarged_probability_at_or_above_its_threshold():
    size, temperature, threshold = 32, 1.5, 0.35
    logits = np.random.default_rng(3).normal(0, 2, (1, 8, 8)).astype(np.float32)
    prediction = decode(
        {"lesion": logits},
        spec(LESION, size=size),
        {"lesion": Postprocessing(temperature, threshold)},
    )
    p = [[1 / (1 + math.exp(-float(z) / temperature)) for z in row] for row in logits[0]]

    def at(position: int) -> tuple[int, int, float]:
        centre = min(max((position + 0.5) / 4 - 0.5, 0), 7)
        return int(centre), min(int(centre) + 1, 7), centre - int(centre)

    expected = np.zeros((size, size), bool)
    for y in range(size):
        for x in range(size):
            (top, bottom, v), (left, right, h) = at(y), at(x)
            upper = p[top][left] * (1 - h) + p[top][right] * h
            lower = p[bottom][left] * (1 - h) + p[bottom][right] * h
            expected[y, x] = upper * (1 - v) + lower * v >= threshold
    assert prediction.mask.dtype == bool
    assert 0.2 < expected.mean() < 0.95
    np.testing.assert_array_equal(prediction.mask, expected)
    assert prediction.to_json()["mask_fraction"] == expected.mean()


def test_a_probability_at_the_threshold_is_in_the_mask():
    assert segment_mask(np.zeros((4, 4), np.float32), 16, 1.0, 0.5).all()


def test_the_embedding_is_the_output_itself():
    vector = np.array([0.6, 0.8], np.float32)
    assert decode({"features": vector}, spec(EMBEDDING), {}).embedding == pytest.approx((0.6, 0.8))


def test_huge_logits_do_not_overflow():
    assert softmax([1e30, 0.0]) == [1.0, 0.0]
    assert (sigmoid(1e30), sigmoid(-1e30)) == (1.0, 0.0)
    assert segment_mask(np.full((4, 4), -1e30, np.float32), 16, 0.1, 0.5).sum() == 0


def test_a_prediction_is_json_and_can_be_compared():
    outputs = {
        "diagnosis": LOGITS,
        "severity": np.zeros(3, np.float32),
        "lesion": np.ones((1, 4, 4), np.float32),
    }
    tasks = spec(DIAGNOSIS, SEVERITY, LESION)
    fitted = {"lesion": Postprocessing(threshold=0.5)}
    extra = {
        "timing": Timing(1.0, 2.0),
        "provenance": Provenance("id", "toy", "1", "cpu", "fp32", "fake 1"),
    }
    first, second = (decode(outputs, tasks, fitted, **extra) for _ in range(2))
    assert first == second
    data = json.loads(json.dumps(first.to_json(), allow_nan=False))
    assert data["labels"][0] == {
        "id": "mel",
        "name": "Melanoma",
        "probability": first.labels[0].probability,
    }
    assert data["timing"] == {"preprocess_ms": 1.0, "engine_ms": 2.0}
    assert data["provenance"]["engine"] == "fake 1"
    assert data["mask_fraction"] == 1.0
    assert "mask" not in data


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "task", [DIAGNOSIS, MALIGNANCY, SEVERITY, LESION, EMBEDDING], ids=lambda task: task.kind
)
def test_nan_and_infinity_are_not_decoded(task, bad):
    shapes = {
        "classify": (4,),
        "binary": (1,),
        "ordinal": (3,),
        "segment": (1, 4, 4),
        "embed": (5,),
    }
    values = np.zeros(shapes[task.kind], np.float32)
    values.flat[-1] = bad
    with pytest.raises(EngineError, match=f"'{task.name}' holds NaN or infinity"):
        decode({task.name: values}, spec(task), {})


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        (DIAGNOSIS, (3,)),
        (DIAGNOSIS, (1, 4)),
        (MALIGNANCY, ()),
        (SEVERITY, (4,)),
        (LESION, (1, 16, 16)),
        (LESION, (4, 4)),
    ],
)
def test_wrong_shapes_are_refused(task, shape):
    with pytest.raises(EngineError, match="has shape"):
        decode({task.name: np.zeros(shape, np.float32)}, spec(task), {})


def test_a_missing_output_is_named():
    with pytest.raises(EngineError, match=r"no output 'malignancy', only \['diagnosis'\]"):
        decode({"diagnosis": LOGITS}, spec(DIAGNOSIS, MALIGNANCY), {})
