"""What a TensorRT engine computes in, read back layer by layer: an engine that was asked for in fp16 and silently
computes in fp32 builds, runs and is worthless.

A layer is JSON, as the engine inspector of an engine with detailed profiling verbosity gives it. TensorRT 10 names a
tensor's type in `Format/Datatype`, 11 in `DataType`; a layer with weights names theirs.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dermedge_runtime.errors import EngineError

# The narrowest first. A type is a word (`Half`) or part of a format's description (`Row major linear FP16 format`).
WORDS = {
    "int8": re.compile(r"\bINT8\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(HALF|FP16)\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(BF16|BFLOAT16)\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(FLOAT|FP32)\b", re.IGNORECASE),
}
MULTIPLIES = re.compile(r"conv|gemm|matrix|matmul|correlation|attention|mha|fprop", re.IGNORECASE)
TYPED = ("Format/Datatype", "DataType", "Format")


@dataclass(frozen=True)
class PrecisionReadback:
    """What the layers of an engine compute in.

    `asked` is the narrowest precision of the artifact. `counts` are the layers that multiply matrices or convolve, by
    precision (all layers, where TensorRT tells of none that does); `wider` names those that are wider than asked, such
    as the ones that the export kept in fp32. `unread` layers have no type that can be read.
    """

    asked: str
    layers: int
    counts: Mapping[str, int]
    wider: tuple[str, ...]
    unread: int


def read_precision(layers: Iterable[str], precision: str) -> PrecisionReadback:
    """The precision of an engine's layers, and whether it is what was asked for.

    Args:
        layers: what the inspector says of each, JSON.
        precision: of the artifact, `fp16` or `int8+fp16`.

    Raises:
        EngineError: not one layer computes in the narrowest precision that was asked for.
    """
    asked = precision.partition("+")[0]
    order = list(WORDS)
    told = [_parsed(layer) for layer in layers]
    judged = [layer for layer in told if _multiplies(layer)] or told
    found = [(str(layer.get("Name", "")), _precision(layer)) for layer in judged]
    counts = Counter(width for _, width in found if width is not None)
    if not counts.get(asked):
        seen = (
            ", ".join(f"{count} in {width}" for width, count in sorted(counts.items()))
            or "none that can be read"
        )
        raise EngineError(
            f"The engine was asked for in {precision}, but no layer computes in {asked} ({seen}): it is not used. "
            "Export the model again with this dermedge, and build it with TensorRT 10 or 11."
        )
    return PrecisionReadback(
        asked=asked,
        layers=len(told),
        counts=dict(sorted(counts.items())),
        wider=tuple(
            name
            for name, width in found
            if width is not None and order.index(width) > order.index(asked)
        ),
        unread=sum(width is None for _, width in found),
    )


def _parsed(layer: str) -> Mapping[str, Any]:
    """The layer; empty for one whose JSON is broken (unescaped quotes occur), or that is a bare name."""
    try:
        value = json.loads(layer, strict=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _multiplies(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("LayerType", ""))
    return kind != "Reformat" and bool(MULTIPLIES.search(f"{kind} {layer.get('TacticName', '')}"))


def _precision(layer: Mapping[str, Any]) -> str | None:
    """The type of the weights where there are any, else the narrowest that goes in."""
    weights = layer.get("Weights")
    if isinstance(weights, dict) and (width := _width(str(weights.get("Type", "")))) is not None:
        return width
    inputs = [tensor for tensor in layer.get("Inputs") or () if isinstance(tensor, dict)]
    widths = {_width(" ".join(str(tensor.get(key, "")) for key in TYPED)) for tensor in inputs}
    return next((width for width in WORDS if width in widths), None)


def _width(text: str) -> str | None:
    return next((width for width, word in WORDS.items() if word.search(text)), None)
