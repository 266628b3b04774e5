"""Check a data set for faults before a model is trained or evaluated on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from dermedge.data import findings as checks
from dermedge.data.finding import Finding, Level
from dermedge.data.images import inspect_images
from dermedge.data.mask_findings import check_masks
from dermedge.data.overlap import read_teacher_images
from dermedge.data.sources import read_source
from dermedge.data.split import FRACTIONS, assign_splits
from dermedge.data.split_checks import check_split
from dermedge.data.subgroups import subgroup_counts
from dermedge.data.table import Table, groups, parse_table
from dermedge_runtime.progress import Progress

_ORDER: tuple[Level, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_data`.

    Attributes:
        data: Name of the data set.
        status: Most severe level among the findings; "ok" if there are only "info"
            findings.
        images: Number of rows.
        groups: Number of groups: rows that share a lesion or a patient.
        findings: All findings, errors first.
        classes: Images per diagnosis; "" counts those without one.
        splits: Split -> diagnosis -> images; "" counts rows without a split.
        subgroups: Column -> subgroup -> counts of "images", "malignant" and "benign",
            for the subgroups that `evaluate` and the accuracy gate form.

    Examples:
        >>> report = check_data("lesions")
        >>> report.data, report.images
        ('lesions', 80)
        >>> report.subgroups["sex"]["female"]["images"] > 0
        True
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
    data: str | Path | Table,
    *,
    teacher: str | Path | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Check every image and every column of a data set, and report faults by level.

    - Errors: images and masks that are missing, unreadable or, for masks, inverted; a
      lesion, a patient or an identical image in two splits; no rows to train on.
    - Warnings: duplicates across lesions; identical images with different labels;
      masks that are empty, nearly full or unusual; columns that predict the label;
      classes that a split lacks or that are too small to split; a group that is far
      larger than others; images and sets that the teacher was trained on.
    - Information: cells that were not read literally, small subgroups, rows without a
      diagnosis or a split.

    Args:
        data: Folder, table file or table.
        teacher: Folder of the model that is to be measured on these images. None skips
            the comparison with its training images.
        progress: Called after every image.

    Raises:
        DataError: The table cannot be read, or `teacher` is not a model folder.
        MissingExtraError: imagehash is not installed.

    Examples:
        >>> report = check_data("lesions")
        >>> report.status, report.findings[0].code
        ('warning', 'few_groups')
    """
    table = data if isinstance(data, Table) else parse_table(read_source(Path(data)))
    frame = table.frame
    group = groups(frame)
    # The teacher is read first: a wrong folder is reported before the images are
    # decoded.
    trained = None if teacher is None else read_teacher_images(teacher)
    inspections = inspect_images(table, progress=progress)
    subgroups = subgroup_counts(frame)
    content = pd.Series([one.digest for one in inspections], index=frame.index, dtype="str")
    findings = [
        *(Finding("info", "understood", note, 1) for note in table.notes),
        *checks.check_files(table, inspections),
        *check_masks(table, inspections),
        *checks.check_duplicates(frame, group, inspections),
        *checks.check_splits(frame, group),
        *checks.check_classes(frame, group),
        *check_split(frame, assign_splits(frame, content=content), FRACTIONS, content=content),
        *checks.check_malignancy(frame),
        *checks.check_columns(frame, group, inspections),
        *checks.check_subgroups(subgroups),
        *(checks.check_teacher(frame, inspections, trained) if trained is not None else ()),
    ]
    findings.sort(key=lambda finding: _ORDER.index(finding.level))
    worst: Level = findings[0].level if findings else "info"
    return CheckReport(
        data=table.name,
        status="ok" if worst == "info" else worst,
        images=len(frame),
        groups=int(group.nunique()),
        findings=tuple(findings),
        classes=_count_values(frame["dx"]),
        splits={str(name): _count_values(rows["dx"]) for name, rows in frame.groupby("split")},
        subgroups=subgroups,
    )


def _count_values(column: "pd.Series[str]") -> dict[str, int]:
    return {str(value): int(count) for value, count in column.value_counts().items()}
