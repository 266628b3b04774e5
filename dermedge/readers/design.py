"""Check the design of a study: its completeness, its order and its wash-out."""

from collections.abc import Iterator

import numpy as np

from dermedge.data.messages import quote
from dermedge.readers.paired import compare_readers
from dermedge.readers.study import Study
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.report import Check

SECONDS_PER_DAY = 86_400
# Independent orders have a mean rank correlation of 0, and equal ones of 1.
SAME_ORDER = 0.8


def check_design(study: Study, washout_days: float) -> tuple[Check, ...]:
    """Check completeness, condition order, randomisation, wash-out and learning.

    Args:
        study: The study.
        washout_days: Least days between the two readings of a case by one reader.

    Returns:
        Checks with the status `passed`, `warn` or `not_run`.

    Examples:
        >>> from dermedge.readers.simulate import draw_study
        >>> for check in check_design(draw_study(readers=4, cases=30), washout_days=14):
        ...     print(check.name, check.status)
        completeness passed
        unaided first passed
        randomised order passed
        wash-out passed
        learning passed
    """
    order = _order(study)
    checks = [_completeness(study)]
    if order is None:
        detail = "Some readings have no order. Record the position of each reading."
        names = ("unaided first", "randomised order")
        checks += [Check(name, "not_run", detail) for name in names]
    else:
        checks += [_unaided_first(study, order), _randomised(order)]
    checks.append(_washout(study, order, washout_days))
    checks.append(_learning(study, order))
    return tuple(checks)


def _order(study: Study) -> Floats | None:
    return study.order if np.isfinite(study.order).all() else None


def _completeness(study: Study) -> Check:
    readers, cases = len(study.left_out_readers), len(study.left_out_cases)
    if not readers and not cases:
        return Check("completeness", "passed", "Every reader answered every case twice.")
    return Check(
        "completeness",
        "warn",
        f"{readers} readers and {cases} cases were left out. Compare with the mixed-effects "
        "logistic regression, which uses all answers.",
    )


def _unaided_first(study: Study, order: Floats) -> Check:
    early = order[1] <= order[0]
    if not early.any():
        return Check("unaided first", "passed", "Each unaided reading came before the aided one.")
    reader, case = np.argwhere(early)[0]
    return Check(
        "unaided first",
        "warn",
        f"{int(early.sum())} aided readings came first, such as case {quote(study.cases[case])} "
        f"of reader {quote(study.readers[reader])}. Their unaided answers may repeat what the "
        "model showed.",
    )


def _randomised(order: Floats) -> Check:
    correlations = list(_correlations(order))
    if not correlations:
        return Check("randomised order", "not_run", "One reader has no order to compare with.")
    mean = float(np.mean(correlations))
    detail = f"Mean rank correlation of the orders of two readers: {mean:.2f}."
    if mean < SAME_ORDER:
        return Check("randomised order", "passed", detail)
    return Check(
        "randomised order",
        "warn",
        f"{detail} All readers saw the cases in nearly the same order, so an effect of the "
        "position is not separable from the cases.",
    )


def _correlations(
    order: Floats,
) -> Iterator[float]:
    """Yield the rank correlation of the order of each two readers, in each condition."""
    for positions in order:
        ranks = positions.argsort(1).argsort(1).astype(np.float64)
        if len(ranks) > 1 and ranks.shape[1] > 1:
            matrix = np.corrcoef(ranks)
            yield from matrix[np.triu_indices(len(ranks), 1)].tolist()


def _washout(
    study: Study,
    order: Floats | None,
    washout_days: float,
) -> Check:
    between = ""
    if order is not None:
        readings = np.abs(order[1] - order[0]) - 1
        between = f" At least {int(readings.min())} other readings lie between them."
    if np.isnat(study.answered).any():
        return Check(
            "wash-out",
            "not_run",
            f"Some readings have no time in the column answered.{between} Record the time of "
            "each answer.",
        )
    seconds = (study.answered[1] - study.answered[0]).astype(np.int64)
    days = np.abs(seconds) / SECONDS_PER_DAY
    detail = (
        f"Days between the two readings of a case: at least {days.min():.1f}, median "
        f"{np.median(days):.1f}.{between}"
    )
    if days.min() >= washout_days:
        return Check("wash-out", "passed", detail)
    return Check(
        "wash-out",
        "warn",
        f"{detail} {washout_days:g} days were asked for, so readers may remember their answers.",
    )


def _learning(study: Study, order: Floats | None) -> Check:
    """Compare the first and the second half of each reader's unaided readings."""
    if order is None or len(study.cases) < 4 or len(study.readers) < 2:
        return Check("learning", "not_run", "Too few readings have an order.")
    halves = order[0].argsort(1).argsort(1) < len(study.cases) // 2
    correct = study.correct[0]
    first = (correct & halves).sum(1) / halves.sum(1)
    second = (correct & ~halves).sum(1) / (~halves).sum(1)
    test = compare_readers(first, second)
    detail = (
        "Unaided accuracy in the second half of the readings minus that in the first half: "
        f"{test.mean_difference.value:+.3f} (p = {test.p:.2g})."
    )
    if test.p is not None and test.p < 0.05:
        return Check("learning", "warn", f"{detail} Readers changed during the study.")
    return Check("learning", "passed", detail)
