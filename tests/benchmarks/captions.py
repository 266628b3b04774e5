"""Train and evaluate a captioner on captions that are written from a table and its masks.

    python tests/benchmarks/captions.py ../shared/data/ham10000 \
        --lm SmolLM2-135M-Instruct.Q4_1.gguf \
        --init ../shared/weights/tf_efficientnet_lite0.imagenet.safetensors -o runs/captions

The same number of lesions of each diagnosis is drawn for train, val and test, with one
photograph of each. The captions of the test lesions have phrasings that training never
sees. The teacher has published weights and linear heads that are fitted on the train
lesions. The captions test the machinery. They are no clinical language.
"""

import argparse
import os
import time
from pathlib import Path

import pandas as pd

from dermedge.captions.evaluate import CaptionEvaluation, evaluate_caption
from dermedge.captions.options import CaptionOptions
from dermedge.captions.table import caption_data
from dermedge.captions.train import train_caption
from dermedge.cli.caption import show
from dermedge.cli.console import progress
from dermedge.data.table import groups, read_table
from dermedge.train.finetune import FinetuneOptions, finetune


def main() -> None:
    """Draw the lesions, train teacher and captioner, and print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--lm", required=True)
    parser.add_argument("--init", required=True)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--train", type=int, default=24, help="lesions of each diagnosis")
    parser.add_argument("--val", type=int, default=4, help="lesions of each diagnosis")
    parser.add_argument("--test", type=int, default=14, help="lesions of each diagnosis")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--lora-lr", type=float, default=8e-5)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    data = given.out / "data"
    if not (data / "metadata.csv").is_file():
        draw_lesions(given.data, data, {n: getattr(given, n) for n in ("train", "val", "test")})
    teacher = given.out / "teacher"
    head = FinetuneOptions(
        backbone=given.backbone, init=given.init, size=given.size, freeze=True, fit="pad"
    )
    finetune(data, teacher, head)
    options = CaptionOptions(
        epochs=given.epochs, lr=given.lr, lora_lr=given.lora_lr, max_tokens=given.max_tokens
    )
    start = time.perf_counter()
    out = given.out / "captioner"
    with progress("train") as report_progress:
        train_caption(teacher, given.lm, data, out, options, progress=report_progress)
    trained = time.perf_counter()
    with progress("evaluate") as report_progress:
        report = evaluate_caption(
            *(out, data, CaptionEvaluation()),
            out=given.out / "report.json",
            overwrite=True,
            progress=report_progress,
        )
    show(report)
    print(f"training {trained - start:.0f} s, evaluation {time.perf_counter() - trained:.0f} s")


def draw_lesions(source: Path, out: Path, counts: dict[str, int]) -> None:
    """Write a data set with a number of lesions of each diagnosis, and captions."""
    table = read_table(source)
    frame = table.frame[(table.frame["mask"] != "") & (table.frame["dx"] != "")]
    one = frame.groupby(groups(frame)).sample(1, random_state=0)
    order = one.sample(frac=1, random_state=0)
    place = order.groupby("dx").cumcount()
    ends = pd.Series(counts).cumsum()
    chosen = order[place < ends.iloc[-1]].copy()
    chosen["split"] = [
        next(name for name, end in ends.items() if number < end) for number in place[chosen.index]
    ]
    for column in ("image", "mask"):
        for cell in chosen[column]:
            (out / cell).parent.mkdir(parents=True, exist_ok=True)
            (out / cell).symlink_to(os.path.relpath(table.path(cell), (out / cell).parent))
    chosen.to_csv(out / "metadata.csv", index=False)
    caption_data(out, overwrite=True)


if __name__ == "__main__":
    main()
