"""List the candidates of a target: the artifacts that an export may build."""

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
    """A combination of precision, format and quantization method.

    Example:
        >>> from dermedge_export import Candidate
        >>> Candidate("int8", "onnx", "entropy").name
        'int8 onnx entropy'

    Attributes:
        precision: Precision of the artifact.
        format: Format of the artifact.
        method: Quantization method; `plain` if there is none.
        options: Options of the method.
        tier: When the search tries it. `plain` candidates come first. `mixed` ones keep
            some layers in fp32 and follow if no plain one of their precision passes.
            `trained` ones need quantization-aware training. They follow if none of
            their precision passes, or if none that passes is worthwhile in speed.
    """

    precision: str
    format: str
    method: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tier: Tier = "plain"

    @property
    def name(self) -> str:
        """Precision, format and method, such as `int8 onnx entropy`."""
        return f"{self.precision} {self.format} {self.method}"


def list_candidates(target: Target, flags: Iterable[str] = ()) -> list[Candidate]:
    """Return the candidates of a target, the preferred first within each precision.

    Args:
        target: The target.
        flags: Flags of this machine's CPU. They decide about bf16 and about 7-bit
            weights.
    """
    candidates = _BY_FORMAT.get(target.format, _plain)(target, list(flags))
    return [candidate for candidate in candidates if candidate.precision in target.precisions]


def select_candidates(
    target: Target, precision: str | None, engine: str | None = None, flags: Iterable[str] = ()
) -> list[Candidate]:
    """Return the candidates that an export tries, in order.

    Args:
        target: The target.
        precision: Return all candidates of this precision. `auto` returns all
            candidates. None returns the first candidate of each of the target's
            precisions.
        engine: Return only candidates for this engine.
        flags: Flags of this machine's CPU.

    Raises:
        UsageError: The target does not have this precision, or no candidate for this
            engine.

    Example:
        >>> from dermedge_export import find_target, select_candidates
        >>> candidates = select_candidates(find_target("android"), None)
        >>> [candidate.name for candidate in candidates]
        ['int8 litert minmax', 'fp16 litert plain', 'w8 litert plain', 'fp32 litert plain']
    """
    requested = precision or AUTO
    if precision is not None:
        pick_known("precision", precision, (*target.precisions, AUTO))
    formats = {
        "onnxruntime": "onnx",
        "tensorrt": "tensorrt",
        "coreml": "coreml",
        "openvino": "openvino",
    }
    selected = [
        candidate
        for candidate in list_candidates(target, flags)
        if requested in (AUTO, candidate.precision)
        and (engine is None or candidate.format == formats.get(engine, engine))
    ]
    if not selected:
        scope = f"for the engine {engine!r}" if engine else "that this CPU can compute"
        advice = "Leave --engine out, or use" if engine else "Use"
        raise UsageError(
            f"{target.name} has no artifact in {precision or 'any precision'} {scope}. "
            f"{advice} another precision of {', '.join(target.precisions)}."
        )
    if precision is None:
        first = {candidate.precision: candidate for candidate in reversed(selected)}
        return [first[name] for name in target.precisions if name in first]
    return selected


def _onnx_candidates(target: Target, flags: list[str]) -> list[Candidate]:
    """Return the ONNX candidates; for a native target also those for the other engines."""
    isa = instruction_set(target, flags)
    # VNNI multiplies unsigned activations by signed weights, and ARM multiplies signed
    # by signed bytes. x86 without VNNI adds two such products in 16 bits, which
    # saturates; weights of 7 bits keep the sum in range.
    ranges = {
        "activations": "s8" if isa == "arm" else "u8",
        "reduce_range": isa == "x86" and target.native,
    }
    seven_bits = {"reduce_range": ranges["reduce_range"]}
    candidates = [Candidate("fp32", "onnx")]
    if target.native:
        candidates += [Candidate("fp32", "openvino"), Candidate("fp32", "litert")]
        if {"avx512_bf16", "amx_bf16"} & set(flags):
            candidates.append(Candidate("bf16", "openvino"))
        candidates.append(Candidate("int8", "openvino", "nncf", seven_bits))
        # XNNPACK sums products in 32 bits, also without VNNI, so 8-bit weights do not
        # saturate.
        candidates.append(Candidate("int8", "litert", "minmax"))
    candidates += [
        Candidate("int8", "onnx", "minmax", ranges),
        Candidate("int8", "onnx", "percentile", ranges),
        Candidate("int8", "onnx", "entropy", ranges),
        Candidate("int8", "onnx", "nncf", ranges),
        # `remaining` is the share of the plain candidate's drift that may remain. The
        # second of these candidates keeps more layers in fp32.
        Candidate("int8", "onnx", "mixed", {**ranges, "remaining": 0.1}, "mixed"),
        Candidate("int8", "onnx", "mixed-more", {**ranges, "remaining": 0.02}, "mixed"),
    ]
    if target.native:
        candidates += [
            Candidate("int8", "openvino", "mixed", {**seven_bits, "remaining": 0.1}, "mixed"),
            Candidate("int8", "openvino", "mixed-more", {**seven_bits, "remaining": 0.02}, "mixed"),
            Candidate("int8", "openvino", "accuracy-control", seven_bits, "mixed"),
            *MIXED_LITERT,
        ]
    return [*candidates, Candidate("int8", "onnx", "qat", ranges, "trained")]


MIXED_LITERT = (
    Candidate("int8", "litert", "mixed", {"remaining": 0.1}, "mixed"),
    Candidate("int8", "litert", "mixed-more", {"remaining": 0.02}, "mixed"),
)


def _litert_candidates(target: Target, flags: list[str]) -> list[Candidate]:
    return [
        Candidate("int8", "litert", "minmax"),
        Candidate("int8", "litert", "average"),
        *MIXED_LITERT,
        Candidate("fp16", "litert"),
        Candidate("w8", "litert"),
        Candidate("fp32", "litert"),
    ]


def _tensorrt_candidates(target: Target, flags: list[str]) -> list[Candidate]:
    return [
        Candidate("fp16", "tensorrt"),
        Candidate("int8+fp16", "tensorrt", "minmax"),
        Candidate("int8+fp16", "tensorrt", "entropy"),
        Candidate("int8+fp16", "tensorrt", "mixed", {}, "mixed"),
    ]


def _coreml_candidates(target: Target, flags: list[str]) -> list[Candidate]:
    return [
        Candidate("fp16", "coreml"),
        Candidate("w8", "coreml", "linear"),
        Candidate("palettized", "coreml", "kmeans", {"bits": 8}),
        Candidate("palettized", "coreml", "kmeans-6", {"bits": 6}),
        Candidate("w8a8", "coreml", "linear"),
    ]


def _plain(target: Target, flags: list[str]) -> list[Candidate]:
    """Return one candidate per precision, for a format that a plug-in adds."""
    return [Candidate(precision, target.format) for precision in target.precisions]


_BY_FORMAT = {
    "onnx": _onnx_candidates,
    "litert": _litert_candidates,
    "tensorrt": _tensorrt_candidates,
    "coreml": _coreml_candidates,
}
