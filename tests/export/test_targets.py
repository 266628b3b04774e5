"""Test targets and the candidates of each."""

import pytest

from dermedge_export.candidate import AUTO, list_candidates, select_candidates
from dermedge_export.exporters.registry import EXPORTERS
from dermedge_export.parity.gate import FAMILIES, limits_for
from dermedge_export.staging import TOLERANCE
from dermedge_export.target import (
    TARGETS,
    Target,
    all_targets,
    families,
    find_target,
    instruction_set,
)
from dermedge_runtime.bundle import LARGEST_TOLERANCE
from dermedge_runtime.errors import UsageError

VNNI = ["avx2", "avx512f", "avx512_vnni"]


def test_all_is_one_of_each_family() -> None:
    assert families() == ["cpu", "jetson", "ios", "android", "web"]


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_every_precision_of_a_target_has_candidates_limits_and_a_tolerance(target: Target) -> None:
    for precision in target.precisions:
        made = select_candidates(target, precision, flags=[*VNNI, "avx512_bf16"])
        assert {candidate.precision for candidate in made} == {precision}
        assert {candidate.format for candidate in made} <= set(EXPORTERS)
        assert precision in FAMILIES
        assert limits_for(precision, target.gate)
        assert 0 < TOLERANCE[precision] <= LARGEST_TOLERANCE
    assert (
        len(select_candidates(target, AUTO)) >= len(target.precisions) - 1
    )  # bf16 only where the CPU has it
    assert target.native or "{bundle}" in target.todo or "golden" in target.todo


def test_names_do_not_clash_and_variants_belong_to_a_family() -> None:
    for name in TARGETS:
        target = find_target(name)
        assert target.name == name
        assert target.family in ("", *families())
        assert not target.family or name.startswith(f"{target.family}-")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("jetson-nano", "jetson-orin-nano"),
        ("jetsn", "jetson"),
        ("androit", "android"),
        ("ios-17", "ios-18"),
    ],
)
def test_an_unknown_target_is_refused_with_the_closest_name(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=rf"Unknown target '{wrong}'\. Did you mean '{near}'"):
        find_target(wrong)


def test_a_precision_that_the_target_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(UsageError, match=r"Unknown precision 'fp61'\. Did you mean 'fp16'"):
        select_candidates(find_target("jetson"), "fp61")
    with pytest.raises(UsageError, match="ios has no artifact in fp16 for the engine 'openvino'"):
        select_candidates(find_target("ios"), "fp16", "openvino")


def test_without_a_precision_the_first_method_of_each_is_tried_in_order() -> None:
    names = [candidate.name for candidate in select_candidates(find_target("android"), None)]
    assert names == [
        "int8 litert minmax",
        "fp16 litert plain",
        "w8 litert plain",
        "fp32 litert plain",
    ]
    assert [
        candidate.precision for candidate in select_candidates(find_target("jetson"), None)
    ] == [
        "fp16",
        "int8+fp16",
    ]
    assert select_candidates(find_target("cpu"), None, flags=VNNI)[0].name == "fp32 onnx plain"


def test_candidates_of_one_engine() -> None:
    cpu = find_target("cpu")
    assert {
        candidate.format for candidate in select_candidates(cpu, AUTO, "onnxruntime", VNNI)
    } == {"onnx"}
    assert {candidate.format for candidate in select_candidates(cpu, AUTO, "openvino", VNNI)} == {
        "openvino"
    }


class TestInstructionSet:
    """int8 candidates fit the instruction set of the device."""

    @pytest.mark.parametrize(
        ("machine", "flags", "expected"),
        [
            ("x86_64", VNNI, "vnni"),
            ("x86_64", ["avx2"], "x86"),
            ("arm64", ["neon"], "arm"),
            ("aarch64", [], "arm"),
        ],
    )
    def test_a_native_target_has_the_instruction_set_of_this_machine(
        self, machine: str, flags: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        assert instruction_set(find_target("cpu"), flags) == expected

    def test_activations_are_signed_on_arm_and_weights_have_seven_bits_without_vnni(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.machine", lambda: "x86_64")

        def options(name: str, flags: list[str]) -> object:
            return next(
                c.options
                for c in list_candidates(find_target(name), flags)
                if (c.format, c.method) == ("onnx", "minmax")
            )

        assert options("cpu", VNNI) == {"activations": "u8", "reduce_range": False}
        assert options("cpu", ["avx2"]) == {"activations": "u8", "reduce_range": True}
        assert options("android-onnx", VNNI) == {"activations": "s8", "reduce_range": False}
        assert options("web-onnx", VNNI) == {"activations": "u8", "reduce_range": False}

    def test_bf16_is_a_candidate_only_where_the_cpu_has_it(self) -> None:
        cpu = find_target("cpu")
        assert "bf16" not in {candidate.precision for candidate in list_candidates(cpu, VNNI)}
        assert "bf16" in {
            candidate.precision for candidate in list_candidates(cpu, [*VNNI, "avx512_bf16"])
        }
