"""Compare an artifact's losses with the limits of its precision: the accuracy gate."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dermedge_runtime.errors import UsageError
from dermedge_runtime.report import Interval, Limit, ParityReport, Status

# Largest loss allowed at each precision. A metric with None is reported, not checked. A
# loss is positive if the candidate is worse. Losses in RELATIVE are shares of the
# reference's value (0.01 keeps 99 %). `max_abs` is a share of the output's scale (see
# `metrics.output_scale`), because float32 rounding errors grow with the logits. All
# other losses are differences.
LIMITS: Mapping[str, Mapping[str, float | None]] = {
    "non_finite": {"fp32": 0.0, "fp16": 0.0, "int8": 0.0},
    "max_abs": {"fp32": 1e-4, "fp16": None, "int8": None},
    "top1_agreement": {"fp32": 0.0, "fp16": 0.005, "int8": 0.02},
    "balanced_accuracy": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "macro_auroc": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "malignant_sensitivity": {"fp32": 0.0, "fp16": 0.005, "int8": 0.01},
    "worst_subgroup": {"fp32": 0.005, "fp16": 0.02, "int8": 0.02},
    "ece": {"fp32": 0.001, "fp16": 0.005, "int8": 0.02},
    # Sets are fitted for each precision, to the same coverage; a loss counts from there.
    "conformal_coverage": {"fp32": 0.02, "fp16": 0.02, "int8": 0.02},
    "worst_subgroup_coverage": {"fp32": 0.02, "fp16": 0.02, "int8": 0.02},
    "worst_label_coverage": {"fp32": 0.02, "fp16": 0.02, "int8": 0.02},
    "level_agreement": {"fp32": 0.0, "fp16": 0.005, "int8": 0.02},
    "severity_kappa": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "mask_overlap": {"fp32": 0.001, "fp16": 0.005, "int8": 0.02},
    "dice": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "embedding_cosine": {"fp32": 1e-4, "fp16": 0.005, "int8": 0.02},
    "cam_cosine": {"fp32": 1e-4, "fp16": 0.005, "int8": 0.05},
    "ood_retention": {"fp32": 0.002, "fp16": 0.01, "int8": 0.02},
    "ood_rejection": {"fp32": 0.002, "fp16": 0.01, "int8": 0.02},
}
FAMILIES = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "fp16",
    "int8": "int8",
    "int8+fp16": "int8",
    "w8": "int8",
    "palettized": "int8",
    "w8a8": "int8",
}
DETERMINISTIC = ("non_finite", "max_abs")  # not estimated from a sample: no bound, no minimum
RELATIVE = ("balanced_accuracy", "macro_auroc", "worst_subgroup", "dice")
AGREEMENTS = ("top1_agreement", "level_agreement", "mask_overlap", "embedding_cosine", "cam_cosine")
MINIMUM_CASES = 100
SEVERITY: tuple[Status, ...] = ("failed", "warn", "insufficient", "passed")
ROUNDING = 1e-12  # a loss that equals its limit must not fail for a rounding of float64
QUANTILE = 1.96  # of the normal distribution, for 95 % intervals
UNKNOWN = Interval(None)


@dataclass(frozen=True)
class Measurement:
    """One metric of both sides with its intervals, before it is compared with a limit.

    Attributes:
        metric: A key of `LIMITS`.
        cases: Number of images that the metric counts: all, the labelled, or the
            malignant ones. None if the metric does not apply (no labels, no such
            output).
        loss: How much worse the candidate is, with a 95 % interval.
        reference: The metric of the reference.
        candidate: The metric of the candidate.
        bound: One-sided 95 % lower bound of the loss; None if there is no interval.
        note: Text for the report.

    Example:
        >>> Measurement("ece", 400, Interval(0.01, -0.01, 0.03), bound=-0.005).cases
        400
    """

    metric: str
    cases: int | None
    loss: Interval = UNKNOWN
    reference: Interval = UNKNOWN
    candidate: Interval = UNKNOWN
    bound: float | None = None
    note: str = ""


def limits_for(precision: str, tighter: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the losses allowed at a precision, by metric.

    Args:
        precision: A key of `FAMILIES`.
        tighter: Limits of a target. The smaller of the two holds, so a target cannot
            loosen a limit.

    Returns:
        Metric -> allowed loss; metrics that are only reported are missing.

    Raises:
        UsageError: The precision or a metric is unknown, or a limit is not a number >=
            0.

    Example:
        >>> limits_for("int8", {"ece": 0.01, "top1_agreement": 0.5})["ece"]
        0.01
        >>> limits_for("int8", {"top1_agreement": 0.5})["top1_agreement"]
        0.02
    """
    if precision not in FAMILIES:
        raise UsageError(
            f"No limits are known for precision {precision!r}. Use one of {', '.join(FAMILIES)}."
        )
    allowed = {name: row[FAMILIES[precision]] for name, row in LIMITS.items()}
    for name, value in (tighter or {}).items():
        if name not in LIMITS:
            raise UsageError(f"Unknown limit {name!r}. The gate knows {', '.join(LIMITS)}.")
        if not 0 <= value < float("inf"):
            raise UsageError(f"Limit {name} = {value} is not a loss. Give a number >= 0.")
        current = allowed[name]
        allowed[name] = value if current is None else min(current, value)
    return {name: value for name, value in allowed.items() if value is not None}


def check_limit(measurement: Measurement, allowed: float) -> Limit:
    """Compare one measurement with the loss that is allowed.

    The status is:

    - `failed` if the loss exceeds the limit and its one-sided bound is above zero.
    - `warn` if the loss exceeds the limit but may be chance in a sample of this size.
    - `insufficient` if there are fewer than 100 cases, or the loss is undefined.
    - `not_run` if the metric does not apply.

    `non_finite` and `max_abs` are not estimates: they pass or fail on any number of
    cases.

    Example:
        >>> loss = Interval(0.03)
        >>> check_limit(Measurement("ece", 400, loss, bound=0.01), 0.02).status
        'failed'
        >>> check_limit(Measurement("ece", 400, loss, bound=-0.01), 0.02).status
        'warn'
    """
    loss, note = measurement.loss.value, measurement.note
    broken = loss is not None and loss > allowed + ROUNDING
    status: Status
    if measurement.cases is None:
        status = "not_run"
    elif measurement.metric in DETERMINISTIC:
        status = "failed" if broken or loss is None else "passed"
    elif measurement.cases < MINIMUM_CASES:
        status, note = "insufficient", note or f"fewer than {MINIMUM_CASES} cases"
    elif loss is None:
        status = "insufficient"
    elif not broken:
        status = "passed"
    # The bound is one-sided because only a loss matters here, not a gain. It is
    # compared with zero, not with the limit. The point estimate already exceeds the
    # limit, so the bound only has to exclude that there is no loss at all.
    elif measurement.bound is not None and measurement.bound > ROUNDING:
        status = "failed"
    else:
        status, note = "warn", note or "may be chance: the 95 % bound shows no loss"
    return Limit(
        metric=measurement.metric,
        status=status,
        reference=measurement.reference.value,
        candidate=measurement.candidate.value,
        loss=measurement.loss,
        allowed=allowed,
        cases=measurement.cases or 0,
        note=note,
    )


def overall_status(limits: Iterable[Limit]) -> Status:
    """Return the worst status of all limits that were checked; `not_run` if none was.

    Finite outputs alone prove nothing. If `non_finite` is the only limit that was
    checked, as for a rounded model that only embeds, the status is `insufficient`.

    Example:
        >>> good = check_limit(Measurement("ece", 400, Interval(0.0)), 0.02)
        >>> few = check_limit(Measurement("ece", 40, Interval(0.0)), 0.02)
        >>> overall_status([good, few])
        'insufficient'
    """
    checked = [limit for limit in limits if limit.status != "not_run"]
    statuses = {limit.status for limit in checked}
    if statuses == {"passed"} and all(limit.metric == "non_finite" for limit in checked):
        return "insufficient"
    return next((status for status in SEVERITY if status in statuses), "not_run")


def failure_messages(report: ParityReport) -> list[str]:
    """Return one message per failed limit; empty if the gate passes."""
    return [_failure_message(limit) for limit in report.limits if limit.status == "failed"]


def pass_probability(report: ParityReport) -> float:
    """Estimate the probability that the artifact also passes on an independent sample.

    Only agreement metrics count, because val has too few images for the others. A
    model with several tasks gets the probability of the task most likely to fail.

    Args:
        report: Comparison on the val split.

    Returns:
        Probability for a sample of the same size; 1 if no agreement was checked.
    """
    return min(
        (_limit_pass_probability(limit) for limit in report.limits if limit.metric in AGREEMENTS),
        default=1.0,
    )


def _limit_pass_probability(limit: Limit) -> float:
    if limit.allowed is None or limit.loss.value is None or limit.loss.high is None:
        return 1.0
    # The loss on the new sample differs from the one measured here by two sampling
    # errors, this sample's and the new one's. So its variance is twice that of one, and
    # the difference is taken as normal. The 95 % interval gives the standard error: its
    # half width is 1.96 of it.
    standard_error = (limit.loss.high - (limit.loss.low or 0.0)) / (2 * QUANTILE)
    spread = standard_error * math.sqrt(2)
    margin = limit.allowed - limit.loss.value
    return 1.0 if spread == 0 else 0.5 * (1 + math.erf(margin / spread / math.sqrt(2)))


def _failure_message(limit: Limit) -> str:
    loss, allowed = limit.loss.value, limit.allowed
    if limit.metric == "non_finite":
        return (
            f"non_finite: {0 if loss is None else loss:.0f} of {limit.cases} images give NaN "
            "or Inf."
        )
    note = f", {limit.note}" if limit.note else ""
    if limit.metric == "max_abs":
        return (
            f"max_abs: outputs differ by up to {loss:.3g} of their scale where {allowed:.3g} "
            f"is allowed ({limit.cases} cases{note})."
        )
    kind = "relative loss" if limit.metric in RELATIVE else "loss"
    sides = f"{limit.reference:.4f} -> {limit.candidate:.4f}"
    return (
        f"{limit.metric}: {sides}, a {kind} of {loss:.4f} where {allowed:.4f} is allowed "
        f"({limit.cases} cases{note})."
    )
