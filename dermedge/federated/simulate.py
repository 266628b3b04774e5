"""`federated simulate`: all clients on one machine, beside local and pooled training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from dermedge.data.split import with_split
from dermedge.data.table import Table, read_table, table_digest
from dermedge.federated.client import Client
from dermedge.federated.finish import save_federated_model, write_reports
from dermedge.federated.host import ClientHost
from dermedge.federated.options import FederatedOptions
from dermedge.federated.partition import Partition, divide
from dermedge.federated.report import REPORT, FederatedReport
from dermedge.federated.rounds import Outcome, Server, make_client_app, require_flower
from dermedge.federated.scoring import (
    ALL,
    ModelScores,
    Tested,
    compare,
    concatenate,
    predict_test,
    score_model,
)
from dermedge.train.lineage import collect_split, digest_init, make_data_lineage, read_init_split
from dermedge.train.run_record import CACHE, RunRecord
from dermedge_runtime.canonical_json import read_json
from dermedge_runtime.errors import DataError, UsageError
from dermedge_runtime.files import sha256_hex
from dermedge_runtime.progress import Progress

Data = Path | str | Table
LOCAL, POOLED, FEDERATED = "local", "pooled", "federated"


def simulate_federated(
    clients: Mapping[str, Data],
    out: Path | str,
    options: FederatedOptions | None = None,
    *,
    partition: Partition | None = None,
    cache: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FederatedReport:
    """Train at several clients in this process, and compare with local and pooled training.

    The clients answer the same messages of Flower as real ones, one after the other.
    Three trainings have the same number of epochs: each client alone (`local`), one model
    on all images (`pooled`), and the federated one. The kept epoch or round has the
    highest score on val. Test images are used for the report only.

    A finished run with the same settings and data is not repeated, and a killed run
    continues after its last round.

    Args:
        clients: Folder, table file or table of each client, by name. With a partition,
            one.
        out: Folder for the model, `federated.json`, `federated.html` and `run.json`.
        options: Model, rounds and privacy.
        partition: Divide the one table among simulated clients.
        cache: Folder of the frozen backbone's features, which other runs can share; by
            default in `out` until the run is finished.
        overwrite: Replace another run in `out`.
        progress: Called after every round.

    Raises:
        DataError: A table cannot be used, or the clients do not fit each other.
        UsageError: There are fewer than two clients, or `out` holds another run.
        MissingExtraError: Flower is not installed.

    Example:
        >>> simulate_federated({"hospital": "lesions"}, "federated")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: There is 1 client. Give at least two tables, or...
    """
    options, out = options or FederatedOptions(), Path(out)
    if len(clients) < 2 and partition is None:
        raise UsageError(
            f"There is {len(clients)} client. Give at least two tables, or one with a partition."
        )
    require_flower()
    tables = _read_tables(clients, partition)
    options = replace(options, min_clients=min(options.min_clients, len(tables)))
    digests = {name: table_digest(table) for name, table in tables.items()}
    settings = {
        "clients": digests,
        **{name: value for name, value in asdict(options).items() if name != "timeout"},
        "init": digest_init(options.init),
    }
    pooled_table = pool(tables, local_ids=options.local_ids)
    images = sha256_hex("".join(sorted(digests.values())).encode())
    run = RunRecord(out, "federated simulate", settings, images)
    finished = read_finished(run, overwrite=overwrite)
    if finished is not None:
        return finished
    run.open(overwrite=overwrite)
    features = Path(cache) if cache is not None else out / CACHE / "features"
    hosts = {
        name: ClientHost(
            name, table, out / CACHE / name, cache=features, clear=True, progress=progress
        )
        for name, table in tables.items()
    }
    server = Server(
        make_local_grid(hosts),
        options,
        clients=len(hosts),
        folder=out / CACHE,
        progress=progress,
    )
    outcome = server.run()
    trained = [host.opened for host in hosts.values()]
    pooled = Client.open(
        POOLED,
        pooled_table,
        outcome.tasks,
        replace(options, fedbn=False, epsilon=None),
        out / CACHE / POOLED,
        cache=features,
    )
    results = _compare_trainings(trained, pooled, outcome)
    report = write_reports(run, options, outcome, results)
    data = {**make_data_lineage(pooled.samples), "name": ", ".join(tables)}
    split = collect_split(pooled.samples, read_init_split(options.init))
    fitted = save_federated_model(run, options, outcome, data, split=split, clients=trained)
    run.close(fitted, rounds=options.rounds)
    return report


def read_finished(run: RunRecord, *, overwrite: bool) -> FederatedReport | None:
    """Return the report of a finished run, or None. Nothing is written.

    Raises:
        UsageError: The folder holds another run, and `overwrite` is false.
    """
    if not run.is_finished(overwrite=overwrite):
        return None
    return FederatedReport.from_json(read_json(run.folder / REPORT, DataError))


def _read_tables(clients: Mapping[str, Data], partition: Partition | None) -> dict[str, Table]:
    if partition is not None:
        if len(clients) != 1:
            raise UsageError(
                f"A partition needs one table, not {len(clients)}. Give one --client, or omit "
                "--partition."
            )
        return divide(_read(next(iter(clients.values()))), partition)
    return {name: _read(data) for name, data in clients.items()}


def _read(data: Data) -> Table:
    return data if isinstance(data, Table) else read_table(data)


def pool(tables: Mapping[str, Table], *, local_ids: bool) -> Table:
    """Return the rows of all clients as one table, for comparison.

    Example:
        >>> table = read_table("lesions")
        >>> len(pool({"a": table, "b": table}, local_ids=True))
        160
    """
    frames = []
    for name, table in tables.items():
        frame = with_split(table).frame.copy()
        frame["image_id"] = f"{name}/" + frame["image_id"]
        # A path that is absolute replaces the folder that it is joined to.
        frame["image"] = [str(table.path(image).resolve()) for image in frame["image"]]
        frame["mask"] = ""
        if local_ids:
            frame["source"] = f"{name}/" + frame["source"]
        frames.append(frame)
    first = next(iter(tables.values()))
    joined = pd.concat(frames, ignore_index=True)
    return replace(first.replace(joined.fillna(dict.fromkeys(_text_columns(joined), ""))), notes=())


def _text_columns(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if not pd.api.types.is_float_dtype(frame[name])]


def make_local_grid(hosts: Mapping[str, ClientHost]) -> Any:
    """Return a Flower Grid that calls the clients in this process, one after the other.

    Flower's own simulation starts a cluster of Ray, of one pinned version, and copies the
    data of a client into each worker. On few cores it is slower than calling in turn.
    """
    from flwr.app import Context, RecordDict
    from flwr.serverapp import Grid
    from flwr.supercore.task_identity import TaskIdentity

    # A message names its sender by these, which Flower's own processes set in the same way
    # (flwr/server/compat/app.py).
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    names = dict(enumerate(hosts, start=2))
    app = make_client_app(lambda context: hosts[str(context.node_config["client"])])
    contexts = {
        node: Context(
            run_id=1,
            node_id=node,
            node_config={"client": name},
            state=RecordDict(),
            run_config={},
        )
        for node, name in names.items()
    }

    class LocalGrid(Grid):  # type: ignore[misc]
        # Abstract in Flower. Its strategies call only the two methods below.
        run = set_run = create_message = push_messages = pull_messages = None

        def get_node_ids(self) -> Iterable[int]:
            return names

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            replies = []
            for message in messages:
                message.metadata.__dict__["_run_id"] = 1
                message.metadata.__dict__["_message_id"] = str(uuid4())
                replies.append(app(message, contexts[message.metadata.dst_node_id]))
            return replies

    return LocalGrid()


def _compare_trainings(
    trained: Sequence[Client], pooled: Client, outcome: Outcome
) -> list[ModelScores]:
    """Train alone and pooled, and score all three models on each client's test images."""
    tested: dict[str, dict[str, Tested]] = {FEDERATED: {}, LOCAL: {}, POOLED: {}}
    for client in trained:
        client.load(outcome.state.best)
        tested[FEDERATED][client.name] = predict_test(client)
    pooled.train_alone()
    whole = pooled.weights()
    for client in trained:
        one = Client.open(
            *(client.name, client.table, outcome.tasks, pooled.options, pooled.folder),
            cache=client.cache,
        )
        one.train_alone()
        tested[LOCAL][client.name] = predict_test(one)
        one.load(whole)
        tested[POOLED][client.name] = predict_test(one)
    rows = []
    for model in (LOCAL, POOLED, FEDERATED):
        parts = {**tested[model], ALL: concatenate(tested[model])}
        best = {**tested[FEDERATED], ALL: concatenate(tested[FEDERATED])}
        for name, part in parts.items():
            change = {} if model == FEDERATED else compare(best[name], part)
            rows.append(replace(score_model(model, name, part), change=change))
    return rows
