"""The gate catches each kind of damage that exporters and users do by mistake.

The limits are those of int8, the widest ones. The lesions are new to the student, and
the undamaged artifact passes.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from dermedge.data.draw import draw_data_set
from dermedge.evaluation.export_data import TableEvaluationData
from dermedge.models import TrainedModel, load_model_folder
from dermedge_export.context import BuiltArtifact, Simulation, module_runner
from dermedge_export.exporters import registry
from dermedge_export.parity.evaluator import ParityEvaluator
from dermedge_export.parity.gate import failure_messages
from dermedge_export.target import CPU
from dermedge_runtime.errors import GateError
from dermedge_runtime.report import ParityReport
from dermedge_runtime.spec import Postprocessing
from support import small

Damage = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.student_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def student(folder: Path) -> TrainedModel:
    return load_model_folder(folder)


@pytest.fixture(scope="module")
def evaluation_data(
    student: TrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> TableEvaluationData:
    """360 synthetic lesions that are new to the student: a third is val, the rest test."""
    data = tmp_path_factory.mktemp("damage") / "lesions"
    draw_data_set(data, count=360, seed=77, size=(64, 48))
    frame = TableEvaluationData(data, student.spec).table.frame
    half = np.where(np.arange(len(frame)) % 3 == 0, "val", "test")
    small.write(data, frame.assign(split=half))
    return TableEvaluationData(data, student.spec)


@pytest.fixture(scope="module")
def evaluator(student: TrainedModel, evaluation_data: TableEvaluationData) -> ParityEvaluator:
    return ParityEvaluator(student.spec, module_runner(student.module), evaluation_data)


def damaged(folder: Path, harm: Damage | None = None) -> BuiltArtifact:
    whole = small.built(folder)
    model = onnx.load_model_from_string(whole.files["model.onnx"])
    if harm is not None:
        harm(model)
    return BuiltArtifact(
        replace(whole.artifact, precision="int8"), {"model.onnx": model.SerializeToString()}
    )


def compare(evaluator: ParityEvaluator, built: BuiltArtifact, *, drop: str = "") -> ParityReport:
    session = onnxruntime.InferenceSession(
        built.files["model.onnx"], providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        rows = [session.run(names, {"image": image[None]}) for image in images]
        return {
            name: np.concatenate(column)
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }

    fitted = {
        name: Postprocessing(None if drop == "temperature" else post.temperature, post.threshold)
        for name, post in evaluator.fit_postprocessing(evaluator.run("val", run)).items()
    }
    runtime = Simulation("damaged", "1", run)
    return evaluator.compare("test", evaluator.run("test", run), fitted, "int8", runtime, CPU)


def constant(model: onnx.ModelProto, array: np.ndarray, name: str) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def into_input(model: onnx.ModelProto, *nodes: onnx.NodeProto, result: str) -> None:
    """Insert nodes between the image and the nodes that read it."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "image":
                node.input[index] = result
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)


def wrong_mean(model: onnx.ModelProto) -> None:
    """Shift all pixels by 60 of 255, as if no mean were subtracted."""
    node = next(node for node in model.graph.node if node.op_type == "Sub")
    name = next(name for name in node.input if name in {i.name for i in model.graph.initializer})
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) - np.float32(60), name))


def swapped_channels(model: onnx.ModelProto) -> None:
    order = constant(model, np.array([2, 1, 0]), "order")
    into_input(model, helper.make_node("Gather", ["image", order], ["bgr"], axis=3), result="bgr")


def permuted_labels(model: onnx.ModelProto) -> None:
    """Reorder the outputs, as if labels were sorted by name in one place only."""
    node = next(node for node in model.graph.node if "diagnosis" in node.output)
    node.output[0] = "in another order"
    count = (
        next(o for o in model.graph.output if o.name == "diagnosis")
        .type.tensor_type.shape.dim[1]
        .dim_value
    )
    order = constant(model, np.roll(np.arange(count), 1), "labels")
    model.graph.node.append(
        helper.make_node("Gather", ["in another order", order], ["diagnosis"], axis=1)
    )


def clipped_ranges(model: onnx.ModelProto) -> None:
    """Clip activations, as if they were calibrated on a few dark images."""
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"][2:8]
    low, high = constant(model, np.float32(-0.15), "low"), constant(model, np.float32(0.15), "high")
    for node in convolutions:
        plain, node.output[0] = node.output[0], f"{node.output[0]}.whole"
        place = list(model.graph.node).index(node) + 1
        model.graph.node.insert(
            place, helper.make_node("Clip", [node.output[0], low, high], [plain])
        )


def zeroed_layer(model: onnx.ModelProto) -> None:
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    name = convolutions[len(convolutions) // 2].input[1]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), name))


def wrong_resize(model: onnx.ModelProto) -> None:
    """Resize to a third and back by nearest neighbour, without antialiasing."""
    size = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    rows = constant(model, np.arange(size) // 3 * 3, "nearest")
    into_input(
        model,
        helper.make_node("Gather", ["image", rows], ["rows"], axis=1),
        helper.make_node("Gather", ["rows", rows], ["resized"], axis=2),
        result="resized",
    )


def not_a_number(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Sub")
    name = next(name for name in node.input if name in {i.name for i in model.graph.initializer})
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32("nan"), name)
    )


KINDS = [
    wrong_mean,
    swapped_channels,
    permuted_labels,
    clipped_ranges,
    zeroed_layer,
    wrong_resize,
    not_a_number,
]


def test_the_undamaged_artifact_passes(evaluator: ParityEvaluator, folder: Path) -> None:
    report = compare(evaluator, damaged(folder))
    # There may be too few malignant lesions to measure their sensitivity.
    assert report.status in ("passed", "insufficient")
    assert failure_messages(report) == []
    assert {limit.metric: limit.status for limit in report.limits}["top1_agreement"] == "passed"


@pytest.mark.parametrize("harm", KINDS, ids=lambda harm: harm.__name__)
def test_each_kind_of_damage_is_caught(
    harm: Damage, evaluator: ParityEvaluator, folder: Path
) -> None:
    report = compare(evaluator, damaged(folder, harm))
    assert report.status == "failed"
    assert failure_messages(report)


def overconfident(model: onnx.ModelProto) -> None:
    """Multiply all logits by four; the classes stay, and a fitted temperature fits."""
    four = constant(model, np.float32(4), "four")
    for name in ("diagnosis", "malignancy"):
        node = next(node for node in model.graph.node if name in node.output)
        node.output[0] = f"{name}.calm"
        model.graph.node.append(helper.make_node("Mul", [node.output[0], four], [name]))


def test_a_temperature_that_was_dropped_is_caught_although_every_class_agrees(
    evaluator: ParityEvaluator, folder: Path
) -> None:
    artifact = damaged(folder, overconfident)
    assert failure_messages(compare(evaluator, artifact)) == []
    report = compare(evaluator, artifact, drop="temperature")
    limits = {limit.metric: limit.status for limit in report.limits}
    assert limits["top1_agreement"] == "passed"
    assert limits["ece"] == "failed"


@pytest.mark.parametrize("harm", [swapped_channels, zeroed_layer], ids=lambda harm: harm.__name__)
def test_without_labels_agreement_catches_it_too_and_nothing_is_written(
    harm: Damage,
    student: TrainedModel,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(small, "BUILT", [damaged(folder, harm)])
    monkeypatch.setitem(registry.EXPORTERS, "prebuilt", "support.small:prebuilt")
    with pytest.raises(GateError, match="top1_agreement"):
        small.export_model(student, replace(small.PREBUILT, precisions=("int8",)), tmp_path)
    assert list(tmp_path.iterdir()) == []
