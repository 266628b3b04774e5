"""Find groups that are too large to split, and splits that are not what was asked for.

`data check`, `data split` and every training call `check_split`, so that all of them
report the same findings in the same words.
"""

import logging
from collections.abc import Iterator, Sequence

import pandas as pd

from dermedge.data.finding import Finding, Level, count_items
from dermedge.data.table import SPLITS, groups
from dermedge.data.taxonomy import split_diagnoses
from dermedge_runtime.errors import DataError

LOGGER = logging.getLogger(__name__)

FEWEST_GROUPS = len(SPLITS)
"""Number of groups that a class needs to be in every split."""
# A group is too large if it holds more than this share of the images, more than this
# multiple of the median of the other groups, and more than this number of images. Among
# public sets, the largest patient holds less than 2 % (PAD-UFES-20).
LARGE_SHARE = 0.05
LARGE_MULTIPLE = 10
LARGE_COUNT = 10
# A share may differ by this much from the one that was asked for, and a split by this
# many images, because groups are not divided.
FAR_SHARE = 0.10
FAR_COUNT = 3


def check_split(
    frame: pd.DataFrame,
    splits: "pd.Series[str]",
    fractions: Sequence[float],
    *,
    content: "pd.Series[str] | None" = None,
) -> list[Finding]:
    """Find groups that are too large, and splits that are uneven, empty or lack a class.

    A train or val split that stays empty is an error if splits were assigned: training
    is not possible. Shares are compared only if no row had a split before.

    Args:
        frame: Rows of a table, with the splits that the table itself gives.
        splits: Split of every row after `assign_splits`, "" where none was assigned.
        fractions: Shares of train, val and test that were asked for.
        content: Digest of each row's image; see `groups`.

    Example:
        >>> from dermedge.data.split import FRACTIONS, assign_splits
        >>> from dermedge.data.table import read_table
        >>> frame = read_table("lesions").frame.assign(patient_id="P0")
        >>> found = check_split(frame, assign_splits(frame), FRACTIONS)
        >>> found[0].message
        "1 group holds far more images than the others: patient_id 'P0' joins 80 of 80 ..."
    """
    group = groups(frame, content)
    largest = frame[group == group.value_counts().index[0]]
    # Groups of this size are what makes shares uneven. A smaller one fits any split.
    cause = (
        describe_group(largest, len(frame), content)
        if len(largest) > max(1, FAR_SHARE * len(frame))
        else ""
    )
    return [
        *_check_sizes(frame, group, content),
        *_check_shares(frame, splits, fractions, cause),
        *_check_empty(frame, splits, fractions, cause),
        *_check_classes(frame, splits, fractions, group),
    ]


def refuse_empty_split(findings: Sequence[Finding], split: str) -> None:
    """Refuse to train without rows in a split.

    Args:
        findings: Result of `check_split`.
        split: "train" or "val".

    Raises:
        DataError: The split has no rows.
    """
    for finding in findings:
        if finding.code == "empty_split" and split in finding.examples:
            raise DataError(finding.message)


def log_warnings(findings: Sequence[Finding]) -> None:
    """Log the warnings among findings, with their examples; the command line prints them.

    Args:
        findings: Result of `check_split`.
    """
    for finding in findings:
        if finding.level == "warning":
            named = [one for one in finding.examples if one not in finding.message]
            examples = f" ({'; '.join(named)})" if named else ""
            LOGGER.warning("Warning: %s%s", finding.message, examples)


def _check_sizes(
    frame: pd.DataFrame, group: "pd.Series[str]", content: "pd.Series[str] | None"
) -> Iterator[Finding]:
    sizes = group.value_counts()
    large = []
    for name, size in sizes.items():
        others = sizes.drop(name)
        usual = float(others.median()) if len(others) else 0.0
        if (
            size <= LARGE_COUNT
            or size <= LARGE_SHARE * len(frame)
            or size <= LARGE_MULTIPLE * usual
        ):
            break
        large.append(describe_group(frame[group == name], len(frame), content))
    yield from count_items(
        "warning",
        "large_group",
        ("group holds", "groups hold"),
        f"far more images than the others: {'; '.join(large[:1])}. Empty the cells that mean "
        "'unknown', so that their images are not one group.",
        large,
    )


def describe_group(rows: pd.DataFrame, total: int, content: "pd.Series[str] | None" = None) -> str:
    """Return what joins most of a group's rows, and how many they are.

    Args:
        rows: The rows of one group.
        total: Number of rows of the table.
        content: Digest of each row's image; see `groups`.

    Example:
        >>> rows = pd.DataFrame({"lesion_id": ["", ""], "patient_id": ["P0", "P0"]})
        >>> describe_group(rows, 10)
        "patient_id 'P0' joins 2 of 10 images"
    """
    names = [
        (int(counts.iloc[0]), f"{column} {counts.index[0]!r}")
        for column in ("patient_id", "lesion_id")
        if len(counts := rows.loc[rows[column] != "", column].value_counts())
    ]
    if content is not None:
        files = content.loc[rows.index]
        names += [(int(n), "one image file") for n in files[files != ""].value_counts()[:1]]
    count, name = max(names, key=lambda pair: pair[0])
    chain = "" if 2 * count > len(rows) else " and ids that are connected to it"
    return f"{name}{chain} joins {len(rows)} of {total} images"


def _check_shares(
    frame: pd.DataFrame, splits: "pd.Series[str]", fractions: Sequence[float], cause: str
) -> Iterator[Finding]:
    if (frame["split"] != "").any():
        return
    total = len(frame)
    counts = [int((splits == name).sum()) for name in SPLITS]
    gaps = [abs(count - share * total) for count, share in zip(counts, fractions, strict=True)]
    if max(gaps) <= max(FAR_SHARE * total, FAR_COUNT):
        return
    sizes = ", ".join(
        f"{name} {100 * count / total:.0f} % instead of {100 * share:.0f} %"
        for name, count, share in zip(SPLITS, counts, fractions, strict=True)
    )
    why = f", because {cause}. Check that column" if cause else ". Add lesions or patients"
    yield Finding(
        "warning",
        "uneven_split",
        f"The shares of the splits are far from those asked for ({sizes}){why}, or fill the split "
        "column.",
        int(max(gaps)),
    )


def _check_empty(
    frame: pd.DataFrame, splits: "pd.Series[str]", fractions: Sequence[float], cause: str
) -> Iterator[Finding]:
    """Find splits without rows. Without train rows, a table is for evaluation only."""
    assigned = bool((frame["split"] == "").any())
    for name, share in zip(SPLITS, fractions, strict=True):
        if (splits == name).any() or (assigned and share == 0):
            continue
        level: Level = "info"
        if assigned:
            level = "warning" if name == "test" else "error"
        elif name == "val" and (splits == "train").any():
            level = "warning"
        if cause and (assigned or name != "train"):
            why = f", because {cause}. Correct that column"
        else:
            why = ". Add images" if assigned else ". Run `dermedge data split --redo`"
        message = f"The table has no {name} rows{why}, or fill the split column."
        yield Finding(level, "empty_split", message, 0, (name,))


def _check_classes(
    frame: pd.DataFrame,
    splits: "pd.Series[str]",
    fractions: Sequence[float],
    group: "pd.Series[str]",
) -> Iterator[Finding]:
    """Find classes that a split lacks although they have enough groups."""
    # One row per image and diagnosis, with the index of the image.
    classes = frame.loc[frame["dx"] != "", "dx"].map(split_diagnoses).explode()
    sizes = group.loc[classes.index].groupby(classes).nunique()
    assigned = bool((frame["split"] == "").any())
    expected = set(sizes[sizes >= FEWEST_GROUPS].index) if assigned else set(sizes.index)
    for name, share in zip(SPLITS, fractions, strict=True):
        present = set(classes[splits.loc[classes.index] == name])
        if (splits == name).any() and not (assigned and share == 0):
            yield from count_items(
                "warning",
                "class_not_in_split",
                ("class has", "classes have"),
                f"no image in the split {name!r}.",
                sorted(expected - present),
            )
