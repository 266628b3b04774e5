"""Read back the precision that the layers of a TensorRT engine compute in.

An engine may compute in fp32 instead of fp16. It then builds and runs without an error,
but slowly. A layer is JSON, as the inspector of an engine with detailed profiling
verbosity writes it. TensorRT 10 names a tensor's type in `Format/Datatype`, TensorRT 11
in `DataType`; a layer with weights names their type.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dermedge_runtime.errors import EngineError

# The narrowest first. A type is a word (`Half`) or a part of a format's description
# (`Row major linear FP16 format`).
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
    """Precisions that the layers of an engine compute in.

    `asked` is the narrowest precision of the artifact. `counts` are the layers that
    multiply matrices or convolve, by precision; if TensorRT lists no such layer, they
    are all layers. `wider` names those that are wider than `asked`, such as layers that
    the export kept in fp32. `unread` counts layers without a readable type.

    Example:
        >>> layer = '{{"Name": "{}", "LayerType": "Conv", "Weights": {{"Type": "{}"}}}}'
        >>> layers = [layer.format("stem", "Half"), layer.format("body", "Int8")]
        >>> read_precision(layers, "int8+fp16").wider
        ('stem',)
    """

    asked: str
    layers: int
    counts: Mapping[str, int]
    wider: tuple[str, ...]
    unread: int


def read_precision(layers: Iterable[str], precision: str) -> PrecisionReadback:
    """Read the precision of an engine's layers, and check it against the artifact's.

    Args:
        layers: JSON text of each layer, as `Engine.layers` returns it.
        precision: Precision of the artifact, `fp16` or `int8+fp16`.

    Raises:
        EngineError: No layer computes in the narrowest precision of the artifact.

    Example:
        >>> layer = '{"LayerType": "CaskConvolution", "Weights": {"Type": "Half"}}'
        >>> read_precision([layer], "fp16").counts
        {'fp16': 1}
    """
    asked = precision.partition("+")[0]
    order = list(WORDS)
    parsed = [_parse(layer) for layer in layers]
    # Layers that only move data may have any type, so they do not count.
    counted = [layer for layer in parsed if _multiplies(layer)] or parsed
    widths = [(str(layer.get("Name", "")), _layer_precision(layer)) for layer in counted]
    counts = Counter(width for _, width in widths if width is not None)
    if not counts.get(asked):
        seen = (
            ", ".join(f"{count} in {width}" for width, count in sorted(counts.items()))
            or "none that can be read"
        )
        raise EngineError(
            f"The engine was asked for in {precision}, but no layer computes in {asked} ({seen}). "
            "It is not used. Export the model again with this dermedge, and build it with "
            "TensorRT 10 or 11."
        )
    return PrecisionReadback(
        asked=asked,
        layers=len(parsed),
        counts=dict(sorted(counts.items())),
        wider=tuple(
            name
            for name, width in widths
            if width is not None and order.index(width) > order.index(asked)
        ),
        unread=sum(width is None for _, width in widths),
    )


def _parse(layer: str) -> Mapping[str, Any]:
    """Parse a layer; return an empty mapping for a bare name or broken JSON."""
    # TensorRT has written JSON with characters that JSON forbids
    # (https://github.com/NVIDIA/TensorRT/issues/2779), so a layer may not parse.
    try:
        value = json.loads(layer, strict=False)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _multiplies(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("LayerType", ""))
    return kind != "Reformat" and bool(MULTIPLIES.search(f"{kind} {layer.get('TacticName', '')}"))


def _layer_precision(layer: Mapping[str, Any]) -> str | None:
    """Return the type of the layer's weights, else the narrowest type of its inputs."""
    weights = layer.get("Weights")
    if isinstance(weights, dict) and (width := _width(str(weights.get("Type", "")))) is not None:
        return width
    inputs = [tensor for tensor in layer.get("Inputs") or () if isinstance(tensor, dict)]
    types = {_width(" ".join(str(tensor.get(key, "")) for key in TYPED)) for tensor in inputs}
    return next((width for width in WORDS if width in types), None)


def _width(text: str) -> str | None:
    return next((width for width, word in WORDS.items() if word.search(text)), None)
