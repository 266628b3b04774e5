"""Parity of models that grade, segment or embed."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from dermedge_export.evaluation.predictions import Predictions, ordinal_levels
from dermedge_export.parity.compare import parity
from dermedge_export.parity.gate import failure_messages, pass_probability
from dermedge_runtime.spec import Label, Postprocessing, Preprocess, Spec, Task

SEVERITY = Task(
    "severity", "ordinal", tuple(Label(str(level), f"severity {level}") for level in range(4))
)
SPEC = Spec(
    "many", "1", (SEVERITY, Task("lesion", "segment"), Task("features", "embed")), Preprocess(32)
)
TRUTHS = {"severity_kappa", "dice"}
AGREEMENTS = {"level_agreement", "mask_overlap", "embedding_cosine"}


def student(n=400, seed=0):
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 4, n)
    above = levels[:, None] > np.arange(3)
    masks = np.zeros((n, 8, 8), np.int8)
    for mask, top, left in zip(masks, *rng.integers(0, 4, (2, n)), strict=True):
        mask[top : top + 4, left : left + 4] = 1
    names = np.array([f"image-{i}" for i in range(n)])
    return Predictions(
        image_ids=tuple(names),
        outputs={
            "severity": (4 * above - 2 + rng.normal(0, 1.2, (n, 1))).astype(np.float32),
            "lesion": (4.0 * masks - 2 + rng.normal(0, 1.5, masks.shape))[:, None].astype(
                np.float32
            ),
            "features": (100 + rng.normal(0, 1, (n, 16))).astype(np.float32),
        },
        labels=np.full(n, -1),
        malignant=np.full(n, np.nan),
        groups=names,
        levels=levels,
        masks=masks,
    )


def compare(change, precision="int8", post=None, test=None):
    """Compare a student with a candidate of which some outputs are changed."""
    test = test or student()
    outputs = dict(test.outputs) | {name: made(test.outputs[name]) for name, made in change.items()}
    candidate = dataclasses.replace(
        test, outputs={k: v.astype(np.float32) for k, v in outputs.items()}
    )
    about = {"engine": "onnxruntime 1", "hardware": "cpu", "basis": "test split"}
    return parity(
        test, candidate, SPEC, {}, post or {}, precision=precision, replicates=200, **about
    )


def limits(report):
    return {limit.metric: limit for limit in report.limits}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_identical_predictions_pass_at_every_precision(precision):
    report = compare({}, precision)
    found = limits(report)
    assert report.status == "passed"
    assert {
        name: limit.loss.value for name, limit in found.items() if name in TRUTHS | AGREEMENTS
    } == pytest.approx(dict.fromkeys(TRUTHS | AGREEMENTS, 0), abs=1e-7)
    assert {name for name, limit in found.items() if limit.status == "not_run"} == {
        "top1_agreement",
        "balanced_accuracy",
        "macro_auroc",
        "malignant_sensitivity",
        "ece",
    }
    assert pass_probability(report) == 1


def test_small_noise_passes_at_int8_and_not_at_fp32():
    noise = {
        name: lambda v: v + np.random.default_rng(1).normal(0, 0.01, v.shape)
        for name in student().outputs
    }
    assert compare(noise).status == "passed"
    assert compare(noise, "fp32").status == "failed"


@pytest.mark.parametrize(
    ("output", "broken", "failing"),
    [
        ("severity", lambda v: v[:, [0, 0, 0]], {"level_agreement", "severity_kappa"}),
        ("lesion", lambda v: np.roll(v, 2, axis=3), {"mask_overlap", "dice"}),
        ("lesion", lambda v: np.full_like(v, -9), {"mask_overlap", "dice"}),
        ("features", lambda v: np.roll(v, 1, axis=1), {"embedding_cosine"}),
        ("features", lambda v: v.mean(0, keepdims=True).repeat(len(v), 0), {"embedding_cosine"}),
    ],
    ids=["levels", "moved masks", "no masks", "permuted embeddings", "one embedding for all"],
)
def test_a_broken_head_fails_by_name(output, broken, failing):
    report = compare({output: broken})
    assert report.status == "failed"
    assert {reason.partition(":")[0] for reason in failure_messages(report)} == failing


@pytest.mark.parametrize(("change", "status"), [(0.01, "passed"), (3.0, "failed")])
def test_maps_are_compared_for_the_label_that_the_reference_shows(change, status):
    labels = (Label("nv", "naevus"), Label("mel", "melanoma"))
    tasks = (Task("diagnosis", "classify", labels), Task("diagnosis_cam", "cam", labels))
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 2, (400, 2, 4, 4)).astype(np.float32)
    logits = maps.mean((2, 3))
    other = maps + change * rng.normal(0, 1, maps.shape).astype(np.float32)
    # The map of the other label does not count.
    other[np.arange(400), 1 - logits.argmax(1)] = 0
    names = np.array([f"image-{i}" for i in range(400)])
    sides = (
        Predictions(
            image_ids=tuple(names),
            outputs={"diagnosis": logits, "diagnosis_cam": shown},
            labels=logits.argmax(1),
            malignant=np.full(400, np.nan),
            groups=names,
        )
        for shown in (maps, other)
    )
    spec = Spec("explained", "1", tasks, Preprocess(32))
    about = {"engine": "onnxruntime 1", "hardware": "cpu", "basis": "test split"}
    report = parity(*sides, spec, {}, {}, precision="int8", replicates=200, **about)
    assert limits(report)["cam_cosine"].status == status


def test_pairs_of_empty_masks_do_not_count():
    def without_lesions(output):  # nothing is predicted for the first 300 images
        return np.where(np.arange(len(output))[:, None, None, None] < 300, -9, output)

    whole = student()
    masks = np.where(np.arange(400)[:, None, None] < 250, 0, whole.masks).astype(np.int8)
    test = dataclasses.replace(
        whole,
        masks=masks,
        outputs=whole.outputs | {"lesion": without_lesions(whole.outputs["lesion"])},
    )
    found = limits(compare({"lesion": lambda v: np.where(v > 0, -v, v)}, test=test))
    # 300 pairs without a predicted lesion would hide that all other lesions are lost.
    assert found["mask_overlap"].cases == 100
    assert found["mask_overlap"].status == "failed"
    assert found["mask_overlap"].candidate == 0
    assert "300 images without a predicted lesion" in found["mask_overlap"].note
    assert found["dice"].cases == 150
    assert found["dice"].note.startswith("250 empty masks do not count")
    nothing = dataclasses.replace(test, masks=np.zeros_like(masks))
    blank = limits(compare({}, test=nothing))
    assert (blank["dice"].status, blank["dice"].candidate) == ("not_run", None)


def test_a_loss_near_its_limit_lowers_the_pass_probability():
    def one_level_up(output):  # 1.5 % of the images, where 2 % are allowed
        graded = output.copy()
        graded[np.flatnonzero(ordinal_levels(output) == 2)[:6], 2] = 1
        return graded

    few = compare({"severity": one_level_up})
    assert few.status == "passed"
    assert limits(few)["level_agreement"].loss.value == pytest.approx(6 / 400)
    assert 0.3 < pass_probability(few) < 0.9


def test_losses_are_those_of_the_metrics_themselves():
    test, noisy = student(), student(seed=1).outputs["severity"]
    found = limits(compare({"severity": lambda v: 0.5 * v + 0.5 * noisy}, test=test))
    before, after = (
        ordinal_levels(v)
        for v in (test.outputs["severity"], 0.5 * test.outputs["severity"] + 0.5 * noisy)
    )
    kappas = [
        cohen_kappa_score(test.levels, levels, weights="quadratic") for levels in (before, after)
    ]
    assert found["severity_kappa"].loss.value == pytest.approx(kappas[0] - kappas[1])
    assert found["level_agreement"].loss.value == pytest.approx((before != after).mean())
    assert (
        found["level_agreement"].loss.low
        < found["level_agreement"].loss.value
        < found["level_agreement"].loss.high
    )


def test_a_mask_is_cut_at_the_candidates_own_threshold():
    shifted = {"lesion": lambda v: v - 4}
    assert limits(compare(shifted))["mask_overlap"].status == "failed"
    refitted = {"lesion": Postprocessing(threshold=1 / (1 + np.exp(4)))}
    assert limits(compare(shifted, post=refitted))["mask_overlap"].loss.value == pytest.approx(
        0, abs=0.01
    )


def test_without_the_truth_only_agreement_is_checked_and_the_basis_says_so():
    blank = dataclasses.replace(student(), levels=None, masks=None)
    report = compare({}, test=blank)
    found = limits(report)
    assert report.basis == "test split (no labels: agreement only)"
    assert report.status == "passed"
    assert {found[name].status for name in TRUTHS} == {"not_run"}
    assert {found[name].status for name in AGREEMENTS} == {"passed"}
    assert compare({}).basis == "test split"


def test_a_nan_in_one_head_fails_whatever_other_limits_give():
    def overflow(output):
        broken = output.copy()
        broken[7] = np.nan
        return broken

    report = compare({"features": overflow})
    assert report.status == "failed"
    assert failure_messages(report) == ["non_finite: 1 of 400 images give NaN or Inf."]
