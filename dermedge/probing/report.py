"""Define the report types of `probe`, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dermedge.evaluation.report import Fairness
from dermedge_runtime.report import Interval

SCHEMA = "dermedge.probe/1"


@dataclass(frozen=True)
class ProbeResult:
    """Scores on test of one classifier or decoder, or of one fine-tuned network.

    Attributes:
        name: `linear`, `knn`, `knn-5-uniform`, `finetune`, `upernet`, or a fraction of
            the labels, such as `5 %`.
        fraction: Requested fraction of the train labels.
        train_images: Number of images that it was fitted on.
        train_groups: Number of lesions or patients of these images.
        threshold: Threshold of the malignancy score, chosen on val. None for other
            tasks.
        metrics: Values with 95 % intervals of a bootstrap over lesions or patients.
        recall: Recall of each class; empty for a segmentation.
        fairness: Comparisons by skin type and by sex; empty for a segmentation.
        empty_masks: Test images with an empty mask. `dice` and `jaccard` of a
            segmentation do not count them.
        false_alarms: Test images with an empty mask for which a lesion is predicted.

    Examples:
        >>> ProbeResult("knn", 1.0, 48, 24, None, {}, {}, ()).train_images
        48
    """

    name: str
    fraction: float
    train_images: int
    train_groups: int
    threshold: float | None
    metrics: Mapping[str, Interval]
    recall: Mapping[str, Interval]
    fairness: tuple[Fairness, ...]
    empty_masks: int = 0
    false_alarms: int = 0


@dataclass(frozen=True)
class ProbeReport:
    """Report of a teacher probed on a table.

    Attributes:
        task: diagnosis, malignancy, severity or segment.
        protocol: linear, knn, finetune, segment, fewshot or paper.
        teacher: Name of the model.
        teacher_weights: SHA-256 of its weights file.
        data: Name of the table.
        data_digest: Digest of the table's content, splits included.
        images: Number of images with a known label, by split.
        test_groups: Number of lesions or patients of the test split.
        labels: The classes.
        support: Number of test images by class; empty for a segmentation.
        settings: Every setting: lengths, rates, seed, preprocessing, bootstrap.
        results: One result, or one per fraction of the labels or per decoder.
        warnings: Reasons to trust the numbers less.
        schema: Schema of this report as JSON.

    Examples:
        >>> from dermedge.probing.options import ProbeOptions
        >>> from dermedge.probing.probe import probe
        >>> options = ProbeOptions(protocol="knn", replicates=10)
        >>> report = probe("teacher", "lesions", options, cache="features")
        >>> report.settings["neighbours"], report.schema
        (20, 'dermedge.probe/1')
    """

    task: str
    protocol: str
    teacher: str
    teacher_weights: str
    data: str
    data_digest: str
    images: Mapping[str, int]
    test_groups: int
    labels: tuple[str, ...]
    support: Mapping[str, int]
    settings: Mapping[str, Any]
    results: tuple[ProbeResult, ...]
    warnings: tuple[str, ...]
    schema: str = SCHEMA
