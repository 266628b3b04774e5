"""Run contenders that need their own environment: commands, and a worker for ExecuTorch."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from peers_engine import Inputs

from dermedge_runtime.errors import DermedgeError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SERVER = HERE / "peers_executorch.py"


class Worker:
    """A process with ExecuTorch, which times its own calls in turn with the others."""

    def __init__(self, python: Path, inputs: Inputs, model: Path, threads: int) -> None:
        self.outputs_file = inputs.folder.resolve() / "executorch.npz"
        self.log = model.parent.with_name("worker.log").open("w")
        self.process = subprocess.Popen(
            [python, SERVER, "serve", inputs.folder.resolve(), model.resolve(), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=_environment(),
        )
        self._read_reply()

    def outputs(self, split: str) -> dict[str, Any]:
        self._request(do="outputs", split=split, to=str(self.outputs_file))
        with np.load(self.outputs_file) as stored:
            outputs = dict(stored)
        self.outputs_file.unlink()
        return outputs

    def times(self, call_name: str, count: int, clock: str = "wall") -> list[float]:
        taken: list[float] = self._request(
            do="times", call_name=call_name, count=count, clock=clock
        )
        return taken

    def close(self) -> None:
        self.process.communicate()
        self.log.close()

    def _request(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read_reply()

    def _read_reply(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise DermedgeError(_last_line(Path(self.log.name).read_text()))
        return json.loads(line)


def run(python: Path, *arguments: str | Path) -> None:
    """Run a command in another environment; raise DermedgeError with its last line."""
    done = subprocess.run(
        [python, *arguments], env=_environment(), text=True, capture_output=True, check=False
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        raise DermedgeError(_last_line(done.stderr or done.stdout))


def _environment() -> dict[str, str]:
    """Return an environment in which this checkout is importable and telemetry is off."""
    folders = (ROOT, ROOT / "export", ROOT / "runtimes" / "python")
    silent = {"OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return {**os.environ, **silent, "PYTHONPATH": os.pathsep.join(map(str, folders))}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
