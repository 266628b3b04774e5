"""`dermedge parity debug` prints its report as a table and as JSON."""

from pathlib import Path

import onnx
import pytest
import torch

from dermedge.models import Network, TrainedModel, load_model_folder
from dermedge.models.model_folder import save_model_folder
from dermedge.models.network import Backbone
from dermedge_export.context import ExportContext, module_runner
from dermedge_export.debug import debug_parity
from dermedge_export.synthetic.golden import golden_cases
from dermedge_runtime.bundle import write_bundle
from dermedge_runtime.golden import golden_files
from dermedge_runtime.spec import Artifact, Label, Preprocess, Spec, Task, to_json
from support.command import TOY, dermedge, refused

OPSET = 18
LABELS = (Label("nv", "Naevus", False), Label("mel", "Melanoma", True))
TASKS = (Task("diagnosis", "classify", LABELS),)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    backbone = Backbone("test_resnet")
    model = TrainedModel(
        Network(backbone, TASKS).eval(), Spec("drifting", "1", TASKS, Preprocess(32)), backbone
    )
    folder = tmp_path_factory.mktemp("parity") / "student"
    save_model_folder(model, folder)
    return folder


@pytest.fixture(scope="module")
def graph(student: Path) -> bytes:
    return ExportContext(load_model_folder(student)).graph(OPSET)


@pytest.fixture(scope="module")
def damaged(student: Path, graph: bytes) -> tuple[Path, str]:
    """A bundle whose third convolution was zeroed, and the name of that node."""
    model = onnx.load_model_from_string(graph)
    node = [node for node in model.graph.node if node.op_type == "Conv"][2]
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weights.raw_data = bytes(len(weights.raw_data))
    source = load_model_folder(student)
    run = module_runner(source.module)
    bundle = write_bundle(
        student.parent / "drifting.dermedge",
        spec=source.spec,
        artifact=Artifact(
            "cpu", "onnx", "model.onnx", "fp32", details={"opset": OPSET, "batch": 1}
        ),
        postprocessing={},
        tolerance={"diagnosis": 1e-3},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={
            "model.onnx": model.SerializeToString(),
            **golden_files(golden_cases(source.spec, run, run, {})),
        },
    )
    return bundle.path, node.name


@pytest.fixture(autouse=True)
def traced(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dermedge_export.graph.trace.trace", lambda *_, **options: graph)


def test_the_first_drifted_node_and_a_table_of_the_worst_are_printed(
    student: Path, damaged: tuple[Path, str]
) -> None:
    bundle, node = damaged
    ran = dermedge("parity", "debug", bundle, "--against", student)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"first drift at {node} (Conv): ")
    assert lines[0].endswith("below 20; its worst input has 150.0 dB")
    row = next(line for line in lines[1:] if line.split()[:2] == [node, "Conv"])
    assert row.split()[2] == "kept"
    assert lines[-1].startswith("outputs: diagnosis ")


def test_json_is_the_report_of_the_function(student: Path, damaged: tuple[Path, str]) -> None:
    bundle, node = damaged
    found = dermedge(
        "parity", "debug", bundle, "--against", student, "--nodes", 1, "--threshold", 5, "--json"
    ).json()
    assert found == to_json(debug_parity(bundle, load_model_folder(student), nodes=1, threshold=5))
    assert found["first"]["node"] == node
    assert [drift["node"] for drift in found["worst"]] == [node]


def test_a_threshold_below_all_nodes_finds_no_drift(
    student: Path, damaged: tuple[Path, str]
) -> None:
    ran = dermedge("parity", "debug", damaged[0], "--against", student, "--threshold", -200)
    assert ran.out.splitlines()[0] == "no node falls below -200 dB"


def test_a_bundle_of_another_student_is_refused(student: Path) -> None:
    message = refused(dermedge("parity", "debug", TOY, "--against", student), 2)
    assert "was not exported from this student" in message


def test_a_folder_that_holds_no_student_is_refused(
    damaged: tuple[Path, str], tmp_path: Path
) -> None:
    message = refused(dermedge("parity", "debug", damaged[0], "--against", tmp_path), 1)
    assert "holds neither a model (student.json or teacher.json) nor a run" in message
