"""Define the report of a federated training, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dermedge.federated.scoring import ModelScores

SCHEMA = "dermedge.federated/1"
REPORT, PAGE = "federated.json", "federated.html"


@dataclass(frozen=True)
class FederatedReport:
    """Scores, rounds and traffic of a federated training.

    Attributes:
        fingerprint: Digest of the settings and the data.
        settings: All options.
        clients: Images by split and labels, by client.
        tasks: Names of the tasks.
        parameters: Numbers that travel in each direction, per client and round.
        bytes: Bytes of weights that one message holds.
        best_round: The round whose weights were kept. It has the highest val score.
        scores: Mean val score before round 1 and after each round.
        rounds: Loss, clients, excluded clients and bytes of each round; see `Rounds`.
        results: Scores on test by model and client, and over all clients.
        mapped: Diagnoses that count as a wider label, by client.
        notes: Sentences about the run that a reader must know.
        schema: Schema of this report as JSON.

    Example:
        >>> report = FederatedReport("f", {}, {}, ("malignancy",), 9, 136, 1, (0.5, 0.6), (), ())
        >>> from dermedge_runtime.spec import to_json
        >>> FederatedReport.from_json(to_json(report)) == report
        True
    """

    fingerprint: str
    settings: Mapping[str, Any]
    clients: Mapping[str, Any]
    tasks: tuple[str, ...]
    parameters: int
    bytes: int
    best_round: int
    scores: tuple[float | None, ...]
    rounds: tuple[Mapping[str, Any], ...]
    results: tuple[ModelScores, ...]
    mapped: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FederatedReport":
        """Read the JSON of a report."""
        lists = ("tasks", "scores", "rounds", "notes")
        return cls(
            **{
                **data,
                **{name: tuple(data[name]) for name in lists},
                "results": tuple(ModelScores.from_json(row) for row in data["results"]),
            }
        )
