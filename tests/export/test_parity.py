"""Test the comparison of two tables of predictions."""

import dataclasses
import json

import numpy as np
import pytest

from dermedge_export.evaluation.metrics import output_scale
from dermedge_export.evaluation.postprocessing import fit_postprocessing
from dermedge_export.evaluation.predictions import Predictions, predict_table
from dermedge_export.parity.compare import parity
from dermedge_export.parity.gate import failure_messages
from dermedge_runtime.errors import DataError
from dermedge_runtime.spec import Label, Preprocess, Spec, Task, to_json

IDS = {"mel": True, "nv": False, "bcc": True, "akiec": None, "bkl": False}
DIAGNOSIS = Task(
    "diagnosis", "classify", tuple(Label(name, name, truth) for name, truth in IDS.items())
)
SPEC = Spec("lesions", "1", (DIAGNOSIS,), Preprocess(32))
BINARY = Spec("binary", "1", (Task("malignancy", "binary"),), Preprocess(32))
PRIOR = (0.2, 0.5, 0.12, 0.08, 0.1)
ABOUT = {"engine": "onnxruntime 1", "hardware": "cpu", "basis": "test split"}


def student(n=600, seed=0):
    """Make predictions for imbalanced lesions, with one or two photographs of each."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(5, n, p=PRIOR)
    logits = (1.5 * rng.normal(size=(n, 5)) + 3 * np.eye(5)[labels]).astype(np.float32)
    return Predictions(
        image_ids=tuple(f"image-{i}" for i in range(n)),
        outputs={"diagnosis": logits, "malignancy": logits[:, :1] - logits[:, 1:2]},
        labels=labels,
        malignant=np.array([1.0, 0.0, 1.0, np.nan, 0.0])[labels],
        groups=np.array([f"lesion-{int(i / 1.3)}" for i in range(n)]),
        subgroups={
            "sex": rng.choice(["female", "male", ""], n),
            "fitzpatrick": rng.choice(["II", "III", "V", ""], n, p=[0.4, 0.3, 0.05, 0.25]),
        },
    )


def changed(predictions, change):
    return dataclasses.replace(
        predictions,
        outputs={k: change(v).astype(np.float32) for k, v in predictions.outputs.items()},
    )


def noise(scale, seed):
    rng = np.random.default_rng(seed)
    return lambda logits: logits + rng.normal(scale=scale, size=logits.shape)


def compare(change, precision="int8", n=600, seed=0, spec=SPEC, test=None, **options):
    """Compare a student with a candidate whose logits are `change` of its own.

    Postprocessing is fitted on val and the comparison made on test.
    """
    val, test = student(n, seed=2 * seed + 1), test or student(n, seed=2 * seed)
    fits = [fit_postprocessing(table, spec) for table in (val, changed(val, change))]
    options = {"replicates": 300} | options
    return parity(test, changed(test, change), spec, *fits, precision=precision, **ABOUT, **options)


def limit(report, metric):
    return next(limit for limit in report.limits if limit.metric == metric)


def test_an_identical_candidate_passes_at_fp32():
    report = compare(lambda logits: logits, "fp32", n=1000)
    assert report.status == "passed"
    assert failure_messages(report) == []
    assert {entry.status for entry in report.limits} == {"passed"}
    assert len(report.limits) == 11
    assert report.agreement["top1"] == report.agreement["cosine"] == 1
    assert report.agreement["max_abs"] == report.agreement["kl"] == 0
    assert all(entry.loss.value == 0 for entry in report.subgroups)


def test_float32_noise_of_another_engine_passes_at_fp32():
    assert compare(noise(1e-6, 3), "fp32", n=1000).status == "passed"


def test_random_logits_fail():
    report = compare(lambda logits: np.random.default_rng(1).normal(size=logits.shape))
    assert report.status == "failed"
    assert {"top1_agreement", "balanced_accuracy", "macro_auroc", "worst_subgroup"} <= {
        reason.split(":")[0] for reason in failure_messages(report)
    }
    assert limit(report, "balanced_accuracy").candidate == pytest.approx(0.2, abs=0.08)


def test_a_candidate_that_lost_one_class_fails_by_that_class():
    def blind_to_melanoma(logits):
        return logits - 4 * np.eye(5)[0] if logits.shape[1] == 5 else logits

    report = compare(blind_to_melanoma)
    assert report.status == "failed"
    assert limit(report, "balanced_accuracy").status == "failed"
    assert report.agreement["recall_loss:mel"] > 0.5
    assert report.agreement["recall_loss:nv"] <= 0


def test_every_class_has_its_recall_with_paired_intervals():
    def half_blind_to_melanoma(logits):
        rows = np.arange(len(logits)) % 2 == 0
        return logits - 6 * rows[:, None] * np.eye(5)[0] if logits.shape[1] == 5 else logits

    test = student(1000)
    found = {
        entry.value: entry for entry in compare(half_blind_to_melanoma, test=test, n=1000).classes
    }
    assert {entry.column for entry in found.values()} == {"class"}
    assert list(found) == list(IDS)
    melanoma = test.labels == 0
    recall = (test.outputs["diagnosis"][melanoma].argmax(1) == 0).mean()
    assert found["mel"].cases == melanoma.sum()
    assert found["mel"].reference.value == pytest.approx(recall)
    assert found["mel"].loss.value == pytest.approx(1 - found["mel"].candidate.value / recall)
    assert 0.2 < found["mel"].loss.low < found["mel"].loss.value < found["mel"].loss.high < 0.7
    assert found["nv"].loss.high <= 0


def test_a_class_without_a_labelled_image_has_no_line():
    test = student()
    test = dataclasses.replace(test, labels=np.where(test.labels == 3, -1, test.labels))
    assert [entry.value for entry in compare(lambda z: z, test=test).classes] == [
        "mel",
        "nv",
        "bcc",
        "bkl",
    ]
    blank = dataclasses.replace(test, labels=np.full(600, -1))
    assert compare(lambda z: z, test=blank).classes == ()


def test_unbiased_noise_of_int8_passes_in_most_seeds():
    statuses = [
        compare(noise(0.03, seed), seed=seed, n=1000, replicates=200).status for seed in range(12)
    ]
    assert statuses.count("failed") <= 1
    assert statuses.count("passed") >= 7


def test_one_changed_class_at_fp32_is_a_warning_and_ten_are_a_failure():
    def swapped(count):
        def swap(logits):
            logits = logits.copy()
            logits[:count] = logits[:count, ::-1]
            return logits

        return swap

    assert limit(compare(swapped(1), "fp32"), "top1_agreement").status == "warn"
    assert limit(compare(swapped(10), "fp32"), "top1_agreement").status == "failed"


def test_max_abs_is_limited_at_fp32_only():
    report = compare(lambda logits: logits + 1e-3, "fp32")
    assert limit(report, "max_abs").status == "failed"
    [message] = failure_messages(report)
    assert message.startswith("max_abs: outputs differ by up to 0.000")
    assert "of their scale where 0.0001 is allowed (600 cases, output 'diagnosis' of" in message
    reported = compare(lambda logits: logits + 1e-3, "int8")
    assert all(entry.metric != "max_abs" for entry in reported.limits)
    assert reported.agreement["max_abs"] == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 30.0, 1000.0])
def test_the_largest_difference_is_relative_to_the_scale_of_the_logits(factor):
    """The limit is 1e-4 of the scale; below a scale of 1 it is 1e-4 itself."""
    table = changed(student(200), lambda logits: factor * logits)
    scale = output_scale(table.outputs["diagnosis"])
    assert scale == pytest.approx(
        max(1.0, factor * output_scale(student(200).outputs["diagnosis"]))
    )

    def shift(part):
        outputs = {k: v.astype(np.float64) + part * 1e-4 * scale for k, v in table.outputs.items()}
        candidate = dataclasses.replace(table, outputs=outputs)
        spec = dataclasses.replace(SPEC, tasks=(DIAGNOSIS,))
        only = [
            dataclasses.replace(side, outputs={"diagnosis": side.outputs["diagnosis"]})
            for side in (table, candidate)
        ]
        return limit(
            parity(*only, spec, {}, {}, precision="fp32", replicates=10, **ABOUT), "max_abs"
        )

    assert shift(0.95).status == "passed"
    assert shift(0.95).loss.value == pytest.approx(0.95e-4)
    assert shift(1.05).status == "failed"


def test_one_extreme_image_does_not_widen_the_limit():
    logits = student(200).outputs["diagnosis"]
    extreme = logits.copy()
    extreme[7] *= 1e4
    assert output_scale(extreme) < 1.1 * output_scale(logits)


def test_each_output_is_compared_at_its_own_scale():
    """Large logits of one task do not hide an error in the small outputs of another."""
    table = student(200)
    large = 1000 * table.outputs["diagnosis"]
    table = dataclasses.replace(
        table, outputs={"diagnosis": large, "malignancy": large[:, :1] / 1e3}
    )
    outputs = {"diagnosis": large, "malignancy": table.outputs["malignancy"] + 0.01}
    candidate = dataclasses.replace(table, outputs=outputs)
    report = parity(table, candidate, SPEC, {}, {}, precision="fp32", replicates=10, **ABOUT)
    assert limit(report, "max_abs").status == "failed"
    assert "'malignancy'" in limit(report, "max_abs").note


def test_nan_or_infinity_fails_whatever_other_limits_give():
    def overflow(logits):
        logits = logits.copy()
        logits[3, 0], logits[7, 0] = np.nan, np.inf
        return logits

    report = compare(overflow, "fp16")
    assert report.status == "failed"
    assert failure_messages(report) == ["non_finite: 2 of 600 images give NaN or Inf."]
    json.dumps(to_json(report), allow_nan=False)


def test_a_reference_with_nan_is_an_error():
    broken = changed(student(), lambda logits: np.where(logits > 4, np.nan, logits))
    with pytest.raises(DataError, match="reference"):
        parity(broken, broken, SPEC, {}, {}, precision="int8", **ABOUT)


def test_few_cases_are_insufficient_however_good():
    report = compare(lambda logits: logits, n=80)
    assert report.status == "insufficient"
    assert failure_messages(report) == []
    assert limit(report, "balanced_accuracy").status == "insufficient"


def test_sensitivity_counts_malignant_images():
    test = student(280)
    report = compare(lambda logits: logits, test=test)
    entry = limit(report, "malignant_sensitivity")
    assert entry.cases == (test.malignant == 1).sum() < 100
    assert entry.status == "insufficient"
    assert limit(report, "balanced_accuracy").status == "passed"


def test_only_subgroups_of_a_hundred_cases_are_checked_but_all_are_reported():
    test = student()

    def bad_for_type_v_and_worse_for_men(logits):
        rows = (
            (test.subgroups["fitzpatrick"] == "V")
            if len(logits) == 600
            else np.zeros(len(logits), bool)
        )
        men = (test.subgroups["sex"] == "male") & (np.arange(600) % 4 == 0)
        return np.where((rows | men)[:, None], logits[:, ::-1], logits)

    fits = fit_postprocessing(student(seed=1), SPEC)
    candidate = changed(test, bad_for_type_v_and_worse_for_men)
    report = parity(test, candidate, SPEC, fits, fits, precision="int8", **ABOUT, replicates=300)
    losses = {(entry.column, entry.value): entry.loss.value for entry in report.subgroups}
    assert set(losses) == {
        ("sex", "female"),
        ("sex", "male"),
        ("fitzpatrick", "II"),
        ("fitzpatrick", "III"),
        ("fitzpatrick", "V"),
    }
    assert max(losses, key=losses.get) == ("fitzpatrick", "V")
    worst = limit(report, "worst_subgroup")
    assert (worst.status, worst.note, worst.cases) == (
        "failed",
        "sex male",
        (test.subgroups["sex"] == "male").sum(),
    )
    assert worst.loss.value == losses["sex", "male"]


def test_the_worst_of_many_subgroups_is_not_failed_by_chance():
    statuses = []
    for seed in range(10):
        test = student(1400, seed)
        sites = np.random.default_rng(seed).choice([f"site {i}" for i in range(10)], 1400)
        test = dataclasses.replace(test, subgroups={"site": sites})
        report = compare(noise(0.15, seed), test=test, n=1400, replicates=200)
        statuses.append(limit(report, "worst_subgroup").status)
    assert statuses.count("failed") <= 1
    assert statuses.count("warn") >= 5


def test_without_a_known_subgroup_the_limit_is_insufficient():
    test = dataclasses.replace(student(1000), subgroups={"sex": np.full(1000, "")})
    entry = limit(compare(lambda logits: logits, test=test, n=1000), "worst_subgroup")
    assert entry.status == "insufficient"
    assert "known" in entry.note


def test_without_labels_only_agreement_is_checked_and_the_basis_says_so():
    blank = dataclasses.replace(student(), labels=np.full(600, -1), malignant=np.full(600, np.nan))
    report = parity(blank, blank, SPEC, {}, {}, precision="int8", **ABOUT)
    assert "agreement only" in report.basis
    assert report.status == "passed"
    assert {entry.metric for entry in report.limits if entry.status == "passed"} == {
        "non_finite",
        "top1_agreement",
    }
    assert {entry.status for entry in report.limits} == {"passed", "not_run"}
    worse = parity(blank, changed(blank, noise(3, 0)), SPEC, {}, {}, precision="int8", **ABOUT)
    assert worse.status == "failed"


def test_each_side_is_calibrated_with_its_own_fit():
    refitted = compare(lambda logits: 3 * logits)
    assert limit(refitted, "ece").status == "passed"
    fits, test = fit_postprocessing(student(seed=1), SPEC), student()
    stale = parity(
        test, changed(test, lambda z: 3 * z), SPEC, fits, fits, precision="int8", **ABOUT
    )
    assert limit(stale, "ece").status == "failed"


def test_a_binary_model_is_compared_as_benign_against_malignant():
    kept = compare(noise(1e-6, 0), "fp32", spec=BINARY, n=1000)
    assert kept.status == "passed"
    lost = compare(lambda logits: -logits, spec=BINARY)
    assert {"balanced_accuracy", "macro_auroc"} <= {
        reason.split(":")[0] for reason in failure_messages(lost)
    }


def test_losses_and_intervals_have_the_right_sign_and_unit():
    report = compare(noise(1.5, 4))
    entry = limit(report, "balanced_accuracy")
    assert entry.loss.value == pytest.approx(1 - entry.candidate / entry.reference)
    assert 0 < entry.loss.low < entry.loss.value < entry.loss.high
    ece = limit(report, "ece")
    assert ece.loss.value == pytest.approx(ece.candidate - ece.reference)


def test_pairing_narrows_the_interval_of_the_loss():
    report = compare(noise(0.1, 4), n=1000)
    subgroup = report.subgroups[0]
    width = {
        name: getattr(subgroup, name).high - getattr(subgroup, name).low
        for name in ("reference", "loss")
    }
    assert width["loss"] < width["reference"] / 2


def test_tables_of_other_images_are_refused():
    test = student()
    with pytest.raises(DataError, match="their order differs"):
        parity(test, test.rows(np.arange(600)[::-1]), SPEC, {}, {}, precision="int8", **ABOUT)
    with pytest.raises(DataError, match="no images to compare"):
        empty = test.rows(np.zeros(600, bool))
        parity(empty, empty, SPEC, {}, {}, precision="int8", **ABOUT)
    cut = dataclasses.replace(test, outputs={"diagnosis": test.outputs["diagnosis"][:, :4]})
    with pytest.raises(DataError, match="diagnosis"):
        parity(test, cut, SPEC, {}, {}, precision="int8", **ABOUT)


def test_the_report_is_json_and_repeatable():
    first, second = (compare(noise(0.3, 1)) for _ in range(2))
    assert json.dumps(to_json(first), allow_nan=False) == json.dumps(to_json(second))


def test_columns_of_another_length_are_refused():
    with pytest.raises(DataError, match="'labels'"):
        dataclasses.replace(student(), labels=np.zeros(3, np.int64))


def test_predict_table_keeps_order_and_batches():
    images = np.random.default_rng(0).integers(0, 255, (10, 4, 4, 3), np.uint8)
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return {
            "diagnosis": batch.mean((1, 2)).astype(np.float32),
            "malignancy": batch.mean((1, 2, 3))[:, None],
        }

    outputs = predict_table(run, iter(images), batch=4)
    assert sizes == [4, 4, 2]
    np.testing.assert_allclose(outputs["diagnosis"], images.mean((1, 2)), rtol=1e-6)
    assert outputs["malignancy"].shape == (10, 1)
    assert outputs["malignancy"].dtype == np.float32


def covering(fits, change):
    """Return postprocessing whose conformal quantiles are changed."""
    fitted = fits["diagnosis"]
    quantiles = tuple(map(change, fitted.conformal.quantiles))
    conformal = dataclasses.replace(fitted.conformal, quantiles=quantiles)
    return {**fits, "diagnosis": dataclasses.replace(fitted, conformal=conformal)}


def test_a_candidate_that_loses_coverage_fails_overall_and_in_its_worst_subgroup():
    fits, test = fit_postprocessing(student(seed=1), SPEC), student(n=1500)

    def gate(candidate):
        return parity(test, test, SPEC, fits, candidate, precision="int8", replicates=300, **ABOUT)

    same = gate(fits)
    assert limit(same, "conformal_coverage").status == "passed"
    assert limit(same, "conformal_coverage").candidate == pytest.approx(0.9, abs=0.03)
    assert limit(same, "worst_subgroup_coverage").status == "passed"
    worse = gate(covering(fits, lambda quantile: 0.8 * quantile))
    assert limit(worse, "conformal_coverage").status == "failed"
    overall, worst = (
        limit(worse, name) for name in ("conformal_coverage", "worst_subgroup_coverage")
    )
    assert worst.loss.value >= overall.loss.value > 0.02
    assert worst.note.partition(" ")[0] in test.subgroups
    assert worst.cases >= 100
    wider = gate(covering(fits, lambda quantile: 1.0))
    assert limit(wider, "conformal_coverage").status == "passed"


def narrowed(fits, label, factor):
    """Return postprocessing whose sets hold one label for fewer images."""
    narrow = covering(fits, lambda quantile: factor * quantile)["diagnosis"].conformal.quantiles
    index, fitted = list(IDS).index(label), fits["diagnosis"]
    quantiles = list(fitted.conformal.quantiles)
    quantiles[index] = narrow[index]
    conformal = dataclasses.replace(fitted.conformal, quantiles=tuple(quantiles))
    return {**fits, "diagnosis": dataclasses.replace(fitted, conformal=conformal)}


def test_a_candidate_that_covers_one_label_less_fails_by_that_label():
    fits, test = fit_postprocessing(student(n=1500, seed=1), SPEC), student(n=3000)
    about = {"precision": "int8", "replicates": 300, **ABOUT}
    report = parity(test, test, SPEC, fits, narrowed(fits, "bcc", 0.8), **about)
    # bcc is an eighth of the images, so that all of them hide its loss.
    assert limit(report, "conformal_coverage").status == "passed"
    worst = limit(report, "worst_label_coverage")
    assert (worst.status, worst.note) == ("failed", "label bcc, fitted to 0.9")
    assert [text.partition(":")[0] for text in failure_messages(report)] == ["worst_label_coverage"]
    rows = {entry.value: entry for entry in report.coverage}
    assert list(rows) == list(IDS)
    covered = dataclasses.replace(
        rows["bcc"], column="class", cases=int((test.labels == 2).sum()), loss=worst.loss
    )
    assert rows["bcc"] == covered
    assert rows["bcc"].reference.value > rows["bcc"].candidate.value == worst.candidate
    assert rows["nv"].loss.value <= 0


def test_coverage_counts_up_to_the_one_that_the_sets_are_fitted_to():
    fits, test = fit_postprocessing(student(n=1500, seed=1), SPEC), student(n=1500)
    about = {"precision": "int8", "replicates": 300, **ABOUT}
    wide = covering(fits, lambda quantile: 1.0)
    report = parity(test, test, SPEC, wide, fits, **about)
    for metric in ("conformal_coverage", "worst_label_coverage"):
        found = limit(report, metric)
        assert found.reference == 1
        assert found.candidate == pytest.approx(0.9, abs=0.05)
        assert found.loss.value == pytest.approx(0.9 - found.candidate)
        assert found.status != "failed"
    report = parity(test, test, SPEC, wide, narrowed(fits, "mel", 0.7), **about)
    lost = limit(report, "worst_label_coverage")
    assert (lost.status, lost.note) == ("failed", "label mel, fitted to 0.9")


def test_rare_labels_do_not_decide():
    fits, test = fit_postprocessing(student(seed=1), SPEC), student(n=180)
    report = parity(test, test, SPEC, fits, fits, precision="int8", replicates=100, **ABOUT)
    few = limit(report, "worst_label_coverage")
    assert (few.status, few.note) == ("insufficient", "no label has 100 cases")
    assert few.cases == (test.labels == 1).sum() < 100


def test_coverage_is_not_compared_if_a_side_has_no_sets():
    fits, test = fit_postprocessing(student(seed=1), SPEC), student()
    report = parity(test, test, SPEC, {}, fits, precision="fp32", replicates=100, **ABOUT)
    assert not [one.metric for one in report.limits if "coverage" in one.metric]
    assert report.coverage == ()
