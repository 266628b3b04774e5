"""Candidates: the ways in which a student may become an artifact for a target, the preferred first."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dermedge_export.target import Target, instruction_set
from dermedge_runtime.errors import UsageError
from dermedge_runtime.registry import pick_known

Tier = Literal["plain", "mixed", "trained"]
AUTO = "auto"


@dataclass(frozen=True)
class Candidate:
    """One way to make an artifact: at which precision, in which format, by which method with which options.

    `tier` is when it is worth trying: `plain` at once, `mixed` where no plain candidate of its precision keeps the
    accuracy, `trained` (quantization-aware) where no mixed one does either.
    """

    precision: str
    format: str
    method: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tier: Tier = "plain"

    @property
    def name(self) -> str:
        """`int8 onnx entropy`."""
        return f"{self.precision} {self.format} {self.method}"


def list_candidates(target: Target, flags: Iterable[str] = ()) -> list[Candidate]:
    """What may be made for `target` on a machine whose CPU has `flags`, the preferred first within a precision."""
    own = _BY_FORMAT.get(target.format, _any)(target, list(flags))
    return [candidate for candidate in own if candidate.precision in target.precisions]


def select_candidates(
    target: Target, precision: str | None, engine: str | None = None, flags: Iterable[str] = ()
) -> list[Candidate]:
    """The candidates of one precision, for one engine if it is named.

    Without a precision, the target's precisions in their order, by the first method of each; `auto` is all there are.

    Raises:
        UsageError: the target has no such precision, or no candidate for that engine.
    """
    wanted = precision or AUTO
    if precision is not None:
        pick_known("precision", precision, (*target.precisions, AUTO))
    formats = {
        "onnxruntime": "onnx",
        "tensorrt": "tensorrt",
        "coreml": "coreml",
        "openvino": "openvino",
    }
    found = [
        candidate
        for candidate in list_candidates(target, flags)
        if wanted in (AUTO, candidate.precision)
        and (engine is None or candidate.format == formats.get(engine, engine))
    ]
    if not found:
        raise UsageError(
            f"Nothing can be made for {target.name} in {precision or 'any precision'} with engine {engine or 'any'}: "
            f"leave --engine out, or choose among {', '.join(target.precisions)}."
        )
    if precision is None:
        first = {candidate.precision: candidate for candidate in reversed(found)}
        return [first[name] for name in target.precisions if name in first]
    return found


def _onnx(target: Target, flags: list[str]) -> list[Candidate]:
    isa = instruction_set(target, flags)
    # u8s8 is what VNNI multiplies; ARM multiplies s8s8. Without VNNI 8-bit products saturate, so weights get 7 bits.
    ranges = {
        "activations": "s8" if isa == "arm" else "u8",
        "reduce_range": isa == "x86" and target.native,
    }
    seven = {"reduce_range": ranges["reduce_range"]}
    found = [Candidate("fp32", "onnx")]
    if target.native:
        found.append(Candidate("fp32", "openvino"))
        if {"avx512_bf16", "amx_bf16"} & set(flags):
            found.append(Candidate("bf16", "openvino"))
        found.append(Candidate("int8", "openvino", "nncf", seven))
    found += [
        Candidate("int8", "onnx", "minmax", ranges),
        Candidate("int8", "onnx", "percentile", ranges),
        Candidate("int8", "onnx", "entropy", ranges),
        Candidate("int8", "onnx", "nncf", ranges),
        # Of the drift of the plain one, a tenth or a fiftieth may remain: the second keeps more layers in fp32.
        Candidate("int8", "onnx", "mixed", {**ranges, "remaining": 0.1}, "mixed"),
        Candidate("int8", "onnx", "mixed-more", {**ranges, "remaining": 0.02}, "mixed"),
    ]
    if target.native:
        found += [
            Candidate("int8", "openvino", "mixed", {**seven, "remaining": 0.1}, "mixed"),
            Candidate("int8", "openvino", "mixed-more", {**seven, "remaining": 0.02}, "mixed"),
            Candidate("int8", "openvino", "accuracy-control", seven, "mixed"),
        ]
    return [*found, Candidate("int8", "onnx", "qat", ranges, "trained")]


def _tensorrt(target: Target, flags: list[str]) -> list[Candidate]:
    return [
        Candidate("fp16", "tensorrt"),
        Candidate("int8+fp16", "tensorrt", "minmax"),
        Candidate("int8+fp16", "tensorrt", "entropy"),
        Candidate("int8+fp16", "tensorrt", "mixed", {}, "mixed"),
    ]


def _coreml(target: Target, flags: list[str]) -> list[Candidate]:
    return [
        Candidate("fp16", "coreml"),
        Candidate("w8", "coreml", "linear"),
        Candidate("palettized", "coreml", "kmeans", {"bits": 8}),
        Candidate("palettized", "coreml", "kmeans-6", {"bits": 6}),
        Candidate("w8a8", "coreml", "linear"),
    ]


def _any(target: Target, flags: list[str]) -> list[Candidate]:
    """Of a format that a plug-in brings: one candidate per precision."""
    return [Candidate(precision, target.format) for precision in target.precisions]


_BY_FORMAT = {"onnx": _onnx, "tensorrt": _tensorrt, "coreml": _coreml}
