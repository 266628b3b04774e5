r"""Export every student preset to one target of each family, and measure its latency here.

    python tests/benchmarks/students.py [--only NAME ...] [--latency]
    python tests/benchmarks/students.py --table

Weights are random, and the images are drawn lesions, so the result says nothing about
accuracy. It is written to `dermedge/models/student_presets.json`, which
`dermedge students` shows. An interrupted run continues. `--latency` measures the
latencies again. The table of docs/students.md is printed at the end; `--table` prints it alone.
"""

import argparse
import datetime
import importlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from backbones import PRECISIONS, attempt, export_and_verify, spread_outputs

from dermedge.models import Network, TrainedModel
from dermedge.models.network import count_macs, count_parameters
from dermedge.models.student_presets import EVERYWHERE, MEASURED, STUDENT_PRESETS, StudentPreset
from dermedge_export import ExportOptions, ExportSession
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate, select_candidates
from dermedge_export.context import ExportContext
from dermedge_export.parity.evaluator import SYNTHETIC_COUNT
from dermedge_export.selection.latency import Clock, measure_latencies
from dermedge_export.staging import NOT_RUN, StagedBundles
from dermedge_export.synthetic import seeds
from dermedge_export.synthetic.lesions import draw_lesion
from dermedge_export.target import find_target
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.files import atomic_write
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.model import load
from dermedge_runtime.preprocess import preprocess
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support.operators import operators

# Imported once, before anything is timed.
TOOLS = ("coremltools", "onnxscript", "sklearn.metrics", "torch.onnx", "nncf", "litert_torch")
PACKAGES = ("torch", "timm", "onnxruntime", "litert-torch", "coremltools")
# The targets whose artifacts run here, with the engine and the package of the engine.
TIMED = {"cpu": ("onnxruntime", "onnxruntime"), "android": ("litert", "ai-edge-litert")}
CALIBRATION = 32  # images: enough for latencies, which do not depend on them
TASKS = (
    Task("diagnosis", "classify", tuple(Label(f"d{label}", f"d{label}") for label in range(7))),
    Task("malignancy", "binary"),
)
Facts = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these presets again")
    parser.add_argument("--latency", action="store_true", help="measure only the latencies again")
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        for module in TOOLS:
            importlib.import_module(module)
        known = json.loads(MEASURED.read_text()) if MEASURED.exists() else {"presets": {}}
        measure_presets(known["presets"], options.only or [], latency_only=options.latency)
    print(format_table(json.loads(MEASURED.read_text())))


def measure_presets(known: dict[str, Facts], only: list[str], *, latency_only: bool) -> None:
    """Measure the presets that are not in `known`, or those in `only`; write each at once."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, lesions = Path(temporary), Lesions()
        for name, preset in STUDENT_PRESETS.items():
            entry = known.setdefault(name, {"exports": {}, "latency_ms": {}})
            entry.update(count(preset))
            complete = set(EVERYWHERE) <= set(entry["exports"]) and entry["latency_ms"]
            if (only and name not in only) or (complete and not only and not latency_only):
                continue
            facts = measure(preset, folder, lesions, latency_only=latency_only)
            entry.update(facts)
            # Presets in the order of the list, without those that it no longer has.
            presets = {each: known[each] for each in STUDENT_PRESETS if each in known}
            atomic_write(MEASURED, pretty_json({**describe(), "presets": presets}))
            print(name, json.dumps(facts), flush=True)


def describe() -> Facts:
    """Return the date, the machine and the versions of the tools."""
    device = describe_device()
    packages = (*PACKAGES, *(package for _, package in TIMED.values()))
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{device['cpu']} ({device['flags']})",
        "clock": "processor time of 1 thread",
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: version(name) for name in dict.fromkeys(packages)},
    }


class Lesions:
    """Images to calibrate and to compare on, drawn once for each input size."""

    def __init__(self) -> None:
        self.calibration = cache(lambda spec: synthetic_calibration(spec, CALIBRATION))
        self.compared = cache(
            lambda spec: [
                preprocess(draw_lesion(seed).image, spec)
                for seed in seeds.AGREEMENT[:SYNTHETIC_COUNT]
            ]
        )

    def session(self, model: TrainedModel) -> ExportSession:
        """Return a session for a model that uses these images."""
        spec = model.spec.preprocess
        session = ExportSession.open(model)
        # The evaluator would draw the same images again for each model.
        vars(session.evaluator)["lesions"] = self.compared(spec)
        return replace(session, context=ExportContext(model, lambda: self.calibration(spec)))


def measure(preset: StudentPreset, folder: Path, lesions: Lesions, *, latency_only: bool) -> Facts:
    """Return the size, the exports and the latencies of a preset."""
    torch.manual_seed(0)
    network = Network(preset.backbone, TASKS).eval()
    spec = Spec(preset.name, "1", TASKS, Preprocess(preset.size))
    model = TrainedModel(network, spec, preset.backbone)
    spread_outputs(model)
    session = lesions.session(model)
    facts: Facts = {"latency_ms": measure_preset(session.context, folder)}
    if latency_only:
        return facts
    exports = {}
    for target in EVERYWHERE:
        options = ExportOptions(
            precision=PRECISIONS.get(target, "fp32"), overwrite=True, allow_parity_failure=True
        )
        work = partial(export_and_verify, replace(session, options=options), target)
        exports[target] = attempt(partial(work, folder / "out"))
        print(preset.name, target, exports[target], flush=True)
        del exports[target]["seconds"]
    return {**facts, "exports": exports}


def count(preset: StudentPreset) -> Facts:
    """Return the parameters, multiply-accumulates and operators of a preset without heads."""
    tasks = (Task("features", "embed"),)
    spec = Spec("count", "1", tasks, Preprocess(preset.size))
    with torch.device("meta"):
        network = Network(preset.backbone, tasks)
        sizes = {"parameters": count_parameters(network), "macs": count_macs(network, spec)}
    return {**sizes, "operators": operators(Network(preset.backbone, tasks), 64)}


def measure_preset(context: ExportContext, folder: Path) -> dict[str, dict[str, float]]:
    """Return milliseconds by target and precision, measured in turns."""
    image = preprocess(draw_lesion(0).image, context.spec.preprocess)[None]
    with ExitStack() as stack:
        runtimes = {}
        for name, (engine, _) in TIMED.items():
            target = find_target(name)
            temporary = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
            staged = StagedBundles(context, target, Path(temporary), cache=None)
            for precision in ("fp32", "int8"):
                path = Path(temporary) / precision
                built = staged.build(first_candidate(name, precision, engine))
                bundle = staged.write(path, built, {}, NOT_RUN, {})
                model = stack.enter_context(load(bundle, engine=engine, threads=1))
                runtimes[f"{name} {precision}"] = model.runtime
        # Processor time of the one thread: other programs hardly change it.
        latencies = measure_latencies(runtimes, image, Clock(now=time.process_time))
    return {
        name: {
            precision: round(latencies[f"{name} {precision}"], 2) for precision in ("fp32", "int8")
        }
        for name in TIMED
    }


def first_candidate(target: str, precision: str, engine: str) -> Candidate:
    """Return the candidate that an export of this precision tries first."""
    flags = describe_device()["flags"].split()
    return select_candidates(find_target(target), precision, engine, flags)[0]


def format_table(measured: Mapping[str, Any]) -> str:
    """Return the measurements as Markdown."""
    times = [f"{name} {precision}" for name in TIMED for precision in ("fp32", "int8")]
    lines = [
        f"{measured['date']}, {measured['machine']}, {measured['clock']}, load {measured['load']}. "
        f"{', '.join(f'{name} {number}' for name, number in measured['versions'].items())}.",
        "",
        f"| preset | pixels | M parameters | M MACs | {' | '.join(times)} |",
        f"|---|--:|--:|--:|{'--:|' * len(times)}",
    ]
    for name, facts in measured["presets"].items():
        latency = (facts["latency_ms"].get(target, {}) for target in TIMED)
        cells = [
            f"{each[precision]:.2f}" if precision in each else "not_run"
            for each in latency
            for precision in ("fp32", "int8")
        ]
        numbers = [
            f"{facts[key] / 1e6:.{digits}f}" for key, digits in (("parameters", 2), ("macs", 0))
        ]
        lines.append(f"| {' | '.join([name, str(STUDENT_PRESETS[name].size), *numbers, *cells])} |")
    lines += ["", f"| preset | {' | '.join(EVERYWHERE)} |", f"|---|{'---|' * len(EVERYWHERE)}"]
    for name, facts in measured["presets"].items():
        lines.append(
            f"| {name} | {' | '.join(_cell(facts['exports'].get(each)) for each in EVERYWHERE)} |"
        )
    return "\n".join(lines)


def _cell(export: Facts | None) -> str:
    if export is None:
        return "not_run"
    if export["state"] != "ok":
        return f"{export['state']}: {export['message']}"
    gate = "" if export["host"] == "passed" else f", gate {export['host']}"
    return f"{export['max_difference']:.0e}{gate}"


if __name__ == "__main__":
    main()
