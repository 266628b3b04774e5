"""Score models on the test images of clients, and compare them on the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dermedge.evaluation.report import Scores, SubgroupScores
from dermedge.evaluation.scores import make_measures, score_images
from dermedge.federated.client import Client
from dermedge_export.evaluation import metrics
from dermedge_export.evaluation.postprocessing import fit_postprocessing
from dermedge_export.evaluation.predictions import Decoded, Graded, Predictions, decode_table
from dermedge_runtime.report import Interval

METRICS = (
    "malignant_auroc",
    "sensitivity",
    "specificity",
    "balanced_accuracy",
    "macro_auroc",
    "severity_kappa",
)
COLUMNS = ("fitzpatrick", "sex")
ALL = "all"
SMALLEST = 10
"""Fewest images of a subgroup whose scores leave a client."""


@dataclass(frozen=True)
class ModelScores:
    """Scores of one model on the test images of one client or of all.

    Attributes:
        model: `local`, `pooled` or `federated`.
        client: Name of the client, or `all`.
        scores: Metrics with intervals over lesions or patients.
        subgroups: The same by skin type and sex.
        change: Metrics of the federated model minus those of this model, on the same
            images and replicates. Empty for the federated model.

    Example:
        >>> from dermedge_runtime.spec import to_json
        >>> scores = Scores(40, 40, 9, 30, {"malignant_auroc": Interval(0.8, 0.7, 0.9)})
        >>> row = ModelScores("local", "a", scores)
        >>> row == ModelScores.from_json(to_json(row))
        True
    """

    model: str
    client: str
    scores: Scores
    subgroups: tuple[SubgroupScores, ...] = ()
    change: Mapping[str, Interval] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelScores":
        """Read the JSON of a row."""
        return cls(
            data["model"],
            data["client"],
            _read_scores(data["scores"]),
            tuple(
                SubgroupScores(one["column"], one["value"], _read_scores(one["scores"]))
                for one in data["subgroups"]
            ),
            _read_metrics(data["change"]),
        )


@dataclass(frozen=True, eq=False)
class Tested:
    """Predictions of a model for the test images of a client, decoded.

    The decision threshold is fitted on the client's own val images.

    Example:
        >>> from pathlib import Path
        >>> from dermedge.federated.client import read_client
        >>> from dermedge.federated.options import FederatedOptions
        >>> from dermedge_runtime.spec import Task
        >>> options = FederatedOptions(backbone="test_efficientnet", size=32)
        >>> table, _ = read_client("a", "lesions", str, options)
        >>> tasks = (Task("malignancy", "binary"),)
        >>> tested = predict_test(Client.open("a", table, tasks, options, Path("client-a")))
        >>> len(tested.predictions), tested.decoded.names
        (12, ('benign', 'malignant'))
    """

    predictions: Predictions
    decoded: Decoded


def predict_test(client: Client) -> Tested:
    """Run the current weights of a client on its test images.

    Raises:
        DataError: The client has no test images.
    """
    spec = client.training.spec
    fitted = fit_postprocessing(client.predict("val"), spec)
    # Conformal sets are no part of this report.
    fitted = {name: replace(values, conformal=None) for name, values in fitted.items()}
    predictions = client.predict("test")
    return Tested(predictions, decode_table(predictions, spec, fitted))


def score_at_client(client: Client) -> ModelScores:
    """Score the federated model at a client; small subgroups do not leave it."""
    scores = score_model("federated", client.name, predict_test(client))
    large = [one for one in scores.subgroups if one.scores.cases >= SMALLEST]
    return replace(scores, subgroups=tuple(large))


def score_model(
    model: str, client: str, tested: Tested, *, replicates: int = 1000, seed: int = 0
) -> ModelScores:
    """Compute all metrics, with intervals over lesions or patients."""
    kept = {name: tested.predictions.subgroups[name] for name in COLUMNS}
    found = score_images(
        replace(tested.predictions, subgroups=kept),
        tested.decoded,
        replicates=replicates,
        seed=seed,
    )
    return ModelScores(
        model,
        client,
        _select(found.overall),
        tuple(replace(one, scores=_select(one.scores)) for one in found.subgroups),
    )


def compare(first: Tested, second: Tested, *, seed: int = 0) -> dict[str, Interval]:
    """Return the metrics of `first` minus those of `second`, on the same images.

    The bootstrap is paired: both models see the same replicates.
    """
    rows = np.ones(len(first.predictions), bool)
    sides = [make_measures(one.decoded, one.predictions.malignant, rows) for one in (first, second)]
    names = [name for name in METRICS if name in sides[0] and name in sides[1]]
    measures = {(side, name): sides[side][name] for side in (0, 1) for name in names}
    drawn = metrics.bootstrap(first.predictions.groups, measures, seed=seed)
    whole = np.ones(len(rows))
    changes = {
        name: metrics.interval(
            float(measures[0, name](whole)) - float(measures[1, name](whole)),
            drawn[0, name] - drawn[1, name],
        )
        for name in names
    }
    return {name: change for name, change in changes.items() if change.value is not None}


def concatenate(parts: Mapping[str, Tested]) -> Tested:
    """Return the test images of all clients as one table.

    Each client keeps its own threshold, so the whole has none. A lesion or a patient of
    one client is not that of another.
    """
    tables = [one.predictions for one in parts.values()]
    columns = {
        name: np.concatenate([table.subgroups[name] for table in tables]) for name in COLUMNS
    }
    predictions = Predictions(
        image_ids=tuple(
            f"{name}/{i}" for name, one in parts.items() for i in one.predictions.image_ids
        ),
        outputs={},
        labels=np.concatenate([table.labels for table in tables]),
        malignant=np.concatenate([table.malignant for table in tables]),
        groups=np.concatenate(
            [
                np.char.add(f"{name}/", one.predictions.groups.astype(str))
                for name, one in parts.items()
            ]
        ),
        subgroups=columns,
    )
    return Tested(predictions, _concatenate_decoded([one.decoded for one in parts.values()]))


def _concatenate_decoded(parts: Sequence[Decoded]) -> Decoded:
    graded = [one.graded for one in parts if one.graded is not None]
    return Decoded(
        names=parts[0].names,
        labels=np.concatenate([one.labels for one in parts]),
        predicted=np.concatenate([one.predicted for one in parts]),
        probabilities=np.concatenate([one.probabilities for one in parts]),
        scores=np.concatenate([one.scores for one in parts]),
        threshold=None,
        graded=Graded(
            np.concatenate([one.predicted for one in graded]),
            np.concatenate([one.levels for one in graded]),
        )
        if graded
        else None,
    )


def _select(scores: Scores) -> Scores:
    known = {
        name: scores.metrics[name]
        for name in METRICS
        if name in scores.metrics and scores.metrics[name].value is not None
    }
    return replace(scores, metrics=known)


def _read_scores(data: Mapping[str, Any]) -> Scores:
    return Scores(**{**data, "metrics": _read_metrics(data["metrics"])})


def _read_metrics(data: Mapping[str, Any]) -> dict[str, Interval]:
    return {name: Interval(**value) for name, value in data.items()}
