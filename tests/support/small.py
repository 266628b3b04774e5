"""Small data sets and models, processes to kill, and an exporter without tracing."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
import torch
from onnx import helper, numpy_helper

from dermedge.data.draw import draw_data_set
from dermedge.data.split import with_split
from dermedge.data.table import read_table
from dermedge.models import TrainedModel, load_model_folder
from dermedge.train.distill import DistillOptions, distill
from dermedge.train.finetune import FinetuneOptions, finetune
from dermedge.train.loop import Schedule
from dermedge_export.candidate import Candidate
from dermedge_export.context import BuiltArtifact, Exportable, ExportContext
from dermedge_export.export import ExportSession
from dermedge_export.exporters.onnx import export_onnx
from dermedge_export.options import ExportOptions
from dermedge_export.parity.evaluator import EvaluationData
from dermedge_export.target import CPU, Target
from dermedge_runtime.bundle import Bundle
from dermedge_runtime.progress import Progress

WIDE, NARROW = "mobilenetv2_050", "mobilenetv2_035"
EXPORTED = "test_efficientnet"
SIZE = 32
TASKS = ("diagnosis", "malignancy", "severity", "segmentation")
SCHEDULE = Schedule(epochs=3, batch_size=16, lr=2e-3)
# Keywords of the functions themselves; all others are options.
CALL_KEYWORDS = ("overwrite", "progress")
PRELOADED = [
    # `dermedge.train` imports nothing by itself; this module imports all of training.
    "support.small",
    "dermedge.evaluation.export_data",
    "onnx",
    "onnxruntime",
    "sklearn.metrics",
    "pytest",
]

# Faster for models this small; and a child process computes the same bits only with as
# many threads as its parent.
torch.set_num_threads(1)


@functools.cache
def data_set(base: Path) -> Path:
    """Return a data set of 80 drawn lesions of 64 x 48 pixels, with splits.

    `base` is the folder of the test session.
    """
    folder = base / "small" / "lesions"
    draw_data_set(folder, count=80, seed=11, size=(64, 48))
    return write(folder, with_split(read_table(folder)).frame)


@functools.cache
def teacher_folder(base: Path) -> Path:
    """Return a teacher that was trained without a break."""
    train(data_set(base), base / "small" / "teacher")
    return base / "small" / "teacher"


@functools.cache
def student_folder(base: Path) -> Path:
    """Return a student for the tests of export."""
    schedule = Schedule(epochs=12, batch_size=16, lr=1e-2)
    train(
        data_set(base),
        base / "small" / "student",
        backbone=EXPORTED,
        role="student",
        name="small",
        schedule=schedule,
    )
    return base / "small" / "student"


@functools.cache
def many_tasks_folder(base: Path) -> Path:
    """Return a student of diagnosis, malignancy, severity and segmentation."""
    schedule = Schedule(epochs=20, batch_size=16, lr=1e-2, patience=20, ema_decay=0.9)
    out = base / "small" / "many-tasks"
    changes = {
        "backbone": EXPORTED,
        "backbone_args": {},
        "stages": 3,
        "size": 64,
        "schedule": schedule,
    }
    train(data_set(base), out, tasks=TASKS, role="student", name="many", **changes)
    return out


def train(data: Path, out: Path, **changes: Any) -> TrainedModel:
    """Train the small teacher with some options changed; stochastic depth is on."""
    calls = {name: changes.pop(name) for name in CALL_KEYWORDS if name in changes}
    options = {
        "backbone": WIDE,
        "backbone_args": {"drop_path_rate": 0.2},
        "size": SIZE,
        "schedule": SCHEDULE,
        # One test file covers this task; others compare tasks that are trained.
        "ood": False,
    }
    return finetune(data, out, FinetuneOptions(**{**options, **changes}), **calls)


def learn(teacher: Path, data: Path, out: Path, **changes: Any) -> TrainedModel:
    """Distil the small student with some options changed."""
    calls = {name: changes.pop(name) for name in CALL_KEYWORDS if name in changes}
    options = {"backbone": NARROW, "views": 2, "schedule": SCHEDULE, "ood": False, **changes}
    return distill(teacher, data, out, DistillOptions(**options), **calls)


def export_model(
    model: Exportable,
    target: str | Target,
    out: Path,
    *,
    data: EvaluationData | None = None,
    training_images: Sequence[str] = (),
    progress: Progress | None = None,
    **options: Any,
) -> Bundle:
    """Export a model for one target in a session of its own."""
    session = ExportSession.open(
        model,
        ExportOptions(**options),
        data=data,
        training_images=training_images,
        progress=progress,
    )
    return session.export(target, out)


def write(folder: Path, frame: pd.DataFrame) -> Path:
    """Write `frame` as the folder's table; return the folder."""
    frame.to_csv(folder / "metadata.csv", index=False)
    return folder


def edited(data: Path, out: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Return a copy of a data set with another table; the images are hard links."""
    for path in (
        path for path in data.rglob("*") if path.is_file() and path.name != "metadata.csv"
    ):
        target = out / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    frame = pd.read_csv(data / "metadata.csv", dtype=str, keep_default_na=False)
    return write(out, edit(frame))


def flat(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a network's outputs as one row per image."""
    return torch.cat(list(values.values()), dim=1)


def pixels(count: int, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Return smooth coloured noise, uint8 [N, S, S, 3]; the channels differ."""
    small = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(small, size=(size, size), mode="bilinear")
    tinted = smooth * torch.tensor([255.0, 170.0, 90.0]).view(1, 3, 1, 1)
    return tinted.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def in_process(function: Callable[..., None], *arguments: Any) -> int:
    """Call a function in a child process; return its exit code.

    The child is forked from a process that has imported everything, which is fast.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def die() -> None:
    """Kill this process, as `kill -9`, a full memory or a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(name: str, time: int = 1) -> None:
    """Kill this process before it renames the file `name` for the `time`-th time."""
    put, seen = Path.replace, 0

    def replace(self: Path, target: Any) -> Path:
        nonlocal seen
        seen += Path(target).name == name
        if seen == time:
            die()
        return put(self, target)

    Path.replace = replace  # type: ignore[method-assign]


BUILT: list[BuiltArtifact] = []
PREBUILT = Target(
    *("prebuilt", "prebuilt", ("fp32",), "onnxruntime", ("onnxruntime>=1.17",), 18, "in the tests"),
    native=True,
)


def prebuilt(context: ExportContext, target: Target, candidate: Candidate) -> BuiltArtifact:
    """Return the last artifact of `BUILT`; most tests of export need no tracing."""
    return replace(BUILT[-1], artifact=replace(BUILT[-1].artifact, precision=candidate.precision))


@functools.cache
def built(folder: Path) -> BuiltArtifact:
    """Return a student's ONNX artifact, traced once."""
    return export_onnx(ExportContext(load_model_folder(folder)), CPU, Candidate("fp32", "onnx"))


def with_noise(artifact: BuiltArtifact) -> BuiltArtifact:
    """Return the artifact with noise in one weight matrix, as after quantization."""
    model = onnx.load_model_from_string(artifact.files["model.onnx"])
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(weights).copy()
    values += (
        0.05
        * values.std()
        * (-1) ** (torch.arange(values.size).numpy().reshape(values.shape) % 3 == 0)
    )
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    return BuiltArtifact(artifact.artifact, {"model.onnx": model.SerializeToString()})


def with_bgr(artifact: BuiltArtifact) -> BuiltArtifact:
    """Return the artifact with its input read as BGR."""
    model = onnx.load_model_from_string(artifact.files["model.onnx"])
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = "bgr"
    model.graph.initializer.append(
        helper.make_tensor("bgr.order", onnx.TensorProto.INT64, [3], [2, 1, 0])
    )
    model.graph.node.insert(0, helper.make_node("Gather", ["image", "bgr.order"], ["bgr"], axis=3))
    return BuiltArtifact(artifact.artifact, {"model.onnx": model.SerializeToString()})
