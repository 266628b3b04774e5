"""How long a prediction takes on this device, how long the first one takes, and how much memory it needs."""

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
from dermedge_runtime.errors import EngineError, ImageError, UsageError
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import Model, load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.report import LatencyReport, Percentiles

# The shape of a twelve-megapixel phone photograph.
PHOTO = (4032, 3024)
COLD_STARTS = 3

# The first prediction of a process as a user would write it; then what stays resident after a few more.
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
    """Measures a bundle on this device.

    Args:
        bundle: The path of a bundle, or an opened one.
        image: An encoded image; by default a 12-megapixel JPEG made from the bundle's first golden image.
        engine: As in `load`.
        threads: As in `load`.
        runs: How many predictions are timed.
        warmup: How many go before them, untimed.
        sustained: Seconds of predictions without a pause after that, to see throttling; 0 leaves it out.
        progress: Told after every prediction.

    Raises:
        UsageError: `runs` is below 1, or another number is negative.
        ImageError: The image cannot be read.
        BundleError, MissingExtraError, EngineError: As `load` and `predict` raise them.
    """
    if runs < 1 or warmup < 0 or sustained < 0:
        raise UsageError(
            f"runs {runs}, warmup {warmup}, sustained {sustained}: use runs of 1 or more, no negatives."
        )
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    data, described = _image(opened, image)
    tell: Progress = progress or no_progress
    with load(opened, engine=engine, threads=threads) as model:
        timings = _timed(model, data, runs, warmup, tell)
        tenths = _sustained(model, data, sustained, tell) if sustained else ()
        name, version = model.runtime.name, model.runtime.version
    cold, resident = _fresh_process(opened.path, data, engine, threads)
    return LatencyReport(
        bundle=opened.id,
        engine=name,
        engine_version=version,
        device=describe_device(),
        threads=threads,
        image=described,
        end_to_end=timings["end_to_end"],
        preprocess=timings["preprocess"],
        engine_only=timings["engine_only"],
        cold_start_ms=cold,
        resident_bytes=resident,
        sustained=tenths,
    )


def photograph(png: bytes, size: tuple[int, int] = PHOTO) -> bytes:
    """A JPEG of a phone's size made from a smaller image, with sensor noise, so that it decodes like a photograph."""
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
    """p50, p90 and p99 (linear between ranks) and the mean."""
    values = np.asarray(milliseconds, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Percentiles(p50, p90, p99, float(values.mean()), len(values))


def _image(bundle: Bundle, path: str | Path | None) -> tuple[bytes, str]:
    if path is None:
        case = bundle.golden()[0]
        return photograph(case.image), f"golden {case.name}, {PHOTO[0]} x {PHOTO[1]} JPEG"
    # Preprocessing first, so that whatever is wrong with the file is said before anything is timed.
    preprocess(path, bundle.spec.preprocess)
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return data, f"{Path(path).name}, {image.width} x {image.height} {image.format}"
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error}): check the file.") from error


def _timed(
    model: Model, data: bytes, runs: int, warmup: int, progress: Progress
) -> dict[str, Percentiles]:
    """Each run times one prediction from encoded bytes and, beside it, preprocessing and the bare engine call alone."""
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


def _sustained(model: Model, data: bytes, seconds: float, progress: Progress) -> tuple[float, ...]:
    """The median of each tenth of the time, in milliseconds; a tenth in which no prediction began repeats the last."""
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


def _fresh_process(
    path: Path, data: bytes, engine: str | None, threads: int | None
) -> tuple[float, int | None]:
    """Milliseconds from starting Python to the first prediction (median of three), and bytes resident after more."""
    with tempfile.TemporaryDirectory(prefix="dermedge-bench-") as folder:
        image = Path(folder) / "image"
        image.write_bytes(data)
        arguments = json.dumps([str(path), str(image), engine, threads])
        starts = [_first_prediction(arguments) for _ in range(COLD_STARTS)]
    return percentiles([milliseconds for milliseconds, _ in starts]).p50, starts[-1][1]


def _first_prediction(arguments: str) -> tuple[float, int | None]:
    with tempfile.TemporaryFile("w+") as trouble:
        start = perf_counter()
        command = [sys.executable, "-c", FRESH_PROCESS, arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=trouble, text=True
        ) as process:
            stdout = cast(IO[str], process.stdout)
            word = stdout.readline().strip()
            milliseconds = (perf_counter() - start) * 1000
            rest = stdout.read()
        if word != "predicted" or process.returncode:
            trouble.seek(0)
            last = (trouble.read().strip().splitlines() or ["no message"])[-1]
            raise EngineError(
                f"The first prediction in a fresh process failed ({last}): run `dermedge verify` on it."
            )
    resident: int | None = json.loads(rest)
    return milliseconds, resident
