"""Define the report types of `evaluate`, with the data of every plot."""

from collections.abc import Mapping
from dataclasses import dataclass

from dermedge_runtime.decode import Provenance
from dermedge_runtime.report import Interval
from dermedge_runtime.spec import Postprocessing


@dataclass(frozen=True)
class Scores:
    """Metrics over some images, with 95 % intervals over lesions or patients.

    Classifiers have `balanced_accuracy`, `accuracy`, `macro_auroc` (one-vs-rest),
    `malignant_auroc` (malignant against benign), `ece`, and `sensitivity` and
    `specificity` at the bundle's threshold. Models that grade severity have
    `severity_kappa` (quadratic weights) and `severity_mae` (in levels). Models that
    segment lesions have `dice`, the mean over images whose mask has a lesion. Models with
    conformal sets have `coverage` (share of labelled images whose set holds their class)
    and `set_size` (mean number of labels). Models that can refer have `referred`, the
    share of images with the decision `refer`. Models with an `ood` task have
    `ood_flagged`, the share of images above its threshold.

    Attributes:
        cases: Number of images.
        labelled: Images with a known class; they enter the metrics over classes.
        malignant: Malignant images; they enter the sensitivity.
        groups: Number of lesions or patients.
        metrics: Value and interval by name of the metric.
        empty_masks: Images whose mask is empty. `dice` does not count them. Reports of
            older versions lack it, and count these images in `dice`.
        false_alarms: Images with an empty mask for which a lesion is predicted.

    Examples:
        >>> from dermedge_runtime.report import Interval
        >>> scores = Scores(120, 110, 30, 60, {"accuracy": Interval(0.8, 0.7, 0.9)})
        >>> scores.metrics["accuracy"].low
        0.7
    """

    cases: int
    labelled: int
    malignant: int
    groups: int
    metrics: Mapping[str, Interval]
    empty_masks: int = 0
    false_alarms: int = 0


@dataclass(frozen=True)
class SubgroupScores:
    """Scores of the images whose `column` has one `value`.

    Examples:
        >>> SubgroupScores("sex", "female", Scores(60, 55, 15, 30, {})).value
        'female'
    """

    column: str
    value: str
    scores: Scores


@dataclass(frozen=True)
class GroupScore:
    """Scores of one group in a fairness comparison.

    Attributes:
        cases: Images of the group with a known class.
        malignant: Malignant images of the group, with or without a known class.
        score: The comparison's metric.
        tpr: True positive rate: share of the malignant images that the model calls
            malignant at the decision threshold.
        fpr: False positive rate: share of the benign images that the model calls
            malignant.

    Examples:
        >>> from dermedge_runtime.report import Interval
        >>> GroupScore(40, 12, Interval(0.8), Interval(0.9), Interval(0.2)).tpr.value
        0.9
    """

    cases: int
    malignant: int
    score: Interval
    tpr: Interval
    fpr: Interval


@dataclass(frozen=True)
class Fairness:
    """Comparison of a model's groups by one column.

    Intervals resample lesions or patients.

    `gap` and `equalised_odds` are differences between a largest and a smallest value,
    so noise can only increase them. They are above zero even if the groups do not
    differ, and their percentile intervals lie too high. Compare them with `chance` and
    `chance_high`: the same model on the same images, with the groups assigned at random
    among lesions or patients of the same class. Only a gap above `chance_high` is more
    than chance explains.

    Attributes:
        column: `fitzpatrick`, in the pairs I-II, III-IV and V-VI, or `sex`.
        metric: `balanced_accuracy`. It is `malignant_balanced_accuracy` (the mean of
            sensitivity and specificity at the decision threshold) if the groups share
            too few classes.
        classes: Indices of the classes that the metric averages over: those with at
            least 5 cases in every group, so that no group gains by having fewer
            diagnoses. For `malignant_balanced_accuracy`, 0 is benign and 1 malignant.
        groups: Groups with at least 30 cases.
        insufficient: Number of cases of each smaller group. No other field counts them.
        unknown: Number of cases without a recorded group. They form no group.
        worst: Group with the lowest score. None if nothing can be compared, or if no
            group is below another.
        gap: Score of the best group minus that of the worst. It has no value if fewer
            than two groups have enough cases, or if they share fewer than two classes.
        chance: Median gap of randomly assigned groups.
        chance_high: 95th percentile of the gap of randomly assigned groups.
        equalised_odds: The larger of two differences between groups, in TPR and in FPR
            at the decision threshold. None if a group has fewer than 5 malignant or 5
            benign cases, or if the model has no threshold.
        equalised_odds_chance: Median of that difference for randomly assigned groups.
        equalised_odds_chance_high: 95th percentile of that difference.

    Examples:
        >>> from dermedge_runtime.report import Interval
        >>> gap = Interval(0.31, 0.22, 0.40)
        >>> sex = Fairness(
        ...     "sex", "balanced_accuracy", (0, 1), {}, {}, 0, "male", gap, 0.05, 0.11,
        ...     None, None, None,
        ... )
        >>> sex.gap.value > sex.chance_high
        True
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
    """Images whose confidence in the predicted class lies in (low, high].

    The means `confidence` and `accuracy` are None if the bin is empty.

    Examples:
        >>> part = ReliabilityBin(0.8, 0.9, count=50, confidence=0.85, accuracy=0.7)
        >>> round(part.confidence - part.accuracy, 2)
        0.15
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class EvaluatedImage:
    """One image: its labels from the table, and the model's predictions.

    Attributes:
        image_id: Name of the image in the table.
        image: Path of the file, relative to the data set.
        dx: Diagnosis in the table, "" if unknown.
        label: The model's label that covers `dx`. None if there is none.
        predicted: The label that the model predicts.
        probability: Probability of the predicted label.
        malignant: True class. None if unknown.
        malignancy: Predicted malignancy score.
        trained_on: True if the model was trained on an identical file.
        referred: True if the decision is `refer`.

    Examples:
        >>> image = EvaluatedImage(
        ...     "i7", "i7.jpg", "mel", "mel", "nv", 0.6, True, 0.2, trained_on=False
        ... )
        >>> image.label == image.predicted
        False
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
    referred: bool = False


@dataclass(frozen=True)
class CorruptionScores:
    """Metrics of a model on corrupted photographs, with 95 % intervals.

    Attributes:
        corruption: Name of the corruption.
        severity: 1 (weak) to 3 (strong).
        metrics: Value and interval by name of the metric, as in `Scores`. A corruption
            that moves the lesion has no `dice`.
        change: Value minus that on the photographs as they are, with the interval of
            the paired difference.
        flagged: Share of the images with a sentence about their quality. None if the
            bundle has no limits of image quality.

    Examples:
        >>> from dermedge_runtime.report import Interval
        >>> blurred = CorruptionScores(
        ...     "defocus_blur", 2, {"accuracy": Interval(0.5)}, {"accuracy": Interval(-0.2)}, 0.9
        ... )
        >>> blurred.change["accuracy"].value
        -0.2
    """

    corruption: str
    severity: int
    metrics: Mapping[str, Interval]
    change: Mapping[str, Interval]
    flagged: float | None


@dataclass(frozen=True)
class Robustness:
    """Scores of a model on photographs with each corruption at three severities.

    Attributes:
        images: Number of photographs.
        clean: Metrics on the photographs as they are.
        clean_flagged: Share of these with a sentence about their quality.
        corruptions: Scores by corruption and severity.

    Examples:
        >>> Robustness(100, {}, 0.01, ()).clean_flagged
        0.01
    """

    images: int
    clean: Mapping[str, Interval]
    clean_flagged: float | None
    corruptions: tuple[CorruptionScores, ...]


@dataclass(frozen=True)
class EvaluationReport:
    """Report of a bundle on the images of one split.

    Attributes:
        model: The bundle and the engine.
        data: Name of the table.
        data_digest: Digest of the table's content.
        split: train, val, test or all.
        labels: The model's classes.
        postprocessing: Temperature and threshold by task.
        threshold: Threshold of the malignancy score.
        overall: Scores over all images.
        recall: Recall by label.
        support: Number of images by label.
        subgroups: Scores by skin type, sex, age band, body site and modality.
        confusion: Number of images by true label (rows) and predicted label (columns),
            in the order of `labels`.
        reliability: Confidence and accuracy by bin of confidence.
        roc: Corners of the ROC curve of malignant against benign, as (false, true)
            positive rates.
        unmapped: Number of images by diagnosis, for diagnoses that no label covers.
        trained_on: Images that the model was trained on. None if the bundle does not
            list its training images.
        warnings: Reasons to trust the numbers less.
        images: All images in the order of the table.
        fairness: Comparisons by skin type and by sex. Reports of older versions lack
            it.
        classes: Coverage, set size and share referred by true label, with the column
            `class`. Reports of older versions lack it.
        robustness: Scores on corrupted photographs. None if they were not asked for.

    Examples:
        >>> from dermedge import evaluate
        >>> report = evaluate("toy.dermedge", "lesions", replicates=10)
        >>> report.split, len(report.images) == report.overall.cases
        ('test', True)
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
    classes: tuple[SubgroupScores, ...] = ()
    robustness: Robustness | None = None
