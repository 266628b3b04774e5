"""Compute the accuracy of each contender, and its loss against the fp32 student."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from peers_contenders import OURS, Work
from peers_engine import SPLITS

from dermedge.data.split import with_split
from dermedge.data.table import Table, read_table
from dermedge.evaluation.table_predictions import table_predictions
from dermedge.models import load_model_folder
from dermedge_export.context import module_runner
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.postprocessing import fit_postprocessing
from dermedge_export.evaluation.predictions import Decoded, Predictions, decode_table
from dermedge_runtime.spec import to_json

STUDENT = "student"


def tables(context: Work) -> dict[str, Table]:
    """Return the rows of val and test, in the splits of the training."""
    table = with_split(read_table(context.data))
    return {
        split: (rows := table.select_split(split)).replace(
            rows.frame.head(context.limit or len(rows))
        )
        for split in SPLITS
    }


def scores(context: Work, names: list[str]) -> dict[str, dict[str, Any]]:
    """Compute the test metrics of the contenders and of the fp32 student.

    Temperature and threshold are fitted on val for each of them. Losses are differences of
    the metric, with intervals of a bootstrap that draws the same lesions for both sides.
    `behind` is dermedge's balanced accuracy minus the contender's.
    """
    student = load_model_folder(context.student)
    run = module_runner(student.module)
    first = {
        split: table_predictions(rows, student.spec, run, images=context.inputs.images(split))
        for split, rows in tables(context).items()
    }
    predictions = {
        STUDENT: first,
        **{name: _stored(context.folder / name, first) for name in names},
    }
    decoded = {
        name: decode_table(of["test"], student.spec, fit_postprocessing(of["val"], student.spec))
        for name, of in predictions.items()
    }
    return _compared(first["test"], decoded)


def _stored(folder: Path, like: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Read a contender's outputs, and join them with the labels."""
    return {
        split: replace(like[split], outputs=dict(np.load(folder / f"{split}.npz")))
        for split in SPLITS
    }


def _compared(truth: Predictions, decoded: Mapping[str, Decoded]) -> dict[str, dict[str, Any]]:
    measures = {
        "balanced_accuracy": _balanced_accuracy,
        "malignant_sensitivity": partial(_sensitivity, truth.malignant == 1),
    }
    statistics = {
        (name, key): partial(f, side)
        for name, side in decoded.items()
        for key, f in measures.items()
    }
    drawn = metrics.bootstrap(truth.groups, statistics)
    point = {key: float(statistic(None)) for key, statistic in statistics.items()}

    def minus(first: tuple[str, str], second: tuple[str, str]) -> Any:
        return to_json(metrics.interval(point[first] - point[second], drawn[first] - drawn[second]))

    rows: dict[str, dict[str, Any]] = {}
    for name, side in decoded.items():
        row: dict[str, Any] = {
            key: to_json(metrics.interval(point[name, key], drawn[name, key])) for key in measures
        }
        row |= {f"{key}_lost": minus((STUDENT, key), (name, key)) for key in measures}
        if OURS in decoded:
            row["behind"] = minus((OURS, "balanced_accuracy"), (name, "balanced_accuracy"))
        student = decoded[STUDENT]
        divergence = float(metrics.kl_divergence(student.probabilities, side.probabilities).mean())
        row["agreement"] = float(metrics.top1_agreement(student.predicted, side.predicted))
        row["kl"] = divergence if np.isfinite(divergence) else None
        rows[name] = row
    return rows


def _balanced_accuracy(side: Decoded, weights: Any) -> Any:
    known = side.labels >= 0
    chosen = None if weights is None else weights[..., known]
    return metrics.balanced_accuracy(
        side.labels[known], side.predicted[known], len(side.names), chosen
    )


def _sensitivity(positive: Any, side: Decoded, weights: Any) -> Any:
    threshold = np.nan if side.threshold is None else side.threshold
    return metrics.sensitivity(positive, side.scores, threshold, weights)
