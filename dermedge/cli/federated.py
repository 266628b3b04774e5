"""`dermedge federated simulate`, `server` and `client`: options and printing."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dermedge.cli.console import (
    F,
    backbone_arg_option,
    emit,
    fit_option,
    interval,
    json_option,
    overwrite_option,
    pairs,
    print_line,
    progress,
    seed_option,
    size_option,
    table,
)

if TYPE_CHECKING:
    from dermedge.federated.report import FederatedReport


@click.group("federated")
def command() -> None:
    """Train one model at several clients. Images never leave a client."""


def _named(
    ctx: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, Path]:
    """Parse `NAME=PATH` options."""
    clients: dict[str, Path] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator or not name or not path:
            raise click.BadParameter(f"{value!r} does not have the form NAME=PATH.", ctx, parameter)
        if name in clients:
            raise click.BadParameter(f"Two clients are named {name!r}.", ctx, parameter)
        clients[name] = Path(path)
    return clients


def model_options(wrapped: F) -> F:
    """Add the options of the model, the rounds and the privacy."""
    positive = click.FloatRange(min=0, min_open=True)
    options = (
        click.option(
            "--task",
            "tasks",
            multiple=True,
            type=click.Choice(["diagnosis", "malignancy", "severity"]),
            help="Task to learn. Can be repeated. Default: the diagnosis and the malignancy, if "
            "all clients have them, and otherwise the severity.",
        ),
        click.option(
            "--backbone",
            help="timm name, or preset of `dermedge students`. May be omitted if --init names it.",
        ),
        backbone_arg_option,
        click.option(
            "--init",
            default="none",
            show_default=True,
            help="Initial weights: none, hub, a safetensors file, or a model folder.",
        ),
        size_option,
        fit_option,
        click.option(
            "--train",
            type=click.Choice(["head", "all"]),
            default="head",
            show_default=True,
            help="Train and send the heads on stored features of the frozen backbone, or the "
            "whole network.",
        ),
        click.option(
            "--strategy",
            type=click.Choice(["fedavg", "fedprox", "fedadam"]),
            default="fedavg",
            show_default=True,
            help="Averaging of the clients' weights, as Flower implements it.",
        ),
        click.option(
            "--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Rounds."
        ),
        click.option(
            "--local-epochs",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Passes over the train split of a client in each round.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=2),
            default=32,
            show_default=True,
            help="Images per step of a client.",
        ),
        click.option(
            "--lr", type=positive, default=1e-3, show_default=True, help="Peak learning rate."
        ),
        click.option(
            "--proximal",
            type=positive,
            default=0.01,
            show_default=True,
            help="Weight of the distance from the round's start, for fedprox.",
        ),
        click.option(
            "--server-lr",
            type=positive,
            default=0.01,
            show_default=True,
            help="Learning rate of fedadam.",
        ),
        click.option(
            "--fedbn", is_flag=True, help="Keep BatchNorm at each client. Needs --train all."
        ),
        click.option(
            "--epsilon",
            type=positive,
            help="Privacy budget of each client over all rounds, for DP-SGD. Default: no "
            "differential privacy.",
        ),
        click.option(
            "--delta",
            type=positive,
            default=1e-5,
            show_default=True,
            help="Probability with which the budget may be exceeded.",
        ),
        click.option(
            "--clip",
            type=positive,
            default=1.0,
            show_default=True,
            help="Largest norm of the gradient of one image, for DP-SGD.",
        ),
        click.option(
            "--balance/--no-balance",
            default=True,
            show_default=True,
            help="Optimise balanced accuracy of the diagnosis, or accuracy.",
        ),
        click.option(
            "--min-clients",
            type=click.IntRange(min=1),
            default=2,
            show_default=True,
            help="Smallest number of clients that a round needs.",
        ),
        click.option(
            "--timeout",
            type=positive,
            default=3600.0,
            show_default=True,
            help="Seconds that a round waits for its clients.",
        ),
        click.option(
            "--local-ids",
            is_flag=True,
            help="Each client numbers its own patients and lesions, so equal ids mean nothing.",
        ),
        seed_option,
        click.option("--name", help="Name of the model. Default: the name of its backbone."),
        overwrite_option,
        json_option,
    )
    return functools.reduce(lambda function, option: option(function), reversed(options), wrapped)


@command.command("simulate", short_help="Run all clients on this machine, and compare.")
@click.option(
    "--client",
    "clients",
    multiple=True,
    required=True,
    metavar="NAME=TABLE",
    callback=_named,
    help="Name of a client and its data set, a folder or a table file. Can be repeated.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the results."
)
@click.option(
    "--partition",
    type=click.IntRange(min=2),
    help="Divide the one table among this number of simulated clients.",
)
@click.option(
    "--skew",
    type=click.FloatRange(min=0, min_open=True),
    help="Label skew of the partition: parameter of a Dirichlet distribution; .1 is strong. "
    "Default: an even partition.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder for stored features, so that further runs do not compute them. Default: in OUT, "
    "until the run is finished.",
)
@model_options
def simulate_command(
    clients: dict[str, Path],
    out: Path,
    partition: int | None,
    skew: float | None,
    cache: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train at several clients on this machine, and compare with local and pooled training.

    OUT gets a model folder, federated.json and federated.html. A killed run continues
    after its last round.
    """
    from dermedge.federated.options import FederatedOptions
    from dermedge.federated.partition import Partition
    from dermedge.federated.simulate import simulate_federated

    if skew is not None and partition is None:
        raise click.UsageError("--skew needs --partition.")
    options["tasks"] = options["tasks"] or None
    with progress("federated") as report_progress:
        report = simulate_federated(
            clients,
            out,
            FederatedOptions(**options),
            partition=None if partition is None else Partition(partition, skew, options["seed"]),
            cache=cache,
            overwrite=overwrite,
            progress=report_progress,
        )
    emit(report, as_json, functools.partial(show_report, out=out))


def show_report(report: "FederatedReport", out: Path) -> None:
    """Print the scores by client and model, and the properties of the training."""
    for note in report.notes:
        print_line(f"Warning: {note}", fg="yellow", err=True)
    names = list(dict.fromkeys(name for row in report.results for name in row.scores.metrics))
    rows = [
        [row.client, row.model, row.scores.cases]
        + [interval(row.scores.metrics.get(name)) for name in names]
        for row in sorted(report.results, key=lambda row: row.client)
    ]
    if rows:
        table(["client", "model", "images", *(name.replace("_", " ") for name in names)], rows)
    excluded = {name for entry in report.rounds for name in entry["excluded"]}
    spent = {name: e for entry in report.rounds for name, e in entry.get("epsilon", {}).items()}
    pairs(
        {
            "folder": str(out),
            "rounds": f"{len(report.rounds)}, kept: {report.best_round}",
            "sent per client and round": f"{report.bytes} bytes in each direction",
            **({"left out of a round": ", ".join(sorted(excluded))} if excluded else {}),
            **{f"epsilon of {name}": f"{value:.3g}" for name, value in spent.items()},
        }
    )


def tls_file(name: str, help: str) -> Callable[[F], F]:
    """Return an option for a certificate or a key."""
    return click.option(name, type=click.Path(path_type=Path, exists=True), help=help)


@command.command("server", short_help="Run the rounds, and wait for clients over the network.")
@click.option(
    "--clients", required=True, type=click.IntRange(min=2), help="Number of clients to wait for."
)
@click.option(
    "--address",
    default="127.0.0.1:9092",
    show_default=True,
    help="Host and port to listen on. Other hosts than 127.0.0.1 need certificates.",
)
@tls_file("--ca", "Certificate of the authority, PEM.")
@tls_file("--certificate", "Certificate of the server, PEM.")
@tls_file("--key", "Private key of the server, PEM.")
@click.option(
    "--registered-only",
    is_flag=True,
    help="Admit only clients whose public key is registered. Needs certificates.",
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder for the results."
)
@model_options
def server_command(
    clients: int, address: str, out: Path, overwrite: bool, as_json: bool, **options: Any
) -> None:
    """Wait for clients, run all rounds, and write the model and the report.

    After a stop, the same command continues after the last round. The clients wait.
    """
    from dermedge.federated.deployment import ServerTls, serve_federated
    from dermedge.federated.options import FederatedOptions

    ca, certificate, key = (options.pop(name) for name in ("ca", "certificate", "key"))
    registered_only = options.pop("registered_only")
    encrypted = ca and certificate and key
    if not encrypted and (ca or certificate or key or registered_only):
        raise click.UsageError("--ca, --certificate and --key belong together.")
    options["tasks"] = options["tasks"] or None
    with progress("federated") as report_progress:
        report = serve_federated(
            out,
            FederatedOptions(**options),
            clients=clients,
            address=address,
            tls=ServerTls(ca, certificate, key, registered_only) if encrypted else None,
            overwrite=overwrite,
            progress=report_progress,
        )
    emit(report, as_json, functools.partial(show_report, out=out))


@command.command("client", short_help="Train on the own table for a server.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Data set of this client: a folder or a table file.",
)
@click.option("--server", required=True, metavar="HOST:PORT", help="Address of the server.")
@click.option("--name", required=True, help="Name of this client, unique among all.")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for features, the privacy ledger and Flower's files.",
)
@tls_file("--key", "File with the secret of all clients that hides ids from the server.")
@click.option("--init", help="Own copy of the initial weights. Default: the path of the server.")
@click.option(
    "--max-epsilon",
    type=click.FloatRange(min=0, min_open=True),
    help="Refuse a training with a larger privacy budget, or without one.",
)
@tls_file("--ca", "Certificate of the authority that signed the server's, PEM.")
@tls_file("--private-key", "Private key of this client, for a server with --registered-only.")
@click.option("--tls", is_flag=True, help="Encrypt, and trust the authorities of the system.")
def client_command(
    data: Path,
    server: str,
    out: Path,
    key: Path | None,
    ca: Path | None,
    private_key: Path | None,
    tls: bool,
    **options: Any,
) -> None:
    """Train on the own table whenever the server asks, until Ctrl-C.

    The client waits for a server that is not there yet, or was stopped.
    """
    from dermedge.federated.deployment import ClientTls, join_federated

    secure = ClientTls(ca, private_key) if tls or ca or private_key else None
    secret = key.read_bytes() if key else b""
    join_federated(data, server, out, key=secret, tls=secure, **options)
