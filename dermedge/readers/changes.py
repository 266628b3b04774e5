"""Measure the effect of the model on single answers, on time and on confidence."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dermedge.readers.paired import compare_readers
from dermedge.readers.report import Change, Changes, Comparison, Shift, SubgroupScores
from dermedge.readers.scores import Replicates
from dermedge.readers.study import Study
from dermedge_export.evaluation.metrics import Floats, interval
from dermedge_runtime.report import Interval

Flags = NDArray[np.bool_]


def measure_changes(study: Study, draws: Replicates) -> Changes:
    """Count which answers the model turned right or wrong, and give the shares.

    Args:
        study: The study.
        draws: Replicates of the crossed bootstrap.

    Examples:
        >>> from dermedge.readers.simulate import draw_study
        >>> study = draw_study(readers=4, cases=30)
        >>> draws = Replicates.draw(4, study.malignant, 50, seed=0)
        >>> list(measure_changes(study, draws).rates)
        ['gained', 'lost', 'corrected', 'automation_bias', 'switched']
    """
    before, after = study.correct
    rates = {
        "gained": _share(after, ~before, draws),
        "lost": _share(~after, before, draws),
    }
    if study.model is None:
        return Changes(tuple(_count(before, after, np.ones_like(before), None)), rates)
    right = np.broadcast_to(study.model == study.truth, before.shape)
    unaided, aided = study.answers
    rates |= {
        "corrected": _share(after, ~before & right, draws),
        "automation_bias": _share(~after, before & ~right, draws),
        "switched": _share(aided == study.model, unaided != study.model, draws),
    }
    parts = [*_count(before, after, right, True), *_count(before, after, ~right, False)]
    return Changes(tuple(parts), rates)


def _count(before: Flags, after: Flags, among: Flags, model: bool | None) -> Iterator[Change]:
    for flag in (True, False):
        part = among & (before == flag)
        yield Change(flag, model, int((part & after).sum()), int((part & ~after).sum()))


def _share(hits: Flags, among: Flags, draws: Replicates) -> Interval:
    if not among.any():
        return Interval(None)
    value = float((hits & among).sum() / among.sum())
    return interval(value, draws.share(hits, among))


def measure_shifts(study: Study, draws: Replicates) -> tuple[Shift, ...]:
    """Compare time and confidence unaided and aided, over readings that have both.

    Args:
        study: The study.
        draws: Replicates of the crossed bootstrap.

    Examples:
        >>> from dermedge.readers.simulate import draw_study
        >>> study = draw_study(readers=4, cases=30)
        >>> draws = Replicates.draw(4, study.malignant, 50, seed=0)
        >>> [shift.name for shift in measure_shifts(study, draws)]
        ['seconds', 'confidence', 'confidence, model right', 'confidence, model wrong']
    """
    return tuple(_list_shifts(study, draws))


def _list_shifts(study: Study, draws: Replicates) -> Iterator[Shift]:
    # A time of 0 seconds is a click too fast to measure; a logarithm needs more.
    logs = np.log(np.maximum(study.seconds, 0.1))
    times = _shift("seconds", logs, _known(logs), draws)
    if times is not None:
        change = times.change
        ends = [None if end is None else float(np.exp(end)) for end in (change.low, change.high)]
        ratio = Interval(float(np.exp(change.value or 0.0)), *ends)
        means = (float(np.exp(times.unaided)), float(np.exp(times.aided)))
        yield Shift("seconds", *means, ratio, times.p)
    known = _known(study.confidence)
    parts = {"confidence": known}
    if study.model is not None:
        right = study.model == study.truth
        parts["confidence, model right"] = known & right
        parts["confidence, model wrong"] = known & ~right
    for name, among in parts.items():
        shift = _shift(name, study.confidence, among, draws)
        if shift is not None:
            yield shift


def _known(values: Floats) -> Flags:
    """Return True [R, C] where both conditions have a value."""
    known: Flags = np.isfinite(values[0]) & np.isfinite(values[1])
    return known


def _shift(name: str, values: Floats, among: Flags, draws: Replicates) -> Shift | None:
    """Return the change of values [2, R, C] among some readings [R, C], if there are any."""
    if not among.any():
        return None
    before, after = np.where(among, values, 0.0)
    count = among.sum()
    difference = after - before
    with np.errstate(invalid="ignore"):
        replicates = draws.total(difference) / draws.total(among)
    change = interval(float(difference.sum() / count), replicates)
    some = among.any(1)
    each = among[some].sum(1)
    test = compare_readers(before[some].sum(1) / each, after[some].sum(1) / each)
    return Shift(name, float(before.sum() / count), float(after.sum() / count), change, test.p)


def measure_subgroups(study: Study, draws: Replicates) -> tuple[SubgroupScores, ...]:
    """Compare the accuracy by group of readers, and by column of the cases.

    Args:
        study: The study.
        draws: Replicates of the crossed bootstrap.

    Examples:
        >>> from dermedge.readers.simulate import draw_study
        >>> study = draw_study(readers=4, cases=30)
        >>> draws = Replicates.draw(4, study.malignant, 50, seed=0)
        >>> {group.column for group in measure_subgroups(study, draws)} >= {"reader_group"}
        True
    """
    every_reader = np.ones(len(study.readers), bool)
    every_case = np.ones(len(study.cases), bool)
    groups = [
        _subgroup(study, draws, "reader_group", value, np.array(study.groups) == value, every_case)
        for value in _values(study.groups)
    ]
    for column, values in {"truth": study.truth, **study.columns}.items():
        groups += [
            _subgroup(study, draws, column, value, every_reader, values == value)
            for value in _values(values.tolist())
        ]
    return tuple(groups)


def _values(values: Sequence[str]) -> list[str]:
    return sorted({value for value in values if value})


def _subgroup(
    study: Study, draws: Replicates, column: str, value: str, readers: Flags, cases: Flags
) -> SubgroupScores:
    among = readers[:, None] & cases
    before, after = study.correct
    shares = [draws.share(flags, among) for flags in (before, after)]
    values = [float(flags[among].mean()) for flags in (before, after)]
    model = None
    if study.model is not None:
        right = np.broadcast_to(study.model == study.truth, among.shape)
        model = interval(float(right[among].mean()), draws.share(right, among))
    comparison = Comparison(
        unaided=interval(values[0], shares[0]),
        aided=interval(values[1], shares[1]),
        difference=interval(values[1] - values[0], shares[1] - shares[0]),
        model=model,
    )
    return SubgroupScores(column, value, int(readers.sum()), int(cases.sum()), comparison)
