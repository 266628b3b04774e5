"""The gate: how much of its fp32 student an artifact must keep, and what happens where it does not."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dermedge_runtime.errors import UsageError
from dermedge_runtime.report import Interval, Limit, ParityReport, Status

# Loss allowed at each precision; None is reported, not judged. Those in RELATIVE are shares of the reference's value
# (0.01 keeps 99 %), the others are differences. A loss is positive where the candidate is worse.
LIMITS: Mapping[str, Mapping[str, float | None]] = {
    "non_finite": {"fp32": 0.0, "fp16": 0.0, "int8": 0.0},
    "max_abs": {"fp32": 1e-4, "fp16": None, "int8": None},
    "top1_agreement": {"fp32": 0.0, "fp16": 0.005, "int8": 0.02},
    "balanced_accuracy": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "macro_auroc": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "malignant_sensitivity": {"fp32": 0.0, "fp16": 0.005, "int8": 0.01},
    "worst_subgroup": {"fp32": 0.005, "fp16": 0.02, "int8": 0.02},
    "ece": {"fp32": 0.001, "fp16": 0.005, "int8": 0.02},
    "level_agreement": {"fp32": 0.0, "fp16": 0.005, "int8": 0.02},
    "severity_kappa": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "mask_overlap": {"fp32": 0.001, "fp16": 0.005, "int8": 0.02},
    "dice": {"fp32": 0.001, "fp16": 0.005, "int8": 0.01},
    "embedding_cosine": {"fp32": 1e-4, "fp16": 0.005, "int8": 0.02},
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
DETERMINISTIC = ("non_finite", "max_abs")  # no sample of cases, so neither a bound nor a minimum
RELATIVE = ("balanced_accuracy", "macro_auroc", "worst_subgroup", "dice")
AGREEMENTS = ("top1_agreement", "level_agreement", "mask_overlap", "embedding_cosine")
MINIMUM_CASES = 100
SEVERITY: tuple[Status, ...] = ("failed", "warn", "insufficient", "passed")
ROUNDING = 1e-12
QUANTILE = 1.96  # of the normal distribution, for 95 % intervals
UNKNOWN = Interval(None)


@dataclass(frozen=True)
class Measurement:
    """One metric on both sides with its intervals, before it is judged.

    `bound` is the one-sided 95 % lower bound of the loss. `cases` counts what the metric counts: images, or malignant
    images; None where there is nothing to ask (no labels, no such output).
    """

    metric: str
    cases: int | None
    loss: Interval = UNKNOWN
    reference: Interval = UNKNOWN
    candidate: Interval = UNKNOWN
    bound: float | None = None
    note: str = ""


def limits_for(precision: str, tighter: Mapping[str, float] | None = None) -> dict[str, float]:
    """The losses allowed at `precision`, each the smaller of the table's and of `tighter`, which cannot loosen any.

    Raises:
        UsageError: an unknown precision or metric, or a limit that is not a number >= 0.
    """
    if precision not in FAMILIES:
        raise UsageError(
            f"No limits are known for precision {precision!r}; use one of {', '.join(FAMILIES)}."
        )
    allowed = {name: row[FAMILIES[precision]] for name, row in LIMITS.items()}
    for name, value in (tighter or {}).items():
        if name not in LIMITS:
            raise UsageError(f"Unknown limit {name!r}; the gate knows {', '.join(LIMITS)}.")
        if not 0 <= value < float("inf"):
            raise UsageError(f"Limit {name} = {value} is not a loss; give a number >= 0.")
        current = allowed[name]
        allowed[name] = value if current is None else min(current, value)
    return {name: value for name, value in allowed.items() if value is not None}


def check_limit(measurement: Measurement, allowed: float) -> Limit:
    """Holds one measurement against the loss that is allowed.

    `failed`: the point estimate breaks the limit and the bound shows a loss above zero. `warn`: it breaks it, but
    such a loss may be chance on that few cases. `insufficient`: fewer than 100 cases.
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
    """The worst status of all limits that were asked; `not_run` where none was.

    Finite outputs alone prove nothing: an artifact of which no limit asks more, as of a rounded one that only embeds,
    is `insufficient`.
    """
    asked = [limit for limit in limits if limit.status != "not_run"]
    found = {limit.status for limit in asked}
    if found == {"passed"} and all(limit.metric == "non_finite" for limit in asked):
        return "insufficient"
    return next((status for status in SEVERITY if status in found), "not_run")


def failure_messages(report: ParityReport) -> list[str]:
    """Why the gate stays shut: a sentence for each failed limit, none where it opens."""
    return [_sentence(limit) for limit in report.limits if limit.status == "failed"]


def pass_probability(report: ParityReport) -> float:
    """How likely an artifact that passes on these images passes on as many others, by its agreement: the one metric
    that so few images resolve. The difference of two such shares is taken as normal, with twice the variance of one.
    A model of several tasks is as likely to pass as the task that is the likeliest to fail.
    """
    return min(
        (_limit_pass_probability(limit) for limit in report.limits if limit.metric in AGREEMENTS),
        default=1.0,
    )


def _limit_pass_probability(limit: Limit) -> float:
    if limit.allowed is None or limit.loss.value is None or limit.loss.high is None:
        return 1.0
    spread = (limit.loss.high - (limit.loss.low or 0.0)) / (2 * QUANTILE) * math.sqrt(2)
    room = limit.allowed - limit.loss.value
    return 1.0 if spread == 0 else 0.5 * (1 + math.erf(room / spread / math.sqrt(2)))


def _sentence(limit: Limit) -> str:
    loss, allowed = limit.loss.value, limit.allowed
    if limit.metric == "non_finite":
        return f"non_finite: {0 if loss is None else loss:.0f} of {limit.cases} images give NaN or Inf."
    if limit.metric == "max_abs":
        return f"max_abs: outputs differ by up to {loss:.3g} where {allowed:.3g} is allowed."
    kind = "relative loss" if limit.metric in RELATIVE else "loss"
    where = f"{limit.cases} cases, {limit.note}" if limit.note else f"{limit.cases} cases"
    sides = f"{limit.reference:.4f} -> {limit.candidate:.4f}"
    return (
        f"{limit.metric}: {sides}, a {kind} of {loss:.4f} where {allowed:.4f} is allowed ({where})."
    )
