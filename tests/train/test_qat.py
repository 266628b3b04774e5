import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from dermedge.models import Network, TrainedModel
from dermedge.models.model_folder import save_model_folder
from dermedge.models.network import Backbone
from dermedge.train.loop import Schedule
from dermedge.train.qat import QatOptions, train_quantized
from dermedge.train.samples import read_samples
from dermedge.train.views import Frames
from dermedge_export.calibration import Calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import ExportContext
from dermedge_export.quantization.qat import fake_quantized, qat_graph
from dermedge_export.target import CPU
from dermedge_export.task_selection import select_tasks
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Preprocess, Spec
from support.native_candidate import native_candidate
from support.small import SIZE, die, edited, flat, in_process, pixels

CANDIDATE = native_candidate("qat")
SCHEDULE = Schedule(
    epochs=7, batch_size=16, lr=3e-4, weight_decay=0.0, warmup=0.5, ema_decay=0.8, patience=9
)
SHORT = replace(SCHEDULE, epochs=2)


def make(data: Path, seed: int = 0) -> TrainedModel:
    """Return a network with random weights whose outputs differ between images."""
    samples, tasks = read_samples(data)
    backbone, spec = Backbone("test_resnet"), Spec("random", "1", tasks, Preprocess(SIZE))
    torch.manual_seed(seed)
    network = Network(backbone, tasks)
    frames = Frames(samples.paths, spec.preprocess)
    pixels = torch.from_numpy(np.stack([frames.centred(row) for row in samples.rows("train")]))
    with torch.no_grad():
        for _ in range(30):
            features = network.features(pixels)  # gives the norms statistics
        network.eval()
        features = network.features(pixels)
        for head in network.heads.values():
            head.weight *= 2 / (features @ head.weight.T).std()
            head.bias.copy_(-(features @ head.weight.T).mean(0))
    return TrainedModel(network, spec, backbone)


def quantized(student: TrainedModel, data: Path, widened: float = 16.0) -> tuple[Any, Calibration]:
    """Return the student with fake quantizers that are too wide, as after an outlier."""
    samples, _ = read_samples(data, student.spec.tasks)
    rows, frames = samples.rows("train")[:32], Frames(samples.paths, student.spec.preprocess)
    images = np.stack([frames.centred(int(row)) for row in rows])
    calibration = Calibration(images, tuple(samples.digests[row] for row in rows), "train")
    module = fake_quantized(student.module, calibration)
    with torch.no_grad():
        for node in module.graph.nodes:
            if "per_tensor" in str(node.target):
                widen(module, node, widened)
    return module, calibration


def widen(module: Any, node: Any, factor: float) -> None:
    step = node.args[1]
    name = step.args[0].args[0].target
    getattr(module, name).add_(np.log(factor) / step.args[0].args[1])


def qat(student: TrainedModel, data: Path, folder: Path, **changes: Any) -> Any:
    module, calibration = quantized(student, data)
    calls = {name: changes.pop(name) for name in ("teacher", "progress") if name in changes}
    options = QatOptions(**{"schedule": SCHEDULE, **changes})
    return train_quantized(
        *(module, calibration, CANDIDATE),
        student=student,
        data=data,
        folder=folder,
        options=options,
        **calls,
    )


def record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*/run.json")
    run: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return run


def same(one: Any, other: Any) -> bool:
    weights = other.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())


@pytest.fixture(scope="module")
def student(data: Path) -> TrainedModel:
    return make(data)


@pytest.fixture(scope="module")
def run(
    student: TrainedModel, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("qat")
    return qat(student, data, folder), folder


@pytest.fixture(scope="module")
def short(
    student: TrainedModel, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("short")
    return qat(student, data, folder, schedule=SHORT), folder


class TestResult:
    def test_agreement_with_the_fp32_student_rises(
        self, student: TrainedModel, data: Path, run: tuple[Any, Path]
    ) -> None:
        module, folder = run
        samples, _ = read_samples(data, student.spec.tasks)
        frames = Frames(samples.paths, student.spec.preprocess)
        pixels = torch.from_numpy(
            np.stack([frames.centred(int(row)) for row in samples.rows("val")])
        )

        def distance(module: Any) -> float:
            with torch.no_grad():
                one, other = (
                    flat(network(pixels)).softmax(1) for network in (student.module, module)
                )
            return float((one - other).abs().mean())

        assert distance(module) < 0.8 * distance(quantized(student, data)[0])
        written = record(folder)
        assert written["metrics"]["kl"] < 0.7 * written["before"]["kl"]
        assert written["metrics"]["top1"] >= written["before"]["top1"]

    def test_weights_and_scales_are_trained_and_nothing_else(
        self, student: TrainedModel, data: Path, run: tuple[Any, Path]
    ) -> None:
        start = quantized(student, data)[0]
        for name, value in run[0].named_buffers():
            assert torch.equal(value, start.get_buffer(name)), name
        scales = [name for name, _ in start.named_parameters() if name.endswith("log_scale")]
        moved = [
            name
            for name, value in run[0].named_parameters()
            if not torch.equal(value, start.get_parameter(name))
        ]
        assert 0 < len(set(scales) & set(moved)) < len(moved)

    def test_the_fp32_student_is_not_changed(
        self, student: TrainedModel, data: Path, run: tuple[Any, Path]
    ) -> None:
        assert same(student.module, make(data).module)
        assert not student.module.training

    def test_the_run_record_holds_candidate_schedule_and_start(self, run: tuple[Any, Path]) -> None:
        written = record(run[1])
        assert (written["command"], written["finished"]) == ("qat", True)
        assert written["settings"]["candidate"]["options"] == CANDIDATE.options
        assert (
            written["settings"]["schedule"]["epochs"] == SCHEDULE.epochs == len(written["history"])
        )
        assert set(written["before"]) == {"score", "kl", "top1"}

    def test_the_start_is_kept_if_training_reduces_the_agreement(
        self, student: TrainedModel, data: Path, tmp_path: Path
    ) -> None:
        module = qat(student, data, tmp_path, schedule=replace(SHORT, lr=0.3))
        assert (
            max(epoch["score"] for epoch in record(tmp_path)["history"])
            < record(tmp_path)["before"]["score"]
        )
        assert same(module, quantized(student, data)[0])


def test_the_exported_graph_agrees_with_the_trained_module(
    student: TrainedModel, data: Path, tmp_path: Path
) -> None:
    calibration = quantized(student, data)[1]
    training = partial(
        train_quantized,
        student=student,
        data=data,
        folder=tmp_path,
        options=QatOptions(schedule=replace(SHORT, epochs=1)),
    )
    trained: list[Any] = []

    def retrain(module: Any, images: Calibration, candidate: Candidate) -> Any:
        trained.append(training(module, images, candidate))
        return trained[0]

    context = ExportContext(student, calibration_source=lambda: calibration, retrain=retrain)
    graph = qat_graph(context, CPU, CANDIDATE)
    engine = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    images = calibration.images[:16]
    found = np.concatenate(
        [engine.run(["diagnosis"], {"image": image[None]})[0] for image in images]
    )
    with torch.no_grad():
        wanted = trained[0](torch.from_numpy(images))["diagnosis"].numpy()
    # 0.03 on CPUs with and without VNNI; 0.34 where sums of 8-bit products saturate.
    assert np.abs(found - wanted).mean() < 0.05 * np.abs(wanted).mean()


class TestData:
    def test_labels_are_not_read_and_test_images_not_opened(
        self, student: TrainedModel, data: Path, short: tuple[Any, Path], tmp_path: Path
    ) -> None:
        def edit(frame: pd.DataFrame) -> pd.DataFrame:
            for name in frame.loc[frame["split"] == "test", "image"]:
                (tmp_path / "lies" / name).unlink()
                (tmp_path / "lies" / name).write_bytes(b"no image")
            return frame.assign(dx=frame["dx"].iloc[::-1].to_list())

        module = qat(
            student, edited(data, tmp_path / "lies", edit), tmp_path / "runs", schedule=SHORT
        )
        assert same(module, short[0])

    def test_a_teacher_changes_the_result_unless_its_weight_is_zero(
        self, student: TrainedModel, data: Path, short: tuple[Any, Path], tmp_path: Path
    ) -> None:
        save_model_folder(replace(make(data, seed=4), role="teacher"), tmp_path / "teacher")
        taught = qat(
            student, data, tmp_path / "taught", teacher=tmp_path / "teacher", schedule=SHORT
        )
        assert not same(taught, short[0])
        ignored = {"teacher": tmp_path / "teacher", "teacher_weight": 0.0}
        assert same(qat(student, data, tmp_path / "ignored", schedule=SHORT, **ignored), short[0])
        settings = record(tmp_path / "taught")["settings"]
        assert settings["teacher"] is not None

    def test_tasks_that_an_export_leaves_out_are_not_trained(
        self, student: TrainedModel, data: Path, tmp_path: Path
    ) -> None:
        save_model_folder(replace(make(data, seed=4), role="teacher"), tmp_path / "teacher")
        names = [task.name for task in student.spec.tasks]
        selected = select_tasks(student, names[:1])
        alone = replace(student, module=selected.module, spec=selected.spec)
        folder = tmp_path / "runs"
        trained = qat(alone, data, folder, teacher=tmp_path / "teacher", schedule=SHORT)
        assert len(names) > 1
        assert list(trained(pixels(2))) == names[:1]

    def test_a_teacher_with_another_input_size_is_refused(
        self, student: TrainedModel, data: Path, tmp_path: Path
    ) -> None:
        other = make(data)
        wider = replace(other, spec=replace(other.spec, preprocess=Preprocess(2 * SIZE)))
        save_model_folder(wider, tmp_path / "teacher")
        with pytest.raises(
            UsageError, match="Give the teacher that the student was distilled from"
        ):
            qat(student, data, tmp_path / "runs", teacher=tmp_path / "teacher")
        assert not (tmp_path / "runs").exists()


def killed(data: Path, folder: Path, step: int) -> None:
    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            die()

    qat(make(data), data, folder, schedule=SHORT, progress=progress)


class TestKill:
    def test_a_killed_run_continues_to_the_same_weights(
        self, student: TrainedModel, data: Path, short: tuple[Any, Path], tmp_path: Path
    ) -> None:
        steps = 80 * 7 // 10 // SHORT.batch_size
        assert in_process(killed, data, tmp_path, steps + 1) == -9
        assert record(tmp_path)["finished"] is False
        seen: list[int] = []
        module = qat(
            student,
            data,
            tmp_path,
            schedule=SHORT,
            progress=lambda done, total, note: seen.append(done),
        )
        assert seen[0] == steps + 1  # the first epoch is not done again
        assert same(module, short[0])
        assert record(tmp_path)["resumed_from"] == 1

    def test_a_finished_run_is_read_without_training(
        self, student: TrainedModel, data: Path, short: tuple[Any, Path]
    ) -> None:
        seen: list[str] = []
        module = qat(
            student,
            data,
            short[1],
            schedule=SHORT,
            progress=lambda done, total, note: seen.append(note),
        )
        assert seen == []
        assert same(module, short[0])
