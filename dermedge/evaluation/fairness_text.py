"""Summarize fairness comparisons in sentences."""

from collections.abc import Iterator, Mapping, Sequence

from dermedge.evaluation.fairness import BALANCED, MALIGNANT, MINIMUM_CASES, MINIMUM_PER_CLASS
from dermedge.evaluation.report import Fairness

COLUMN_NAMES = {"fitzpatrick": "skin type", "sex": "sex"}


def exceeds_chance(value: float | None, chance_high: float | None) -> bool:
    """Return True if a difference exceeds the 95th percentile of chance.

    Examples:
        >>> [exceeds_chance(value, 0.11) for value in (0.31, 0.05, None)]
        [True, False, False]
    """
    return value is not None and chance_high is not None and value > chance_high


def summarize(
    comparison: Fairness, labels: Sequence[str], names: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield sentences about one comparison, the main result first, then its limits.

    Args:
        comparison: The comparison.
        labels: The classes that `comparison.classes` indexes.
        names: Display name of each label. By default the labels themselves.

    Yields:
        One or two plain sentences at a time.

    Examples:
        >>> import numpy as np
        >>> from dermedge.evaluation.fairness import fairness
        >>> labels, sex = np.tile([0, 1], 60), np.repeat(["female", "male"], 60)
        >>> predicted = np.where(sex == "male", 0, labels)
        >>> (by_sex,) = fairness(labels, predicted, 2, {"sex": sex}, np.arange(120))
        >>> next(summarize(by_sex, ("nv", "mel")))
        'By sex, the worst group is male: 50.0 points below the best group. ...'
    """
    column = COLUMN_NAMES.get(comparison.column, comparison.column)
    measured = comparison.gap.value is not None
    yield _describe_gap(comparison, column)
    if comparison.insufficient:
        few = ", ".join(f"{name} {cases}" for name, cases in comparison.insufficient.items())
        yield f"Not compared, because they have fewer than {MINIMUM_CASES} images: {few}."
    if measured and comparison.metric == BALANCED:
        missing = [label for index, label in enumerate(labels) if index not in comparison.classes]
        if missing:
            named = ", ".join((names or {}).get(label, label) for label in missing)
            yield (
                f"Diagnoses left out, because a group has fewer than {MINIMUM_PER_CLASS} images "
                f"of them: {named}."
            )
    if measured and comparison.metric == MALIGNANT:
        yield "Compared as malignant or benign, because the groups share too few diagnoses."
    if measured and comparison.equalised_odds is None:
        yield (
            f"Equalised odds: not measured. A group has fewer than {MINIMUM_PER_CLASS} malignant "
            f"or {MINIMUM_PER_CLASS} benign images, or the model has no threshold."
        )
    if comparison.unknown:
        yield (
            f"Left out, because their {column} is unknown: {comparison.unknown:,} images. "
            "They may differ from the rest."
        )


def _describe_gap(comparison: Fairness, column: str) -> str:
    """Describe the gap and compare it with chance."""
    if comparison.gap.value is None:
        if len(comparison.groups) > 1:
            why = f"They share fewer than two diagnoses with {MINIMUM_PER_CLASS} images each"
        else:
            some = "Only one group has" if comparison.groups else "No group has"
            why = f"{some} {MINIMUM_CASES} or more images with a known diagnosis"
        return (
            f"By {column}, groups cannot be compared. {why}. This does not show that the model is "
            "equally accurate for all groups."
        )
    if comparison.worst is None:
        return f"By {column}, all groups have the same score."
    gap = (
        f"By {column}, the worst group is {comparison.worst}: {_points(comparison.gap.value)} "
        "below the best group."
    )
    if comparison.chance is None or comparison.chance_high is None:
        return gap
    if exceeds_chance(comparison.gap.value, comparison.chance_high):
        conclusion = "The gap is larger than chance explains."
    else:
        conclusion = (
            "The gap may be chance. This does not show that the model is equally accurate for "
            "all groups."
        )
    return (
        f"{gap} With randomly assigned groups, the gap is {_points(comparison.chance)} (median); "
        f"one in twenty exceeds {_points(comparison.chance_high)}. {conclusion}"
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
