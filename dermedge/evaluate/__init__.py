"""Evaluation of a bundle on a table of labelled images; needs no torch."""

from dermedge.evaluate.evaluate import evaluate
from dermedge.evaluate.report import EvaluatedImage, EvaluationReport, ReliabilityBin, Scores, SubgroupScores
from dermedge.evaluate.table import table_predictions

__all__ = [
    "EvaluatedImage",
    "EvaluationReport",
    "ReliabilityBin",
    "Scores",
    "SubgroupScores",
    "evaluate",
    "table_predictions",
]
