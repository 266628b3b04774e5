"""What a comparison of groups says, and what it cannot say, in sentences for people."""

from collections.abc import Iterator, Mapping, Sequence

from dermedge.evaluation.fairness import BALANCED, MALIGNANT, MINIMUM_CASES, MINIMUM_PER_CLASS
from dermedge.evaluation.report import Fairness

COLUMNS = {"fitzpatrick": "skin type", "sex": "sex"}


def exceeds_chance(value: float | None, chance_high: float | None) -> bool:
    """Whether a difference is larger than all but one in twenty that groups dealt out at random show."""
    return value is not None and chance_high is not None and value > chance_high


def summarize(
    found: Fairness, labels: Sequence[str], names: Mapping[str, str] | None = None
) -> Iterator[str]:
    """What a reader must know of one comparison, the answer first.

    Args:
        found: the comparison.
        labels: the classes that `found.classes` indexes.
        names: what people call them; by default their own text.
    """
    column = COLUMNS.get(found.column, found.column)
    yield _answer(found, column)
    if found.insufficient:
        few = ", ".join(f"{name} {cases}" for name, cases in found.insufficient.items())
        yield f"Insufficient, fewer than {MINIMUM_CASES} images and so not compared: {few}."
    if found.gap.value is not None and found.metric == BALANCED:
        missing = [label for index, label in enumerate(labels) if index not in found.classes]
        if missing:
            named = ", ".join((names or {}).get(label, label) for label in missing)
            yield f"Not compared, because a group has fewer than {MINIMUM_PER_CLASS} images of it: {named}."
    if found.gap.value is not None and found.metric == MALIGNANT:
        yield "Compared by malignant or benign, because the groups share too few diagnoses."
    if found.gap.value is not None and found.equalised_odds is None:
        yield (
            f"Equalised odds: not measured, because a group has fewer than {MINIMUM_PER_CLASS} malignant or "
            f"{MINIMUM_PER_CLASS} benign images, or the model has no threshold."
        )
    if found.unknown:
        yield f"Left out, because their {column} is not known: {found.unknown:,} images. They may differ from the rest."


def _answer(found: Fairness, column: str) -> str:
    if found.gap.value is None:
        if len(found.groups) > 1:
            why = f"the groups share fewer than two diagnoses of which each has {MINIMUM_PER_CLASS} images"
        else:
            some = "only one group has" if found.groups else "no group has"
            why = f"{some} {MINIMUM_CASES} images or more whose answer is known"
        return f"By {column} nothing can be compared: {why}. That does not show that the model serves all alike."
    if found.worst is None:
        return f"By {column} no group is below another."
    gap = f"By {column} the worst group is {found.worst}, {_points(found.gap.value)} below the best one"
    if found.chance is None or found.chance_high is None:
        return f"{gap}."
    if exceeds_chance(found.gap.value, found.chance_high):
        said = "so this is more than chance explains"
    else:
        said = "so chance may explain it, which does not show that the groups are served alike"
    return (
        f"{gap}. Dealt out at random, groups are {_points(found.chance)} apart, and one time in twenty more than "
        f"{_points(found.chance_high)}, {said}."
    )


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
