"""Evaluation of a bundle on a table of labelled images; needs no torch."""

from dermedge.evaluate.evaluate import evaluate
from dermedge.evaluate.fairness import fairness
from dermedge.evaluate.report import (
    EvaluatedImage,
    EvaluationReport,
    Fairness,
    GroupScore,
    ReliabilityBin,
    Scores,
    SubgroupScores,
)
from dermedge.evaluate.table import table_predictions

__all__ = [
    "EvaluatedImage",
    "EvaluationReport",
    "Fairness",
    "GroupScore",
    "ReliabilityBin",
    "Scores",
    "SubgroupScores",
    "evaluate",
    "fairness",
    "table_predictions",
]
