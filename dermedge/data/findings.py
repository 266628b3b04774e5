"""Find faults of files, splits, classes, columns and subgroups of a data set."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from dermedge.data.finding import EXAMPLES, Finding, count_items
from dermedge.data.images import (
    ImageInspection,
    find_exact_duplicates,
    find_near_duplicates,
    find_unlisted_files,
)
from dermedge.data.leaks import add_file_columns, find_missing_value_leaks, find_value_leaks
from dermedge.data.overlap import TeacherImages, match_sets
from dermedge.data.split_checks import FEWEST_GROUPS
from dermedge.data.table import Table
from dermedge.data.taxonomy import SEPARATOR, malignancy, split_diagnoses
from dermedge_runtime.find_images import Skipped

SMALL_SUBGROUP = 30
"""Fewest images of a subgroup that is large enough; `evaluate` compares no smaller."""
TINY = 32
"""Side in pixels below which an image is reported as tiny."""


def check_files(table: Table, inspections: Sequence[ImageInspection]) -> Iterator[Finding]:
    """Find images that are missing, unreadable, tiny, flat or unused.

    Args:
        table: The data set.
        inspections: One inspection per row, in the order of the rows.
    """
    inspected = list(zip(table.frame["image"].tolist(), inspections, strict=True))
    yield from count_items(
        "error",
        "missing_image",
        ("image is", "images are"),
        "missing. Restore the files or remove their rows.",
        [image for image, result in inspected if result.missing],
    )
    yield from count_items(
        "error",
        "unreadable_image",
        ("image", "images"),
        "cannot be read. Replace the files or remove their rows.",
        [result.problem for _, result in inspected if result.problem and not result.missing],
    )
    yield from _check_contents(inspected)
    skipped = Skipped()
    yield from count_items(
        "info",
        "unlisted_image",
        ("image file has", "image files have"),
        "no row. Such files are not used.",
        find_unlisted_files(table, skipped),
    )
    # Of class folders, which are searched to make the table, a note says the same.
    if skipped and table.file.is_file():
        names = tuple(name for names in skipped.examples.values() for name in names)
        yield Finding("info", "skipped_file", str(skipped), skipped.total, names[:EXAMPLES])


def _check_contents(inspected: Sequence[tuple[str, ImageInspection]]) -> Iterator[Finding]:
    """Find images that are too small or show no picture."""
    yield from count_items(
        "warning",
        "tiny_image",
        ("image is", "images are"),
        f"smaller than {TINY} pixels. Remove their rows.",
        [
            f"{image}: {result.width}x{result.height}"
            for image, result in inspected
            if 0 < min(result.width, result.height) < TINY
        ],
    )
    yield from count_items(
        "warning",
        "doubtful_image",
        ("image may be", "images may be"),
        "damaged. Look at the pictures and fetch them again.",
        [f"{image}: {' '.join(result.quality)}" for image, result in inspected if result.quality],
    )
    yield from count_items(
        "warning",
        "flat_image",
        ("image shows", "images show"),
        "a single even colour. Remove the rows that show no lesion.",
        [
            image
            for image, result in inspected
            if not result.problem and result.perceptual_hash is None
        ],
    )


def check_duplicates(
    frame: pd.DataFrame, group: "pd.Series[str]", inspections: Sequence[ImageInspection]
) -> Iterator[Finding]:
    """Find images that occur twice in two splits, two groups or with two diagnoses.

    A byte-identical pair in two splits is an error. An almost identical pair is a
    warning, because two lesions can look alike.

    Args:
        frame: Rows of the table.
        group: Group of every row, from `groups`.
        inspections: One inspection per row.
    """
    exact, near = find_exact_duplicates(inspections), find_near_duplicates(inspections)
    yield from _check_pairs(frame, group, "exact", "byte-identical", exact)
    yield from _check_pairs(frame, group, "near", "almost identical", near)
    ids, labels = frame["image_id"].tolist(), frame["dx"].tolist()
    yield from count_items(
        "warning",
        "contradicting_labels",
        ("pair of byte-identical images has", "pairs of byte-identical images have"),
        "different diagnoses. Correct one of the rows.",
        [f"{ids[a]} = {ids[b]}" for a, b in exact if labels[a] != labels[b]],
    )


def _check_pairs(
    frame: pd.DataFrame,
    group: "pd.Series[str]",
    kind: str,
    description: str,
    pairs: Sequence[tuple[int, int]],
) -> Iterator[Finding]:
    """Report the pairs of one kind, by the split and the group of their two images.

    Args:
        frame: Rows of the table.
        group: Group of every row.
        kind: "exact" or "near", the start of the codes.
        description: Words for the kind.
        pairs: Pairs of row numbers.
    """
    ids, splits, groups = frame["image_id"].tolist(), frame["split"].tolist(), group.tolist()
    leaking, unrelated, related = [], [], []
    for a, b in pairs:
        name = f"{ids[a]} = {ids[b]}"
        if splits[a] and splits[b] and splits[a] != splits[b]:
            leaking.append(name)
        elif groups[a] != groups[b]:
            unrelated.append(name)
        else:
            related.append(name)
    one, several = f"pair of {description} images", f"pairs of {description} images"
    yield from count_items(
        "error" if kind == "exact" else "warning",
        f"{kind}_duplicate_across_splits",
        (f"{one} is", f"{several} are"),
        "in two splits, so test results are too good. Put both images into one split.",
        leaking,
    )
    yield from count_items(
        "warning",
        f"{kind}_duplicate_across_groups",
        (f"{one} shares", f"{several} share"),
        "neither a lesion nor a patient. Give both images the same lesion_id.",
        unrelated,
    )
    yield from count_items(
        "info",
        f"{kind}_duplicate",
        (f"{one} shows", f"{several} show"),
        "the same lesion or patient.",
        related,
    )


def check_splits(frame: pd.DataFrame, group: "pd.Series[str]") -> Iterator[Finding]:
    """Find lesions, patients and groups in two splits.

    Args:
        frame: Rows of the table.
        group: Group of every row, from `groups`.
    """
    assigned = frame[frame["split"] != ""]
    if assigned.empty:
        yield Finding(
            "info",
            "no_split",
            "No row has a split. Training assigns splits by lesion and patient.",
            len(frame),
        )
        return
    crossing = False
    for column, noun in (("lesion_id", "lesion"), ("patient_id", "patient")):
        known = assigned[assigned[column] != ""]
        splits = known.groupby(["source", column])["split"].nunique()
        names = [str(key[1]) for key in splits[splits > 1].index]
        crossing = crossing or bool(names)
        yield from count_items(
            "error",
            f"{noun}_in_two_splits",
            (f"{noun} is", f"{noun}s are"),
            "in more than one split. Reassign the splits with `dermedge data split --redo`.",
            names,
        )
    # A row without a split can connect two lesions that are in different splits. No
    # lesion or patient crosses then, but the group that training keeps together does.
    splits = assigned.groupby(group.loc[assigned.index])["split"].nunique()
    if not crossing:
        yield from count_items(
            "error",
            "group_in_two_splits",
            ("group of lesions is", "groups of lesions are"),
            "in more than one split, connected by rows without a split. "
            "Reassign the splits with `dermedge data split --redo`.",
            [str(key) for key in splits[splits > 1].index],
        )


def check_teacher(
    frame: pd.DataFrame, inspections: Sequence[ImageInspection], teacher: TeacherImages
) -> Iterator[Finding]:
    """Find rows that a teacher was trained on: by digest, and by the name of their set.

    A digest proves that the teacher was trained on the image. The name of a set only
    makes this likely, because the teacher may have used only a part of that set.

    Args:
        frame: Rows of the table.
        inspections: One inspection per row.
        teacher: Images and sets of the teacher.
    """
    identical = pd.Series(
        [result.digest in teacher.digests for result in inspections],
        index=frame.index,
        dtype=bool,
    )
    yield from count_items(
        "warning",
        "pretrained_on",
        ("image is", "images are"),
        f"identical to training images of the teacher{_count_test(frame[identical])}. "
        "Do not measure the teacher on them.",
        frame.loc[identical, "image_id"].tolist(),
    )
    for source, name in match_sets(frame["source"], teacher).items():
        rows = frame[(frame["source"] == source) & ~identical]
        yield from count_items(
            "warning",
            "pretrained_on",
            ("image is", "images are"),
            f"of {source}, and the teacher was pretrained on {name}"
            f"{_count_test(rows)}. Results on them do not hold for unseen images.",
            rows["image_id"].tolist(),
        )


def check_classes(frame: pd.DataFrame, group: "pd.Series[str]") -> Iterator[Finding]:
    """Find rows without a diagnosis, and classes that are too small to split.

    Args:
        frame: Rows of the table.
        group: Group of every row, from `groups`.
    """
    labelled = frame[frame["dx"] != ""]
    unlabelled = frame.loc[frame["dx"] == "", "image_id"].tolist()
    yield from count_items(
        "info", "unlabelled", ("image has", "images have"), "no diagnosis.", unlabelled
    )
    several = labelled["dx"].str.contains(SEPARATOR, regex=False)
    yield from count_items(
        "info",
        "several_diagnoses",
        ("image has", "images have"),
        "several diagnoses. Pretraining learns all of them. The task diagnosis uses an image only "
        "if one label covers all of its diagnoses.",
        labelled.loc[several, "image_id"].tolist(),
    )
    classes = labelled["dx"].map(split_diagnoses).explode()
    sizes = group.loc[classes.index].groupby(classes).nunique()
    yield from count_items(
        "warning",
        "few_groups",
        ("class has", "classes have"),
        "fewer than three lesions or patients and cannot be in all splits. "
        "Add images or use a wider diagnosis.",
        [f"{dx}: {count} groups" for dx, count in sizes.items() if count < FEWEST_GROUPS],
    )


def check_malignancy(frame: pd.DataFrame) -> Iterator[Finding]:
    """Count rows whose `malignant` differs from the value of their diagnosis."""
    differing: Counter[str] = Counter()
    for dx, malignant in zip(frame["dx"], frame["malignant"], strict=True):
        expected = malignancy(dx)
        if dx and malignant == malignant and (expected is None or float(expected) != malignant):
            differing[f"{dx} as {'malignant' if malignant else 'benign'}"] += 1
    for values, count in differing.most_common():
        yield Finding(
            "info",
            "own_malignancy",
            f"{count} rows count {values}; the taxonomy does not. The rows take precedence.",
            count,
        )


def check_columns(
    frame: pd.DataFrame, group: "pd.Series[str]", inspections: Sequence[ImageInspection]
) -> Iterator[Finding]:
    """Find columns and properties of files that predict the label.

    Args:
        frame: Rows of the table.
        group: Group of every row, from `groups`.
        inspections: One inspection per row.
    """
    sizes = [f"{one.width}x{one.height}" if one.width else "" for one in inspections]
    rows = add_file_columns(frame.assign(group=group), sizes)
    for leak in find_missing_value_leaks(rows):
        yield Finding(
            "warning",
            "missingness_predicts_label",
            f"{leak.message}. Do not use 'missing' as a subgroup or as an input.",
            leak.count,
            (leak.column,),
        )
    for leak in find_value_leaks(rows):
        yield Finding(
            "warning",
            "column_gives_label_away",
            f"{leak.message}. Do not use the column as an input.",
            leak.count,
            (leak.column,),
        )


def check_subgroups(
    counts: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> Iterator[Finding]:
    """Find subgroups that are too small for a result.

    Args:
        counts: Column -> subgroup -> counts, from `subgroup_counts`.
    """
    for column, subgroups in counts.items():
        small = [
            f"{subgroup} ({number['images']})"
            for subgroup, number in subgroups.items()
            if subgroup and number["images"] < SMALL_SUBGROUP
        ]
        if small:
            yield Finding(
                "info",
                "small_subgroup",
                f"{column} has subgroups of fewer than {SMALL_SUBGROUP} images. "
                "They are too small for a result of their own.",
                len(small),
                tuple(small),
            )


def _count_test(rows: pd.DataFrame) -> str:
    """Return the number of test rows as words in brackets, "" if there are none."""
    count = int((rows["split"] == "test").sum())
    return f" ({count} of them in the split 'test')" if count else ""
