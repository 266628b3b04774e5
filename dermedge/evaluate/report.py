"""What `evaluate` found, as plain data: enough to draw every plot of it without the model."""

from collections.abc import Mapping
from dataclasses import dataclass

from dermedge_runtime.decode import Provenance
from dermedge_runtime.report import Interval
from dermedge_runtime.spec import Postprocessing


@dataclass(frozen=True)
class Scores:
    """Metrics over some images, with 95 % intervals of a bootstrap over lesions or patients.

    `cases` are images, of which `labelled` enter the metrics over classes and `malignant` the sensitivity; `groups` are
    lesions or patients. The metrics are `balanced_accuracy`, `accuracy`, `macro_auroc` (one-vs-rest), `malignant_auroc`
    (malignant against benign), `sensitivity` and `specificity` at the bundle's threshold, and `ece`.
    """

    cases: int
    labelled: int
    malignant: int
    groups: int
    metrics: Mapping[str, Interval]


@dataclass(frozen=True)
class SubgroupScores:
    """The images whose `column` has one `value`."""

    column: str
    value: str
    scores: Scores


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence in the predicted class lies in (low, high]; means are None without any."""

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class EvaluatedImage:
    """One image: what the table says (`label`, `malignant`; None where unknown) and what the model said.

    `label` is the model's label that covers the diagnosis `dx`. `probability` is the predicted label's, `malignancy`
    the score. `trained_on` says that the model has seen this very file in training.
    """

    image_id: str
    image: str
    dx: str
    label: str | None
    predicted: str | None
    probability: float | None
    malignant: bool | None
    malignancy: float | None
    trained_on: bool


@dataclass(frozen=True)
class EvaluationReport:
    """A bundle on the images of one split.

    `model` names bundle and engine. `confusion` counts images by true label (rows) and predicted one, in the order of
    `labels`; `recall` and `support` are by label. `roc` are (false, true) positive rates of malignant against benign.
    `unmapped` counts, by diagnosis, images whose diagnosis no label covers. `trained_on` lists the images that the
    model was trained on; None where the bundle does not tell. `warnings` say what makes the numbers worth less.
    """

    model: Provenance
    data: str
    data_digest: str
    split: str
    labels: tuple[str, ...]
    postprocessing: Mapping[str, Postprocessing]
    threshold: float | None
    overall: Scores
    recall: Mapping[str, Interval]
    support: Mapping[str, int]
    subgroups: tuple[SubgroupScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: tuple[ReliabilityBin, ...]
    roc: tuple[tuple[float, float], ...]
    unmapped: Mapping[str, int]
    trained_on: tuple[str, ...] | None
    warnings: tuple[str, ...]
    images: tuple[EvaluatedImage, ...]
