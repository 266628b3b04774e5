"""Draw lesions, train a teacher, distil a student from it. Needs `pip install 'dermedge[train]'`.

python examples/02_distill.py OUT [IMAGES] [EPOCHS]
"""

import sys
from pathlib import Path

from dermedge.data.draw import draw_data_set
from dermedge.train.distill import DistillOptions, distill
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.loop import Schedule


def main(out: Path, images: int = 400, epochs: int = 8) -> None:
    data = out / "data"
    if not data.exists():
        draw_data_set(data, count=images)

    schedule = Schedule(epochs=epochs, batch_size=32, lr=2e-3)
    teacher = finetune(
        data,
        out / "teacher",
        FinetuneOptions(backbone="mobilenetv2_050", size=64, schedule=schedule),
    )
    print("teacher:", teacher.metrics)

    # mobilenetv2_035 is a narrower model of the same family, so the student starts as a pruned
    # copy of the teacher.
    student = distill(
        out / "teacher",
        data,
        out / "student",
        DistillOptions(backbone="mobilenetv2_035", views=2, schedule=schedule),
    )
    print("student:", student.metrics)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:]))
