"""Test Core ML packages: contract, compression, overflow, simulation and refusals."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dermedge.models import Network, TrainedModel
from dermedge.models.network import Backbone
from dermedge_export.calibration import Calibration, check_calibration
from dermedge_export.candidate import Candidate, list_candidates
from dermedge_export.context import BuiltArtifact, ExportContext, module_runner
from dermedge_export.exporters.coreml import export as coreml
from dermedge_export.exporters.coreml import operators as coreml_operators
from dermedge_export.exporters.coreml.export import export_coreml
from dermedge_export.exporters.coreml.operators import check_arguments, operators
from dermedge_export.exporters.coreml.ranges import measure_ranges
from dermedge_export.exporters.coreml.simulation import pixels, read_program
from dermedge_export.synthetic.golden import golden_cases
from dermedge_export.target import IOS, IOS_16
from dermedge_runtime.bundle import Bundle, write_bundle
from dermedge_runtime.canonical_json import parse_json
from dermedge_runtime.errors import DataError, MissingExtraError, UsageError
from dermedge_runtime.golden import golden_files
from dermedge_runtime.spec import Label, Preprocess, Spec, Task, to_json
from dermedge_runtime.verify import verify
from support import coreml_package, small

ROOT = Path(__file__).parents[2]
LABELS = tuple(
    Label(name, name, malignant)
    for name, malignant in (("nv", False), ("mel", True), ("df", False))
)
# Not in alphabetical order, into which some exporters sort the keys of a dict.
TASKS = (Task("malignancy", "binary"), Task("diagnosis", "classify", LABELS))
FP16, W8, PALETTIZED, PALETTIZED_6, W8A8 = list_candidates(IOS)


@dataclass(frozen=True)
class Source:
    """A model that an exporter accepts."""

    module: Any
    spec: Spec


def student(size: int = small.SIZE) -> TrainedModel:
    """Return an untrained network with logits of the size of a trained one's."""
    torch.manual_seed(5)
    backbone = Backbone("test_efficientnet")
    network = Network(backbone, TASKS).eval()
    with torch.no_grad():
        for head in network.heads.values():
            head.weight.mul_(100)
    lineage = {"author": "A clinic", "licence": "Apache-2.0"}
    return TrainedModel(
        network, Spec("small", "1.2", TASKS, Preprocess(size), "Tests only.", lineage), backbone
    )


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return small.pixels(count, seed=seed).numpy()


def calibration() -> Calibration:
    found = Calibration(images_of(40, seed=9), tuple(f"{i:064x}" for i in range(40)), "train")
    check_calibration(found, {}, "tests")
    return found


@cache
def context() -> ExportContext:
    """Return one context for all candidates, which then share the conversion."""
    return ExportContext(student(), calibration)


@cache
def built(candidate: Candidate) -> BuiltArtifact:
    """Return the student's artifact, built once."""
    return export_coreml(context(), IOS, candidate)


def package(artifact: BuiltArtifact) -> coreml_package.Package:
    return coreml_package.read(artifact.files)


def run_artifact(artifact: BuiltArtifact, images: np.ndarray) -> Mapping[str, np.ndarray]:
    assert artifact.simulation is not None
    return artifact.simulation.run(images)


def off(artifact: BuiltArtifact, source: Any, images: np.ndarray) -> float:
    """Return the largest difference between an artifact's logits and its student's."""
    expected = module_runner(source.module)(images)
    found = run_artifact(artifact, images)
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - expected[name]).max()) for name in expected)


class TestContract:
    def test_one_rgb_image_in_one_float32_output_per_task_out(self) -> None:
        description = package(built(FP16)).description
        (image,) = description.input
        assert image.name == "image"
        assert image.type.WhichOneof("Type") == "imageType"
        assert (image.type.imageType.width, image.type.imageType.height) == (small.SIZE, small.SIZE)
        assert image.type.imageType.colorSpace == image.type.imageType.RGB
        outputs = {o.name: o.type.multiArrayType for o in description.output}
        assert {name: list(array.shape) for name, array in outputs.items()} == {
            "malignancy": [1, 1],
            "diagnosis": [1, 3],
        }
        assert {array.ArrayDataType.Name(array.dataType) for array in outputs.values()} == {
            "FLOAT32"
        }

    def test_it_computes_what_the_student_computes_up_to_rounding(self) -> None:
        source, images = student(), images_of(4)
        assert 0 < off(built(FP16), source, images) < 0.02
        assert np.ptp(run_artifact(built(FP16), images)["diagnosis"], axis=0).max() > 0.2

    def test_channels_are_read_as_rgb(self) -> None:
        image = images_of(1)
        turned = np.ascontiguousarray(image[..., ::-1])
        assert off(built(FP16), student(), turned) < 0.02
        assert (
            np.abs(
                run_artifact(built(FP16), image)["diagnosis"]
                - run_artifact(built(FP16), turned)["diagnosis"]
            ).max()
            > 0.05
        )

    def test_all_tensors_between_image_and_outputs_are_fp16(self) -> None:
        operators = package(built(FP16)).operators
        assert {o.kind for o in operators if o.kind != "cast" and o.dtype != "FLOAT16"} == set()
        assert sum(o.kind == "cast" for o in operators) == 3  # the image to fp16, two outputs back
        assert built(FP16).artifact.details["kept_fp32"] == []

    def test_the_image_is_not_transposed(self) -> None:
        kinds = [o.kind for o in package(built(FP16)).operators]
        assert kinds[:4] == ["cast", "sub", "mul", "conv"]
        assert "transpose" not in kinds

    def test_its_metadata_is_the_spec_and_nothing_else(self) -> None:
        metadata, spec = package(built(FP16)).description.metadata, student().spec
        assert (metadata.author, metadata.license) == ("A clinic", "Apache-2.0")
        assert (metadata.shortDescription, metadata.versionString) == ("Tests only.", "1.2")
        assert set(metadata.userDefined) == {"dermedge.spec", "dermedge.labels"}
        assert json.loads(metadata.userDefined["dermedge.labels"]) == ["nv", "mel", "df"]
        mirrored = parse_json(
            metadata.userDefined["dermedge.spec"].encode(), "metadata", ValueError
        )  # type: ignore[type-var]
        assert mirrored == to_json(spec)
        assert Spec.from_json(mirrored) == spec

    def test_the_artifact_records_its_requirements(self) -> None:
        artifact = built(FP16).artifact
        assert (artifact.format, artifact.path, artifact.precision) == (
            "coreml",
            "model.mlpackage",
            "fp16",
        )
        assert (artifact.details["deployment"], artifact.details["macos"]) == ("iOS17", "14")
        assert artifact.details["ranges"] == "40 images of split train"
        assert artifact.calibration is None
        assert set(artifact.toolchain) == {"dermedge", "torch", "coremltools"}
        assert package(built(FP16)).opset == "CoreML7"

    def test_the_package_is_whole_and_holds_nothing_else(self) -> None:
        files = built(FP16).files
        data = "model.mlpackage/Data/com.apple.CoreML"
        assert set(files) == {
            "model.mlpackage/Manifest.json",
            f"{data}/model.mlmodel",
            f"{data}/weights/weight.bin",
        }
        manifest = json.loads(files["model.mlpackage/Manifest.json"])
        items = manifest["itemInfoEntries"]
        assert {item["path"] for item in items.values()} == {
            "com.apple.CoreML/model.mlmodel",
            "com.apple.CoreML/weights",
        }
        assert items[manifest["rootModelIdentifier"]]["name"] == "model.mlmodel"


class TestCompression:
    def test_the_size_of_weights_follows_from_their_bits(self) -> None:
        parameters = sum(parameter.numel() for parameter in student().module.parameters())
        share = {
            c.name: package(built(c)).weight_bytes / (4 * parameters)
            for c in (FP16, W8, PALETTIZED_6)
        }
        assert 0.48 < share[FP16.name] < 0.55
        assert 0.25 < share[W8.name] < 0.35  # small weights stay fp16
        assert share[PALETTIZED_6.name] < 0.8 * share[FP16.name]

    def test_linear_weights_have_a_scale_for_every_channel(self) -> None:
        found = package(built(W8)).compressed
        assert len(found) >= 10
        assert {weight.kind for weight in found} == {"constexpr_affine_dequantize"}
        for weight in found:
            assert weight.scales == weight.value.shape[0]
            row = weight.value[0].ravel().astype(np.float64)
            steps = 127 * row / np.abs(row).max()
            np.testing.assert_allclose(steps, steps.round(), atol=0.1)

    def test_a_palette_has_at_most_two_to_the_power_of_bits_values(self) -> None:
        for candidate, colours in ((PALETTIZED, 256), (PALETTIZED_6, 64)):
            found = package(built(candidate)).compressed
            assert found
            assert {weight.kind for weight in found} == {"constexpr_lut_to_dense"}
            assert max(len(set(weight.value.ravel().tolist())) for weight in found) == colours
            assert built(candidate).artifact.details["bits"] == {256: 8, 64: 6}[colours]

    def test_the_simulation_computes_with_the_compressed_weights(self) -> None:
        source, images = student(), images_of(4)
        losses = {
            c.name: off(built(c), source, images)
            for c in (FP16, W8, PALETTIZED, PALETTIZED_6, W8A8)
        }
        assert losses[FP16.name] < losses[PALETTIZED.name] < losses[PALETTIZED_6.name] < 1
        assert losses[FP16.name] < losses[W8.name] < losses[W8A8.name] < 1

    def test_activation_scales_follow_the_ranges_of_calibration_images(self) -> None:
        artifact = built(W8A8)
        seen = measure_ranges(
            read_program(coreml_package.inner(built(FP16).files)), calibration().images
        )
        pairs = package(artifact).quantized
        assert len(pairs) >= 20
        for name, scale in pairs.items():
            assert scale == pytest.approx(seen.values[name].reach / 127, rel=2e-3), name

    def test_the_artifact_records_calibration_and_the_devices_it_is_faster_on(self) -> None:
        artifact = built(W8A8).artifact
        assert artifact.calibration == calibration().to_json()
        assert "A17 Pro" in artifact.details["faster_on"]

    def test_a_target_without_8_bit_activations_is_refused(self) -> None:
        with pytest.raises(
            UsageError, match=r"ios-16 has no 8-bit activations\. Choose among fp16, w8, palettized"
        ):
            export_coreml(ExportContext(student(), calibration), IOS_16, W8A8)


class Reaching(torch.nn.Module):
    """A network whose features leave fp16 before a norm brings them back."""

    def __init__(self, times: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.times = times
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=4)
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.stem(image.permute(0, 3, 1, 2).float() / 255))
        x = self.norm((x * self.times * self.times).permute(0, 2, 3, 1))
        return {"diagnosis": self.head(torch.nn.functional.gelu(x).amax((1, 2)))}


def reaching(times: float, name: str) -> Source:
    spec = Spec(name, "1", (Task("diagnosis", "classify", LABELS),), Preprocess(small.SIZE))
    return Source(Reaching(times).eval(), spec)


class TestOverflow:
    def test_only_operators_that_overflow_fp16_are_kept_in_fp32(self) -> None:
        source = reaching(1000, "far")
        artifact = export_coreml(ExportContext(source, calibration), IOS, FP16)
        dtypes = {(o.kind, o.dtype) for o in package(artifact).operators if o.kind != "cast"}
        assert ("layer_norm", "FLOAT32") in dtypes
        assert {("conv", "FLOAT16"), ("gelu", "FLOAT16"), ("linear", "FLOAT16")} < dtypes
        single = {
            o.name for o in package(artifact).operators if o.dtype == "FLOAT32" and o.kind != "cast"
        }
        assert set(artifact.artifact.details["kept_fp32"]) == single
        images = images_of(4)
        assert np.isfinite(run_artifact(artifact, images)["diagnosis"]).all()
        assert off(artifact, source, images) < 0.02

    def test_the_simulation_shows_an_overflow_of_fp16(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coreml, "overflowing", lambda program, ranges: set())
        artifact = export_coreml(ExportContext(reaching(1000, "blind"), calibration), IOS, FP16)
        assert not np.isfinite(run_artifact(artifact, images_of(4))["diagnosis"]).all()

    def test_a_norm_that_squares_its_input_beyond_fp16_is_kept_too(self) -> None:
        artifact = export_coreml(ExportContext(reaching(40, "near"), calibration), IOS, FP16)
        kinds = {
            o.kind for o in package(artifact).operators if o.dtype == "FLOAT32" and o.kind != "cast"
        }
        assert "layer_norm" in kinds
        assert "conv" not in kinds


class Everything(torch.nn.Module):
    """Operators of many kinds of network, each with some effect on the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.odd = torch.nn.Conv2d(3, 8, 4)
        self.deep = torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8, bias=False)
        self.norm = torch.nn.BatchNorm2d(8)
        self.up = torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.group = torch.nn.GroupNorm(2, 8)
        self.instance = torch.nn.InstanceNorm2d(8, affine=True)
        self.slope = torch.nn.PReLU(8)
        self.attention = torch.nn.Linear(8, 24)
        self.head = torch.nn.Linear(
            self.features(torch.zeros(1, small.SIZE, small.SIZE, 3)).shape[1], 3
        )

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"diagnosis": self.head(self.features(image))}

    def features(self, image: torch.Tensor) -> torch.Tensor:
        f = torch.nn.functional
        x = self.norm(self.odd(f.pad(image.permute(0, 3, 1, 2).float() / 255, (1, 2, 1, 2))))
        x = x + self.slope(self.deep(x)) * torch.sigmoid(x).mean((2, 3), keepdim=True)
        x = (
            f.hardswish(x)
            + f.mish(x)
            + f.leaky_relu(x, 0.2)
            + f.elu(x)
            + f.hardsigmoid(x)
            + f.relu6(4 * x)
        )
        a = f.max_pool2d(x, 3, stride=2, padding=1) + f.avg_pool2d(
            x, 3, stride=2, padding=1, count_include_pad=False
        )
        b = f.avg_pool2d(x, 2) - f.max_pool2d(x, 2, ceil_mode=True)
        x = self.group(torch.cat([a[:, :4], b[:, 4:].flip(2)], 1)).roll(3, 2)
        x = self.instance(f.pad(x, (1, 2, 0, 3), mode="reflect"))[:, :, 1:-2, ::2]
        wide = f.interpolate(self.up(x), scale_factor=2, mode="bilinear", align_corners=False)
        wide = torch.maximum(wide, f.interpolate(self.up(x), scale_factor=2, mode="nearest"))
        near = (
            f.pixel_shuffle(f.normalize(x, dim=1), 2)
            .square()
            .clamp(0.01)
            .sqrt()
            .log()
            .abs()
            .amax((2, 3))
        )
        q, k, v = (
            self.attention(x.flatten(2).transpose(1, 2))
            .unflatten(2, (3, 2, 4))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        mixed = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        other = torch.einsum("nhqd,nhkd->nhqk", q, k).softmax(-1).std((2, 3))
        parts = [
            mixed.mean(1),
            mixed.tanh().amax(1),
            other,
            near,
            wide.mean(2).flatten(1),
            wide.sum((2, 3)).exp().rsqrt(),
        ]
        return f.pad(torch.cat(parts, 1), (0, 2), value=0.3)


def test_operators_compute_what_torch_computes() -> None:
    module = Everything().eval()
    module.norm.running_mean.uniform_(-1, 1)
    module.norm.running_var.uniform_(0.5, 2)
    source = Source(
        module,
        Spec("everything", "1", (Task("diagnosis", "classify", LABELS),), Preprocess(small.SIZE)),
    )
    program = read_program(
        coreml_package.inner(export_coreml(ExportContext(source, calibration), IOS, FP16).files)
    )
    images = images_of(3)
    found = np.concatenate(
        [program.run(image, rounded=False)["diagnosis"].numpy() for image in pixels(images)]
    )
    np.testing.assert_allclose(found, module_runner(module)(images)["diagnosis"], atol=5e-3)
    assert len({step.kind for step in program.steps}) > 35


class TestArguments:
    @pytest.mark.parametrize(
        ("kind", "arguments", "text"),
        [
            ("concat", {"values": ("a", "b"), "axis": 1, "interleave": True}, "interleave=True"),
            ("gather", {"x": "a", "indices": "b", "batch_dims": 1}, "batch_dims=1"),
            ("gather", {"x": "a", "indices": "b", "validate_indices": True}, "validate_indices="),
            ("gelu", {"x": "a", "mode": "SIGMOID_APPROXIMATION"}, "mode='SIGMOID_APPROXIMATION'"),
            ("cast", {"x": "a", "dtype": "bool"}, "dtype='bool'"),
            (
                "upsample_bilinear",
                {"x": "a", "align_corners": False, "half_pixel_centers": False},
                "half_pixel_centers=False",
            ),
            ("upsample_bilinear", {"x": "a", "half_pixel_centers": True}, "half_pixel_centers="),
            ("relu", {"x": "a", "threshold": 1.0}, "threshold"),
            ("topk", {"x": "a", "k": 1}, "operator 'topk'"),
        ],
    )
    def test_arguments_that_the_simulation_lacks_are_refused(
        self, kind: str, arguments: dict[str, object], text: str
    ) -> None:
        with pytest.raises(UsageError, match=f"simulation of Core ML lacks.*{re.escape(text)}"):
            check_arguments(kind, "node", arguments)

    @pytest.mark.parametrize(
        ("kind", "arguments"),
        [
            ("concat", {"values": ("a", "b"), "axis": 1, "interleave": False}),
            ("gather", {"x": "a", "indices": "b", "batch_dims": 0, "validate_indices": False}),
            (
                "upsample_bilinear",
                {"x": "a", "align_corners": False, "half_pixel_centers": True},
            ),
            ("relu", {"x": "a"}),
        ],
    )
    def test_default_values_are_accepted(self, kind: str, arguments: dict[str, object]) -> None:
        assert check_arguments(kind, "node", arguments) is operators()[kind]

    def test_a_program_with_such_an_argument_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(coreml_operators.IMPLEMENTED, "conv", {"pad_type": ("valid",)})
        with pytest.raises(UsageError, match="lacks pad_type='custom' of conv"):
            read_program(coreml_package.inner(built(FP16).files))


SCRIPT = """
import hashlib, json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/export"]
import test_coreml as tests
print(json.dumps({c.name: tests.digests(tests.built(c)) for c in (tests.W8A8, tests.PALETTIZED_6)}))
"""


def digests(artifact: BuiltArtifact) -> dict[str, str]:
    return {name: sha256(content).hexdigest() for name, content in artifact.files.items()}


class TestReproducibility:
    def test_another_process_gives_the_same_bytes(self, tmp_path: Path) -> None:
        answer = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(ROOT / "tests")],
            env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        assert json.loads(answer.stdout) == {
            c.name: digests(built(c)) for c in (W8A8, PALETTIZED_6)
        }

    def test_the_package_contains_no_folder_name_and_no_date(self) -> None:
        for candidate in (FP16, W8A8):
            for name, content in built(candidate).files.items():
                for trace in (
                    str(ROOT),
                    str(Path.home()),
                    sys.prefix,
                    "site-packages",
                    ".py",
                    "conversion_date",
                ):
                    assert trace.encode() not in content, (name, trace)


class Unsupported(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"diagnosis": torch.special.i0(image.float() / 255).mean((1, 2))}


class Undecided(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = image.float().mean((1, 2))
        return {"diagnosis": x if x.sum() > 7 else -x}


class TestRefusals:
    @pytest.mark.parametrize(
        ("module", "named"), [(Unsupported(), "i0"), (Undecided(), "torch.export cannot trace")]
    )
    def test_a_network_that_core_ml_cannot_express(
        self, module: torch.nn.Module, named: str
    ) -> None:
        source = Source(
            module,
            Spec("odd", "1", (Task("diagnosis", "classify", LABELS),), Preprocess(small.SIZE)),
        )
        with pytest.raises(
            UsageError, match=rf"{named}.*Export for android or cpu, or take another backbone"
        ):
            export_coreml(ExportContext(source, calibration), IOS, FP16)

    def test_an_open_batch_size(self) -> None:
        with pytest.raises(
            UsageError, match="open batch size on the CPU and not on the Neural Engine"
        ):
            export_coreml(ExportContext(student(), calibration, dynamic_batch=True), IOS, FP16)

    def test_a_task_that_core_ml_cannot_name(self) -> None:
        source = student()
        spec = replace(source.spec, tasks=(Task("skin-cancer", "binary"),))
        with pytest.raises(UsageError, match=r"'skin-cancer'\. Name the task with letters"):
            export_coreml(ExportContext(Source(source.module, spec), calibration), IOS, FP16)

    def test_a_candidate_of_another_kind(self) -> None:
        with pytest.raises(UsageError, match="int8 coreml minmax"):
            export_coreml(
                ExportContext(student(), calibration), IOS, Candidate("int8", "coreml", "minmax")
            )

    def test_a_missing_toolchain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(
            MissingExtraError, match=re.escape("pip install 'dermedge[coreml]'")
        ) as caught:
            export_coreml(ExportContext(student(), calibration), IOS, FP16)
        assert caught.value.exit_code == 4


def test_export_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    export_coreml(ExportContext(reaching(1, "quiet"), calibration), IOS, PALETTIZED_6)
    assert capfd.readouterr() == ("", "")


def test_too_few_images_to_calibrate_are_enough_for_fp16() -> None:
    def few() -> Calibration:
        raise DataError("Only 3 calibration images in tests, 32 are needed.")

    source = reaching(1, "few")
    assert (
        export_coreml(ExportContext(source, few), IOS, FP16).artifact.details["ranges"]
        == "64 images of split procedural"
    )
    with pytest.raises(DataError):
        export_coreml(ExportContext(source, few), IOS, W8A8)


@pytest.mark.parametrize("zipped", [False, True])
def test_its_bundle_verifies_except_for_the_engine_and_names_the_command(
    tmp_path: Path, zipped: bool
) -> None:
    source, artifact = student(), built(W8A8)
    assert artifact.simulation is not None
    bundle = write_bundle(
        tmp_path / "folder.dermedge",
        spec=source.spec,
        artifact=artifact.artifact,
        postprocessing={},
        tolerance={task.name: 0.1 for task in TASKS},
        parity={"host": {"status": "not_run"}, "device": {"status": "not_run"}},
        files={
            **artifact.files,
            **golden_files(
                golden_cases(source.spec, module_runner(source.module), artifact.simulation.run, {})
            ),
        },
    ).save(tmp_path / "small.dermedge", zipped=zipped)
    report = verify(Bundle.open(bundle.path))
    assert report.status == ("passed" if sys.platform == "darwin" else "not_run")
    if sys.platform != "darwin":
        assert [check.status for check in report.checks] == [
            "passed",
            "passed",
            "not_run",
            "passed",
        ]
        assert "macOS >= 14" in report.checks[2].detail
        assert report.checks[2].detail.endswith(
            "pip install 'dermedge[coreml]' && dermedge verify small.dermedge"
        )
