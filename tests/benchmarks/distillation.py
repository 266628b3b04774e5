"""What distillation is worth at equal wall time, on real images.

    python tests/benchmarks/distillation.py ../shared/data/ham10000 \
        --init ../shared/weights/mobilenetv2_100.imagenet.safetensors -o runs/ham10000

Trains a teacher from the given weights and three students of the same architecture: from random weights, pruned from
the teacher, and pruned and distilled with fewer epochs, so that the teacher's passes are paid for. Every run resumes
after a kill and is skipped when done.
"""

import argparse
import time
from pathlib import Path

from dermedge.train import Schedule, distill, finetune

SIZE = 128  # of the square input; the images are 150 pixels high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", required=True, help="safetensors weights of the teacher's backbone")
    parser.add_argument("--student", default="mobilenetv2_050")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    data, out, student = arguments.data, arguments.out, arguments.student

    teacher = out / "teacher"
    finetune(data, teacher, init=arguments.init, size=SIZE, schedule=Schedule(epochs=12), progress=say("teacher"))
    backbone_args = {"pad_type": "same"}
    distill(
        teacher,
        data,
        out / "student-distilled",
        backbone=student,
        schedule=Schedule(epochs=10),
        progress=say("distilled"),
    )
    alone = Schedule(epochs=12)
    finetune(
        data,
        out / "student-pruned",
        backbone=student,
        init=str(teacher),
        size=SIZE,
        role="student",
        schedule=alone,
        progress=say("pruned"),
    )
    finetune(
        data,
        out / "student-random",
        backbone=student,
        backbone_args=backbone_args,
        size=SIZE,
        role="student",
        schedule=alone,
        progress=say("random"),
    )


def say(stage: str):
    started = time.perf_counter()

    def progress(done: int, total: int, note: str = "") -> None:
        if done % 20 == 0 or done == total:
            print(f"{stage} {done}/{total} {note} {time.perf_counter() - started:.0f} s", flush=True)

    return progress


if __name__ == "__main__":
    main()
