r"""Measure the JVM against Python: the same bundle, machine and images, in turns.

    mvn -q -DskipTests -f runtimes/android/pom.xml -pl litert-stubs,core,cli package
    python tests/benchmarks/jvm.py BUNDLE [--image FILE]... [--rounds 5] [--runs 200]

BUNDLE is an ONNX bundle. Without images, a drawn lesion of 600 x 450 pixels is measured
as PNG and as JPEG. Each round times Python and then the JVM with one thread; a process
warms up for as many predictions as it times. The table gives the median over the rounds
of each round's median, in milliseconds, and the median of the rounds' ratios.
"""

import argparse
import io
import json
import statistics
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter

from PIL import Image

from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.model import Model, load
from dermedge_runtime.preprocess import preprocess

ROOT = Path(__file__).parents[2]
JAR = ROOT / "runtimes/android/cli/target/dermedge.jar"
STAGES = ("end_to_end", "preprocess", "engine_only")
Times = dict[str, float]


def draw_images(folder: Path) -> list[Path]:
    """Write a drawn lesion as PNG and JPEG; return their paths."""
    image = Image.fromarray(draw_lesion(7, dx="mel", height=450, width=600).image)
    paths = [folder / "lesion.png", folder / "lesion.jpg"]
    for path in paths:
        buffer = io.BytesIO()
        image.save(buffer, "PNG" if path.suffix == ".png" else "JPEG", quality=90)
        path.write_bytes(buffer.getvalue())
    return paths


def time_python(model: Model, image: bytes, runs: int) -> Times:
    """Return the medians of the three stages that both benches time."""
    spec = model.bundle.spec.preprocess
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for index in range(2 * runs):
        start = perf_counter()
        model.predict(image)
        predicted = perf_counter()
        tensor = preprocess(image, spec)
        prepared = perf_counter()
        model.runtime.run(tensor[None])
        ends = (predicted - start, prepared - predicted, perf_counter() - prepared)
        if index >= runs:
            for stage, seconds in zip(STAGES, ends, strict=True):
                times[stage].append(seconds * 1000)
    return {stage: statistics.median(values) for stage, values in times.items()}


def time_jvm(bundle: Path, image: Path, runs: int) -> Times:
    """Return the medians that a new JVM measures after its warm-up."""
    options = ["--runs", str(runs), "--threads", "1"]
    command = ["java", "-jar", str(JAR), "bench", str(bundle), str(image), *options]
    report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {stage: report[stage]["p50"] for stage in STAGES}


def main() -> None:
    """Measure the images and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", type=Path, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    print("| image | stage | Python ms | JVM ms | JVM / Python |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, load(options.bundle, threads=1) as model:
        for path in options.image or draw_images(Path(folder)):
            data = path.read_bytes()
            rounds = [
                (
                    time_python(model, data, options.runs),
                    time_jvm(options.bundle, path, options.runs),
                )
                for _ in range(options.rounds)
            ]
            for stage in STAGES:
                python = statistics.median(ours[stage] for ours, _ in rounds)
                jvm = statistics.median(theirs[stage] for _, theirs in rounds)
                ratio = statistics.median(theirs[stage] / ours[stage] for ours, theirs in rounds)
                print(f"| {path.name} | {stage} | {python:.2f} | {jvm:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
