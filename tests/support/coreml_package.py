"""Read an .mlpackage by its protobuf, for tests of the written file."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermedge_export.exporters.coreml.package import PATH
from dermedge_export.exporters.coreml.ranges import original
from dermedge_export.toolchain import silence

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@dataclass(frozen=True)
class Operator:
    """An operator with its name from before the conversion to fp16."""

    kind: str
    name: str
    dtype: str


@dataclass(frozen=True)
class Weight:
    """A compressed weight: the method, the values, and the number of scales."""

    kind: str
    value: np.ndarray
    scales: int


@dataclass(frozen=True)
class Package:
    description: Any
    opset: str
    operators: list[Operator]
    weight_bytes: int
    compressed: list[Weight]
    quantized: dict[str, float]


def inner(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of a bundle's package by path inside the package."""
    return {name.removeprefix(f"{PATH}/"): content for name, content in files.items()}


def read(files: Mapping[str, bytes]) -> Package:
    with silence():
        from coremltools.proto import MIL_pb2, Model_pb2

    model = Model_pb2.Model.FromString(inner(files)[MODEL])
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    operators = [
        Operator(
            o.type,
            original(o.outputs[0].name),
            MIL_pb2.DataType.Name(o.outputs[0].type.tensorType.dataType),
        )
        for o in block.operations
        if o.type != "const" and not o.type.startswith("constexpr_")
    ]
    compressed, quantized = _values(files)
    return Package(
        model.description,
        function.opset,
        operators,
        len(inner(files)[WEIGHTS]),
        compressed,
        quantized,
    )


def _values(files: Mapping[str, bytes]) -> tuple[list[Weight], dict[str, float]]:
    """Return compressed weights, and the scale of each quantized activation by name."""
    with tempfile.TemporaryDirectory() as folder, silence():
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        model = coremltools.models.MLModel(str(Path(folder) / PATH), skip_model_load=True)
        program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    operations = list(program.functions["main"].operations)
    compressed = [
        Weight(
            o.op_type,
            o.materialized_val_inference(),
            np.size(o.scale.val) if hasattr(o, "scale") else 0,
        )
        for o in operations
        if o.op_type.startswith("constexpr_")
    ]
    quantized = {o.input.name: float(o.scale.val) for o in operations if o.op_type == "quantize"}
    return compressed, quantized
