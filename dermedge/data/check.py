"""What is wrong with a data set, before a model learns it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from dermedge.data import leaks
from dermedge.data.images import (
    ImageInspection,
    check_masks,
    exact_pairs,
    inspect_images,
    near_pairs,
    unlisted,
)
from dermedge.data.overlap import TeacherImages, images_seen_by, seen_sets
from dermedge.data.subgroups import subgroup_counts
from dermedge.data.table import SPLITS, Table, groups, read_table
from dermedge.data.taxonomy import TAXONOMY
from dermedge_runtime.progress import Progress

Level = Literal["error", "warning", "info"]
EXAMPLES = 5
SMALL_SUBGROUP = 30
TINY = 32


@dataclass(frozen=True)
class Finding:
    """One thing to know; `count` is the number of rows or pairs concerned, `examples` a few of them."""

    level: Level
    code: str
    message: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        data: name of the data set.
        status: the worst level among the findings, "ok" where there is nothing above "info".
        images: rows.
        groups: sets of rows that share a lesion or a patient.
        findings: errors first.
        classes: images per diagnosis; "" counts unlabelled ones.
        splits: split -> diagnosis -> images; "" is no split.
        subgroups: Column -> subgroup -> counts of "images", "malignant" and "benign", for
            the subgroups that `evaluate` and the accuracy gate form.
    """

    data: str
    status: Literal["ok", "warning", "error"]
    images: int
    groups: int
    findings: tuple[Finding, ...]
    classes: Mapping[str, int]
    splits: Mapping[str, Mapping[str, int]]
    subgroups: Mapping[str, Mapping[str, Mapping[str, int]]]


def check_data(
    data: str | Path | Table, *, teacher: str | Path | None = None, progress: Progress | None = None
) -> CheckReport:
    """Look at every image and every column of a data set and report what would spoil a model or its measurement.

    Errors are images that are missing or unreadable, a lesion or patient in two splits, and one image in two splits.
    Warnings are duplicates across lesions, duplicates with different labels, columns that tell the label, classes that
    a split lacks or that are too small to split, and images and sets that a teacher has seen. Small subgroups are
    information.

    Args:
        data: folder, table file or table.
        teacher: folder of a teacher or student that is to be measured on these images.
        progress: told after every image.

    Raises:
        DataError: as `read_table`; and where `teacher` holds no model.
        MissingExtraError: where imagehash is not installed.
    """
    table = data if isinstance(data, Table) else read_table(data)
    frame = table.frame
    group = groups(frame)
    seen = None if teacher is None else images_seen_by(teacher)
    looks = inspect_images(table, progress=progress)
    subgroups = subgroup_counts(frame)
    findings = [
        *_files(table, looks),
        *_duplicates(frame, group, exact_pairs(looks), near_pairs(looks)),
        *_split_groups(frame, group),
        *_classes(frame, group),
        *_labels(frame),
        *_columns(frame, group, looks),
        *_small_subgroups(subgroups),
        *(_pretrained(frame, looks, seen) if seen else ()),
    ]
    order = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda finding: order[finding.level])
    worst = findings[0].level if findings else "info"
    return CheckReport(
        data=table.name,
        status="ok" if worst == "info" else worst,
        images=len(frame),
        groups=int(group.nunique()),
        findings=tuple(findings),
        classes=_counts(frame["dx"]),
        splits={str(name): _counts(rows["dx"]) for name, rows in frame.groupby("split")},
        subgroups=subgroups,
    )


def _finding(level: Level, code: str, message: str, items: Sequence[str]) -> Iterable[Finding]:
    if items:
        yield Finding(level, code, f"{len(items)} {message}", len(items), tuple(items[:EXAMPLES]))


def _files(table: Table, looks: Sequence[ImageInspection]) -> Iterable[Finding]:
    images = table.frame["image"].tolist()
    seen = list(zip(images, looks, strict=True))
    missing = [image for image, look in seen if look.missing]
    broken = [
        f"{image}: {look.problem}" for image, look in seen if look.problem and not look.missing
    ]
    tiny = [
        f"{image}: {look.width}x{look.height}"
        for image, look in seen
        if 0 < min(look.width, look.height) < TINY
    ]
    flat = [image for image, look in seen if not look.problem and look.phash is None]
    masks = [f"{mask}: {problem}" for mask, problem in check_masks(table, looks)]
    yield from _finding(
        "error",
        "missing_image",
        "images are not there: restore them or remove their rows.",
        missing,
    )
    yield from _finding(
        "error",
        "unreadable_image",
        "images cannot be read: replace them or remove their rows.",
        broken,
    )
    yield from _finding(
        "warning", "bad_mask", "masks cannot be used: replace them or empty their cells.", masks
    )
    yield from _finding(
        "warning", "tiny_image", f"images are smaller than {TINY} pixels: remove their rows.", tiny
    )
    yield from _finding("warning", "flat_image", "images show one even colour: look at them.", flat)
    yield from _finding(
        "info", "unlisted_image", "image files have no row and are not used.", unlisted(table)
    )


def _duplicates(
    frame: pd.DataFrame,
    group: "pd.Series[str]",
    exact: list[tuple[int, int]],
    near: list[tuple[int, int]],
) -> Iterable[Finding]:
    ids, splits = frame["image_id"].tolist(), frame["split"].tolist()
    labels, owners = frame["dx"].tolist(), group.tolist()

    def named(pairs: Iterable[tuple[int, int]]) -> list[str]:
        return [f"{ids[a]} = {ids[b]}" for a, b in pairs]

    for kind, what, pairs in (
        ("exact", "byte-identical", exact),
        ("near", "almost identical", near),
    ):
        leaking = [(a, b) for a, b in pairs if splits[a] and splits[b] and splits[a] != splits[b]]
        others = [
            (a, b) for a, b in pairs if not (splits[a] and splits[b] and splits[a] != splits[b])
        ]
        strangers = [(a, b) for a, b in others if owners[a] != owners[b]]
        same = [(a, b) for a, b in others if owners[a] == owners[b]]
        yield from _finding(
            "error" if kind == "exact" else "warning",
            f"{kind}_duplicate_across_splits",
            f"pairs of {what} images stand in two splits, so the measurement is too good: give both one split.",
            named(leaking),
        )
        yield from _finding(
            "warning",
            f"{kind}_duplicate_across_groups",
            f"pairs of {what} images have neither lesion nor patient in common: give both one lesion_id.",
            named(strangers),
        )
        yield from _finding(
            "info",
            f"{kind}_duplicate",
            f"pairs of {what} images of one lesion or patient.",
            named(same),
        )
    contradicting = [(a, b) for a, b in exact if labels[a] != labels[b]]
    yield from _finding(
        "warning",
        "contradicting_labels",
        "pairs of byte-identical images have different diagnoses: correct one of them.",
        named(contradicting),
    )


def _split_groups(frame: pd.DataFrame, group: "pd.Series[str]") -> Iterable[Finding]:
    inside = frame[frame["split"] != ""]
    if inside.empty:
        yield Finding(
            "info",
            "no_split",
            "No row has a split; training assigns one by lesion and patient.",
            len(frame),
        )
        return
    crossing = False
    for column, what in (("lesion_id", "lesions"), ("patient_id", "patients")):
        known = inside[inside[column] != ""]
        several = known.groupby(["source", column])["split"].nunique()
        names = [str(key[1]) for key in several[several > 1].index]
        crossing = crossing or bool(names)
        yield from _finding(
            "error",
            f"{column.removesuffix('_id')}_in_two_splits",
            f"{what} stand in more than one split: assign the splits anew with `dermedge data split --redo`.",
            names,
        )
    chained = inside.groupby(group.loc[inside.index])["split"].nunique()
    if not crossing:
        names = [str(key) for key in chained[chained > 1].index]
        yield from _finding(
            "error",
            "group_in_two_splits",
            "groups stand in two splits, joined by rows without one: assign the splits anew.",
            names,
        )
    for split in [name for name in SPLITS if name not in set(inside["split"])]:
        yield Finding("info", "empty_split", f"No row is in the split {split!r}.", 0)


def _pretrained(
    frame: pd.DataFrame, looks: Sequence[ImageInspection], seen: TeacherImages
) -> Iterable[Finding]:
    """Rows that a model has seen: surely, by digest; and by the name of a set, of which it may have seen a part."""
    surely = pd.Series(
        [look.digest in seen.digests for look in looks], index=frame.index, dtype=bool
    )
    yield from _finding(
        "warning",
        "pretrained_on",
        f"images were seen by the teacher, byte by byte{_tested(frame[surely])}: it cannot be measured on them.",
        frame.loc[surely, "image_id"].tolist(),
    )
    for source, name in seen_sets(frame["source"], seen).items():
        rows = frame[(frame["source"] == source) & ~surely]
        yield from _finding(
            "warning",
            "pretrained_on",
            f"images are of {source}, and the teacher was pretrained on {name}{_tested(rows)}: a result on them is no "
            "result on unseen images.",
            rows["image_id"].tolist(),
        )


def _tested(rows: pd.DataFrame) -> str:
    count = int((rows["split"] == "test").sum())
    return f" ({count} of them in the split 'test')" if count else ""


def _classes(frame: pd.DataFrame, group: "pd.Series[str]") -> Iterable[Finding]:
    labelled = frame[frame["dx"] != ""]
    unlabelled = frame.loc[frame["dx"] == "", "image_id"].tolist()
    yield from _finding("info", "unlabelled", "images have no diagnosis.", unlabelled)
    per_class = group.loc[labelled.index].groupby(labelled["dx"]).nunique()
    small = [f"{dx}: {count} groups" for dx, count in per_class.items() if count < 3]
    yield from _finding(
        "warning",
        "few_groups",
        "classes have fewer than three lesions or patients and cannot reach all splits.",
        small,
    )
    for split, rows in labelled[labelled["split"] != ""].groupby("split"):
        absent = sorted(set(labelled["dx"]) - set(rows["dx"]))
        yield from _finding(
            "warning",
            "class_not_in_split",
            f"classes have no image in the split {split!r}.",
            absent,
        )


def _labels(frame: pd.DataFrame) -> Iterable[Finding]:
    own: Counter[str] = Counter()
    for dx, malignant in zip(frame["dx"], frame["malignant"], strict=True):
        expected = TAXONOMY[dx].malignant if dx else None
        if dx and malignant == malignant and (expected is None or float(expected) != malignant):
            own[f"{dx} as {'malignant' if malignant else 'benign'}"] += 1
    for what, count in own.most_common():
        yield Finding(
            "info",
            "own_malignancy",
            f"{count} rows count {what}, which the taxonomy does not; the rows win.",
            count,
        )


def _columns(
    frame: pd.DataFrame, group: "pd.Series[str]", looks: Sequence[ImageInspection]
) -> Iterable[Finding]:
    sizes = [f"{look.width}x{look.height}" if look.width else "" for look in looks]
    rows = leaks.derived(frame.assign(group=group), sizes)
    for leak in leaks.missingness(rows):
        yield Finding(
            "warning",
            "missingness_predicts_label",
            f"{leak.message}: never use 'missing' as a group or an input.",
            leak.count,
            (leak.column,),
        )
    for leak in leaks.giveaways(rows):
        yield Finding(
            "warning",
            "column_gives_label_away",
            f"{leak.message}: never an input.",
            leak.count,
            (leak.column,),
        )


def _small_subgroups(
    subgroups: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> Iterable[Finding]:
    for column, values in subgroups.items():
        small = [
            f"{value} ({n['images']})"
            for value, n in values.items()
            if value and n["images"] < SMALL_SUBGROUP
        ]
        if small:
            message = f"{column} has subgroups of fewer than {SMALL_SUBGROUP} images, too few for a claim about them."
            yield Finding("info", "small_subgroup", message, len(small), tuple(small))


def _counts(column: "pd.Series[str]") -> dict[str, int]:
    return {str(value): int(count) for value, count in column.value_counts().items()}
