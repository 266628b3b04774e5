"""The student presets are what `dermedge students` says, and every target exports them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from dermedge.models import Network, student_presets
from dermedge.models.backbone import Backbone
from dermedge.models.initialize import choose_backbone, is_prunable
from dermedge.models.network import count_macs, count_parameters
from dermedge.models.student_presets import (
    DEFAULTS,
    EVERYWHERE,
    STUDENT_PRESETS,
    StudentPreset,
    check_exportable,
    default_student,
    read_measurements,
)
from dermedge.workflows import students as workflow
from dermedge_export.target import CPU, all_targets, families, find_target
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Preprocess, Spec, Task
from support.command import dermedge
from support.operators import operators

FACTS: dict[str, Any] = read_measurements()["presets"]
AGAIN = "run `python tests/benchmarks/students.py` again"
TASKS = (Task("features", "embed"),)
PRESETS = pytest.mark.parametrize("name", STUDENT_PRESETS)


@PRESETS
def test_the_size_of_a_preset_is_that_of_its_network(name: str) -> None:
    preset = STUDENT_PRESETS[name]
    spec = Spec("count", "1", TASKS, Preprocess(preset.size))
    with torch.device("meta"):
        network = Network(preset.backbone, TASKS)
        macs = count_macs(network, spec)
    assert (FACTS[name]["parameters"], FACTS[name]["macs"]) == (count_parameters(network), macs)
    assert 0.3e6 < count_parameters(network) < 5e6


@PRESETS
def test_a_preset_still_has_the_operators_that_were_exported(name: str) -> None:
    """The exports take minutes, so the benchmark does them; a network that changed shows here."""
    preset = STUDENT_PRESETS[name]
    assert set(preset.exports) == set(families())
    assert set(preset.exports.values()) <= {"ok", "refused", "not_run"}
    found = operators(Network(preset.backbone, TASKS), 64)
    assert found == FACTS[name]["operators"], AGAIN


def test_each_family_has_a_default_that_it_exports() -> None:
    assert set(DEFAULTS) == set(EVERYWHERE) == set(families())
    for target in all_targets():
        assert default_student(target).exports[target.family or target.name] == "ok"
    plugin = replace(CPU, name="watch", family="")
    assert default_student(plugin) == default_student(CPU)
    assert all(preset.exports_to(plugin) for preset in STUDENT_PRESETS.values())


def test_the_name_of_a_preset_is_its_timm_name_with_the_stages_that_it_keeps() -> None:
    for name, preset in STUDENT_PRESETS.items():
        assert timm.is_model(preset.architecture)
        kept = "" if preset.stages is None else f"-{preset.stages}"
        assert name == preset.name == preset.architecture + kept


def test_a_preset_names_a_backbone_wherever_one_is_chosen(tmp_path: Path) -> None:
    chosen = choose_backbone("mobilenetv2_100-4", {"drop_rate": 0.1}, "none")
    assert chosen == Backbone("mobilenetv2_100", {"drop_rate": 0.1}, stages=4)
    assert choose_backbone("mobilenetv2_100-4", {}, "none", stages=3).stages == 3
    assert choose_backbone("mobilenetv2_100", {}, "none").stages is None
    teacher = Backbone("mobilenetv2_100")
    assert is_prunable(teacher, "mobilenetv2_100-4", {})
    assert not is_prunable(teacher, "tf_efficientnet_lite0-4", {})
    weights = tmp_path / "weights.safetensors"
    save_file({"one": torch.zeros(1)}, weights, {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"})
    from_file = choose_backbone("tf_efficientnet_lite0-4", {}, str(weights))
    assert (from_file.name, from_file.stages, from_file.mean) == (
        "tf_efficientnet_lite0",
        4,
        (0.5, 0.5, 0.5),
    )


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a preset that only cpu and jetson export."""
    preset = StudentPreset("narrow", "test_resnet")
    monkeypatch.setitem(student_presets.STUDENT_PRESETS, "narrow", preset)  # type: ignore[arg-type]
    states = dict.fromkeys(EVERYWHERE, "refused") | {"cpu": "ok", "jetson": "ok"}
    exports = {target: {"state": state} for target, state in states.items()}
    facts = {"parameters": 1, "macs": 1, "exports": exports, "latency_ms": {}}
    changed = {**read_measurements(), "presets": {**FACTS, "narrow": facts}}
    monkeypatch.setattr(student_presets, "read_measurements", lambda: changed)
    monkeypatch.setattr(workflow, "read_measurements", lambda: changed)
    return "narrow"


def test_a_target_that_does_not_export_a_preset_says_which_do(narrow: str) -> None:
    check_exportable(narrow, find_target("jetson-orin-nano"))
    check_exportable("resnet18", find_target("ios"))
    check_exportable(None, find_target("ios"))
    with pytest.raises(UsageError) as error:
        check_exportable(narrow, find_target("android-onnx"))
    assert str(error.value) == (
        "The target 'android-onnx' does not export the student preset 'narrow'. Choose one of the "
        "targets cpu, jetson, or another preset: `dermedge students --target android-onnx` lists "
        "them."
    )


def test_run_refuses_such_a_student_before_it_reads_the_data(narrow: str, tmp_path: Path) -> None:
    ran = dermedge(
        *("run", "--data", tmp_path / "nothing", "--target", "web", "--student", narrow),
        *("-o", tmp_path / "out"),
    )
    assert (ran.code, "does not export the student preset 'narrow'" in ran.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_the_command_lists_the_presets_by_size() -> None:
    listed = dermedge("students", "--json").json()
    sizes = [state["parameters"] for state in listed["students"]]
    assert sizes == sorted(sizes)
    assert len(sizes) == len(STUDENT_PRESETS)
    (default,) = [state for state in listed["students"] if state["default_for"]]
    assert default["latency_ms"]["jetson"] == "not_run"
    assert set(default["latency_ms"]["cpu"]) == {"fp32", "int8"}
    shown = dermedge("students", "--target", "android")
    first = [line.split()[0] for line in shown.out.splitlines() if line.strip()]
    rows = [name for name in first if name in STUDENT_PRESETS]
    assert len(rows) == len(STUDENT_PRESETS)
    assert "measured 20" in shown.out
    assert dermedge("students", "--target", "androd").code == 2


def test_the_command_leaves_out_presets_that_the_target_refuses(narrow: str) -> None:
    listed = [state.preset.name for state in workflow.students("cpu").students]
    assert listed[0] == narrow
    assert narrow not in [state.preset.name for state in workflow.students("ios").students]
