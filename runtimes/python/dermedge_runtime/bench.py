"""Measure latency, cold start and memory of a bundle on this device."""

import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import IO, cast

import numpy as np
from PIL import Image

from dermedge_runtime.bundle import Bundle
from dermedge_runtime.errors import EngineError, UsageError
from dermedge_runtime.hardware import describe_device, usable_cpus
from dermedge_runtime.image import HEAD_BYTES, decode, identify
from dermedge_runtime.model import Model, load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.report import LatencyReport, Percentiles

# The shape of a twelve-megapixel phone photograph.
PHOTO = (4032, 3024)
# The median of three is not changed by one disturbed start.
COLD_STARTS = 3

# The first prediction of a process as a user would write it, then the memory that is
# resident after a few more.
FRESH_PROCESS = """
import json, sys
from pathlib import Path
from dermedge_runtime.model import load
path, image, engine, threads = json.loads(sys.argv[1])
model = load(path, engine=engine, threads=threads)
data = Path(image).read_bytes()
model.predict(data)
print("predicted", flush=True)
for _ in range(20):
    model.predict(data)
try:
    fields = Path("/proc/self/status").read_text().split()
    print(int(fields[fields.index("VmRSS:") + 1]) * 1024)
except (OSError, ValueError):
    print("null")
"""


def bench(
    bundle: str | Path | Bundle,
    *,
    image: str | Path | None = None,
    engine: str | None = None,
    threads: int | None = None,
    runs: int = 100,
    warmup: int = 10,
    sustained: float = 0.0,
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure a bundle on this device.

    Args:
        bundle: Path of a bundle, or an opened one.
        image: Path of an encoded image; by default a 12-megapixel JPEG made from the
            bundle's first golden image.
        engine: As in `load`.
        threads: As in `load`.
        runs: Number of timed predictions.
        warmup: Number of predictions before them, not timed.
        sustained: Seconds of predictions without a pause after that, which show
            throttling; 0 skips them.
        progress: Called after every prediction.

    Raises:
        UsageError: `runs` is below 1, another number is negative, or this is a frozen
            app. Also as `load`.
        ImageError: The image cannot be read.
        BundleError: As `load`.
        MissingExtraError: As `load`.
        EngineError: As `load`, or the engine fails.

    Example:
        >>> report = bench("toy.dermedge", image="lesion.png", runs=5, warmup=1)
        >>> report.image, report.end_to_end.count
        ('lesion.png, 256 x 192 PNG', 5)
    """
    if runs < 1 or warmup < 0 or sustained < 0:
        raise UsageError(
            f"runs {runs}, warmup {warmup}, sustained {sustained}. "
            "Use 1 or more runs, and no negative number."
        )
    if getattr(sys, "frozen", False):
        # sys.executable is then the app, which would start itself again and again.
        raise UsageError(
            "bench starts new Python processes, which a frozen app cannot do. Run `dermedge bench` "
            "on this machine."
        )
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    data, description = _read_image(opened, image)
    report_progress = progress or no_progress
    with load(opened, engine=engine, threads=threads) as model:
        timings = _time_stages(model, data, runs, warmup, report_progress)
        tenths = _run_sustained(model, data, sustained, report_progress) if sustained else ()
        name, version = model.runtime.name, model.runtime.version
    cold, resident = _measure_fresh_process(opened.path, data, engine, threads)
    return LatencyReport(
        bundle=opened.id,
        engine=name,
        engine_version=version,
        device=describe_device(),
        threads=threads,
        image=description,
        end_to_end=timings["end_to_end"],
        preprocess=timings["preprocess"],
        engine_only=timings["engine_only"],
        cold_start_ms=cold,
        resident_bytes=resident,
        sustained=tenths,
        cpus=usable_cpus(),
    )


def photograph(png: bytes, size: tuple[int, int] = PHOTO) -> bytes:
    """Make a JPEG of a phone's size from a smaller image.

    It has sensor noise, so that it takes as long to decode as a photograph.

    Args:
        png: Encoded image.
        size: Width and height in pixels.
    """
    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    band = max(1, min(height, round(width * size[1] / size[0])))
    top = (height - band) // 2
    large = image.crop((0, top, width, top + band)).resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 4, (size[1], size[0], 1)).astype(np.float32)
    pixels = np.clip(np.asarray(large, np.float32) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def percentiles(milliseconds: Sequence[float]) -> Percentiles:
    """Summarise times by p50, p90 and p99 (linear between ranks) and the mean.

    Example:
        >>> percentiles([1.0, 2.0, 3.0]).p50
        2.0
    """
    values = np.asarray(milliseconds, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Percentiles(p50, p90, p99, float(values.mean()), len(values))


def _read_image(bundle: Bundle, path: str | Path | None) -> tuple[bytes, str]:
    if path is None:
        case = bundle.golden()[0]
        return photograph(case.image), f"golden {case.name}, {PHOTO[0]} x {PHOTO[1]} JPEG"
    # A bad file raises an error before anything is timed.
    image = decode(path)
    data = Path(path).read_bytes()
    kind = identify(data[:HEAD_BYTES])
    return data, f"{Path(path).name}, {image.width} x {image.height} {kind}"


def _time_stages(
    model: Model, data: bytes, runs: int, warmup: int, progress: Progress
) -> dict[str, Percentiles]:
    """Time each run in three stages: prediction, preprocessing, engine call."""
    spec = model.bundle.spec.preprocess
    stages: dict[str, list[float]] = {"end_to_end": [], "preprocess": [], "engine_only": []}
    for index in range(warmup + runs):
        start = perf_counter()
        model.predict(data)
        predicted = perf_counter()
        tensor = preprocess(data, spec)
        prepared = perf_counter()
        model.runtime.run(tensor[None])
        end = perf_counter()
        if index >= warmup:
            stages["end_to_end"].append((predicted - start) * 1000)
            stages["preprocess"].append((prepared - predicted) * 1000)
            stages["engine_only"].append((end - prepared) * 1000)
        progress(index + 1, warmup + runs, "runs")
    return {name: percentiles(values) for name, values in stages.items()}


def _run_sustained(
    model: Model, data: bytes, seconds: float, progress: Progress
) -> tuple[float, ...]:
    """Return the median of each tenth of the time, in milliseconds.

    A tenth in which no prediction starts repeats the last one.
    """
    tenths: list[list[float]] = [[] for _ in range(10)]
    begin = perf_counter()
    while (start := perf_counter()) - begin < seconds or not tenths[0]:
        model.predict(data)
        tenth = min(9, int((start - begin) / seconds * 10))
        tenths[tenth].append((perf_counter() - start) * 1000)
        progress(min(1000, int((perf_counter() - begin) / seconds * 1000)), 1000, "sustained")
    medians: list[float] = []
    for values in tenths:
        medians.append(percentiles(values).p50 if values else medians[-1])
    return tuple(medians)


def _measure_fresh_process(
    path: Path, data: bytes, engine: str | None, threads: int | None
) -> tuple[float, int | None]:
    """Measure cold starts of a new Python process.

    Returns:
        Milliseconds from its start to its first prediction (median of three), and the
        bytes that are resident after some more predictions.
    """
    with tempfile.TemporaryDirectory(prefix="dermedge-bench-") as folder:
        image = Path(folder) / "image"
        image.write_bytes(data)
        arguments = json.dumps([str(path), str(image), engine, threads])
        starts = [_time_first_prediction(arguments) for _ in range(COLD_STARTS)]
    return percentiles([milliseconds for milliseconds, _ in starts]).p50, starts[-1][1]


def _time_first_prediction(arguments: str) -> tuple[float, int | None]:
    """Return milliseconds to a process's first prediction, and its memory in bytes."""
    with tempfile.TemporaryFile("w+") as errors:
        start = perf_counter()
        command = [sys.executable, "-c", FRESH_PROCESS, arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            stdout = cast(IO[str], process.stdout)
            first = stdout.readline().strip()
            milliseconds = (perf_counter() - start) * 1000
            rest = stdout.read()
        if first != "predicted" or process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise EngineError(
                f"The first prediction in a new process failed ({last}). "
                "Run `dermedge verify` on the bundle."
            )
    resident: int | None = json.loads(rest)
    return milliseconds, resident
