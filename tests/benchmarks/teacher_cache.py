"""Measure the images per second of distillation with the teacher cache and without.

    python tests/benchmarks/teacher_cache.py ../shared/data/ham10000 --images 256

Both loops train the same student by the same loss on the same images, one after the
other in one process. Without the cache, each step cuts new views, runs the teacher on
them, and trains the student. With it, an epoch reads stored views and outputs. Random
weights cost as much as trained ones, so nothing is trained before. The cost of filling
the cache is printed too, with the number of epochs after which it is paid. Times are
processor times on one thread (`OMP_NUM_THREADS=1`).
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dermedge.models import Network, TrainedModel, save_model_folder
from dermedge.models.backbone import Backbone
from dermedge.models.new_spec import make_preprocess, make_spec
from dermedge.train.distill_recipe import read_recipe
from dermedge.train.distillation_batches import distillation_batches
from dermedge.train.distillation_loss import DistillationLoss
from dermedge.train.fill_teacher_cache import fill_teacher_cache
from dermedge.train.samples import Samples, read_samples
from dermedge.train.teacher_cache import TeacherCache
from dermedge.train.teacher_member import resize_pixels
from dermedge.train.teachers import Teacher, load_teacher
from dermedge.train.training_data import TrainingBatch, TrainingData
from dermedge.train.views import Frames, Views
from dermedge_runtime.hardware import describe_device


def main() -> None:
    """Measure both loops and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--teacher", nargs="+", default=["vit_small_patch16_224"])
    parser.add_argument("--teacher-size", type=int, default=224)
    parser.add_argument("--student", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    samples, tasks = read_samples(given.data)
    samples = first_train_rows(samples, given.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = []
        for backbone in given.teacher:
            folders.append(folder / backbone)
            spec = make_spec(backbone, tasks, make_preprocess(given.teacher_size, "crop"), {})
            network = Network(Backbone(backbone), tasks)
            save_model_folder(TrainedModel(network, spec, Backbone(backbone)), folders[-1])
        teacher = load_teacher(folders).fit_to(tasks, given.size)
        measure(samples, teacher, folder / "cache", given)


def first_train_rows(samples: Samples, count: int) -> Samples:
    """Return the samples with `count` train rows; the others are test rows."""
    split = samples.split.copy()
    split[samples.rows("train")[count:]] = "test"
    return replace(samples, split=split)


def measure(samples: Samples, teacher: Teacher, folder: Path, given: argparse.Namespace) -> None:
    """Time the parts and both loops, and print a Markdown table."""
    spec = make_spec("student", teacher.spec.tasks, teacher.spec.preprocess, {})
    training = TrainingData.prepare(samples, spec, batch_size=given.batch_size, seed=0)
    step = make_step(training, given.student)
    images = training.steps * training.batch_size
    cache = TeacherCache.open(folder, samples, teacher, views=given.views)
    fill = seconds(lambda: fill_teacher_cache(cache, training.train))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    cut = make_cutter(training, teacher)
    batches = list(distillation_batches(training, cache, 0))
    rows = {
        "cut views from frames in memory": seconds(
            lambda: [cut(rows) for rows in training.batch_rows(1)]
        ),
        "read stored views and outputs": seconds(
            lambda: list(distillation_batches(training, cache, 1))
        ),
        "student alone": seconds(lambda: [step(batch) for batch in batches]),
        "epoch with the cache": seconds(
            lambda: [step(batch) for batch in distillation_batches(training, cache, 2)]
        ),
        "epoch without the cache": seconds(
            lambda: [step(batch) for batch in uncached_batches(training, teacher, cut)]
        ),
    }
    print(f"{images} images, {describe_device()['cpu']}, {torch.get_num_threads()} threads")
    print("| part | CPU ms per image | images/s on one core |\n|---|---|---|")
    for name, wall in rows.items():
        print(f"| {name} | {wall / images * 1000:.1f} | {images / wall:.1f} |")
    cached, uncached = rows["epoch with the cache"], rows["epoch without the cache"]
    print(
        f"\nratio {uncached / cached:.1f}; fill {fill:.0f} s for {given.views} views, "
        f"{size / 1e6:.0f} MB; paid after {fill / (uncached - cached):.1f} epochs"
    )


def make_step(training: TrainingData, student: str) -> Callable[[TrainingBatch], None]:
    """Return a function that trains the student on one batch."""
    network = Network(Backbone(student), training.spec.tasks).train()
    loss = DistillationLoss(
        training.spec.tasks, read_recipe("hinton"), training.log_prior(balance=True)
    )
    loss.start(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step(batch: TrainingBatch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(network, batch).backward()
        optimizer.step()

    return step


def make_cutter(training: TrainingData, teacher: Teacher) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that cuts views of the teacher's size from frames in memory."""
    frames = Frames(training.samples.paths, replace(training.spec.preprocess, size=teacher.size))
    views = Views(frames, training.samples.digests, 1)
    for row in training.train:
        frames[int(row)]
    return lambda rows: np.stack([views.view(int(row), 0) for row in rows])


def uncached_batches(
    training: TrainingData, teacher: Teacher, cut: Callable[[np.ndarray], np.ndarray]
) -> Iterator[TrainingBatch]:
    """Yield the batches of an epoch whose views are cut and predicted in each step."""
    for rows in training.batch_rows(2):
        pixels = cut(rows)
        outputs = teacher.run(pixels)
        image = torch.from_numpy(resize_pixels(pixels, training.spec.preprocess.size))
        soft = (torch.from_numpy(outputs[task.name]) for task in training.spec.tasks)
        yield image, *training.targets(rows, None), *soft


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of a function, all threads together.

    Unlike wall time, it is the same on a busy machine. With OMP_NUM_THREADS=1 and a
    quiet machine the two are equal, but for the thread that reads ahead.
    """
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
