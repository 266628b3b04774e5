"""Run the rounds of a federated training on Flower: join, train, score, report."""

import importlib.util
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from dermedge.federated.agreement import Summary, agree_tasks, check_clients, describe_mapping
from dermedge.federated.client import build_network, trained_part
from dermedge.federated.host import ClientHost, make_request
from dermedge.federated.options import FederatedOptions
from dermedge.federated.tensors import (
    Arrays,
    check_arrays,
    from_bytes,
    read_arrays,
    to_bytes,
    travelling,
)
from dermedge_runtime.errors import DataError, MissingExtraError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Task

# Flower reports its use to its makers unless this is 0.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

CHECKPOINT = "rounds.safetensors"
RECORD = "message"
POLL_SECONDS = 0.5


@dataclass
class Rounds:
    """The state of a federated training after its last complete round.

    Attributes:
        history: One entry per round: its number, `loss`, `clients` that took part,
            `excluded` clients with the reason, `sent` and `received` bytes of weights,
            and `epsilon` of each client under differential privacy.
        scores: Mean val score of the weights before round 1 and after each round.
        arrays: Weights after the last round.
        best: Weights with the highest score.
        moments: State of FedAdam.

    Example:
        >>> state = Rounds(arrays={"w": np.zeros(2, np.float32)})
        >>> state.add_score(0.5)
        >>> state.write(Path("rounds.safetensors"))
        >>> Rounds.read(Path("rounds.safetensors")).scores
        [0.5]
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    arrays: Arrays = field(default_factory=dict)
    best: Arrays = field(default_factory=dict)
    moments: Mapping[str, Arrays] = field(default_factory=dict)

    @property
    def best_round(self) -> int:
        """Round whose weights have the highest val score; the last one without scores."""
        known = [(score, place) for place, score in enumerate(self.scores) if score is not None]
        return max(known, key=lambda one: (one[0], -one[1]))[1] if known else len(self.history)

    def add_score(self, score: float | None) -> None:
        """Record the score of `arrays`, and keep them if it is the highest."""
        self.scores.append(score)
        if self.best_round == len(self.scores) - 1 or not self.best:
            self.best = self.arrays

    def write(self, path: Path) -> None:
        """Write the state to one file, atomically."""
        groups = {"now": self.arrays, "best": self.best, **self.moments}
        tensors = {
            f"{group}/{name}": np.ascontiguousarray(array)
            for group, arrays in groups.items()
            for name, array in arrays.items()
        }
        state = json.dumps({"history": self.history, "scores": self.scores})
        atomic_write(path, save(tensors, metadata={"state": state}))

    @classmethod
    def read(cls, path: Path) -> "Rounds":
        """Read the state of a training that was interrupted."""
        groups: dict[str, dict[str, Any]] = {"now": {}, "best": {}}
        with safe_open(path, framework="numpy") as file:
            state = json.loads(file.metadata()["state"])
            for key in file.keys():  # noqa: SIM118 - not a dict
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(key)
        now, best = groups.pop("now"), groups.pop("best")
        return cls(state["history"], state["scores"], now, best, groups)


@dataclass(frozen=True)
class Outcome:
    """Result of `run_rounds`.

    Attributes:
        state: History and weights.
        tasks: The agreed tasks.
        summaries: The clients.
        notes: Sentences about shared images, and about clients that were ignored.
        mapped: Diagnoses that count as a wider label, by client.
        reports: Answers of the clients to the last request, by name.

    Example:
        >>> Outcome(Rounds(), (), ()).reports
        {}
    """

    state: Rounds
    tasks: tuple[Task, ...]
    summaries: tuple[Summary, ...]
    notes: tuple[str, ...] = ()
    mapped: Mapping[str, Any] = field(default_factory=dict)
    reports: Mapping[str, Any] = field(default_factory=dict)


def require_flower() -> None:
    """Check that Flower is installed.

    Raises:
        MissingExtraError: It is not.
    """
    if importlib.util.find_spec("flwr") is None:
        raise MissingExtraError("flwr", "federated", "`dermedge federated`")
    import flwr.serverapp  # noqa: F401  # sets the level of its logger

    logging.getLogger("flwr").setLevel(logging.WARNING)


def pack(request: Mapping[str, Any], weights: bytes) -> Any:
    """Return the content of a message: JSON text, and weights as safetensors."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({RECORD: ConfigRecord({"json": json.dumps(request), "weights": weights})})


def unpack(message: "Message") -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the weights of a message, or the error that Flower reports."""
    if message.has_error():
        return {"error": f"Flower reports: {message.error.reason or message.error.code}"}, b""
    try:
        record = message.content[RECORD]
        return dict(json.loads(record["json"])), bytes(record["weights"])
    except (KeyError, TypeError, ValueError) as error:
        return {"error": f"Its answer cannot be read ({error!r})."}, b""


def make_client_app(find_host: Callable[[Any], ClientHost]) -> Any:
    """Return the Flower ClientApp: a thin wrapper around `ClientHost.answer`.

    Args:
        find_host: Function that returns the host for a Flower context.
    """
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        reply, weights = find_host(context).answer(*unpack(message))
        return Message(pack(reply, weights), reply_to=message)

    app.train()(answer)
    app.query()(answer)
    return app


class Server:
    """The server's side of a federated training: who joined, and the state of the rounds.

    Args:
        grid: Flower's connection to the clients.
        options: Options of all clients.
        clients: Number of clients to wait for.
        folder: Folder of the state.
        progress: Called after every round.
        report: Ask each client for the scores on its test images at the end.

    Example:
        >>> Server(None, FederatedOptions(), clients=2, folder=Path("run")).names
        {}
    """

    def __init__(
        self,
        grid: "Grid",
        options: FederatedOptions,
        *,
        clients: int,
        folder: Path,
        progress: Progress | None = None,
        report: bool = False,
    ) -> None:
        self.grid, self.options, self.clients = grid, options, clients
        self.folder, self.progress, self.report = folder, progress, report
        self.names: dict[int, str] = {}
        self.summaries: dict[str, Summary] = {}
        self.refused: dict[int, str] = {}
        self.notes: list[str] = []
        self.tasks: tuple[Task, ...] = ()
        self.salt = secrets.token_hex(16)
        self.state = Rounds()

    def run(self) -> Outcome:
        """Run all rounds that the folder does not hold yet.

        Raises:
            DataError: The clients do not fit each other, or too few of them answer. The
                message names the clients.
        """
        self.gather()
        summaries = tuple(self.summaries.values())
        self.notes += check_clients(summaries, self.options)
        self.tasks = agree_tasks(summaries, self.options.tasks)
        self.start()
        left = self.options.rounds - len(self.state.history)
        if left > 0:
            from flwr.app import ArrayRecord

            strategy = make_strategy(self)
            strategy.start(
                self.grid,
                ArrayRecord({name: _wrap(array) for name, array in self.state.arrays.items()}),
                num_rounds=left,
                timeout=self.options.timeout,
            )
        if len(self.state.scores) <= self.options.rounds:
            self.finish_score(self.ask("score", to_bytes(self.state.arrays)).values())
            self.save()
        reports = self.ask("report", to_bytes(self.state.best)) if self.report else {}
        mapped = describe_mapping(summaries, self.tasks)
        return Outcome(self.state, self.tasks, summaries, tuple(self.notes), mapped, reports)

    def gather(self) -> None:
        """Wait for the clients, and ask each for its summary."""
        self.wait(self.clients)
        self.admit()
        if len(self.names) < self.clients:
            reasons = "; ".join(self.refused.values())
            raise DataError(
                f"{len(self.names)} of {self.clients} clients joined: {reasons}. Correct their "
                "tables and start again."
            )

    def start(self) -> None:
        """Read the state of an interrupted training, or start with the initial weights."""
        network, _ = build_network(self.options, self.tasks)
        module = trained_part(network, self.options)
        self.state = Rounds(arrays=read_arrays(module, travelling(module, self.options)))
        path = self.folder / CHECKPOINT
        if path.is_file():
            earlier = Rounds.read(path)
            check_arrays(earlier.arrays, self.state.arrays)
            self.state = earlier

    def wait(self, count: int) -> list[int]:
        """Wait until `count` clients are connected; return all that are.

        Raises:
            DataError: They do not connect within the timeout.
        """
        end = time.monotonic() + self.options.timeout
        while len(nodes := list(self.grid.get_node_ids())) < count:
            if time.monotonic() > end:
                lost = [name for node, name in self.names.items() if node not in nodes]
                missing = f" Missing: {', '.join(map(repr, lost))}." if lost else ""
                raise DataError(
                    f"{len(nodes)} of {count} clients are connected after "
                    f"{self.options.timeout:g} s.{missing} Start them, or lower --min-clients."
                )
            time.sleep(POLL_SECONDS)
        return nodes

    def admit(self) -> list[int]:
        """Ask new nodes for their summaries; return the nodes that may train.

        A client that was restarted has another node id. It is recognized by its name.
        """
        nodes = list(self.grid.get_node_ids())
        new = [node for node in nodes if node not in self.names and node not in self.refused]
        request = make_request("join", self.options, salt=self.salt)
        for node, reply, _ in self.send(request, b"", new, "query"):
            name = str(reply.get("name", f"node {node}"))
            if "error" in reply:
                self.refused[node] = f"{name}: {reply['error']}"
            elif self.tasks and name not in self.summaries:
                self.refused[node] = f"{name}: it came after the start"
                self.notes.append(f"The client {name!r} came after the start and was ignored.")
            else:
                taken = [other for other, known in self.names.items() if known == name]
                if any(other in nodes for other in taken):
                    raise DataError(f"Two clients are named {name!r}. Give each its own --name.")
                for other in taken:
                    del self.names[other]
                self.names[node] = name
                self.summaries[name] = Summary(**reply)
        return [node for node in nodes if node in self.names]

    def send(
        self, request: Mapping[str, Any], weights: bytes, nodes: Sequence[int], kind: str
    ) -> Iterator[tuple[int, dict[str, Any], bytes]]:
        """Send a request to nodes; yield the answers of those that answer."""
        from flwr.app import Message

        content = pack(request, weights)
        messages = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
        if messages:
            for reply in self.grid.send_and_receive(messages, timeout=self.options.timeout):
                yield reply.metadata.src_node_id, *unpack(reply)

    def ask(self, do: str, weights: bytes) -> dict[str, dict[str, Any]]:
        """Send a request to all clients; return the answers by name."""
        request = make_request(do, self.options, self.tasks)
        nodes = self.admit()
        answers = {
            self.names[node]: reply
            for node, reply, _ in self.send(request, weights, nodes, "query")
        }
        for name, reply in answers.items():
            if "error" in reply:
                self.notes.append(f"The client {name!r} did not answer {do!r}: {reply['error']}")
        return {name: reply for name, reply in answers.items() if "error" not in reply}

    def request(self, number: int, proximal: float) -> dict[str, Any]:
        """Return the request of a training round."""
        return make_request("train", self.options, self.tasks, round=number, proximal=proximal)

    def finish_score(self, replies: Iterable[Mapping[str, Any]]) -> None:
        """Record the mean val score, weighted by the number of val images."""
        known = [(one["score"], one["val"]) for one in replies if one.get("score") is not None]
        total = sum(val for _, val in known)
        self.state.add_score(sum(score * val for score, val in known) / total if total else None)

    def save(self) -> None:
        """Write the state to the folder."""
        self.state.write(self.folder / CHECKPOINT)


def make_strategy(server: Server) -> Any:
    """Return Flower's strategy, with safetensors on the wire and checked answers.

    A client whose answer is an error, does not arrive, does not fit or is not finite is
    left out of the round.
    """
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import strategy

    options = server.options
    base, own = {
        "fedavg": (strategy.FedAvg, {}),
        "fedprox": (strategy.FedProx, {"proximal_mu": options.proximal}),
        "fedadam": (strategy.FedAdam, {"eta": options.server_lr}),
    }[options.strategy]

    class Checked(base):  # type: ignore[misc, valid-type]
        asked: tuple[str, ...] = ()

        def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Any:
            server.wait(options.min_clients)
            allowed = server.admit()
            number = len(server.state.history) + 1
            sent = [
                message
                for message in super().configure_train(number, arrays, config, grid)
                if message.metadata.dst_node_id in allowed
            ]
            # Flower draws the order, and rounding errors of a mean depend on it.
            sent.sort(key=lambda one: server.names[one.metadata.dst_node_id])
            self.asked = tuple(server.names[one.metadata.dst_node_id] for one in sent)
            server.state.arrays = {name: array.numpy() for name, array in arrays.items()}
            request = server.request(number, float(config.get("proximal-mu", 0.0)))
            content = pack(request, to_bytes(server.state.arrays))
            return [
                Message(content, dst_node_id=one.metadata.dst_node_id, message_type="train")
                for one in sent
            ]

        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            usable, answers, excluded, received = [], [], {}, 0
            for reply in replies:
                name = server.names.get(reply.metadata.src_node_id, "unknown")
                answer, weights = unpack(reply)
                received += len(weights)
                try:
                    if "error" in answer:
                        raise DataError(str(answer["error"]))
                    arrays = from_bytes(weights)
                    check_arrays(arrays, server.state.arrays)
                except DataError as error:
                    excluded[name] = str(error)
                    continue
                answers.append(answer)
                metrics = MetricRecord({"num-examples": answer["rows"], "loss": answer["loss"]})
                record = ArrayRecord({key: _wrap(array) for key, array in arrays.items()})
                reply.content = RecordDict({"arrays": record, "metrics": metrics})
                usable.append(reply)
            order = sorted(range(len(answers)), key=lambda place: answers[place]["name"])
            usable, answers = ([part[place] for place in order] for part in (usable, answers))
            present = [answer["name"] for answer in answers]
            excluded |= {
                name: f"It did not answer within {options.timeout:g} s."
                for name in self.asked
                if name not in excluded and name not in present
            }
            number = len(server.state.history) + 1
            if len(usable) < options.min_clients:
                reasons = "; ".join(f"{name!r}: {reason}" for name, reason in excluded.items())
                raise DataError(
                    f"Round {number} has usable weights of {len(usable)} clients, and "
                    f"--min-clients is {options.min_clients}. Left out: {reasons}"
                )
            averaged, metrics = super().aggregate_train(number, usable)
            server.finish_score(answers)
            sent = len(to_bytes(server.state.arrays)) * len(self.asked)
            server.state.arrays = {
                name: array.numpy().astype(server.state.arrays[name].dtype)
                for name, array in averaged.items()
            }
            server.state.moments = _moments(self)
            entry = {
                "round": number,
                "loss": float(metrics["loss"]),
                "clients": present,
                "excluded": excluded,
                "sent": sent,
                "received": received,
            }
            spent = {one["name"]: one["epsilon"] for one in answers if "epsilon" in one}
            server.state.history.append(entry | ({"epsilon": spent} if spent else {}))
            server.save()
            if server.progress:
                score = server.state.scores[-1]
                note = "" if score is None else f"val score before {score:.3f}"
                server.progress(number, options.rounds, note)
            return averaged, metrics

    made = Checked(
        fraction_evaluate=0.0,
        min_train_nodes=options.min_clients,
        min_available_nodes=options.min_clients,
        **own,
    )
    for name, moments in server.state.moments.items():
        setattr(made, name, dict(moments))
    return made


def _moments(strategy: Any) -> dict[str, Arrays]:
    """Return the moments of FedAdam, so that a resumed training repeats them."""
    return {
        name: dict(value)
        for name in ("m_t", "v_t")
        if isinstance(value := getattr(strategy, name, None), Mapping) and value
    }


def _wrap(array: Any) -> Any:
    from flwr.app import Array

    return Array(np.asarray(array))
