"""`targets` reports what this machine can build, run and check for each target."""

import json
import sys

import pytest

from dermedge.workflows import targets as module
from dermedge.workflows.targets import TargetState, targets
from dermedge_export.target import TARGETS
from support.command import dermedge, without_modules


def state(name: str) -> TargetState:
    return next(found for found in targets() if found.target.name == name)


def test_the_cpu_decides_which_precisions_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "describe_device", lambda: {"flags": "avx2 avx512_vnni"})
    assert [found.target.name for found in targets()] == list(TARGETS)
    assert state("cpu").build == {"fp32": (), "int8": (), "bf16": None}
    assert state("cpu").run == ("onnxruntime", "openvino", "litert")
    monkeypatch.setattr(module, "describe_device", lambda: {"flags": "avx512_bf16"})
    assert state("cpu").build["bf16"] == ()


def test_a_target_without_its_engine_here_is_checked_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    assert (state("web").run, state("web").check) == ((), "litert")
    assert (state("web-onnx").run, state("web-onnx").check) == ((), "onnxruntime")
    assert (state("android").run, state("android").check) == (("litert",), "litert")
    assert (state("ios").run, state("ios").check) == ((), "torch simulation")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert (state("ios").run, state("ios").check) == (("coreml",), "coreml")


# Prints the state of the targets as JSON, and then what `dermedge targets` prints.
STATES = """
import json
from dermedge.cli import main
from dermedge.workflows.targets import targets
print(json.dumps({s.target.name: [dict(s.build), list(s.run), s.check] for s in targets()}))
main(["targets"])
"""


def test_missing_packages_are_named_with_the_extra_that_installs_them() -> None:
    ran = without_modules(
        STATES,
        "coremltools",
        "openvino",
        "nncf",
        "onnxruntime",
        "tensorrt",
        "ai_edge_litert",
        "litert_torch",
        "litert_quantizer",
    )
    assert ran.code == 0, ran.err
    first, _, shown = ran.out.partition("\n")
    states = json.loads(first)
    assert states["ios"][0]["fp16"] == ["coremltools"]
    assert states["cpu"][0]["fp32"] == ["onnxruntime"]
    assert states["cpu"][1:] == [[], None]
    assert "ios fp16: pip install 'dermedge[coreml]'" in shown
    assert "web int8: pip install 'dermedge[litert-export]'" in shown
    assert states["android"][0]["w8"] == ["litert_torch", "litert_quantizer"]
    assert "android int8: pip install 'dermedge[litert-export]'" in shown


def test_quantization_aware_training_needs_no_nncf() -> None:
    ran = without_modules(
        "from importlib.util import find_spec\n"
        "import dermedge.train.qat, dermedge_export.quantization.qat\n"
        "from dermedge.workflows.targets import METHODS\n"
        "print(all(map(find_spec, METHODS['qat'])))",
        "nncf",
    )
    assert ran.out == "True\n", ran.err


def test_the_table_shows_variants_below_their_family_and_only_what_differs() -> None:
    lines = dermedge("targets").out.splitlines()
    (thor,) = (line for line in lines if "jetson-thor" in line)
    assert thor.split() == ["jetson-thor", "tensorrt>=10.13,<12,", "JetPack>=7.0"]
    family = next(index for index, line in enumerate(lines) if line.split()[:1] == ["jetson"])
    assert lines.index(thor) > family
    assert thor.index("jetson-thor") == lines[family].index("jetson") + 2
    assert "ios, once exported, on a Mac: dermedge verify BUNDLE" in lines
