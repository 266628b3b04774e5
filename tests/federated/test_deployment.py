"""`federated server` and `federated client` as real processes over loopback."""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dermedge.data.draw import draw_data_set
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.federated.deployment import join_federated, serve_federated
from dermedge.models import load_model_folder
from dermedge_runtime.errors import UsageError
from support import small
from support.command import dermedge, strict
from support.federated import needs_flower

MODEL = ["--task", "malignancy", "--backbone", small.EXPORTED, "--size", small.SIZE]
MODEL += ["--batch-size", 8, "--rounds", 1, "--timeout", 240, "--local-ids"]


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    # SIGTERM is handled as Ctrl-C is. SIGINT is ignored under a shell's background job.
    for process in processes:
        process.terminate()
    for process in processes:
        process.communicate(timeout=60)


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dermedge", "federated", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)


@needs_flower
@pytest.mark.slow
def test_clients_train_over_loopback(address, started, tmp_path) -> None:
    for number in (1, 2):
        data = tmp_path / f"data-{number}"
        draw_data_set(data, count=40, seed=number, size=(64, 48))
        small.write(data, with_split(read_table(data)).frame)
        words = ["--server", address, "--name", f"h{number}", "-o", tmp_path / f"client-{number}"]
        started.append(start("client", "--data", data, *words))
    server = start(
        *("server", "--clients", 2, "--address", address, *MODEL, "--json"), "-o", tmp_path / "out"
    )
    out, err = server.communicate(timeout=540)
    assert server.returncode == 0, err.decode()
    report = strict(out.decode())
    assert sorted(report["clients"]) == ["h1", "h2"]
    assert report["rounds"][0]["clients"] == ["h1", "h2"]
    assert {row["client"] for row in report["results"]} == {"h1", "h2"}
    assert load_model_folder(tmp_path / "out").spec.lineage["federated"]["clients"] == 2


CHILD = """
import sys, time
from pathlib import Path
from dermedge.federated.deployment import _start
with _start(["sleep", "600"], Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_command_leaves_no_process_behind(kind: signal.Signals, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ
    )
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.send_signal(kind)
    parent.communicate(timeout=60)
    assert select.select([child], [], [], 60)[0], "the child still runs"
    os.close(child)


def test_an_address_of_other_machines_needs_certificates(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"0\.0\.0\.0:9092 is reachable from other machines"):
        serve_federated(tmp_path, clients=2, address="0.0.0.0:9092")
    with pytest.raises(UsageError, match="nothing would be encrypted"):
        join_federated("table", "example.org:9092", tmp_path, name="a")
    with pytest.raises(UsageError, match="'9092' is no address"):
        join_federated("table", "9092", tmp_path, name="a")


def test_certificates_belong_together(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("")
    words = ["federated", "server", "--clients", 2, "-o", tmp_path / "out"]
    ran = dermedge(*words, "--ca", tmp_path / "ca.crt")
    assert ran.code == 2 and "belong together" in ran.err
    assert dermedge(*words, "--registered-only").code == 2
