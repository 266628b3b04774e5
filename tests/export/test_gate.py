"""Test the limits of the gate and the status of each."""

import dataclasses

import pytest

from dermedge_export.parity.gate import (
    LIMITS,
    Measurement,
    check_limit,
    failure_messages,
    limits_for,
    overall_status,
)
from dermedge_runtime.errors import UsageError
from dermedge_runtime.report import Interval, Limit, ParityReport


def measured(metric="balanced_accuracy", cases=500, loss=0.0, bound=0.0, **others):
    sides = {"reference": Interval(0.7), "candidate": Interval(0.7 * (1 - (loss or 0)))}
    return Measurement(metric, cases, Interval(loss), bound=bound, **sides, **others)


def report(*limits):
    return ParityReport(overall_status(limits), "test split", 500, "engine", "cpu", "int8", limits)


def test_the_table_of_limits():
    """The limits are a contract: a change here must be meant."""
    table = {
        name: tuple(row[precision] for precision in ("fp32", "fp16", "int8"))
        for name, row in LIMITS.items()
    }
    assert table == {
        "non_finite": (0, 0, 0),
        "max_abs": (1e-4, None, None),
        "top1_agreement": (0, 0.005, 0.02),
        "balanced_accuracy": (0.001, 0.005, 0.01),
        "macro_auroc": (0.001, 0.005, 0.01),
        "malignant_sensitivity": (0, 0.005, 0.01),
        "worst_subgroup": (0.005, 0.02, 0.02),
        "ece": (0.001, 0.005, 0.02),
        "conformal_coverage": (0.02, 0.02, 0.02),
        "worst_subgroup_coverage": (0.02, 0.02, 0.02),
        "worst_label_coverage": (0.02, 0.02, 0.02),
        "level_agreement": (0, 0.005, 0.02),
        "severity_kappa": (0.001, 0.005, 0.01),
        "mask_overlap": (0.001, 0.005, 0.02),
        "dice": (0.001, 0.005, 0.01),
        "embedding_cosine": (1e-4, 0.005, 0.02),
        "cam_cosine": (1e-4, 0.005, 0.05),
        "ood_retention": (0.002, 0.01, 0.02),
        "ood_rejection": (0.002, 0.01, 0.02),
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("metric", LIMITS)
def test_just_inside_a_limit_passes_and_just_outside_fails(metric, precision):
    allowed = limits_for(precision).get(metric)
    if allowed is None:  # reported only
        return
    inside = measured(metric, loss=allowed * (1 - 1e-6), bound=0.0)
    outside = measured(metric, loss=allowed * (1 + 1e-6) + 1e-9, bound=1e-9)
    assert check_limit(inside, allowed).status == "passed"
    assert check_limit(measured(metric, loss=allowed), allowed).status == "passed"
    assert check_limit(outside, allowed).status == "failed"
    assert failure_messages(report(check_limit(outside, allowed)))[0].startswith(f"{metric}: ")
    uncertain = dataclasses.replace(outside, bound=-1e-9)
    exact = metric in ("non_finite", "max_abs")
    assert check_limit(uncertain, allowed).status == ("failed" if exact else "warn")


@pytest.mark.parametrize(
    ("measurement", "status"),
    [
        (measured(loss=0.009, bound=0.005), "passed"),  # a certain loss within the limit
        (measured(loss=-0.02, bound=-0.03), "passed"),
        (measured(loss=0.01, bound=0.004), "passed"),  # exactly what is allowed
        (measured(loss=0.012, bound=0.001), "failed"),
        (measured(loss=0.03, bound=0.0), "warn"),
        (measured(loss=0.03, bound=-0.01), "warn"),
        (measured(loss=0.03, bound=None), "warn"),
        (measured(cases=99, loss=0.2, bound=0.1), "insufficient"),
        (measured(cases=99), "insufficient"),
        (measured(cases=100), "passed"),
        (measured(cases=0, loss=None, bound=None), "insufficient"),
        (measured(loss=None, bound=None), "insufficient"),
        (measured(cases=None, loss=None, bound=None), "not_run"),
    ],
)
def test_status_of_a_sampled_metric(measurement, status):
    assert check_limit(measurement, 0.01).status == status


@pytest.mark.parametrize(
    ("loss", "status"), [(0.9e-4, "passed"), (1.1e-4, "failed"), (None, "failed")]
)
def test_the_largest_difference_needs_neither_cases_nor_a_bound(loss, status):
    assert check_limit(Measurement("max_abs", 4, Interval(loss)), 1e-4).status == status


def test_one_nan_among_few_images_fails():
    assert check_limit(Measurement("non_finite", 4, Interval(1.0)), 0.0).status == "failed"
    assert check_limit(Measurement("non_finite", 4, Interval(0.0)), 0.0).status == "passed"


def test_the_overall_status_is_the_worst_one():
    by_status = {
        status: dataclasses.replace(check_limit(measured(), 0.01), status=status)
        for status in ("failed", "warn", "insufficient", "passed", "not_run")
    }
    assert overall_status(by_status.values()) == "failed"
    assert (
        overall_status([by_status["warn"], by_status["insufficient"], by_status["passed"]])
        == "warn"
    )
    assert overall_status([by_status["insufficient"], by_status["passed"]]) == "insufficient"
    assert overall_status([by_status["passed"], by_status["not_run"]]) == "passed"
    assert overall_status([by_status["not_run"]]) == "not_run"


def test_finite_outputs_alone_are_insufficient():
    finite = check_limit(Measurement("non_finite", 500, Interval(0.0)), 0.0)
    not_run = check_limit(measured("top1_agreement", cases=None, loss=None, bound=None), 0.02)
    assert overall_status([finite, not_run]) == "insufficient"
    assert overall_status([finite, check_limit(measured("top1_agreement"), 0.02)]) == "passed"


def test_only_failed_limits_block_and_each_says_why():
    failed = check_limit(
        measured("worst_subgroup", loss=0.04, bound=0.02, note="fitzpatrick V"), 0.02
    )
    nan = check_limit(Measurement("non_finite", 500, Interval(7.0)), 0.0)
    far = check_limit(Measurement("max_abs", 500, Interval(0.25)), 1e-4)
    reasons = failure_messages(
        report(
            failed,
            nan,
            far,
            check_limit(measured(loss=0.03), 0.01),
            check_limit(measured(cases=5), 0.01),
        )
    )
    assert len(reasons) == 3
    assert reasons[0].startswith(
        "worst_subgroup: 0.7000 -> 0.6720, a relative loss of 0.0400 where 0.0200 is allowed"
    )
    assert "fitzpatrick V" in reasons[0]
    assert reasons[1] == "non_finite: 7 of 500 images give NaN or Inf."
    assert "0.25" in reasons[2]
    assert "0.0001" in reasons[2]
    assert failure_messages(report(check_limit(measured(), 0.01))) == []


def test_a_target_may_tighten_but_never_loosen():
    limits = limits_for("int8", {"balanced_accuracy": 0.002, "ece": 0.5, "max_abs": 0.3})
    assert limits["balanced_accuracy"] == 0.002
    assert limits["ece"] == LIMITS["ece"]["int8"]
    assert limits["max_abs"] == 0.3
    assert "max_abs" not in limits_for("int8")


@pytest.mark.parametrize("precision", ["int8+fp16", "w8", "palettized", "w8a8"])
def test_low_precisions_are_held_to_the_limits_of_int8(precision):
    assert limits_for(precision) == limits_for("int8")


@pytest.mark.parametrize(
    ("precision", "limits"),
    [
        ("int4", None),
        ("int8", {"balanced_acuracy": 0.1}),
        ("int8", {"ece": -0.1}),
        ("int8", {"ece": float("nan")}),
    ],
)
def test_unknown_precisions_and_limits_are_refused(precision, limits):
    with pytest.raises(UsageError):
        limits_for(precision, limits)


def test_a_limit_holds_its_measurement():
    limit = check_limit(measured(loss=0.005, note="x"), 0.01)
    assert limit == Limit(
        "balanced_accuracy", "passed", 0.7, 0.7 * 0.995, Interval(0.005), 0.01, 500, "x"
    )
