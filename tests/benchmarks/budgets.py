"""Measure the runtime's overhead over plain code, and compare it with its budgets.

    python tests/benchmarks/budgets.py BUNDLE [--json OUT] [--calls N] [--rounds N]

Both sides of each ratio are measured in turns within one run, and their medians are
compared, so a busy machine slows down both. Run it by hand; no test asserts a time.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

import numpy as np
from PIL import Image

from dermedge_runtime.bench import PHOTO, photograph
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import Model, load

# The code that a user writes without dermedge: decode, resize, run.
BARE = """
import sys
import numpy as np
import onnxruntime
from PIL import Image
path, image, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
def predict():
    opened = Image.open(image).convert("RGB")
    pixels = np.asarray(opened.resize((size, size), Image.Resampling.BILINEAR))
    return session.run(None, {"image": pixels[None]})
"""

# The same with dermedge.
OURS = """
import sys
import dermedge
from dermedge_runtime.model import load
path, image = sys.argv[1], sys.argv[2]
model = load(path, threads=1)
def predict():
    return model.predict(image)
"""

THEN = """
predict()
print("predicted", flush=True)
for _ in range(20):
    predict()
fields = open("/proc/self/status").read().split()
print(int(fields[fields.index("VmRSS:") + 1]) * 1024)
"""


@dataclass(frozen=True)
class Row:
    """A row of the table; `met` is None if there is no limit."""

    what: str
    budget: str
    measured: str
    met: bool | None


def in_turns(rounds: int, *sides: Callable[[], None]) -> list[float]:
    """Return the median milliseconds of each side, called in turns in alternating order.

    The time is the processor time of this thread: the duration of a call on an idle machine.
    """
    times: list[list[float]] = [[] for _ in sides]
    for turn in range(rounds):
        order = range(len(sides)) if turn % 2 else reversed(range(len(sides)))
        for index in order:
            start = thread_time()
            sides[index]()
            times[index].append((thread_time() - start) * 1000)
    return [median(values) for values in times]


class TimedSession:
    """An ONNX Runtime session that records the microseconds of its last call."""

    def __init__(self, session: Any) -> None:
        self.session, self.last = session, 0.0

    def run(self, *arguments: Any) -> Any:
        start = thread_time()
        outputs = self.session.run(*arguments)
        self.last = (thread_time() - start) * 1e6
        return outputs


def overhead(model: Model, rounds: int) -> list[Row]:
    """Measure the time that `Model.predict` adds to the engine call inside it.

    Both times are taken in the same call. Two sessions would differ by more than the
    overhead, because their memory is laid out differently.
    """
    prepared = [(model.bundle.golden()[0].tensor, 0.0)]
    runtime: Any = model.runtime
    clock = runtime._session = TimedSession(runtime._session)
    engines, extras = [], []
    for _ in range(20 + 2 * rounds):
        start = thread_time()
        model._predict(prepared)
        extras.append((thread_time() - start) * 1e6 - clock.last)
        engines.append(clock.last)
    runtime._session = clock.session
    engine, extra = median(engines[20:]), median(extras[20:])
    share = extra / engine
    return [
        Row(
            "Model.predict over the bare engine call, preprocessing excluded",
            "<= 50 us",
            f"{extra:.0f} us",
            extra <= 50,
        ),
        Row(
            "the same, as a share of the engine call",
            "<= 5 %",
            f"{share:.1%} of {engine / 1000:.2f} ms",
            share <= 0.05,
        ),
    ]


def smooth(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        large = image.convert("RGB").resize(PHOTO, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decoding(model: Model, rounds: int) -> list[Row]:
    png = model.bundle.golden()[0].image
    rows = []
    for name, data in (("smooth", smooth(png)), ("with sensor noise", photograph(png))):
        reduced, full = in_turns(
            rounds,
            lambda data=data: model.predict(data),  # type: ignore[misc]
            lambda data=data: model.predict(data, exact=True),  # type: ignore[misc]
        )
        allowed = 25 / 113 * full
        rows.append(
            Row(
                f"12 MP JPEG to prediction, one thread ({name}, {len(data) / 1e6:.1f} MB)",
                f"<= 25 ms where full decoding costs 113 ms: here <= {allowed:.0f} ms",
                f"{reduced:.1f} ms (full decoding {full:.0f} ms)",
                reduced <= allowed,
            )
        )
    return rows


def fresh(code: str, *arguments: str) -> tuple[float, int]:
    """Return the time to a process's first prediction (ms) and its memory (bytes) after 20 more."""
    # Packages from wheels have cached bytecode. This folder gives one to the checkout too.
    environment = {
        **os.environ,
        "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "dermedge-pycache"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = perf_counter()
    command = [sys.executable, "-c", code + THEN, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        word = process.stdout.readline().strip()
        milliseconds = (perf_counter() - start) * 1000
        rest = process.stdout.read()
    if word != "predicted" or process.returncode:
        raise SystemExit(f"the fresh process failed with exit code {process.returncode}")
    return milliseconds, int(rest)


def fresh_processes(bundle: Bundle, rounds: int) -> list[Row]:
    size = str(bundle.spec.preprocess.size)
    with tempfile.TemporaryDirectory() as folder:
        image, model = Path(folder) / "lesion.jpg", Path(folder) / "model.onnx"
        Image.open(io.BytesIO(bundle.golden()[0].image)).convert("RGB").save(image, quality=95)
        model.write_bytes(bundle.read(bundle.artifact.path))
        ours, bare = [], []
        for _ in range(1 + rounds):
            ours.append(fresh(OURS, str(bundle.path), str(image)))
            bare.append(fresh(BARE, str(model), str(image), size))
    ms, bare_ms = (median(time for time, _ in side[1:]) for side in (ours, bare))
    held, bare_held = (median(size for _, size in side[1:]) / 1e6 for side in (ours, bare))
    return [
        Row(
            "import dermedge and first prediction in a fresh process, over bare onnxruntime",
            "<= 1.3 x",
            f"{ms / bare_ms:.2f} x ({ms:.0f} ms over {bare_ms:.0f} ms)",
            ms <= 1.3 * bare_ms,
        ),
        Row(
            "resident memory of a device process over bare onnxruntime",
            "<= 20 MB",
            f"{held - bare_held:+.1f} MB ({held:.1f} MB over {bare_held:.1f} MB)",
            held - bare_held <= 20,
        ),
    ]


def resident() -> int:
    fields = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("VmRSS:") + 1]) * 1024


def growth(model: Model, calls: int) -> list[Row]:
    """Fit the slope of resident memory over the second half, when caches and pools are full."""
    case = model.bundle.golden()[0]
    every = max(1, calls // 200)
    at, held = [], []
    for call in range(calls):
        model.predict(case.tensor)
        if call % every == 0:
            at.append(call)
            held.append(resident())
    half = len(at) // 2
    slope = float(np.polyfit(at[half:], held[half:], 1)[0]) * 100_000 / 1e6
    return [
        Row(
            f"growth of resident memory, from {calls} repeated predictions to 100,000",
            "no growth (<= 1 MB)",
            f"{slope:+.2f} MB per 100,000",
            slope <= 1,
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--json", type=Path, dest="out")
    parser.add_argument(
        "--calls", type=int, default=100_000, help="predictions for the growth of memory"
    )
    parser.add_argument("--rounds", type=int, default=300, help="pairs of timed calls")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    rows = fresh_processes(bundle, max(5, options.rounds // 30))
    with load(bundle, threads=1) as model:
        rows += overhead(model, options.rounds)
        rows += decoding(model, max(5, options.rounds // 15))
        rows += growth(model, options.calls)
    where, spec = describe_device(), bundle.spec
    print(f"{spec.name} {spec.version}, {spec.preprocess.size} px")
    print(f"{where['cpu']}, {where['cores']} cores\n")
    print("| what | budget | measured | |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.budget} | {row.measured} | {'met' if row.met else 'missed'} |")
    if options.out:
        document = {
            "bundle": bundle.id,
            "device": dict(where),
            "rows": [asdict(row) for row in rows],
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
