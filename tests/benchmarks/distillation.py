"""Measure the gain of distillation at equal training time, on real images.

    python tests/benchmarks/distillation.py ../shared/data/ham10000 \
        --init ../shared/weights/mobilenetv2_100.imagenet.safetensors -o runs/ham10000

The script trains a teacher from the given weights, and two students that are pruned from
it. Both students have the same architecture. One trains on labels alone. The other is
distilled for fewer epochs, because the teacher's predictions count as its training time.
Each model is exported and measured on the test split. A killed run continues; a finished
one is skipped.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dermedge.cli.allocator import keep_freed_memory
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.evaluation.evaluate import evaluate
from dermedge.evaluation.table_predictions import table_predictions
from dermedge.models import load_model_folder
from dermedge.models.network import count_macs
from dermedge.train.distill import DistillOptions, distill
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.loop import Schedule
from dermedge.workflows.export import export
from dermedge_export.evaluation.metrics import auroc, balanced_accuracy, bootstrap, macro_auroc
from dermedge_export.evaluation.metrics import interval as interval_of
from dermedge_export.evaluation.predictions import decode_table
from dermedge_runtime.bench import bench
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.canonical_json import pretty_json, read_json
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import atomic_write, sha256_file
from dermedge_runtime.model import load
from dermedge_runtime.report import Interval
from dermedge_runtime.spec import to_json

SIZE = 128  # side of the input in pixels; the images are 150 pixels high
# The teacher without its last two stages has 0.54 of its 2.2 million parameters.
STUDENT, STAGES = "mobilenetv2_100", 4
METRICS = (
    "balanced_accuracy",
    "macro_auroc",
    "malignant_auroc",
    "sensitivity",
    "specificity",
    "ece",
)


def main() -> None:
    """Train and export the models, measure them and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--init", required=True, help="safetensors weights of the teacher's backbone"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    out: Path = arguments.out
    train(arguments.data, arguments.init, out)
    names = {
        "teacher": "teacher",
        "student-pruned": "student alone: pruned from the teacher, labels only",
        "student-distilled": "student distilled: pruned from the teacher, logits and labels",
    }
    rows = [measure(out / folder, arguments.data, title) for folder, title in names.items()]
    gain = distillation_gain(out, arguments.data)
    atomic_write(out / "distillation.json", pretty_json(to_json({"models": rows, "gain": gain})))
    print(markdown(rows))
    print(
        "\nDistilled minus alone, paired over lesions: "
        + ", ".join(f"{k} {signed(v)}" for k, v in gain.items())
    )


def train(data: Path, init: str, out: Path) -> None:
    """Train the teacher and the two students, one after the other."""
    keep_freed_memory()
    teacher = out / "teacher"
    finetune(
        data,
        teacher,
        FinetuneOptions(init=init, size=SIZE, schedule=Schedule(epochs=12)),
        progress=print_progress("teacher"),
    )
    distill(
        teacher,
        data,
        out / "student-distilled",
        DistillOptions(backbone=STUDENT, stages=STAGES, views=4, schedule=Schedule(epochs=8)),
        progress=print_progress("distilled"),
    )
    finetune(
        data,
        out / "student-pruned",
        FinetuneOptions(
            backbone=STUDENT,
            stages=STAGES,
            init=str(teacher),
            size=SIZE,
            role="student",
            schedule=Schedule(epochs=10),
        ),
        progress=print_progress("pruned"),
    )


def measure(folder: Path, data: Path, title: str) -> dict[str, Any]:
    """Export a model to `cpu`; return its row, with test metrics and time on one thread."""
    student = load_model_folder(folder)
    path = folder / f"{student.spec.name}-cpu.dermedge"
    bundle = Bundle.open(path) if path.exists() else export(folder, "cpu", folder, data=data)
    if bundle.spec != student.spec:
        raise DataError(f"{path} holds another model. Delete it.")
    scores = evaluate(bundle, data, progress=print_progress(folder.name)).overall
    run = read_json(folder / "run.json", DataError)
    latency = bench(bundle, threads=1, runs=200)
    return {
        "model": title,
        "weights": sha256_file(folder / "weights.safetensors"),
        "parameters": student.metrics["parameters"],
        "macs": count_macs(student.module, student.spec),
        "bytes": len(bundle.read(bundle.artifact.path)),
        "engine_ms": latency.engine_only.p50,
        "images": scores.cases,
        "lesions": scores.groups,
        "train_wall_s": run["wall_seconds"],
        "train_cpu_s": run["cpu_seconds"],
        "epochs": len(run["history"]),
        **{name: scores.metrics[name] for name in METRICS},
    }


def distillation_gain(out: Path, data: Path) -> dict[str, Interval]:
    """Return distilled minus alone on test, with paired 95 % intervals over lesions."""
    table = with_split(read_table(data)).select_split("test")
    sides: list[Any] = []
    for folder in ("student-distilled", "student-pruned"):
        with load(next((out / folder).glob("*.dermedge"))) as model:
            spec = model.bundle.spec
            predictions = table_predictions(table, spec, model.run)
            sides.append(
                (predictions, decode_table(predictions, spec, model.bundle.postprocessing))
            )
    labels, malignant = sides[0][0].labels, sides[0][0].malignant == 1
    classes = len(spec.diagnosis.labels)
    metrics = {
        "balanced_accuracy": lambda d, w: balanced_accuracy(labels, d.predicted, classes, w),
        "macro_auroc": lambda d, w: macro_auroc(labels, d.probabilities, w),
        "malignant_auroc": lambda d, w: auroc(malignant, d.scores, w),
    }
    (_, distilled), (_, alone) = sides
    statistics = {name: lambda w, f=f: f(distilled, w) - f(alone, w) for name, f in metrics.items()}
    drawn = bootstrap(sides[0][0].groups, statistics)
    return {
        name: interval_of(statistic(None), drawn[name]) for name, statistic in statistics.items()
    }


def signed(value: Interval) -> str:
    """Format a difference as `+0.012 (-0.030 to +0.050)`."""
    return f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| model | balanced accuracy | macro AUROC | malignant AUROC "
        "| parameters | MACs | file | engine, 1 thread | training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["model"],
            *(interval(row[name]) for name in METRICS[:3]),
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['macs'] / 1e6:.0f} M",
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['engine_ms']:.1f} ms",
            f"{row['train_wall_s'] / 60:.1f} min",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(value: Interval) -> str:
    """Format a metric as `0.712 (0.655-0.768)`."""
    return f"{value.value:.3f} ({value.low:.3f}-{value.high:.3f})"


def print_progress(stage: str) -> Callable[[int, int, str], None]:
    """Return a callback that prints a line every 20 steps."""
    started = time.perf_counter()

    def progress(done: int, total: int, note: str = "") -> None:
        if done % 20 == 0 or done == total:
            print(
                f"{stage} {done}/{total} {note} {time.perf_counter() - started:.0f} s", flush=True
            )

    return progress


if __name__ == "__main__":
    main()
