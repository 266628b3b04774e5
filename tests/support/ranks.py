"""Run commands in several processes, with the environment that `torchrun` gives its ranks."""

import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermedge.cli import main
from support.small import PRELOADED

TIMEOUT = 240


@dataclass(frozen=True)
class Rank:
    code: int
    output: str


def run_ranks(
    processes: int,
    words: Sequence[object],
    folder: Path,
    before: Callable[..., None] | None = None,
    *arguments: Any,
) -> list[Rank]:
    """Run `dermedge WORDS` in each of several ranks, and wait for all of them.

    The ranks are forked from a process that has imported everything, which is faster
    than `torchrun`. `before(*arguments)` is called in each of them first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank-{rank}.log" for rank in range(processes)]
    children = [
        context.Process(
            target=_run_rank,
            args=(rank, processes, port, list(map(str, words)), log, before, arguments),
        )
        for rank, log in enumerate(logs)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(TIMEOUT)
        if child.exitcode is None:
            child.kill()
            child.join()
    pairs = zip(children, logs, strict=True)
    return [Rank(child.exitcode or 0, log.read_text("utf-8")) for child, log in pairs]


def _run_rank(
    rank: int,
    processes: int,
    port: int,
    words: list[str],
    log: Path,
    before: Callable[..., None] | None,
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        CUDA_VISIBLE_DEVICES="",
    )
    with (
        log.open("w", encoding="utf-8", buffering=1) as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        if before is not None:
            before(*arguments)
        main(words)
