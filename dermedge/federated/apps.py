"""The apps that Flower's processes run: the rounds at the server, the answers at a client."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dermedge.federated.finish import save_federated_model, write_reports
from dermedge.federated.host import ClientHost
from dermedge.federated.options import FederatedOptions
from dermedge.federated.rounds import Outcome, Server, make_client_app
from dermedge.federated.scoring import ModelScores
from dermedge.train.run_record import CACHE, RunRecord
from dermedge_runtime.canonical_json import pretty_json, read_json
from dermedge_runtime.errors import DataError, DermedgeError
from dermedge_runtime.files import atomic_write

SETUP = "setup"
PROGRESS, RESULT = "progress.json", "result.json"


def make_run(out: Path, options: FederatedOptions, clients: int) -> RunRecord:
    """Return the record of a server's run. Its data are known to the clients only."""
    settings = {"clients": clients, **asdict(options)}
    settings.pop("timeout")
    return RunRecord(out, "federated server", json.loads(json.dumps(settings)), "")


def make_server_app() -> Any:
    """Return the Flower ServerApp, which runs all rounds and writes the results."""
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        run_server(grid, read_json(Path(str(context.run_config[SETUP])), DataError))

    return app


def run_server(grid: Any, setup: Mapping[str, Any]) -> None:
    """Run all rounds; write the model, the reports, and the result for the parent process.

    Args:
        grid: Flower's connection to the clients.
        setup: `out`, `clients` and `options`.
    """
    out, options = Path(setup["out"]), FederatedOptions(**setup["options"])

    def report_progress(done: int, total: int, note: str) -> None:
        atomic_write(out / CACHE / PROGRESS, pretty_json([done, total, note]))

    result: dict[str, Any] = {}
    try:
        server = Server(
            grid,
            options,
            clients=setup["clients"],
            folder=out / CACHE,
            progress=report_progress,
            report=True,
        )
        outcome = server.run()
        run = make_run(out, options, setup["clients"])
        write_reports(run, options, outcome, _read_results(outcome))
        fitted = save_federated_model(run, options, outcome, describe_data(outcome))
        result["fitted"] = asdict(fitted)
    except DermedgeError as error:
        result["error"] = str(error)
    atomic_write(out / CACHE / RESULT, pretty_json(result))


def describe_data(outcome: Outcome) -> dict[str, Any]:
    """Return the data's entry in the lineage, as far as the server knows them.

    Example:
        >>> from dermedge.federated.agreement import Summary
        >>> from dermedge.federated.rounds import Rounds
        >>> outcome = Outcome(Rounds(), (), (Summary("a", {"train": 70, "val": 9, "test": 1}),))
        >>> describe_data(outcome)["images"]["train"]
        70
    """
    return {
        "name": ", ".join(one.name for one in outcome.summaries),
        "licences": ["known to the clients"],
        "images": {
            split: sum(one.rows[split] for one in outcome.summaries)
            for split in ("train", "val", "test")
        },
        "modalities": {},
    }


def _read_results(outcome: Outcome) -> list[ModelScores]:
    return [ModelScores.from_json(row) for row in outcome.reports.values()]


def make_deployed_client_app() -> Any:
    """Return the Flower ClientApp of a client whose setup file the node's configuration names."""

    def find_host(context: Any) -> ClientHost:
        setup = read_json(Path(str(context.node_config[SETUP])), DataError)
        key = bytes.fromhex(setup.pop("key"))
        folder, data = Path(setup.pop("folder")), Path(setup.pop("data"))
        return ClientHost(data=data, folder=folder, key=key, **setup)

    return make_client_app(find_host)
