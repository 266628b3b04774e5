"""Measure the gain of distillation, and of each term of a recipe, on real images.

    python tests/benchmarks/distillation.py HAM10000 --teacher runs/lite2 --teacher runs/lite0 \
        --init tf_efficientnet_lite0.imagenet.safetensors -o runs/ablation

The teachers are model folders of `dermedge finetune`. The script trains one student per
arm and seed. All students have the same architecture, initial weights and number of
epochs. `alone-longer` trains on labels alone for as much processor time as the slowest
other arm. The arms share the stored views of a teacher, so only the first pays for its
passes.
Each student is exported and measured on the test split. Differences to `alone` are paired
over lesions and averaged over seeds. A killed run continues; a finished one is skipped.
Several processes may train different `--arms`. `ablation.json` and `ablation.md` hold the
results of the arms that are done.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermedge.cli.allocator import keep_freed_memory
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.evaluation.table_predictions import table_predictions
from dermedge.models import load_model_folder
from dermedge.models.network import count_macs
from dermedge.train.distill import DistillOptions, distill
from dermedge.train.distill_recipe import RECIPES, DistillRecipe, Term
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.loop import Schedule
from dermedge.workflows.evaluate import evaluate
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

# Without its last stage the backbone has 0.70 of its 3.37 million parameters.
STUDENT, STAGES = "tf_efficientnet_lite0", 4
METRICS = (
    "balanced_accuracy",
    "macro_auroc",
    "malignant_auroc",
    "sensitivity",
    "specificity",
    "ece",
    "dice",
)
LONGER = "alone-longer"


@dataclass(frozen=True)
class Arm:
    """One way to train the student.

    Attributes:
        title: Row of the table.
        recipe: Recipe of the distillation; None trains on labels alone.
        unlabelled: Use the tables of `--unlabelled` too.
        ensemble: Learn from all teachers instead of the first one.
    """

    title: str
    recipe: DistillRecipe | None = None
    unlabelled: bool = False
    ensemble: bool = False


_STANDARD = RECIPES["standard"]


def _plus(name: str, *terms: Term, **changes: Any) -> DistillRecipe:
    return DistillRecipe(name, (*_STANDARD.terms, *terms), **changes)


ARMS: Mapping[str, Arm] = {
    "alone": Arm("student alone: labels only"),
    "hinton": Arm("+ KL of softened logits", RECIPES["hinton"]),
    "standard": Arm("+ KL of standardised logits (S)", _STANDARD),
    "dkd": Arm("+ DKD", DistillRecipe("dkd", (Term("labels", 0.5), Term("dkd", 0.5)))),
    "embedding": Arm("S + embedding", _plus("embedding", Term("embedding", 0.5))),
    "distances": Arm("S + distances", _plus("distances", Term("distances", 0.25))),
    "angles": Arm("S + angles", _plus("angles", Term("angles", 0.5))),
    "map": Arm("S + map", _plus("map", Term("map", 0.5))),
    "mask": Arm("S + mask", _plus("mask", Term("mask", 0.5))),
    "mixup": Arm("S + mixup", _plus("mixup", mixup=0.2)),
    "uncertainty": Arm(
        "S + uncertainty weighting", _plus("uncertainty", task_weights="uncertainty")
    ),
    "unlabelled": Arm("S + unlabelled", _STANDARD, unlabelled=True),
    "ensemble": Arm("S + ensemble teacher", _STANDARD, ensemble=True),
    "full": Arm("full recipe", RECIPES["full"], unlabelled=True, ensemble=True),
    LONGER: Arm("student alone, as long as the slowest arm"),
}


@dataclass(frozen=True)
class Setup:
    """Settings that all arms share: the arguments of the command line."""

    data: Path
    out: Path
    teachers: Sequence[Path]
    init: str
    unlabelled: Sequence[Path] = ()
    tasks: Sequence[str] | None = None
    arms: Sequence[str] = tuple(ARMS)
    seeds: int = 2
    epochs: int = 8
    views: int = 8
    size: int = 128
    student: str = STUDENT
    stages: int | None = STAGES
    batch_size: int = 64

    def schedule(self, epochs: int) -> Schedule:
        """Return the schedule of a training. All epochs run, so that times compare."""
        return Schedule(epochs=epochs, batch_size=self.batch_size, patience=epochs)


def main() -> None:
    """Train, export and measure all arms, and print the table."""
    setup = parse()
    keep_freed_memory()
    results: dict[str, list[dict[str, Any]]] = {}
    for name in setup.arms:
        for seed in range(setup.seeds):
            folder = setup.out / f"{name}-{seed}"
            train_arm(setup, name, seed, folder, results)
            results.setdefault(name, []).append(measure(folder, setup.data))
        write_results(setup, results)
    print((setup.out / "ablation.md").read_text(encoding="utf-8"))


def parse() -> Setup:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--teacher",
        dest="teachers",
        type=Path,
        action="append",
        required=True,
        help="Model folder. Repeat it for the arms with an ensemble.",
    )
    parser.add_argument("--init", required=True, help="Initial weights of every student.")
    parser.add_argument("--unlabelled", type=Path, action="append", default=[])
    parser.add_argument("--task", dest="tasks", action="append")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    for name in ("seeds", "epochs", "views", "size", "batch-size"):
        default = getattr(Setup, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--student", default=STUDENT, help="timm name")
    parser.add_argument("--stages", type=int, default=STAGES, help="0 keeps all stages")
    arguments = parser.parse_args()
    setup = Setup(**{**vars(arguments), "stages": arguments.stages or None})
    if len(setup.teachers) < 2 and any(ARMS[name].ensemble for name in setup.arms):
        parser.error("An arm learns from an ensemble. Give two --teacher, or choose --arms.")
    lacking = [name for name in setup.arms if ARMS[name].unlabelled and not setup.unlabelled]
    if lacking:
        print(f"Without --unlabelled, these arms have labelled rows only: {', '.join(lacking)}.")
    # `alone` is the reference of all differences, and the longer one needs the others' times.
    order = [name for name in ARMS if name in {*setup.arms, "alone"}]
    return Setup(**{**vars(setup), "arms": order})


def train_arm(
    setup: Setup,
    name: str,
    seed: int,
    folder: Path,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Train the student of one arm and seed."""
    arm = ARMS[name]
    network: dict[str, Any] = {
        "backbone": setup.student,
        "stages": setup.stages,
        "init": setup.init,
        "tasks": setup.tasks,
        "size": setup.size,
        "seed": seed,
    }
    progress = print_progress(folder.name)
    if arm.recipe is None:
        epochs = setup.epochs
        if name == LONGER:
            slowest = max(row["train_cpu_s"] for rows in results.values() for row in rows)
            own = min(row["train_cpu_s"] for row in results["alone"])
            epochs = max(epochs, round(epochs * slowest / max(own, 1e-9)))
        options = FinetuneOptions(role="student", schedule=setup.schedule(epochs), **network)
        finetune(setup.data, folder, options, progress=progress)
        return
    distill(
        setup.teachers if arm.ensemble else setup.teachers[:1],
        setup.data,
        folder,
        DistillOptions(
            recipe=arm.recipe,
            unlabelled=setup.unlabelled if arm.unlabelled else (),
            views=setup.views,
            teacher_cache=setup.out / "views",
            schedule=setup.schedule(setup.epochs),
            **network,
        ),
        progress=progress,
    )


def measure(folder: Path, data: Path) -> dict[str, Any]:
    """Export a student to `cpu`; return its row, with test metrics and time on one thread.

    The row is kept beside the weights that it belongs to.
    """
    weights, path = sha256_file(folder / "weights.safetensors"), folder / "measured.json"
    if path.is_file():
        known: dict[str, Any] = read_json(path, DataError)
        if known["weights"] == weights:
            return known
    student = load_model_folder(folder)
    bundle = open_bundle(folder, data)
    scores = evaluate(bundle, data, progress=print_progress(folder.name)).overall
    run = read_json(folder / "run.json", DataError)
    row = {
        "weights": weights,
        "parameters": student.metrics["parameters"],
        "macs": count_macs(student.module, student.spec),
        "bytes": len(bundle.read(bundle.artifact.path)),
        "engine_ms": bench(bundle, threads=1, runs=200).engine_only.p50,
        "images": scores.cases,
        "lesions": scores.groups,
        "train_wall_s": run["wall_seconds"],
        "train_cpu_s": run["cpu_seconds"],
        "epochs": len(run["history"]),
        "val": run["metrics"],
        **{name: scores.metrics[name] for name in METRICS if name in scores.metrics},
    }
    stored: dict[str, Any] = to_json(row)
    atomic_write(path, pretty_json(stored))
    return stored


def open_bundle(folder: Path, data: Path) -> Bundle:
    """Return the bundle of a student, and export it first if there is none."""
    student = load_model_folder(folder)
    path = folder / f"{student.spec.name}-cpu.dermedge"
    bundle = Bundle.open(path) if path.exists() else export(folder, "cpu", folder, data=data)
    if bundle.spec != student.spec:
        raise DataError(f"{path} holds another model. Delete it.")
    return bundle


def write_results(setup: Setup, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write rows and differences of the arms that are done."""
    gains = {name: gain(setup, name) for name in results if name != "alone"}
    content = {"models": results, "minus_alone": gains, "epochs": setup.epochs}
    atomic_write(setup.out / "ablation.json", pretty_json(to_json(content)))
    atomic_write(setup.out / "ablation.md", markdown(results, gains).encode())


def gain(setup: Setup, name: str) -> dict[str, Interval]:
    """Return an arm minus `alone` on test, averaged over seeds.

    The 95 % intervals resample lesions, the same ones on both sides and for all seeds.
    """
    table = with_split(read_table(setup.data)).select_split("test")
    pairs = []
    for seed in range(setup.seeds):
        sides = []
        for arm in (name, "alone"):
            folder = setup.out / f"{arm}-{seed}"
            with load(open_bundle(folder, setup.data)) as model:
                spec = model.bundle.spec
                predictions = table_predictions(table, spec, model.run)
                sides.append(decode_table(predictions, spec, model.bundle.postprocessing))
        pairs.append(sides)
    labels, malignant = predictions.labels, predictions.malignant == 1
    classes = len(spec.diagnosis.labels) if spec.diagnosis else 0
    metrics: dict[str, Callable[[Any, Any], Any]] = {
        "balanced_accuracy": lambda d, w: balanced_accuracy(labels, d.predicted, classes, w),
        "macro_auroc": lambda d, w: macro_auroc(labels, d.probabilities, w),
        "malignant_auroc": lambda d, w: auroc(malignant, d.scores, w),
    }
    statistics = {
        metric: lambda w, f=f: sum(f(one, w) - f(other, w) for one, other in pairs) / len(pairs)
        for metric, f in metrics.items()
    }
    drawn = bootstrap(predictions.groups, statistics)
    return {
        metric: interval_of(statistic(None), drawn[metric])
        for metric, statistic in statistics.items()
    }


def markdown(
    results: Mapping[str, Sequence[Mapping[str, Any]]], gains: Mapping[str, Mapping[str, Interval]]
) -> str:
    """Return the rows as a Markdown table: means over seeds, and differences to `alone`."""
    lines = [
        "| student | balanced accuracy | minus alone | macro AUROC | minus alone "
        "| malignant AUROC | ECE | Dice | epochs | processor time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        found = gains.get(name, {})

        def mean(metric: str, rows: Sequence[Mapping[str, Any]] = rows) -> str:
            values = [row[metric]["value"] for row in rows if metric in row]
            return f"{sum(values) / len(values):.3f}" if values else "-"

        def minus(metric: str, found: Mapping[str, Interval] = found) -> str:
            return signed(found[metric]) if metric in found else "-"

        seconds = sum(row["train_cpu_s"] for row in rows) / len(rows)
        cells = (
            ARMS[name].title,
            *(mean("balanced_accuracy"), minus("balanced_accuracy")),
            *(mean("macro_auroc"), minus("macro_auroc")),
            *(mean("malignant_auroc"), mean("ece"), mean("dice")),
            f"{rows[0]['epochs']}",
            f"{seconds / 60:.1f} min",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def signed(value: Interval) -> str:
    """Format a difference as `+0.012 (-0.030 to +0.050)`."""
    return f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


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
