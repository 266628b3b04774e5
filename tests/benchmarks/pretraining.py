"""Measure the effect of each part of hybrid pretraining, at equal steps and images.

    python tests/benchmarks/pretraining.py ablation --data ../shared/data/ham10000 \
        --data ../shared/data/isic2017 --data ../shared/data/pad_ufes_20 \
        --probe ../shared/data/ham10000 \
        --init ../shared/weights/mobilenetv2_100.imagenet.safetensors -o runs/pretraining
    python tests/benchmarks/pretraining.py tuned ...as above...
    python tests/benchmarks/pretraining.py speed --data ../shared/data/pad_ufes_20 \
        --init ... -o runs/pretraining

`ablation` pretrains by (a) labels alone, (b) self-supervision alone, (c) hybrid with random
prototypes and (d) hybrid with prototypes of the taxonomy, for every seed. Linear probes
measure each teacher's frozen features on the test split of a table, with all labels and with
a tenth of them. A killed run continues.
`tuned` fine-tunes the whole network from the initial weights and from (d), for every seed,
and reports both on val.
`speed` compares a step of `pretrain` with the same step written naively.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from pretraining_naive import naive_images_per_second

from dermedge.models.backbone import read_backbone
from dermedge.probing.options import ProbeOptions
from dermedge.probing.probe import probe
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.hybrid.pretrain import pretrain
from dermedge.train.hybrid.recipe import PRESETS, HybridRecipe
from dermedge.train.loop import Schedule
from dermedge_runtime.canonical_json import pretty_json, read_json
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import atomic_write
from dermedge_runtime.hardware import describe_device
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import to_json

# A MobileNetV2 from ImageNet weights at 96 pixels, without the iBOT loss.
RECIPE = PRESETS["mobile"]
TUNING = Schedule(epochs=8)
ARMS: Mapping[str, Mapping[str, Any]] = {
    "a label loss alone": {"dino": 0.0, "koleo": 0.0},
    "b self-supervised losses alone": {"label": 0.0},
    "c hybrid, random prototypes": {"prototypes": "random"},
    "d hybrid, prototypes of the taxonomy": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=["ablation", "tuned", "speed"])
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="table to pretrain on; repeatable"
    )
    parser.add_argument("--probe", type=Path, help="table to probe on")
    parser.add_argument(
        "--init", type=Path, required=True, help="safetensors weights of the backbone"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument(
        "--epochs", type=int, default=RECIPE.epochs, help=f"of {RECIPE.steps} steps"
    )
    parser.add_argument("--lr", type=float, default=RECIPE.lr)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    backbone = read_backbone(options.init, None)
    recipe = replace(
        RECIPE,
        backbone=backbone.name,
        backbone_args=backbone.args,
        epochs=options.epochs,
        lr=options.lr,
    )
    results = {"ablation": ablation, "tuned": tuned, "speed": speed}[options.benchmark](
        options, recipe
    )
    atomic_write(options.out / f"{options.benchmark}.json", pretty_json(results))
    print(
        table(results["rows"]) if options.benchmark == "ablation" else pretty_json(results).decode()
    )


def ablation(options: argparse.Namespace, recipe: HybridRecipe) -> dict[str, Any]:
    """Measure the initial weights, and every arm with every seed."""
    rows = []
    # `pretrain` writes the folder. One step at a negligible rate keeps the initial weights.
    pretrain(
        options.data,
        options.out / "start",
        recipe=replace(recipe, epochs=1, steps=1, lr=1e-12),
        init=str(options.init),
    )
    rows.append(measure("initial weights", 0, options.out / "start", options))
    for seed in options.seeds:
        for arm, changes in ARMS.items():
            folder = options.out / f"{arm[0]}-{seed}"
            pretrain(
                options.data,
                folder,
                recipe=replace(recipe, **changes),
                init=str(options.init),
                seed=seed,
                progress=print_progress(folder.name),
            )
            rows.append(measure(arm, seed, folder, options))
            atomic_write(options.out / "ablation.partial.json", pretty_json({"rows": rows}))
    return {
        "machine": dict(describe_device()),
        "recipe": to_json(asdict(recipe)),
        "data": [str(path) for path in options.data],
        "probe": str(options.probe),
        "rows": rows,
    }


def measure(arm: str, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Probe a teacher and return its row of the table."""
    record = folder / "probe.json"
    if record.exists():
        return dict(read_json(record, DataError))
    cache = options.out / "features"
    linear = probe(folder, options.probe, ProbeOptions(normalise=True), cache=cache)
    few_shot = ProbeOptions(protocol="fewshot", fractions=(0.1,), normalise=True)
    few = probe(folder, options.probe, few_shot, cache=cache)
    run = read_json(folder / "run.json", DataError)
    row = {
        "arm": arm,
        "seed": seed,
        "linear": to_json(linear.results[0].metrics),
        "few_shot_10": to_json(few.results[0].metrics),
        "history": run.get("history"),
        "wall_seconds": run["wall_seconds"],
        "images": linear.images,
    }
    atomic_write(record, pretty_json(row))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of balanced accuracy and macro AUROC with intervals."""
    lines = [
        "| arm | seed | linear, balanced accuracy | linear, macro AUROC "
        "| 10 % of labels, balanced accuracy |"
    ]
    lines.append("|---|---|---|---|---|")
    for row in rows:
        shown = (
            ("linear", "balanced_accuracy"),
            ("linear", "macro_auroc"),
            ("few_shot_10", "balanced_accuracy"),
        )
        cells = [interval(row[part][name]) for part, name in shown]
        lines.append(f"| {row['arm']} | {row['seed']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def tuned(options: argparse.Namespace, recipe: HybridRecipe) -> dict[str, Any]:
    """Measure teachers on val, fine-tuned from the initial weights and from arm d."""
    rows = []
    for seed in options.seeds:
        for start, init in (("initial", options.init), ("d", options.out / f"d-{seed}")):
            folder = options.out / f"tuned-{start}-{seed}"
            teacher = finetune(
                options.probe,
                folder,
                FinetuneOptions(init=str(init), size=recipe.size, schedule=TUNING, seed=seed),
                progress=print_progress(folder.name),
            )
            wall = read_json(folder / "run.json", DataError)["wall_seconds"]
            rows.append(
                {"start": start, "seed": seed, "val": teacher.metrics["val"], "wall_seconds": wall}
            )
            atomic_write(options.out / "tuned.partial.json", pretty_json({"rows": rows}))
    return {"machine": dict(describe_device()), "schedule": to_json(asdict(TUNING)), "rows": rows}


def speed(options: argparse.Namespace, recipe: HybridRecipe) -> dict[str, Any]:
    """Measure images per second of both, in turns; the first turn of each warms up."""
    ours, naive = [], []
    for turn in range(4):
        folder = options.out / f"speed-{turn}"
        pretrain(
            options.data,
            folder,
            recipe=replace(recipe, epochs=2, steps=10),
            init=str(options.init),
            seed=turn,
            overwrite=True,
        )
        ours.append(read_json(folder / "run.json", DataError)["history"][-1]["images_per_second"])
        naive.append(naive_images_per_second(options.data, recipe, options.init, steps=6))
    return {
        "machine": dict(describe_device()),
        "ours": ours,
        "naive": naive,
        "ratio": float(np.median(ours[1:]) / np.median(naive[1:])),
    }


def print_progress(title: str) -> Progress:
    """Return a callback that prints a line every 15 seconds."""
    last = [0.0]

    def report_progress(done: int, total: int, note: str) -> None:
        if time.monotonic() - last[0] > 15:
            last[0] = time.monotonic()
            print(f"{title}: {done}/{total} {note}", flush=True)

    return report_progress


if __name__ == "__main__":
    main()
