"""Evaluate a bundle on a table of labelled images; needs no torch."""

from dermedge.evaluation.evaluate import evaluate
from dermedge.evaluation.fairness import fairness
from dermedge.evaluation.report import (
    EvaluatedImage,
    EvaluationReport,
    Fairness,
    GroupScore,
    ReliabilityBin,
    Scores,
    SubgroupScores,
)
from dermedge.evaluation.table_predictions import table_predictions

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
