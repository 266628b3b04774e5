"""Draw synthetic lesions, train a teacher, and distil a student from it.

python examples/02_distill.py OUT [IMAGES] [EPOCHS]

It needs `pip install 'dermedge[train]'`.
"""

import sys
from pathlib import Path

import dermedge


def main(out: Path, images: int = 400, epochs: int = 8) -> None:
    data = out / "data"
    if not data.exists():
        dermedge.draw_data_set(data, count=images)

    schedule = dermedge.Schedule(epochs=epochs, batch_size=32, lr=2e-3)
    teacher = dermedge.finetune(
        data,
        out / "teacher",
        dermedge.FinetuneOptions(backbone="mobilenetv2_050", size=64, schedule=schedule),
    )
    print("teacher:", teacher.metrics)

    # mobilenetv2_035 is a narrower model of the same family, so the student starts as a
    # pruned copy of the teacher.
    student = dermedge.distill(
        out / "teacher",
        data,
        out / "student",
        dermedge.DistillOptions(backbone="mobilenetv2_035", views=2, schedule=schedule),
    )
    print("student:", student.metrics)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:]))
