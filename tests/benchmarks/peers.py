"""Measure a `cpu --precision auto` bundle against alternatives with their default options.

    python tests/benchmarks/peers.py STUDENT... --data DIR -o runs/peers-bench \
        [--olive-python PYTHON] [--executorch-python PYTHON] [--bundle BUNDLE]

Every contender gets the same preprocessed pixels, and the same 300 train images for
calibration. Each is built in its own process. If that fails, the contender's row says so. All are
timed in turns within one process per thread count. The script writes results.json and
results.md, and keeps finished parts, so a killed run continues.
"""

import argparse
import io
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from peers_contenders import CONTENDERS, Work, build
from peers_engine import CLOCKS, CONTRACT, TIMED_CALLS, Contract, Inputs
from peers_scores import scores, tables
from peers_table import markdown
from PIL import Image

from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.evaluation.table_predictions import preprocess_table
from dermedge.models import load_model_folder
from dermedge.models.model_folder import WEIGHTS
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_runtime.bench import PHOTO, percentiles, photograph
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import pretty_json, read_json
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import atomic_write, sha256_file
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.telemetry import no_telemetry

PHOTOGRAPHS = {"small": (600, 450), "large": PHOTO}
CALLS = {"engine": 5, "small": 3, "large": 1}  # timed calls per turn, after one untimed call
SETTLE_SECONDS = 0.02  # until the threads of the previous contender stop spinning
PACKAGES = (
    *("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "numpy", "pillow"),
    *("litert-torch", "litert-quantizer", "ai-edge-litert"),
)
ELSEWHERE = {
    "olive": ("olive-ai", "onnxruntime"),
    "executorch": ("executorch", "torch", "torchao", "timm"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("students", type=Path, nargs="+", help="model folders")
    parser.add_argument(
        "--data", type=Path, required=True, help="table that the students were trained on"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--olive-python", type=Path, help="interpreter of an environment with olive-ai"
    )
    parser.add_argument(
        "--executorch-python", type=Path, help="interpreter of an environment with executorch"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        action="append",
        default=[],
        help="finished bundle to measure instead of exporting",
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", help="thread counts; default: one and all cores"
    )
    parser.add_argument("--rounds", type=int, default=40, help="timed turns per contender")
    parser.add_argument(
        "--limit", type=int, help="number of images per split, to try the script out"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        choices=CONTENDERS,
        help="contenders to leave out; their rows say so",
    )
    parser.add_argument(
        "--budget", type=float, default=10, help="minutes of dermedge's search per student"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, for one thread on a busy machine",
    )
    options = parser.parse_args()
    pythons = {"olive": options.olive_python, "executorch": options.executorch_python}
    pythons = {name: path.absolute() for name, path in pythons.items() if path is not None}
    bundles = {Bundle.open(path).spec.name: path for path in options.bundle}
    threads = options.threads or sorted({1, len(os.sched_getaffinity(0))})
    document: dict[str, Any] = {
        "machine": dict(describe_device()),
        "versions": versions(pythons),
        "settings": {
            "rounds": options.rounds,
            "calls": CALLS,
            "photographs": PHOTOGRAPHS,
            "limit": options.limit,
            "budget": options.budget,
            "clock": options.clock,
        },
        "threads": threads,
        "students": {},
    }
    for student in options.students:
        spec = load_model_folder(student).spec
        folder = options.out / spec.name
        context = Work(
            student,
            folder,
            options.data,
            pythons,
            bundles.get(spec.name),
            options.limit,
            options.budget,
            tuple(options.without),
        )
        prepare(context)
        document["students"][spec.name] = measure(context, threads, options.rounds, options.clock)
        atomic_write(options.out / "results.json", pretty_json(document))
        atomic_write(options.out / "results.md", markdown(document).encode())
    print(markdown(document))


def prepare(context: Work) -> None:
    """Preprocess the images of a student once for all contenders, and draw two photographs.

    Raises:
        DataError: The folder holds the measurements of another student.
    """
    folder, digest = context.folder / "inputs", sha256_file(context.student / WEIGHTS)
    if (folder / CONTRACT).exists():
        if Inputs(folder).contract.weights != digest:
            raise DataError(
                f"{context.folder} holds measurements of other weights. "
                "Delete it, or give another --out."
            )
        return
    print_line(f"{context.folder.name}: preparing images")
    student = load_model_folder(context.student)
    spec, backbone = student.spec, student.backbone
    if spec.preprocess.fit != "crop":
        raise DataError(
            f"{context.student} has fit {spec.preprocess.fit!r}, but the peers use the centre "
            "square. Give a student with fit crop."
        )
    images = {
        split: np.stack(list(preprocess_table(rows, spec.preprocess)))
        for split, rows in tables(context).items()
    }
    images["calibration"] = (
        TableEvaluationData(context.data, spec).calibration().images[: context.limit]
    )
    png = io.BytesIO()
    Image.fromarray(draw_lesion(0).image).save(png, "PNG")
    photographs = {name: photograph(png.getvalue(), size) for name, size in PHOTOGRAPHS.items()}
    names = tuple(task.name for task in spec.tasks)
    contract = Contract(spec.preprocess.size, backbone.mean, backbone.std, names, digest)
    Inputs.write(folder, contract, images, photographs)


def measure(context: Work, threads: list[int], rounds: int, clock: str) -> dict[str, Any]:
    """Measure one student; return the rows of the contenders, then of the student itself."""
    rows = {name: built(name, context) for name in CONTENDERS}
    ready = [name for name, row in rows.items() if row["status"] == "built"]
    for count in threads:
        taken = timed(context, ready, count, rounds, clock)
        for name in ready:
            if "error" in taken[name]:
                rows[name] |= {"status": "failed", "why": taken[name]["error"]}
            else:
                rows[name].setdefault("ms", {})[str(count)] = taken[name]
    ready = [name for name in ready if rows[name]["status"] == "built"]
    print_line(f"{context.folder.name}: scoring")
    for name, metrics in scores(context, ready).items():
        rows[name] = rows.get(name, {}) | metrics | {"status": "measured"}
    return rows


def built(name: str, context: Work) -> dict[str, Any]:
    """Build a contender in its own process, or read its `built.json` from an earlier run."""
    contender, record = CONTENDERS[name], context.folder / name / "built.json"
    if record.exists():
        return dict(read_json(record, DataError))
    if contender.environment and contender.environment not in context.pythons:
        return {"status": "not_run", "why": f"no --{contender.environment}-python was given"}
    if name in context.without:
        return {"status": "not_run", "why": "left out by --without"}
    print_line(f"{context.folder.name}: building {contender.title}")
    record.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    result = isolated(partial(build, name, context), record.with_name("build.log"))
    result = (
        {"status": "built", **result}
        if "error" not in result
        else {"status": "failed", "why": result["error"]}
    )
    result["seconds"] = round(time.perf_counter() - start, 1)
    atomic_write(record, pretty_json(result))
    return result


def timed(context: Work, names: list[str], threads: int, rounds: int, clock: str) -> dict[str, Any]:
    """Return the milliseconds by contender and input, measured in turns in one process."""
    record = context.folder / f"timing-{threads}.json"
    if record.exists():
        document = read_json(record, DataError)
        if set(document) == set(names):
            return dict(document)
    print_line(f"{context.folder.name}: timing {len(names)} contenders, threads: {threads}")
    result = isolated(
        partial(time_in_turns, names, context, threads, rounds, clock), record.with_suffix(".log")
    )
    if "error" in result:
        raise SystemExit(f"timing failed: {result['error']}; see {record.with_suffix('.log')}")
    atomic_write(record, pretty_json(result))
    return result


def time_in_turns(
    names: list[str], context: Work, threads: int, rounds: int, clock: str
) -> dict[str, Any]:
    """Call every contender in every round; reverse the order every other round."""
    times: dict[str, Any] = {name: {} for name in names}
    opened = {}
    for name in names:
        try:
            opened[name] = CONTENDERS[name].open(context, context.artifact(name), threads)
        except Exception as error:
            times[name] = {"error": first_line(error)}
    for call_name in TIMED_CALLS:
        taken: dict[str, list[float]] = {name: [] for name in opened}
        for turn in range(rounds if call_name == "engine" else max(3, rounds // 2)):
            for name in list(opened) if turn % 2 else reversed(opened):
                time.sleep(SETTLE_SECONDS)
                opened[name].times(call_name, 1, clock)
                taken[name] += opened[name].times(call_name, CALLS[call_name], clock)
        for name, values in taken.items():
            times[name][call_name] = vars(percentiles(values))
    for contender in opened.values():
        contender.close()
    return times


def isolated(function: Callable[[], dict[str, Any]], log: Path) -> dict[str, Any]:
    """Call a function in a fresh process that prints to `log`; return its result or `error`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=print_to, initargs=(log,)) as pool:
        try:
            return pool.submit(caught, function).result()
        except BrokenProcessPool:
            return {"error": "the process died"}


def caught(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call a function; return its result, or `error` with the first line of its exception."""
    try:
        with no_telemetry():
            return function()
    except Exception as error:
        traceback.print_exc()
        return {"error": first_line(error)}


def print_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def first_line(error: Exception) -> str:
    """Return the type and the first line of an exception."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".strip()


def versions(pythons: dict[str, Path]) -> dict[str, dict[str, str]]:
    """Return the versions of the packages here and in the other environments."""
    found = {"here": {name: metadata.version(name) for name in PACKAGES}}
    for name, python in pythons.items():
        code = (
            "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
        )
        done = subprocess.run(
            [python, "-c", code, *ELSEWHERE[name]], text=True, capture_output=True, check=True
        )
        found[name] = dict(zip(ELSEWHERE[name], done.stdout.split(), strict=True))
    return found


def print_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
