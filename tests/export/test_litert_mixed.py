"""Tests of selective int8 for LiteRT on a network with one layer that quantizes badly."""

import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate, list_candidates
from dermedge_export.context import ExportContext
from dermedge_export.target import ANDROID, CPU
from dermedge_runtime.spec import Label, Preprocess, Spec, Task

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("litert_torch") is None, reason="litert-torch is not installed"
)
from dermedge_export.exporters.litert import PATH, export_litert, float_model  # noqa: E402
from dermedge_export.graph.read_litert import layer_of, read_litert  # noqa: E402
from dermedge_export.quantization.litert import (  # noqa: E402
    Ranges,
    calibrate_litert,
    int8_operators,
    int8_recipe,
    quantize_litert,
)
from dermedge_export.quantization.litert_mixed import (  # noqa: E402
    litert_reader,
    sensitive_operators,
)
from dermedge_export.quantization.sensitivity import drift_from  # noqa: E402

LABELS = tuple(Label(name, name) for name in ("nv", "mel", "bkl"))
SPEC = Spec("outlier", "1", (Task("diagnosis", "classify", LABELS),), Preprocess(16))
CALIBRATION = synthetic_calibration(SPEC.preprocess, 12)
IMAGES = CALIBRATION.images


class Outlier(nn.Module):
    """Convolutions in a row; one channel of `wide` is large, and `after` hardly reads it.

    All channels of a tensor share 256 levels, so the large one leaves none to the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.after, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Linear(8, len(LABELS))
        with torch.no_grad():
            for layer in (self.stem, self.wide, self.after, self.last):
                layer.weight.mul_(3)
            self.wide.weight[0] *= 3000
            self.after.weight[:, 0] *= 1e-6
            self.head.weight.mul_(20)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = (image.permute(0, 3, 1, 2).float() - 127) / 60
        for layer in (self.stem, self.wide, self.after, self.last):
            maps = layer(maps).relu()
        return {"diagnosis": self.head(maps.mean((2, 3)))}


@pytest.fixture(scope="module")
def context() -> ExportContext:
    torch.manual_seed(0)
    return ExportContext(SimpleNamespace(module=Outlier().eval(), spec=SPEC), lambda: CALIBRATION)


@pytest.fixture(scope="module")
def model(context: ExportContext) -> bytes:
    return float_model(context, CPU)


def observed(model: bytes) -> Ranges:
    return calibrate_litert(model, int8_recipe(model), IMAGES)


@pytest.fixture(scope="module")
def kept(model: bytes) -> tuple[str, ...]:
    return sensitive_operators(model, SPEC, IMAGES, observed(model), remaining=0.1)


def test_the_sweep_keeps_the_bad_layer_and_the_drift_falls(
    model: bytes, kept: tuple[str, ...]
) -> None:
    assert any("_wide" in name for name in kept)
    assert len(kept) <= len(read_litert(model)) // 2
    ranges = observed(model)
    drift = drift_from(model, IMAGES, litert_reader(model, SPEC))
    full = drift(quantize_litert(model, SPEC, int8_recipe(model), ranges))
    mixed = drift(quantize_litert(model, SPEC, int8_recipe(model, kept=kept), ranges))
    assert full > 0.01
    assert mixed <= 0.1 * full


def test_the_artifact_computes_kept_layers_in_float_and_the_others_in_int8(
    context: ExportContext, kept: tuple[str, ...]
) -> None:
    candidate = Candidate("int8", "litert", "mixed", {"remaining": 0.1}, "mixed")
    built = export_litert(context, ANDROID, candidate)
    assert built.artifact.details["kept_fp32"] == [layer_of(name) for name in kept]
    operators = read_litert(built.files[PATH])
    made = {output: one.kind for one in operators for output in one.outputs}
    layers = [one for one in operators if one.kind == "CONV_2D"]
    in_float = [one.name for one in layers if made[one.inputs[0]] in ("DEQUANTIZE", "PAD", "MUL")]
    assert {name for name in kept if "Conv2d" in name} & set(in_float)
    assert len(in_float) < len(layers)


def test_an_entry_of_a_recipe_selects_one_operator(model: bytes) -> None:
    """The names hold semicolons, and one may begin like another."""
    names = [one.name for one in int8_operators(model)]
    entries = [entry["regex"] for entry in int8_recipe(model) if entry["operation"] == "*"]
    scopes = [f"{name}{end};" for name in names for end in ("", ";", ";;more", "2")]
    assert [[s for s in scopes if re.search(entry, s)] for entry in entries] == [
        [f"{name};"] for name in names
    ]


def test_cpu_and_android_try_mixed_candidates() -> None:
    for target in (CPU, ANDROID):
        methods = [
            candidate.method
            for candidate in list_candidates(target)
            if candidate.format == "litert" and candidate.precision == "int8"
        ]
        assert {"minmax", "mixed", "mixed-more"} <= set(methods)
