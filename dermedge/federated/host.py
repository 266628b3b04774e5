"""Answer the server's requests at a client."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dermedge.data.table import Table
from dermedge.federated.agreement import keyed_mask
from dermedge.federated.client import Client, build_network, digest_backbone, read_client
from dermedge.federated.options import FederatedOptions
from dermedge.federated.scoring import score_at_client
from dermedge.federated.tensors import from_bytes, to_bytes
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.errors import DermedgeError, UsageError
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import Task, to_json

Reply = tuple[dict[str, Any], bytes]
Handler = Callable[[Mapping[str, Any], bytes], Reply]


@dataclass(eq=False)
class ClientHost:
    """The data of one client, and the answers to the server's requests.

    An answer holds numbers about the whole table, weights, and hidden ids. It never
    holds an image, a label of an image, or an id in clear.

    Attributes:
        name: Name of the client.
        data: Its table.
        folder: Folder of its features.
        key: Secret of all clients that hides patients from the server.
        init: Its own copy of the initial weights; None takes the path of the options.
        cache: Folder of stored features; by default `features` in `folder`.
        max_epsilon: Largest privacy budget that the client accepts. None also accepts a
            training without differential privacy.
        clear: Leave ids as they are, for a simulation on one machine.
        progress: Called with the number of images whose features are stored.

    Example:
        >>> host = ClientHost("a", "lesions", Path("client-a"))
        >>> options = FederatedOptions(backbone="test_efficientnet", size=32)
        >>> reply, _ = host.answer(make_request("join", options, salt="1f"), b"")
        >>> reply["name"], reply["rows"]["train"]
        ('a', 53)
    """

    name: str
    data: Path | str | Table
    folder: Path
    key: bytes = b""
    init: str | None = None
    cache: Path | None = None
    max_epsilon: float | None = None
    clear: bool = False
    progress: Progress | None = None
    _tables: dict[str, Table] = field(default_factory=dict)
    _clients: dict[bytes, Client] = field(default_factory=dict)

    def answer(self, request: Mapping[str, Any], weights: bytes) -> Reply:
        """Return the answer to a request: JSON and weights.

        An error of dermedge becomes an answer with its message, so that the server can
        name this client.

        Args:
            request: Result of `make_request`.
            weights: Weights as safetensors, or nothing.
        """
        try:
            self._check_privacy(request["options"]["epsilon"])
            handler: Handler = getattr(self, f"_{request['do']}")
            return handler(request, weights)
        except DermedgeError as error:
            return {"error": str(error)}, b""

    @property
    def opened(self) -> Client:
        """The client that answered the last request about weights."""
        return next(iter(self._clients.values()))

    def client(self, request: Mapping[str, Any]) -> Client:
        """Return the client for the options and tasks of a request."""
        key = canonical_json([request["options"], request["tasks"]])
        if key not in self._clients:
            options = self._read_options(request)
            table = self._tables.get("") or read_client(self.name, self.data, str, options)[0]
            tasks = tuple(Task.from_json(task) for task in request["tasks"])
            self._clients.clear()
            self._clients[key] = Client.open(
                *(self.name, table, tasks, options, self.folder),
                cache=self.cache,
                progress=self.progress,
            )
        return self._clients[key]

    def _check_privacy(self, epsilon: float | None) -> None:
        if self.max_epsilon is not None and not (epsilon or math.inf) <= self.max_epsilon:
            raise UsageError(
                f"The server asks the client {self.name!r} for an epsilon of {epsilon}, and its "
                f"--max-epsilon is {self.max_epsilon}. Agree on one."
            )

    def _read_options(self, request: Mapping[str, Any]) -> FederatedOptions:
        options = FederatedOptions(**request["options"])
        return options if self.init is None else replace(options, init=self.init)

    def _join(self, request: Mapping[str, Any], weights: bytes) -> Reply:
        options = self._read_options(request)
        mask = str if self.clear else keyed_mask(bytes.fromhex(request["salt"]) + self.key)
        table, summary = read_client(self.name, self.data, mask, options)
        self._tables[""] = table
        if options.train == "head":
            summary = replace(summary, backbone=digest_backbone(build_network(options, ())[0]))
        return to_json(summary), b""

    def _train(self, request: Mapping[str, Any], weights: bytes) -> Reply:
        client = self.client(request)
        client.load(from_bytes(weights))
        score = client.score()
        if client.options.epsilon is None:
            metrics = client.train(request["round"], request["proximal"])
        else:
            from dermedge.federated.privacy import train_privately

            metrics = train_privately(client, request["round"], weights)
        return {
            "name": self.name,
            "rows": len(client.training.train),
            "val": len(client.training.val),
            "score": score,
            **metrics,
        }, to_bytes(client.weights())

    def _score(self, request: Mapping[str, Any], weights: bytes) -> Reply:
        client = self.client(request)
        client.load(from_bytes(weights))
        return {"name": self.name, "val": len(client.training.val), "score": client.score()}, b""

    def _report(self, request: Mapping[str, Any], weights: bytes) -> Reply:
        client = self.client(request)
        client.load(from_bytes(weights))
        return {"name": self.name, **to_json(score_at_client(client))}, b""


def make_request(
    do: str, options: FederatedOptions, tasks: tuple[Task, ...] = (), **more: Any
) -> dict[str, Any]:
    """Return a request of the server, as plain JSON.

    Args:
        do: `join`, `train`, `score` or `report`.
        options: Options of all clients.
        tasks: The agreed tasks; empty for `join`.
        more: Further values: `salt` for `join`; `round` and `proximal` for `train`.

    Example:
        >>> make_request("join", FederatedOptions(rounds=2), salt="1f")["options"]["rounds"]
        2
    """
    request = {"do": do, "options": asdict(options), "tasks": to_json(tasks), **more}
    return dict(json.loads(json.dumps(request)))
