"""Write the model and the reports of a federated training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from dermedge.federated.client import Client, build_network, make_client_spec, trained_part
from dermedge.federated.options import FederatedOptions
from dermedge.federated.report import PAGE, REPORT, FederatedReport
from dermedge.federated.rounds import Outcome
from dermedge.federated.scoring import ModelScores
from dermedge.federated.tensors import to_bytes, write_arrays
from dermedge.models.folder_metadata import SplitRows
from dermedge.models.model_folder import TrainedModel, save_model_folder
from dermedge.models.network import Network, count_parameters
from dermedge.report.federated import write_federated_page
from dermedge.train.lineage import make_model_lineage
from dermedge.train.loop import FitResult
from dermedge.train.run_record import RunRecord
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.files import atomic_write
from dermedge_runtime.spec import to_json

MODELS = "models"


def write_reports(
    run: RunRecord, options: FederatedOptions, outcome: Outcome, results: Sequence[ModelScores]
) -> FederatedReport:
    """Write `federated.json` and `federated.html`, and return the report."""
    state = outcome.state
    settings = {**asdict(options), "tasks": [task.name for task in outcome.tasks]}
    report = FederatedReport(
        fingerprint=run.fingerprint,
        settings=settings,
        clients={
            one.name: {"images": dict(one.rows), "labels": to_json(one.labels)}
            for one in outcome.summaries
        },
        tasks=tuple(task.name for task in outcome.tasks),
        parameters=sum(array.size for array in state.arrays.values()),
        bytes=len(to_bytes(state.arrays)),
        best_round=state.best_round,
        scores=tuple(state.scores),
        rounds=tuple(state.history),
        results=tuple(results),
        mapped=outcome.mapped,
        notes=tuple(dict.fromkeys(outcome.notes)),
    )
    data = to_json(report)
    atomic_write(run.folder / REPORT, pretty_json(data))
    write_federated_page(data, run.folder / PAGE)
    return report


def save_federated_model(
    run: RunRecord,
    options: FederatedOptions,
    outcome: Outcome,
    data: Mapping[str, Any],
    *,
    split: SplitRows = (),
    clients: Sequence[Client] = (),
) -> FitResult:
    """Save the model folder of the best round, and return the outcome for `run.json`.

    With FedBN there is no common model. Each client's model goes into `models/NAME`.

    Args:
        run: The open run.
        options: Options of all clients.
        outcome: Tasks and weights.
        data: Lineage of the data.
        split: Rows of the model's split table, as far as they are known here.
        clients: Clients of a simulation, with the weights of the best round.
    """
    state = outcome.state
    score = state.scores[state.best_round]
    metrics = {} if score is None else {"score": score}
    network, backbone = build_network(options, outcome.tasks)
    lineage = {
        "student": make_model_lineage(backbone, options.init),
        "data": dict(data),
        "federated": {
            "clients": len(outcome.summaries),
            "strategy": options.strategy,
            "rounds": len(state.history),
            "trained": options.train,
            "epsilon": options.epsilon,
        },
    }
    spec = make_client_spec(options, backbone, outcome.tasks, lineage)

    def save(network: Network, name: str | None) -> None:
        found = {"val": metrics, "parameters": count_parameters(network)}
        own = spec if name is None else replace(spec, name=f"{spec.name}-{name}")
        model = TrainedModel(network.eval(), own, backbone, "student", found, split)
        save_model_folder(model, run.folder if name is None else run.folder / MODELS / name)

    if options.fedbn:
        for client in clients:
            save(client.network, client.name)
    else:
        write_arrays(trained_part(network, options), state.best)
        save(network, None)
    return FitResult(state.best_round, metrics, tuple(state.history), None)
