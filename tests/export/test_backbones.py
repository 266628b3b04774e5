"""Test that networks of several kinds survive the conversion for their targets."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import timm
import torch

from dermedge.cli.export import command
from dermedge.models import Network, TrainedModel
from dermedge.models.backbone import Backbone
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.context import (
    BuiltArtifact,
    ExportContext,
    inference_copy,
    module_runner,
)
from dermedge_export.exporters.coreml.export import OTHERWISE, export_coreml
from dermedge_export.exporters.onnx import export_onnx
from dermedge_export.exporters.tensorrt.export import export_tensorrt
from dermedge_export.graph.run import open_session
from dermedge_export.graph.trace import _untraceable
from dermedge_export.target import CPU, IOS, JETSON, TARGETS
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Preprocess, Spec, Task
from support.small import pixels

SIZE = 64
TASKS = (Task("malignancy", "binary"),)
# Hiera, NesT and Twins give torch's attention tensors of five axes, SAM of three.
HIERA = ("hiera_tiny_224", {"img_size": SIZE, "stages": [1, 1, 1, 1], "embed_dim": 24})
XCIT = ("xcit_nano_12_p16_224", {"img_size": SIZE, "depth": 1})
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"img_size": SIZE, "embed_dim": 24, "depths": (2, 1, 1, 1), "window_size": 4},
)
FUSED: tuple[tuple[str, Mapping[str, Any]], ...] = (
    HIERA,
    ("nest_tiny", {"img_size": SIZE}),
    ("tiny_vit_5m_224", {"depths": [1, 1, 1, 1]}),
    XCIT,
    ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 1}),
)


def model(name: str, args: Mapping[str, Any] = {}, size: int = SIZE) -> TrainedModel:
    torch.manual_seed(0)
    backbone = Backbone(name, args)
    return TrainedModel(
        Network(backbone, TASKS).eval(), Spec(name, "1", TASKS, Preprocess(size)), backbone
    )


def context(source: TrainedModel) -> ExportContext:
    """Return a context that calibrates on few lesions, because drawing takes long."""
    return ExportContext(source, lambda: synthetic_calibration(source.spec.preprocess, 8))


@pytest.mark.parametrize(("name", "args"), FUSED, ids=[name for name, _ in FUSED])
def test_the_exported_copy_computes_attention_without_the_fused_operator(
    name: str, args: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = args.get("img_size", SIZE)
    source, images = model(name, args, size), pixels(2, size).numpy()
    fused = module_runner(source.module)(images)["malignancy"]
    exported = module_runner(inference_copy(source.module))
    monkeypatch.delattr(torch.nn.functional, "scaled_dot_product_attention")
    np.testing.assert_allclose(exported(images)["malignancy"], fused, atol=1e-5)
    with pytest.raises(AttributeError):
        module_runner(source.module)(images)


def test_attention_of_five_axes_becomes_an_onnx_graph() -> None:
    source, images = model(*HIERA), pixels(3, SIZE).numpy()
    built = export_onnx(context(source), CPU, Candidate("fp32", "onnx"))
    session = open_session(built.files["model.onnx"], optimized=True)
    computed = np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])
    expected = module_runner(source.module)(images)["malignancy"]
    np.testing.assert_allclose(computed, expected, atol=1e-5)


def assert_simulated(built: BuiltArtifact, source: TrainedModel, images: np.ndarray) -> None:
    """Check that the simulation of an artifact computes what its student computes."""
    assert built.simulation is not None
    computed = built.simulation.run(images)["malignancy"]
    expected = module_runner(source.module)(images)["malignancy"]
    np.testing.assert_allclose(computed, expected, atol=5e-3)


def test_masked_attention_becomes_a_core_ml_program() -> None:
    """The masks of shifted windows contain `aten.alias`, which coremltools lacks."""
    source, images = model(*SWIN), pixels(3, SIZE).numpy()
    built = export_coreml(context(source), IOS, Candidate("fp16", "coreml"))
    assert_simulated(built, source, images)


def test_cross_covariance_attention_becomes_a_tensorrt_graph() -> None:
    source, images = model(*XCIT), pixels(3, SIZE).numpy()
    built = export_tensorrt(context(source), JETSON, Candidate("fp16", "tensorrt"))
    assert_simulated(built, source, images)


def test_core_ml_refuses_tensors_of_six_axes_by_name() -> None:
    with pytest.raises(UsageError, match=r"rank 6.*Export for android or cpu"):
        export_coreml(context(model(*HIERA)), IOS, Candidate("fp16", "coreml"))


ADVICE = (OTHERWISE, str(_untraceable(ValueError("no conversion of aten.airy"))))


@pytest.mark.parametrize("advice", ADVICE)
def test_the_advice_of_a_refusal_names_what_exists(advice: str) -> None:
    targets = re.findall(r"(?:Export for|--target) ([a-z]+)(?: or ([a-z]+))?", advice)
    assert targets
    assert {name for pair in targets for name in pair if name} <= set(TARGETS)
    options = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", advice)) <= options
    assert all(timm.is_model(name) for name in re.findall(r"[a-z0-9]+_[a-z0-9_]+", advice))
