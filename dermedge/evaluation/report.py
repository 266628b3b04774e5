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
    (malignant against benign), `sensitivity` and `specificity` at the bundle's threshold, and `ece`; of
    a model that grades, `severity_kappa` (quadratic weights) and `severity_mae` (in levels), of one that segments,
    `dice`.
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
class GroupScore:
    """One group of a comparison.

    Attributes:
        cases: its images with a known answer.
        malignant: its malignant images, whatever their diagnosis.
        score: the comparison's metric.
        tpr: share of its malignant images that are called malignant at the decision threshold.
        fpr: share of its benign images that are.
    """

    cases: int
    malignant: int
    score: Interval
    tpr: Interval
    fpr: Interval


@dataclass(frozen=True)
class Fairness:
    """A model's groups by one column, compared. Intervals resample whole lesions or patients.

    `gap` and `equalised_odds` are differences between a largest and a smallest value, so noise only ever adds to them:
    even where groups do not differ they are above zero, and their percentile intervals lie too high. Read them against
    `chance` and `chance_high`: what the same model shows on the same images when the groups are dealt out at random
    among lesions or patients of the same class. Only a gap above `chance_high` is more than chance explains.

    Attributes:
        column: `fitzpatrick`, in the pairs I-II, III-IV and V-VI, or `sex`.
        metric: `balanced_accuracy`, or `malignant_balanced_accuracy` (the mean of sensitivity and specificity at the
            decision threshold) where too few classes are known in every group.
        classes: the classes that the metric is a mean over, by index: those with at least 5 cases in every group, so
            that no group is better for having fewer diagnoses. Of malignant balanced accuracy, benign 0, malignant 1.
        groups: those with at least 30 cases.
        insufficient: the cases of groups that have fewer; they are in nothing else here.
        unknown: cases whose group the data do not tell. They are no group of their own.
        worst: the group with the lowest score; None where nothing can be compared or no group is below another.
        gap: the best group's score less the worst one's; without a value where fewer than two groups have enough cases,
            or share fewer than two classes.
        chance: the median gap of groups dealt out at random.
        chance_high: the gap that one in twenty of them exceeds.
        equalised_odds: the larger of the differences between groups in TPR and in FPR at the decision threshold; None
            where a group has fewer than 5 malignant or 5 benign cases, or the model decides nothing.
        equalised_odds_chance: the median of that with groups dealt out at random.
        equalised_odds_chance_high: what one in twenty of them exceeds.
    """

    column: str
    metric: str
    classes: tuple[int, ...]
    groups: Mapping[str, GroupScore]
    insufficient: Mapping[str, int]
    unknown: int
    worst: str | None
    gap: Interval
    chance: float | None
    chance_high: float | None
    equalised_odds: Interval | None
    equalised_odds_chance: float | None
    equalised_odds_chance_high: float | None


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
    `fairness` compares skin types and sexes; it is missing in older reports.
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
    fairness: tuple[Fairness, ...] = ()
