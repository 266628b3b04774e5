"""Draw reader studies with a known truth, by the model of Roe and Metz.

The rating of a case is a mean plus normal effects of the reader, the case, their
interaction and their interactions with the condition. The effects of malignant and of
benign cases are independent.

Source: Roe and Metz, Dorfman-Berbaum-Metz method for statistical analysis of
multireader, multimodality receiver operating characteristic (ROC) data: validation with
computer simulation, Acad. Radiol. 4 (1997).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dermedge.readers.cells import CONDITIONS
from dermedge.readers.rows import Rows
from dermedge.readers.study import Study, build_study
from dermedge_export.evaluation.metrics import Floats
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write

BASE_TIME = np.datetime64("2026-01-05T08:00:00", "s")


@dataclass(frozen=True)
class RoeMetz:
    """Variances of the ratings; those of cases and of the error add up to 1.

    Attributes:
        reader: Variance of readers.
        condition_reader: Variance of the interaction of condition and reader.
        case: Variance of cases.
        condition_case: Variance of the interaction of condition and case.
        reader_case: Variance of the interaction of reader and case.

    Examples:
        >>> round(STRUCTURES["HL"].error, 3), round(STRUCTURES["HL"].spread, 3)
        (0.2, 1.005)
    """

    reader: float = 0.0055
    condition_reader: float = 0.0055
    case: float = 0.3
    condition_case: float = 0.3
    reader_case: float = 0.2

    @property
    def error(self) -> float:
        """Variance of the error."""
        return 1 - self.case - self.condition_case - self.reader_case

    @property
    def spread(self) -> float:
        """Standard deviation of the ratings of one class over readers and cases."""
        return math.sqrt(1 + self.reader + self.condition_reader)

    def separation(self, value: float, metric: str = "auc") -> float:
        """Return the distance of the classes' means that gives a value of a metric.

        Args:
            value: Expected value over readers, above 0.5 and below 1.
            metric: `auc`, or a metric of the answers: malignant from the middle between
                the classes on, so that sensitivity and specificity are equal.

        Raises:
            UsageError: The value is not between 0.5 and 1.

        Examples:
            >>> round(RoeMetz().separation(0.8), 3), round(RoeMetz().separation(0.8, "accuracy"), 3)
            (1.197, 1.692)
        """
        if not 0.5 <= value < 1:
            raise UsageError(f"The {metric} is {value:g}. Give a value from 0.5 to below 1.")
        factor = math.sqrt(2) if metric == "auc" else 2.0
        return factor * self.spread * float(stats.norm.ppf(value))


STRUCTURES: Mapping[str, RoeMetz] = {
    "HL": RoeMetz(),
    "LL": RoeMetz(case=0.1, condition_case=0.1),
    "HH": RoeMetz(reader=0.03, condition_reader=0.03),
    "LH": RoeMetz(reader=0.03, condition_reader=0.03, case=0.1, condition_case=0.1),
}
"""Variances as in Roe and Metz: high or low correlation of the data, then high or low
variance of readers."""


def draw_ratings(
    structure: RoeMetz,
    separations: tuple[float, float],
    readers: int,
    malignant: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Draw the ratings of one study, [2, R, C].

    Half of the separation lies on each side of 0, so 0 is the threshold between benign
    and malignant answers.

    Args:
        structure: Variances.
        separations: Distance of the classes' means, unaided and aided.
        readers: Number of readers.
        malignant: 1 or 0 for each case, [C].
        rng: Source of random numbers.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> draw_ratings(RoeMetz(), (1.0, 1.2), 3, np.array([1.0, 0.0]), rng).shape
        (2, 3, 2)
    """
    cases = len(malignant)

    def normal(variance: float, *shape: int) -> Floats:
        return rng.normal(0.0, math.sqrt(variance), shape)

    ratings = (
        normal(structure.case, 1, 1, cases)
        + normal(structure.condition_case, 2, 1, cases)
        + normal(structure.reader_case, 1, readers, cases)
        + normal(structure.error, 2, readers, cases)
    )
    # Each class has effects of readers of its own.
    effects = normal(structure.reader, 2, 1, readers) + normal(
        structure.condition_reader, 2, 2, readers
    )
    ratings += np.where(malignant == 1, effects[1][:, :, None], effects[0][:, :, None])
    shift: Floats = np.array(separations)[:, None, None] * (malignant - 0.5)
    return ratings + shift


def draw_rows(
    *,
    readers: int = 8,
    cases: int = 60,
    unaided: float = 0.75,
    aided: float = 0.85,
    model: float = 0.85,
    influence: float = 0.5,
    structure: RoeMetz | None = None,
    seed: int = 0,
) -> Rows:
    """Draw the table of a study with malignant and benign answers.

    Args:
        readers: Number of readers.
        cases: Number of cases; every second one is malignant.
        unaided: Expected AUC without the model, before its influence.
        aided: Expected AUC with the model, before its influence.
        model: Share of cases that the model predicts right.
        influence: Shift of aided ratings towards the model's prediction.
        structure: Variances; by default those of `HL`.
        seed: Random seed.

    Examples:
        >>> list(draw_rows(readers=2, cases=10).frame)[:4]
        ['reader', 'case', 'condition', 'order']
    """
    rng, structure = np.random.default_rng(seed), structure or RoeMetz()
    malignant = (np.arange(cases) % 2).astype(np.float64)
    separations = (structure.separation(unaided), structure.separation(aided))
    ratings = draw_ratings(structure, separations, readers, malignant, rng)
    predicted = np.where(rng.random(cases) < model, malignant, 1 - malignant)
    ratings[1] += influence * (2 * predicted - 1)
    columns = _reading_columns(ratings, rng)
    by_case = {
        "truth": np.where(malignant == 1, "malignant", "benign"),
        "model": np.where(predicted == 1, "malignant", "benign"),
        "model_score": np.round(np.where(predicted == 1, 0.8, 0.2) + 0.1 * rng.random(cases), 3),
        "fitzpatrick": np.arange(cases) % 6 + 1,
    }
    for name, values in by_case.items():
        columns[name] = np.broadcast_to(values, ratings.shape)
    frame = pd.DataFrame({name: np.ravel(values).astype(str) for name, values in columns.items()})
    return Rows(frame, [f"drawn study, row {row}" for row in range(2, len(frame) + 2)])


def _reading_columns(ratings: Floats, rng: np.random.Generator) -> dict[str, Any]:
    """Return the columns about readings, each [2, R, C]."""
    _, readers, cases = shape = ratings.shape
    order = rng.permuted(np.tile(np.arange(cases), (2, readers, 1)), axis=2)
    order = order + np.array([1, cases + 1])[:, None, None]
    days = np.array([0, 21])[:, None, None]
    times = BASE_TIME + (60 * order + 86_400 * days).astype("timedelta64[s]")
    groups = np.where(np.arange(readers) % 2, "resident", "specialist")
    return {
        "reader": np.broadcast_to([[f"r{r + 1:02d}"] for r in range(readers)], shape),
        "case": np.broadcast_to([f"c{c + 1:03d}" for c in range(cases)], shape),
        "condition": np.broadcast_to([[[name]] for name in CONDITIONS], shape),
        "order": order,
        "answer": np.where(ratings >= 0, "malignant", "benign"),
        "confidence": np.round(np.abs(ratings), 3),
        "seconds": np.round(rng.lognormal(2.5, 0.4, shape) * np.array([[[1.0]], [[0.8]]]), 1),
        "answered": times,
        "reader_group": np.broadcast_to(groups[:, None], shape),
    }


def draw_study(**options: Any) -> Study:
    """Draw a study; the options are those of `draw_rows`.

    Examples:
        >>> draw_study(readers=3, cases=20).readers
        ('r01', 'r02', 'r03')
    """
    return build_study(draw_rows(**options))


def write_study(path: str | Path, **options: Any) -> Path:
    """Draw a study and write its table as CSV; the options are those of `draw_rows`.

    Examples:
        >>> write_study("study.csv", readers=3, cases=20).name
        'study.csv'
    """
    path = Path(path)
    atomic_write(path, draw_rows(**options).frame.to_csv(index=False).encode())
    return path
