"""Run the command line in this process, which is fast, or in a new one."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermedge.cli import main
from dermedge_runtime.bundle import MANIFEST
from dermedge_runtime.canonical_json import canonical_json
from dermedge_runtime.files import sha256_hex

TOY = Path(__file__).parents[1] / "data" / "toy.dermedge"
TOY_LITERT = Path(__file__).parents[1] / "conformance" / "bundles" / "toy-litert.zip"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return strict(self.out)

    def lines(self) -> list[Any]:
        return [strict(line) for line in self.out.splitlines()]


def strict(text: str) -> Any:
    """Parse JSON without NaN and infinities, as every language reads it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def dermedge(*args: object, stdin: bytes = b"") -> Ran:
    """Run `dermedge ARGS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    own, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(arg) for arg in args])
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stdin = own
    assert isinstance(code, int)
    return Ran(code, out.getvalue(), err.getvalue())


def process(*args: object, code: str | None = None, stdin: bytes = b"", **environment: str) -> Ran:
    """Run `dermedge ARGS`, or Python code with ARGS in `sys.argv[1:]`, in a new process."""
    start = ["-m", "dermedge"] if code is None else ["-c", code]
    done = subprocess.run(
        [sys.executable, *start, *map(str, args)],
        input=stdin,
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


# Runs Python code in which some modules cannot be imported, as if they were not installed.
BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

absent = set(sys.argv.pop(1).split(","))
import importlib.util
real = importlib.util.find_spec
def find_spec(name, package=None):
    return None if name in absent else real(name, package)

importlib.util.find_spec = find_spec
sys.meta_path.insert(0, Absent())
exec(sys.argv.pop(1))
"""


def without_modules(code: str, *modules: str, arguments: Sequence[object] = ()) -> Ran:
    """Run code in a fresh interpreter that has none of `modules`; `arguments` is sys.argv[1:]."""
    return process(",".join(modules), code, *arguments, code=BLOCKED)


def refused(ran: Ran, code: int) -> str:
    """Return the only message of a refusal, after checking the exit code and the outputs."""
    assert ran.code == code, f"exit code {ran.code}\n{ran.out}\n{ran.err}"
    assert "Traceback" not in ran.err
    assert ran.out == ""
    messages = [line for line in ran.err.splitlines() if line.startswith("Error: ")]
    assert len(messages) == 1, ran.err
    assert messages[0].endswith((".", ")", "'", "?")) or "known: " in messages[0], messages[0]
    return messages[0].removeprefix("Error: ")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every file below a folder, to check that nothing was written."""
    paths = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in paths}


def rewrite_manifest(bundle: Path, change: Mapping[str, Any]) -> None:
    """Change keys of a bundle's manifest and give it a matching id, as an attacker would."""
    manifest = json.loads((bundle / MANIFEST).read_bytes()) | dict(change)
    del manifest["id"]
    manifest["id"] = sha256_hex(canonical_json(manifest))
    (bundle / MANIFEST).write_text(json.dumps(manifest))
