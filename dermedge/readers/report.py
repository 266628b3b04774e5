"""Define the report of a reader study."""

from collections.abc import Mapping
from dataclasses import dataclass

from dermedge.readers.obuchowski_rockette import ObuchowskiRockette
from dermedge_runtime.report import Check, Interval

JSON_FILE, PAGE_FILE = "readers.json", "readers.html"
"""Files of a report."""


@dataclass(frozen=True)
class Comparison:
    """A metric unaided, aided, of the model alone, and the differences.

    Intervals of one reader resample cases; those over readers resample readers and
    cases.

    Attributes:
        unaided: Value without the model's prediction.
        aided: Value with it.
        difference: Aided minus unaided.
        model: Value of the model alone; None without predictions.
        model_minus_unaided: Model minus unaided readers.
        model_minus_aided: Model minus aided readers.

    Examples:
        >>> Comparison(Interval(0.7), Interval(0.8), Interval(0.1)).model is None
        True
    """

    unaided: Interval
    aided: Interval
    difference: Interval
    model: Interval | None = None
    model_minus_unaided: Interval | None = None
    model_minus_aided: Interval | None = None


@dataclass(frozen=True)
class PairedTest:
    """Comparison of the readers' own differences, with the reader as the unit.

    Attributes:
        readers: Number of readers.
        median_difference: Median over readers of aided minus unaided.
        p: Two-sided p-value of Wilcoxon's signed-rank test; None below two readers.
        z: Standardised statistic of the test.
        effect: Effect size r = |z| / sqrt(readers), from 0 to 1.
        mean_difference: Mean over readers with its t interval.

    Examples:
        >>> PairedTest(9, 0.1, 0.02, 2.4, 0.8, Interval(0.1, 0.05, 0.15)).effect
        0.8
    """

    readers: int
    median_difference: float
    p: float | None
    z: float | None
    effect: float | None
    mean_difference: Interval


@dataclass(frozen=True)
class McNemarTest:
    """McNemar's test of right and wrong answers to the same cases.

    Attributes:
        gained: Readings that were wrong unaided and right aided.
        lost: Readings that were right unaided and wrong aided.
        p: Two-sided p-value.
        method: `exact` (binomial) below 25 changes, else `chi-squared` with continuity
            correction.

    Examples:
        >>> McNemarTest(9, 2, 0.065, "exact").gained
        9
    """

    gained: int
    lost: int
    p: float
    method: str


@dataclass(frozen=True)
class MixedLogistic:
    """Mixed-effects logistic regression of right answers on the condition.

    Attributes:
        odds_ratio: Odds of a right answer, aided to unaided, with a 95 % interval.
        reader_sd: Standard deviation of the readers' intercepts, in log odds.
        case_sd: Standard deviation of the cases' intercepts, in log odds.
        readings: Number of readings, also of left-out readers and cases.

    Examples:
        >>> MixedLogistic(Interval(1.8, 1.4, 2.3), 0.4, 1.1, 1200).readings
        1200
    """

    odds_ratio: Interval
    reader_sd: float
    case_sd: float
    readings: int


@dataclass(frozen=True)
class ReaderScores:
    """Scores of one reader.

    Examples:
        >>> ReaderScores("r1", "expert", {}, McNemarTest(3, 1, 0.6, "exact")).group
        'expert'
    """

    reader: str
    group: str
    metrics: Mapping[str, Comparison]
    mcnemar: McNemarTest


@dataclass(frozen=True)
class SubgroupScores:
    """Accuracy in one subgroup of readers or cases.

    Attributes:
        column: `reader_group`, `truth`, or a column of the cases.
        value: Value of the column.
        readers: Number of readers in the subgroup.
        cases: Number of cases in the subgroup.
        accuracy: The comparison of accuracy.

    Examples:
        >>> same = Comparison(Interval(0.7), Interval(0.8), Interval(0.1))
        >>> SubgroupScores("sex", "female", 9, 40, same).cases
        40
    """

    column: str
    value: str
    readers: int
    cases: int
    accuracy: Comparison


@dataclass(frozen=True)
class Change:
    """Numbers of right and wrong aided answers, for one kind of unaided answer.

    Attributes:
        unaided_right: The unaided answer was right.
        model_right: The model's prediction was right; None without predictions.
        aided_right: Readings whose aided answer was right.
        aided_wrong: Readings whose aided answer was wrong.

    Examples:
        >>> Change(True, False, 90, 10).aided_wrong
        10
    """

    unaided_right: bool
    model_right: bool | None
    aided_right: int
    aided_wrong: int


@dataclass(frozen=True)
class Changes:
    """Effect of the model on single answers.

    Attributes:
        matrix: Numbers of readings.
        rates: Shares with intervals over readers and cases. `gained`: of the wrong
            answers, those that became right. `lost`: of the right answers, those that
            became wrong. With predictions also `corrected`: of the wrong answers where
            the model was right, those that became right; `automation_bias`: of the
            right answers where the model was wrong, those that became wrong;
            `switched`: of the answers that differed from the model's, those that became
            the model's.

    Examples:
        >>> Changes((Change(True, False, 90, 10),), {"lost": Interval(0.1)}).rates["lost"].value
        0.1
    """

    matrix: tuple[Change, ...]
    rates: Mapping[str, Interval]


@dataclass(frozen=True)
class Shift:
    """Change of the time or the confidence between the conditions.

    Attributes:
        name: `seconds`, `confidence`, or `confidence, model right` (or wrong).
        unaided: Mean unaided; for seconds the geometric mean.
        aided: Mean aided.
        change: Aided minus unaided; for seconds the ratio.
        p: p-value of Wilcoxon's signed-rank test over readers.

    Examples:
        >>> Shift("seconds", 12.0, 9.0, Interval(0.75, 0.7, 0.8), 0.01).change.value
        0.75
    """

    name: str
    unaided: float
    aided: float
    change: Interval
    p: float | None


@dataclass(frozen=True)
class ReaderReport:
    """Result of `analyze_readers`.

    Attributes:
        readers: Number of analysed readers.
        cases: Number of analysed cases.
        malignant: Number of malignant cases among them.
        answers: `malignant or benign`, or `diagnoses`.
        primary: Metric of the primary analysis.
        replicates: Bootstrap replicates.
        seed: Random seed of the bootstrap.
        completeness: Share of answers that a reader must have given.
        left_out_readers: Share of answered readings of each left-out reader.
        left_out_cases: Cases that a remaining reader did not answer.
        pooled: Mean over readers, by metric.
        anova: Obuchowski-Rockette analysis, by metric.
        wilcoxon: Tests with the reader as the unit, by metric.
        mcnemar: McNemar's test over all readings, as if they were independent.
        logistic: Sensitivity analysis; None if all answers of a condition are equal.
        by_reader: Scores of each reader.
        subgroups: Accuracy by group of readers and cases.
        changes: Effect of the model on single answers.
        shifts: Changes of time and confidence.
        checks: Checks of the design.
        notes: Limits of the analysis, in sentences.

    Examples:
        >>> from dermedge import analyze_readers
        >>> from dermedge.readers.simulate import write_study
        >>> table = write_study("study.csv", readers=4, cases=40, seed=1)
        >>> report = analyze_readers(table, replicates=100)
        >>> report.readers, report.cases, report.primary
        (4, 40, 'balanced_accuracy')
    """

    readers: int
    cases: int
    malignant: int
    answers: str
    primary: str
    replicates: int
    seed: int
    completeness: float
    left_out_readers: Mapping[str, float]
    left_out_cases: tuple[str, ...]
    pooled: Mapping[str, Comparison]
    anova: Mapping[str, ObuchowskiRockette]
    wilcoxon: Mapping[str, PairedTest]
    mcnemar: McNemarTest
    logistic: MixedLogistic | None
    by_reader: tuple[ReaderScores, ...]
    subgroups: tuple[SubgroupScores, ...]
    changes: Changes
    shifts: tuple[Shift, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
