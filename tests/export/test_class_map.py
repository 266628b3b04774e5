"""Class activation maps: exact, refused where they would not be, the same in each engine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dermedge.models import Network
from dermedge.models.backbone import Backbone
from dermedge_export.calibration import synthetic_calibration
from dermedge_export.candidate import Candidate
from dermedge_export.class_map import ExplainedModel, with_class_map
from dermedge_export.context import Exportable, ExportContext, module_runner
from dermedge_export.options import ExportOptions
from dermedge_export.staging import StagedBundles, tolerance
from dermedge_export.target import find_target
from dermedge_export.task_selection import select_outputs
from dermedge_runtime.errors import UsageError
from dermedge_runtime.spec import Label, Preprocess, Spec, Task
from support.native_candidate import native_candidate

DIAGNOSIS = Task("diagnosis", "classify", (Label("nv", "Naevus"), Label("mel", "Melanoma")))
NAME = "diagnosis_cam"


@pytest.fixture(scope="module")
def context() -> ExportContext:
    """Return a network with maps, traced once for all engines."""
    explained = with_class_map(untrained("test_efficientnet", size=96))
    images = synthetic_calibration(explained.spec.preprocess, 16)
    # Quantization-aware training that ends at once.
    return ExportContext(explained, lambda: images, retrain=lambda module, *_: module)


def untrained(backbone: str, *tasks: Task, size: int = 64, **args: object) -> Exportable:
    torch.manual_seed(0)
    spec = Spec("untrained", "1", tasks or (DIAGNOSIS,), Preprocess(size))
    network = Network(Backbone(backbone, args=args), spec.tasks)
    return ExplainedModel(network.eval(), spec)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "repvit_m0_9", "mobilenetv2_035"])
def test_the_mean_of_a_map_is_the_logit(backbone: str) -> None:
    explained = with_class_map(untrained(backbone))
    image = synthetic_calibration(Preprocess(64), 3).images
    outputs = module_runner(explained.module)(image)
    assert set(outputs) == {"diagnosis", NAME}
    assert outputs[NAME].shape == (3, 2, 2, 2)
    np.testing.assert_allclose(outputs[NAME].mean((2, 3)), outputs["diagnosis"], atol=1e-5)


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_convnext", "test_vit"])
def test_a_network_with_layers_behind_the_mean_is_refused(backbone: str) -> None:
    size = 160 if backbone == "test_vit" else 64
    with pytest.raises(UsageError, match="would not be exact"):
        with_class_map(untrained(backbone, size=size))


def test_a_model_without_a_diagnosis_is_refused() -> None:
    with pytest.raises(UsageError, match="no diagnosis"):
        with_class_map(untrained("mobilenetv2_035", Task("malignancy", "binary")))


def test_maps_go_along_with_the_diagnosis_only() -> None:
    model = untrained("mobilenetv2_035", DIAGNOSIS, Task("malignancy", "binary"))

    def names(*tasks: str) -> list[str]:
        spec = select_outputs(model, ExportOptions(tasks=tasks, explain=True)).spec
        return [task.name for task in spec.tasks]

    assert names() == ["diagnosis", "malignancy", NAME]
    assert names("diagnosis") == ["diagnosis", NAME]
    with pytest.raises(UsageError, match="--task diagnosis"):
        names("malignancy")
    once = select_outputs(model, ExportOptions(tasks=["diagnosis"], explain=True))
    again = select_outputs(once, ExportOptions(tasks=["diagnosis"], explain=True))
    assert again is once


@pytest.mark.parametrize(
    ("target", "candidate"),
    [
        ("cpu", Candidate("fp32", "onnx")),
        ("cpu", Candidate("int8", "onnx", "minmax")),
        ("cpu", native_candidate("qat")),
        ("cpu", Candidate("int8", "openvino", "nncf")),
        ("android", Candidate("fp32", "litert")),
        ("android", Candidate("int8", "litert", "minmax")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_engines_give_the_same_maps(
    target: str, candidate: Candidate, context: ExportContext, tmp_path: Path
) -> None:
    if candidate.format == "litert":
        pytest.importorskip("litert_torch")
    images = context.calibration.images[:4]
    expected = module_runner(context.module)(images)
    staged = StagedBundles(context, find_target(target), tmp_path, cache=None)
    with staged.start(staged.build(candidate)) as runtime:
        runs = [runtime.run(image[None]) for image in images]
    maps, logits = (np.concatenate([run[name] for run in runs]) for name in (NAME, "diagnosis"))
    assert maps.shape == expected[NAME].shape
    # The head computes in float, so that the mean is the logit in int8 as well.
    np.testing.assert_allclose(maps.mean((2, 3)), logits, atol=0.02 * np.abs(logits).max())
    allowed = 1e-4 if candidate.precision == "fp32" else 0.15
    assert np.abs(maps - expected[NAME]).max() <= allowed * np.abs(expected[NAME]).max()


def test_the_peak_is_where_the_diagnosis_is() -> None:
    """A network that reads redness: covering the red square lowers the logit most."""
    model = with_class_map(redness())
    image = np.full((64, 64, 3), 128, np.uint8)
    image[32:48, 16:32, 0] = 255
    outputs = module_runner(model.module)(image[None])
    places = list(np.ndindex(4, 4))
    covered = np.repeat(image[None], len(places), 0)
    for one, (y, x) in zip(covered, places, strict=True):
        one[16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = 128
    logits = module_runner(model.module)(covered)["diagnosis"][:, 1]
    drop = (outputs["diagnosis"][0, 1] - logits).reshape(4, 4)
    peak = np.unravel_index(outputs[NAME][0, 1].argmax(), (4, 4))
    assert peak == np.unravel_index(drop.argmax(), (4, 4)) == (2, 1)


def test_a_map_may_differ_more_than_a_logit() -> None:
    cam = Task(NAME, "cam", DIAGNOSIS.labels)
    assert tolerance("fp32", DIAGNOSIS) < tolerance("fp32", cam)
    assert tolerance("w8a8", cam) == 0.5  # the largest that a bundle may have


def redness() -> Exportable:
    """Return a network whose last map is the mean redness of squares of 16 pixels."""
    model = untrained("mobilenetv2_035")
    network = model.module
    assert isinstance(network, Network)

    class Redness(torch.nn.Module):
        num_prefix_tokens = 0

        def forward_features(self, image: torch.Tensor) -> torch.Tensor:
            red = image[:, :1] - image[:, 1:].mean(1, keepdim=True)
            return torch.nn.functional.avg_pool2d(red, 16)

        def forward_head(self, features: torch.Tensor) -> torch.Tensor:
            return features.mean((2, 3))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.forward_head(self.forward_features(image))

    network.backbone = Redness()  # type: ignore[assignment]
    head = torch.nn.Linear(1, 2)
    torch.nn.init.constant_(head.bias, 0.0)
    head.weight.data = torch.tensor([[-1.0], [1.0]])
    network.heads["diagnosis"] = head
    return model
