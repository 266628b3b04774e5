"""`federated server` and `federated client`: real processes, on Flower's SuperLink and SuperNode.

Flower starts a new process for each message to a client, and one for the rounds at the
server. They load the two apps of `APP`, which call installed code of dermedge.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dermedge.federated.apps import PROGRESS, RESULT, SETUP, make_run
from dermedge.federated.options import FederatedOptions
from dermedge.federated.report import FederatedReport
from dermedge.federated.rounds import require_flower
from dermedge.federated.simulate import read_finished
from dermedge.train.loop import FitResult
from dermedge.train.run_record import CACHE
from dermedge_runtime.canonical_json import pretty_json, read_json
from dermedge_runtime.errors import DataError, DermedgeError, UsageError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.progress import Progress

POLL_SECONDS = 0.5
START_SECONDS = 120
STOP_SECONDS = 10
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
LINK, APP, MODULE, LOG = "server", "app", "dermedge_federated", "flower.log"
CODE = """from dermedge.federated.apps import make_deployed_client_app, make_server_app

client_app = make_deployed_client_app()
server_app = make_server_app()
"""
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "dermedge-federated"
version = "1.0.0"
description = "Federated training of dermedge"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "dermedge"

[tool.flwr.app.components]
serverapp = "dermedge_federated:server_app"
clientapp = "dermedge_federated:client_app"

[tool.flwr.app.config]
setup = "{setup}"
"""


@dataclass(frozen=True)
class ServerTls:
    """Certificates of a server, and whether it admits registered clients only.

    Attributes:
        ca: Certificate of the authority, PEM.
        certificate: Certificate of the server, PEM.
        key: Private key of the server, PEM.
        registered_only: Admit only SuperNodes whose public key is registered.

    Example:
        >>> tls = ServerTls(Path("ca.crt"), Path("server.pem"), Path("server.key"))
        >>> tls.registered_only
        False
    """

    ca: Path
    certificate: Path
    key: Path
    registered_only: bool = False


@dataclass(frozen=True)
class ClientTls:
    """Certificate that a client checks its server by, and its own keys.

    Attributes:
        ca: Certificate of the authority, PEM. None uses those of the system.
        private_key: Private key of the client, for a server that admits registered
            clients only.

    Example:
        >>> ClientTls(Path("ca.crt")).private_key is None
        True
    """

    ca: Path | None = None
    private_key: Path | None = None


def serve_federated(
    out: Path | str,
    options: FederatedOptions | None = None,
    *,
    clients: int,
    address: str = "127.0.0.1:9092",
    tls: ServerTls | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FederatedReport:
    """Start a server, wait for its clients, and run all rounds.

    Flower's SuperLink and its helpers are child processes. A server that was stopped
    continues after its last round with the same command; its clients wait for it.

    Args:
        out: Folder for the model, `federated.json`, `federated.html` and `run.json`.
        options: Model, rounds and privacy.
        clients: Number of clients to wait for.
        address: Host and port to listen on.
        tls: Certificates. None is for loopback only: nothing is encrypted.
        overwrite: Replace another run in `out`.
        progress: Called after every round.

    Raises:
        DataError: The clients do not fit each other, or too few of them answer. The
            message names the clients.
        UsageError: The address cannot be used, or `out` holds another run.
        MissingExtraError: Flower is not installed.

    Example:
        >>> serve_federated("served", clients=2, address="0.0.0.0:9092")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: 0.0.0.0:9092 is reachable from other machines...
    """
    options, out = options or FederatedOptions(), Path(out).resolve()
    host, port = _parse_address(address, encrypted=tls is not None)
    require_flower()
    run = make_run(out, options, clients)
    finished = read_finished(run, overwrite=overwrite)
    if finished is not None:
        return finished
    if _is_open(host, port):
        raise UsageError(f"Another process listens on {address}. Stop it, or choose another port.")
    run.open(overwrite=overwrite)
    folder = out / CACHE / LINK
    setup = {"out": str(out), "clients": clients, "options": asdict(options)}
    atomic_write(out / CACHE / "setup.json", pretty_json(setup))
    (out / CACHE / RESULT).unlink(missing_ok=True)
    _write_app(folder, out / CACHE / "setup.json", address, tls)
    secure = ["--insecure"]
    if tls is not None:
        secure = ["--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.certificate)]
        secure += ["--ssl-keyfile", str(tls.key)]
        secure += ["--enable-supernode-auth"] if tls.registered_only else []
    command = ["flower-superlink", "--host", host, "--port", str(port), *secure]
    # The database keeps the clients' identities over a restart.
    command += ["--database", str(folder / "state.db")]
    command += ["--disable-runtime-dependency-installation"]
    with _start(command, folder) as process:
        _wait_for_port(process, host, port, folder)
        _submit(folder)
        result = _wait_for_result(process, out, progress)
    if "error" in result:
        raise DataError(str(result["error"]))
    report = FederatedReport.from_json(read_json(out / "federated.json", DataError))
    history = tuple(result["fitted"].pop("history"))
    run.close(FitResult(history=history, **result["fitted"]), rounds=len(report.rounds))
    return report


def join_federated(
    data: Path | str,
    server: str,
    out: Path | str,
    *,
    name: str,
    key: bytes = b"",
    init: str | None = None,
    max_epsilon: float | None = None,
    tls: ClientTls | None = None,
) -> None:
    """Answer the requests of a server until this process is stopped.

    Flower's SuperNode is a child process. It waits for a server that is not there yet
    or was stopped.

    Args:
        data: Folder or table file of this client.
        server: Host and port of the server.
        out: Folder for stored features, the privacy ledger and Flower's files.
        name: Name of this client, unique among all.
        key: Secret of all clients, unknown to the server, that hides ids.
        init: This client's copy of the initial weights. None takes the server's path.
        max_epsilon: Refuse a training with a larger privacy budget, or without one.
        tls: Certificates. None is for loopback only: nothing is encrypted.

    Raises:
        UsageError: The address cannot be used.
        DermedgeError: Flower's process ended by itself.
        MissingExtraError: Flower is not installed.

    Example:
        >>> join_federated("lesions", "example.org:9092", "client", name="a")
        Traceback (most recent call last):
            ...
        dermedge_runtime.errors.UsageError: example.org:9092 is reachable from other machines...
    """
    _parse_address(server, encrypted=tls is not None)
    require_flower()
    folder = Path(out).resolve()
    setup = {
        "name": name,
        "data": str(Path(data).resolve()),
        "folder": str(folder),
        "key": key.hex(),
        "init": init,
        "max_epsilon": max_epsilon,
    }
    atomic_write(folder / "setup.json", pretty_json(setup))
    (folder / "setup.json").chmod(0o600)  # It holds the key.
    secure = ["--insecure"]
    if tls is not None:
        secure = ["--root-certificates", str(tls.ca)] if tls.ca else []
        if tls.private_key:
            secure += ["--auth-supernode-private-key", str(tls.private_key)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["flower-supernode", "--superlink", server, "--host", "127.0.0.1"]
    command += ["--port", str(port), *secure]
    command += ["--node-config", f"{SETUP}={json.dumps(str(folder / 'setup.json'))}"]
    with _start(command, folder) as process:
        code = process.wait()
        raise DermedgeError(
            f"Flower's SuperNode ended with code {code}. Its last line: {_last_line(folder)}"
        )


def _parse_address(address: str, *, encrypted: bool) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{address!r} is no address. Give HOST:PORT, such as 127.0.0.1:9092.")
    if not encrypted and host not in ("127.0.0.1", "localhost"):
        raise UsageError(
            f"{address} is reachable from other machines, and nothing would be encrypted. Give "
            "certificates, or use 127.0.0.1."
        )
    return host, int(port)


def _write_app(folder: Path, setup: Path, address: str, tls: ServerTls | None) -> None:
    """Write the two apps, and the connection that `flwr run` takes."""
    atomic_write(folder / APP / "pyproject.toml", PROJECT.format(setup=setup).encode())
    atomic_write(folder / APP / f"{MODULE}.py", CODE.encode())
    secure = "insecure = true" if tls is None else f'root-certificates = "{tls.ca.resolve()}"'
    connection = (
        f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\n{secure}\n'
    )
    atomic_write(folder / "flwr" / "config.toml", connection.encode())


def _submit(folder: Path) -> None:
    """Ask the SuperLink to run the apps.

    Raises:
        DermedgeError: It refuses.
    """
    ran = subprocess.run(
        [*_program("flwr"), "run", str(folder / APP), "own"],
        env=_environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        lines = (ran.stdout + ran.stderr).strip().splitlines()
        raise DermedgeError(f"Flower refuses the run: {' '.join(lines[-5:])}")


def _wait_for_result(
    process: "subprocess.Popen[bytes]", out: Path, progress: Progress | None
) -> dict[str, Any]:
    """Wait until the server app has written its result."""
    shown, path = None, out / CACHE / RESULT
    while not path.is_file():
        if process.poll() is not None:
            raise DermedgeError(
                f"Flower's SuperLink ended with code {process.returncode}. Its last line: "
                f"{_last_line(out / CACHE / LINK)}"
            )
        state = out / CACHE / PROGRESS
        if progress and state.is_file():
            done = read_json(state, DataError)
            if done != shown:
                shown = done
                progress(*done)
        time.sleep(POLL_SECONDS)
    return dict(read_json(path, DataError))


@contextmanager
def _start(command: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a program of Flower, and stop it and its children at the end.

    They also end if this process gets SIGTERM or, on Linux, is killed. A SuperLink that
    was left behind would keep the port.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("ab") as log, _sigterm_interrupts():
        process = subprocess.Popen(
            [*_program(command[0]), *command[1:]],
            env=_environment(folder),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            yield process
        finally:
            _stop(process)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that children are stopped."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM to this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all processes that it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)


def _program(name: str) -> list[str]:
    """Return the command of a program of Flower in this environment."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.is_file() else shutil.which(name)
    if found is None:
        raise DermedgeError(f"The program {name} of Flower is missing. Install flwr again.")
    return [found]


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of Flower's programs: an own home, no telemetry."""
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        # Flower starts its helpers by name.
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def _wait_for_port(process: "subprocess.Popen[bytes]", host: str, port: int, folder: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not _is_open(host, port):
        if process.poll() is not None or time.monotonic() > end:
            raise DermedgeError(
                f"Flower's SuperLink does not start. Its last line: {_last_line(folder)}"
            )
        time.sleep(POLL_SECONDS)


def _is_open(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host if host != "0.0.0.0" else "127.0.0.1", port)) == 0


def _last_line(folder: Path) -> str:
    lines = (folder / LOG).read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "none"
