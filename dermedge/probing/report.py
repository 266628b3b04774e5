"""What a probe found, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dermedge.evaluation.report import Fairness
from dermedge_runtime.report import Interval

SCHEMA = "dermedge.probe/1"


@dataclass(frozen=True)
class ProbeResult:
    """One thing that was fitted on the frozen features (or one fine-tuned network), measured on test.

    Attributes:
        name: what was fitted: `linear`, `knn`, `finetune`, `upernet`, or a share of the labels (`5 %`).
        fraction: the share of the train labels that was asked for.
        train_images: how many images it was fitted on.
        train_groups: how many lesions or patients these are.
        threshold: of the malignancy score, chosen on val; None for other tasks.
        metrics: with 95 % intervals of a bootstrap over lesions or patients.
        recall: of each class; empty for a segmentation.
        fairness: by skin type and by sex; empty for a segmentation.
    """

    name: str
    fraction: float
    train_images: int
    train_groups: int
    threshold: float | None
    metrics: Mapping[str, Interval]
    recall: Mapping[str, Interval]
    fairness: tuple[Fairness, ...]


@dataclass(frozen=True)
class ProbeReport:
    """A teacher probed on a table.

    Attributes:
        task: diagnosis, malignancy, severity or segment.
        protocol: linear, knn, finetune, segment or fewshot.
        teacher: name of the model.
        teacher_weights: sha256 of its weights file.
        data: name of the table.
        data_digest: of what the table says, its splits included.
        images: images with a known answer, by split.
        test_groups: lesions or patients of the test split.
        labels: the classes.
        support: test images by class; empty for a segmentation.
        settings: everything that was chosen: lengths, rates, seed, preprocessing, bootstrap.
        results: one, or one per share of the labels or per decoder.
        warnings: what makes the numbers worth less.
        schema: of this report as JSON.
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
