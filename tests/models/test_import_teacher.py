"""An imported teacher computes what its checkpoint computes; a wrong file writes nothing."""

import argparse
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from dermedge.models import Network, TrainedModel, load_model_folder
from dermedge.models.formats import DINOV2, PANDERM, Shape, measure
from dermedge.models.import_teacher import ImportOptions, import_teacher
from dermedge.models.network import Backbone, create_backbone
from dermedge_runtime.errors import DataError, DermedgeError, UsageError
from dermedge_runtime.files import sha256_file
from support.originals import DinoV2, PanDerm, SwiGlu, randomised
from support.small import pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PANDERM_STD = (0.228, 0.224, 0.225)
SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}
PLAIN = {"format": "dinov2", "backbone": "vit_small_patch14_dinov2", "backbone_args": SMALL}
WITH_REGISTERS = {**PLAIN, "backbone": "vit_small_patch14_reg4_dinov2"}
CAE = {
    "format": "panderm",
    "backbone": "beit_base_patch16_224",
    "backbone_args": {**SMALL, "depth": 3},
}


def import_with(
    file: Path, out: Path, *, format: str, overwrite: bool = False, **options: Any
) -> TrainedModel:
    return import_teacher(file, out, format, ImportOptions(**options), overwrite=overwrite)


def normalise(images: Tensor, std: tuple[float, float, float] = STD) -> Tensor:
    """Normalize uint8 [N, S, S, 3] for the original models: float [N, 3, S, S]."""
    mean, deviation = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
    return (images.permute(0, 3, 1, 2) / 255 - mean) / deviation


def expected(original: nn.Module, size: int, std: tuple[float, float, float] = STD) -> Tensor:
    with torch.no_grad():
        return original(normalise(pixels(3, size), std))


def features(teacher: TrainedModel) -> Tensor:
    with torch.no_grad():
        return teacher.module.features(pixels(3, teacher.spec.preprocess.size))


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def branch(original: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in original.state_dict().items()}


def lineage(teacher: TrainedModel) -> Mapping[str, Any]:
    entry: Mapping[str, Any] = teacher.spec.lineage["teacher"]
    return entry


@pytest.fixture
def dino() -> nn.Module:
    return randomised(DinoV2())


class TestDinoV2:
    @pytest.mark.parametrize(
        ("architecture", "options"),
        [
            ({}, PLAIN),
            ({"chunks": 2}, PLAIN),
            ({"chunks": 4, "registers": 4}, WITH_REGISTERS),
            ({"registers": 4}, WITH_REGISTERS),
            (
                {"feed_forward": SwiGlu, "width": 48},
                {**PLAIN, "backbone": "vit_giant_patch14_dinov2"},
            ),
        ],
        ids=["plain", "chunked", "chunked with registers", "registers", "swiglu"],
    )
    def test_features_are_those_of_the_original(
        self, tmp_path: Path, architecture: dict[str, Any], options: dict[str, Any]
    ) -> None:
        original = randomised(DinoV2(**architecture))
        file = saved(tmp_path / "dino.pth", original.state_dict())
        width = architecture.get("width", 32)
        teacher = import_with(
            file,
            tmp_path / "teacher",
            **{**options, "backbone_args": {**SMALL, "embed_dim": width}},
        )
        assert teacher.spec.preprocess.size == 4 * 14
        assert apart(features(teacher), expected(original, 56)) < 1e-4
        assert torch.equal(features(load_model_folder(tmp_path / "teacher")), features(teacher))

    def test_tensors_are_renamed_as_timm_renames_them(self) -> None:
        original = randomised(DinoV2(registers=4))
        net = create_backbone(Backbone("vit_small_patch14_reg4_dinov2", {**SMALL, "img_size": 56}))
        theirs = checkpoint_filter_fn(dict(original.state_dict()), net)
        ours = DINOV2.translate(dict(original.state_dict()))
        assert ours.keys() - theirs.keys() == {"mask_token"}
        assert all(torch.equal(theirs[name], ours[name]) for name in theirs)

    def test_the_teacher_is_an_embedding_with_its_preprocessing(
        self, tmp_path: Path, dino: nn.Module
    ) -> None:
        file = saved(tmp_path / "dino.pth", dino.state_dict())
        teacher = import_with(
            file, tmp_path / "teacher", **PLAIN, fit="pad", name="mine", licence="Apache-2.0"
        )
        assert {path.name for path in (tmp_path / "teacher").iterdir()} == {
            "teacher.json",
            "weights.safetensors",
            "split.csv",
        }
        again = load_model_folder(tmp_path / "teacher")
        assert (again.role, again.spec.name, again.spec.preprocess.fit) == (
            "teacher",
            "mine",
            "pad",
        )
        assert [(task.name, task.kind) for task in again.spec.tasks] == [("features", "embed")]
        assert again.spec == teacher.spec
        assert again.backbone == Backbone(
            "vit_small_patch14_dinov2", {**SMALL, "img_size": 56}, MEAN, STD
        )
        with torch.no_grad():
            answer = again.module(pixels(3, 56))["features"]
        assert apart(answer, nn.functional.normalize(expected(dino, 56), dim=1)) < 1e-5

    def test_the_lineage_records_the_file_and_the_format(
        self, tmp_path: Path, dino: nn.Module
    ) -> None:
        file = saved(tmp_path / "dino.pth", dino.state_dict())
        entry = lineage(import_with(file, tmp_path / "teacher", **PLAIN))
        assert entry == {
            "backbone": "timm vit_small_patch14_dinov2",
            "licence": "not stated",
            "file": "dino.pth",
            "sha256": sha256_file(file),
            "format": "dinov2",
            "branch": "",
            "dropped": {"mask_token": 1},
            "native_grid": 4,
            "grid": 4,
            "pos_embed": None,
        }

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_pth_and_safetensors_give_the_same_features(
        self, tmp_path: Path, dino: nn.Module, suffix: str
    ) -> None:
        file = tmp_path / f"dino{suffix}"
        if suffix == ".pth":
            torch.save(dino.state_dict(), file)
        else:
            save_file(dino.state_dict(), file)
        assert (
            apart(features(import_with(file, tmp_path / "teacher", **PLAIN)), expected(dino, 56))
            < 1e-4
        )

    def test_half_precision_becomes_single(self, tmp_path: Path, dino: nn.Module) -> None:
        file = saved(
            tmp_path / "dino.pth",
            {name: tensor.half() for name, tensor in dino.state_dict().items()},
        )
        teacher = import_with(file, tmp_path / "teacher", **PLAIN)
        assert {tensor.dtype for tensor in teacher.module.state_dict().values()} == {torch.float32}
        assert apart(features(teacher), expected(dino, 56)) < 0.05

    @pytest.mark.parametrize(
        ("width", "depth", "registers", "name"),
        [
            (384, 12, 0, "vit_small_patch14_dinov2"),
            (768, 12, 4, "vit_base_patch14_reg4_dinov2"),
            (1024, 24, 0, "vit_large_patch14_dinov2"),
            (1536, 40, 4, "vit_giant_patch14_reg4_dinov2"),
        ],
    )
    def test_shapes_name_the_published_models(
        self, width: int, depth: int, registers: int, name: str
    ) -> None:
        with torch.device("meta"):
            own = measure(timm.create_model(name, num_classes=0).state_dict())
        assert own == Shape(width, depth, 14, registers)
        assert DINOV2.backbones[own] == name

    def test_the_backbone_is_derived_from_published_shapes(self, tmp_path: Path) -> None:
        original = randomised(DinoV2(width=384, depth=12, heads=6, registers=4, chunks=4))
        file = saved(
            tmp_path / "teacher_checkpoint.pth", {"teacher": branch(original, "backbone.")}
        )
        teacher = import_with(file, tmp_path / "teacher", format="dermnio")
        assert teacher.backbone.name == "vit_small_patch14_reg4_dinov2"
        assert dict(teacher.backbone.args) == {"img_size": 56}
        difference = apart(features(teacher), expected(original, 56))
        assert difference < 1e-4


class TestChoiceOfNetwork:
    """Training checkpoints hold several networks; the averaged teacher is imported."""

    @pytest.mark.parametrize(
        ("arrange", "path"),
        [
            (
                lambda teacher, student: {
                    "teacher": {
                        **branch(teacher, "backbone."),
                        "dino_head.mlp.0.weight": torch.ones(2),
                    },
                    "student": branch(student, "backbone."),
                    "iteration": 7,
                    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
                },
                "teacher.backbone",
            ),
            (
                lambda teacher, student: {
                    "model": {
                        **branch(student, "student.backbone."),
                        **branch(teacher, "teacher.backbone."),
                    }
                },
                "model.teacher.backbone",
            ),
            (
                lambda teacher, student: {
                    "state_dict": {
                        **branch(student, "module.student."),
                        **branch(teacher, "module.teacher."),
                    }
                },
                "state_dict.module.teacher",
            ),
            (
                lambda teacher, student: {
                    "model": branch(student, ""),
                    "model_ema": branch(teacher, "module."),
                },
                "model_ema.module",
            ),
            (lambda teacher, student: branch(teacher, "module.backbone."), "module.backbone"),
        ],
        ids=[
            "dinov2's own",
            "one model",
            "lightning's",
            "an average beside",
            "one network, wrapped",
        ],
    )
    def test_the_averaged_teacher_is_imported(
        self,
        tmp_path: Path,
        dino: nn.Module,
        arrange: Callable[[nn.Module, nn.Module], Any],
        path: str,
    ) -> None:
        student = randomised(DinoV2(), seed=1)
        file = saved(tmp_path / "training.pth", arrange(dino, student))
        teacher = import_with(file, tmp_path / "teacher", **PLAIN)
        assert lineage(teacher)["branch"] == path
        assert (
            apart(features(teacher), expected(dino, 56))
            < 1e-4
            < apart(features(teacher), expected(student, 56))
        )

    def test_dropped_tensors_are_counted(self, tmp_path: Path, dino: nn.Module) -> None:
        student = branch(randomised(DinoV2(), seed=1), "backbone.")
        taught = {
            **branch(dino, "backbone."),
            "dino_head.0.weight": torch.ones(2),
            "ibot_head.0.bias": torch.ones(2),
        }
        file = saved(tmp_path / "training.pth", {"teacher": taught, "student": student})
        assert lineage(import_with(file, tmp_path / "teacher", **PLAIN))["dropped"] == {
            "mask_token": 1,
            "student.backbone": len(student),
            "teacher.dino_head": 1,
            "teacher.ibot_head": 1,
        }

    def test_heads_beside_plain_weights_are_dropped(self, tmp_path: Path, dino: nn.Module) -> None:
        head = {
            "dino_head.last_layer.weight": torch.ones(2),
            "head.weight": torch.ones(2),
            "head.bias": torch.ones(2),
        }
        file = saved(tmp_path / "dino.pth", dino.state_dict() | head)
        entry = lineage(import_with(file, tmp_path / "teacher", **PLAIN))
        assert entry["dropped"] == {"dino_head": 1, "head": 2, "mask_token": 1}

    def test_two_networks_of_equal_rank_are_refused(self, tmp_path: Path, dino: nn.Module) -> None:
        file = saved(tmp_path / "two.pth", {"one": dino.state_dict(), "two": dino.state_dict()})
        with pytest.raises(DataError, match="several networks, 'one', 'two'"):
            import_with(file, tmp_path / "teacher", **PLAIN)

    def test_the_lineage_of_dermnio_lists_its_training_data(
        self, tmp_path: Path, dino: nn.Module
    ) -> None:
        file = saved(tmp_path / "dermnio.pth", {"teacher": branch(dino, "backbone.")})
        entry = lineage(import_with(file, tmp_path / "teacher", **{**PLAIN, "format": "dermnio"}))
        assert {"isic*", "ham10000", "pad_ufes_20"} <= set(entry["pretrained_on"])


class TestAnotherSize:
    def by_hand(self, original: nn.Module, grid: int, **how: Any) -> nn.Module:
        """Return the original with its positions resized to another grid."""
        positions = original.pos_embed.detach()
        side = int((positions.shape[1] - 1) ** 0.5)
        plane = positions[0, 1:].T.reshape(1, -1, side, side)
        to = how if "scale_factor" in how else {"size": grid, **how}
        plane = nn.functional.interpolate(plane, mode="bicubic", **to)
        assert plane.shape[-2:] == (grid, grid)
        original.pos_embed = nn.Parameter(torch.cat((positions[:, :1], plane.flatten(2).mT), 1))
        return original

    @pytest.mark.parametrize("grid", [3, 7])
    @pytest.mark.parametrize(
        ("pos_embed", "how", "recorded"),
        [
            ("bicubic-antialias", lambda grid: {"antialias": True}, (True, 0.0)),
            ("bicubic", lambda grid: {}, (False, 0.0)),
            ("bicubic-offset", lambda grid: {"scale_factor": (grid + 0.1) / 5}, (False, 0.1)),
        ],
    )
    @pytest.mark.parametrize("registers", [0, 4])
    def test_positions_are_resized_by_the_chosen_method(
        self,
        tmp_path: Path,
        grid: int,
        pos_embed: str,
        how: Callable[[int], dict[str, Any]],
        recorded: tuple[bool, float],
        registers: int,
    ) -> None:
        original = randomised(DinoV2(5, registers=registers))
        file = saved(tmp_path / "dino.pth", original.state_dict())
        options = WITH_REGISTERS if registers else PLAIN
        teacher = import_with(
            file, tmp_path / "teacher", **options, size=14 * grid, pos_embed=pos_embed
        )
        assert (
            apart(features(teacher), expected(self.by_hand(original, grid, **how(grid)), 14 * grid))
            < 1e-4
        )
        assert torch.equal(features(load_model_folder(tmp_path / "teacher")), features(teacher))
        entry = lineage(teacher)
        assert (entry["native_grid"], entry["grid"]) == (5, grid)
        antialias, offset = recorded
        assert entry["pos_embed"] == {
            "method": pos_embed,
            "interpolation": "bicubic",
            "antialias": antialias,
            "offset": offset,
        }

    @pytest.mark.parametrize(
        ("format", "registers", "method"),
        [
            ("dermnio", 0, "bicubic-offset"),
            ("dermnio", 4, "bicubic-offset"),
            ("dinov2", 0, "bicubic-offset"),
            ("dinov2", 4, "bicubic-antialias"),
        ],
    )
    def test_the_default_is_the_method_of_the_original_code(
        self, tmp_path: Path, format: str, registers: int, method: str
    ) -> None:
        original = randomised(DinoV2(5, registers=registers))
        file = saved(tmp_path / "dino.pth", original.state_dict())
        options = {**(WITH_REGISTERS if registers else PLAIN), "format": format, "size": 42}
        default = import_with(file, tmp_path / "default", **options)
        explicit = import_with(file, tmp_path / "explicit", **options, pos_embed=method)
        assert torch.equal(default.module.backbone.pos_embed, explicit.module.backbone.pos_embed)
        assert lineage(default)["pos_embed"]["method"] == method

    def test_the_default_for_a_timm_file_is_the_method_of_timm(self, tmp_path: Path) -> None:
        original = create_backbone(Backbone("vit_small_patch14_dinov2", {**SMALL, "img_size": 70}))
        file = saved(tmp_path / "vit.pth", original.state_dict())
        options = {**PLAIN, "format": "timm", "size": 42}
        teacher = import_with(file, tmp_path / "teacher", **options)
        theirs = resample_abs_pos_embed(original.pos_embed.detach(), [3, 3])
        assert torch.allclose(teacher.module.backbone.pos_embed, theirs, atol=1e-6)

    def test_another_method_gives_other_features(self, tmp_path: Path) -> None:
        file = saved(tmp_path / "dino.pth", randomised(DinoV2(5)).state_dict())
        one, other = (
            features(import_with(file, tmp_path / method, **PLAIN, size=42, pos_embed=method))
            for method in ("bicubic", "bicubic-offset")
        )
        assert apart(one, other) > 1e-3


class TestPanDerm:
    @pytest.mark.parametrize(
        ("architecture", "prefix", "size"),
        [
            ({}, "", 64),
            ({}, "encoder.", 64),
            ({"mean_pooled": True}, "", 64),
            ({"grid": 14, "relative": True}, "", 224),
        ],
        ids=["released", "pretraining", "fine-tuned", "relative positions"],
    )
    def test_features_are_those_of_the_original(
        self, tmp_path: Path, architecture: dict[str, Any], prefix: str, size: int
    ) -> None:
        original = randomised(PanDerm(**architecture))
        others = branch(randomised(PanDerm(), seed=1), "teacher.") | {
            "decoder.mask_token": torch.ones(2)
        }
        weights = branch(original, prefix) | (others if prefix else {})
        file = saved(tmp_path / "panderm.pth", {"model": weights} if prefix else weights)
        teacher = import_with(file, tmp_path / "teacher", **CAE)
        assert teacher.spec.preprocess.size == size
        assert teacher.backbone.std == PANDERM_STD
        assert apart(features(teacher), expected(original, size, PANDERM_STD)) < 1e-4
        assert torch.equal(features(load_model_folder(tmp_path / "teacher")), features(teacher))
        assert lineage(teacher)["branch"] == ("model.encoder" if prefix else "")
        assert "NC-ND" in lineage(teacher)["licence"]

    def test_absolute_positions_are_resized(self, tmp_path: Path) -> None:
        original = randomised(PanDerm(5))
        file = saved(tmp_path / "panderm.pth", original.state_dict())
        teacher = import_with(file, tmp_path / "teacher", **CAE, size=64)
        theirs = resample_abs_pos_embed(original.pos_embed.detach(), [4, 4])
        assert torch.allclose(teacher.module.backbone.pos_embed, theirs, atol=1e-6)

    @pytest.mark.parametrize(("width", "depth", "size"), [(768, 12, "base"), (1024, 24, "large")])
    def test_shapes_name_the_published_models(self, width: int, depth: int, size: str) -> None:
        assert PANDERM.backbones[Shape(width, depth, 16, 0)] == f"beit_{size}_patch16_224"

    def test_relative_positions_cannot_be_resized(self, tmp_path: Path) -> None:
        file = saved(tmp_path / "panderm.pth", randomised(PanDerm(14, relative=True)).state_dict())
        with pytest.raises(
            DataError, match=r"relative_position_bias_table.*of another shape.*--size"
        ):
            import_with(file, tmp_path / "teacher", **CAE, size=64)

    def test_a_file_without_positions_is_refused(self, tmp_path: Path) -> None:
        weights = {
            name: tensor for name, tensor in PanDerm().state_dict().items() if name != "pos_embed"
        }
        file = saved(tmp_path / "panderm.pth", weights)
        with pytest.raises(DataError, match="neither pos_embed nor a relative position bias"):
            import_with(file, tmp_path / "teacher", **CAE)


class TestTimm:
    def test_a_transformer_is_imported(self, tmp_path: Path) -> None:
        net = randomised(
            timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=7, **SMALL)
        )
        file = saved(tmp_path / "vit.pth", {"state_dict": net.state_dict(), "epoch": 3})
        options = {"format": "timm", "backbone": "vit_tiny_patch16_224", "backbone_args": SMALL}
        teacher = import_with(file, tmp_path / "teacher", **options)
        assert teacher.spec.preprocess.size == 48
        assert teacher.backbone.mean == (0.5, 0.5, 0.5)
        assert lineage(teacher)["dropped"] == {"head": 2}
        images = (pixels(3, 48).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        with torch.no_grad():
            theirs = net.forward_head(net.forward_features(images), pre_logits=True)
        assert apart(features(teacher), theirs) < 1e-4

    def test_the_average_of_a_convolutional_network_is_imported(self, tmp_path: Path) -> None:
        args = {
            "channels": (8, 8, 16, 16),
            "stem_type": "",
        }  # its first tensor is named like those of its blocks
        net, average = (
            randomised(timm.create_model("resnet10t", **args), seed=seed) for seed in (0, 1)
        )
        file = saved(
            tmp_path / "resnet.pth",
            {"state_dict": net.state_dict(), "state_dict_ema": branch(average, "module.")},
        )
        options = {"format": "timm", "backbone": "resnet10t", "backbone_args": args}
        teacher = import_with(file, tmp_path / "teacher", **options, size=40)
        assert lineage(teacher)["branch"] == "state_dict_ema.module"
        assert lineage(teacher)["grid"] is None
        with torch.no_grad():
            theirs = average.forward_head(
                average.forward_features(normalise(pixels(3, 40))), pre_logits=True
            )
        assert apart(features(teacher), theirs) < 1e-4 * float(theirs.abs().max())

    def test_the_files_own_metadata_names_the_model(self, tmp_path: Path) -> None:
        net = randomised(timm.create_model("test_vit", num_classes=0))
        metadata = {"architecture": "timm test_vit", "mean": "0.1,0.2,0.3", "std": "0.4,0.5,0.6"}
        save_file(net.state_dict(), tmp_path / "vit.safetensors", metadata)
        teacher = import_with(tmp_path / "vit.safetensors", tmp_path / "teacher", format="timm")
        assert teacher.backbone.name == "test_vit"
        assert (teacher.backbone.mean, teacher.backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


class Touch:
    """An object that touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


class TestRefusals:
    @pytest.fixture
    def refuse(self, tmp_path: Path) -> Callable[..., str]:
        def refuse(error: type[DermedgeError], file: Path, **options: Any) -> str:
            with pytest.raises(error) as refusal:
                import_with(file, tmp_path / "teacher", **options)
            left = {path for path in tmp_path.iterdir() if path != file}
            assert not left, "nothing is written"
            message = str(refusal.value)
            assert message.endswith(".")
            assert len(message) < 500
            assert "\n" not in message
            return message

        return refuse

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_in_a_checkpoint_does_not_run(
        self, tmp_path: Path, dino: nn.Module, refuse: Callable[..., str], zipped: bool
    ) -> None:
        content = {"teacher": dino.state_dict(), "args": Touch(tmp_path / "it-ran")}
        file = tmp_path / "bad.pth"
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        message = refuse(DataError, file, **PLAIN)
        assert "would run" in message
        assert "exec" in message
        assert "not loaded" in message

    def test_objects_beside_the_weights_are_named(
        self, tmp_path: Path, dino: nn.Module, refuse: Callable[..., str]
    ) -> None:
        file = saved(
            tmp_path / "bad.pth", {"model": dino.state_dict(), "args": argparse.Namespace(lr=1)}
        )
        assert "argparse.Namespace" in refuse(DataError, file, **PLAIN)

    @pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
    @pytest.mark.parametrize(
        "content", [b"", b"not a checkpoint at all", b"PK\x03\x04 cut off", pickle.dumps({"a": 1})]
    )
    def test_a_file_that_is_no_checkpoint(
        self, tmp_path: Path, refuse: Callable[..., str], name: str, content: bytes
    ) -> None:
        (tmp_path / name).write_bytes(content)
        assert name in refuse(DataError, tmp_path / name, **PLAIN)

    def test_a_torchscript_program(self, tmp_path: Path, refuse: Callable[..., str]) -> None:
        with warnings.catch_warnings(action="ignore"):
            torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "bad.pth"))
        assert "without running code" in refuse(DataError, tmp_path / "bad.pth", **PLAIN)

    def test_a_missing_file_and_a_folder(self, tmp_path: Path, refuse: Callable[..., str]) -> None:
        assert "is not a file" in refuse(DataError, tmp_path / "absent.pth", **PLAIN)
        (tmp_path / "folder").mkdir()
        assert "is not a file" in refuse(DataError, tmp_path / "folder", **PLAIN)

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.ones(2)])
    def test_a_checkpoint_without_weights(
        self, tmp_path: Path, refuse: Callable[..., str], content: Any
    ) -> None:
        refuse(DataError, saved(tmp_path / "bad.pth", content), **PLAIN)

    def test_another_kind_of_network(self, tmp_path: Path, refuse: Callable[..., str]) -> None:
        file = saved(tmp_path / "bad.pth", timm.create_model("resnet10t").state_dict())
        assert "holds no patch_embed.proj.weight" in refuse(DataError, file, **PLAIN)
        assert "conv1.0.weight" in refuse(DataError, file, **{**PLAIN, "format": "panderm"})

    def test_missing_and_surplus_tensors_are_named(
        self, tmp_path: Path, dino: nn.Module, refuse: Callable[..., str]
    ) -> None:
        weights = dino.state_dict()
        for name in [name for name in weights if name.startswith("blocks.1.") and "norm" in name]:
            del weights[name]
        weights["adapter.down.weight"] = torch.ones(2)
        weights["norm.bias"] = torch.ones(3)
        message = refuse(DataError, saved(tmp_path / "bad.pth", weights), **PLAIN)
        assert (
            "blocks.1.norm1.weight, blocks.1.norm1.bias, blocks.1.norm2.weight and 1 more missing"
            in message
        )
        assert "adapter.down.weight left over" in message
        assert "norm.bias of another shape" in message

    def test_weights_that_are_not_finite(
        self, tmp_path: Path, dino: nn.Module, refuse: Callable[..., str]
    ) -> None:
        weights = dino.state_dict() | {"norm.bias": torch.full((32,), torch.nan)}
        assert "norm.bias not finite" in refuse(
            DataError, saved(tmp_path / "bad.pth", weights), **PLAIN
        )

    def test_two_blocks_with_the_same_index(
        self, tmp_path: Path, dino: nn.Module, refuse: Callable[..., str]
    ) -> None:
        weights = dino.state_dict()
        weights["blocks.1.0.norm1.weight"] = weights["blocks.0.norm1.weight"]
        assert "blocks.0.norm1.weight" in refuse(
            DataError, saved(tmp_path / "bad.pth", weights), **PLAIN
        )

    @pytest.mark.parametrize(
        ("architecture", "args", "expected_text"),
        [
            ({}, {"depth": 3}, "4 blocks"),
            ({}, {"embed_dim": 64}, "width 64"),
            ({"patch": 16}, {}, "patches of 16 pixels"),
            ({"registers": 4}, {}, "4 registers"),
        ],
        ids=["depth", "width", "patch", "registers"],
    )
    def test_another_shape_than_the_named_backbone(
        self,
        tmp_path: Path,
        refuse: Callable[..., str],
        architecture: dict[str, Any],
        args: dict[str, Any],
        expected_text: str,
    ) -> None:
        file = saved(tmp_path / "bad.pth", randomised(DinoV2(**architecture)).state_dict())
        message = refuse(DataError, file, **{**PLAIN, "backbone_args": {**SMALL, **args}})
        assert "'vit_small_patch14_dinov2'" in message
        assert expected_text in message

    def test_another_width_without_a_number_of_heads(
        self, tmp_path: Path, refuse: Callable[..., str]
    ) -> None:
        """timm's default of 6 heads would load the weights and give wrong features."""
        file = saved(tmp_path / "dino.pth", randomised(DinoV2(width=36)).state_dict())
        without = {"embed_dim": 36, "depth": 4}
        message = refuse(UsageError, file, **{**PLAIN, "backbone_args": without})
        assert "num_heads" in message
        message = refuse(DataError, file, **{**PLAIN, "backbone_args": {"depth": 4}})
        assert "width 36" in message
        assert "num_heads" in message

    def test_an_unknown_shape(
        self, tmp_path: Path, dino: nn.Module, refuse: Callable[..., str]
    ) -> None:
        file = saved(tmp_path / "bad.pth", dino.state_dict())
        assert "width 32, 4 blocks, patches of 14 pixels" in refuse(
            UsageError, file, format="dinov2"
        )

    @pytest.mark.parametrize(
        ("options", "expected_text"),
        [
            ({"size": 60}, "Size 60 is not a multiple of the patch of 14 pixels. Give 56"),
            ({"size": 0}, "Size 0"),
            ({"size": -14}, "Size -14"),
            ({"size": 14}, "16 to 4096"),
            ({"fit": "squeeze"}, "'squeeze'"),
            ({"format": "clip"}, "'clip'. Choose one of dermnio, dinov2, panderm, timm"),
            (
                {"pos_embed": "nearest"},
                "'nearest'. Choose one of bicubic-antialias, bicubic, bicubic-offset",
            ),
            ({"backbone": "vit_smal"}, "timm has no model 'vit_smal'"),
            ({"backbone_args": {**SMALL, "colour": 1}}, "timm refuses"),
            ({"backbone_args": {**SMALL, "num_heads": 5}}, "timm refuses"),
            ({"backbone_args": {**SMALL, "img_size": 56}}, "as --size"),
            ({"name": "two words"}, "'two words'"),
            ({"format": "timm", "backbone": None}, "Name it with --backbone"),
        ],
    )
    def test_invalid_arguments(
        self,
        tmp_path: Path,
        dino: nn.Module,
        refuse: Callable[..., str],
        options: dict[str, Any],
        expected_text: str,
    ) -> None:
        file = saved(tmp_path / "dino.pth", dino.state_dict())
        assert expected_text in refuse(UsageError, file, **{**PLAIN, **options})

    def test_a_grid_that_is_not_square(
        self, tmp_path: Path, dino: nn.Module, refuse: Callable[..., str]
    ) -> None:
        weights = dino.state_dict()
        weights["pos_embed"] = weights["pos_embed"][:, :13]
        assert "12 patches" in refuse(DataError, saved(tmp_path / "bad.pth", weights), **PLAIN)

    def test_an_existing_teacher_is_kept_without_overwrite(
        self, tmp_path: Path, dino: nn.Module
    ) -> None:
        file, out = saved(tmp_path / "dino.pth", dino.state_dict()), tmp_path / "teacher"
        import_with(file, out, **PLAIN)
        before = (out / "teacher.json").read_bytes()
        with pytest.raises(UsageError, match="--overwrite"):
            import_with(file, out, **PLAIN, name="other")
        with pytest.raises(DataError):
            import_with(tmp_path / "absent.pth", out, **PLAIN, overwrite=True)
        assert (out / "teacher.json").read_bytes() == before
        import_with(file, out, **PLAIN, name="other", overwrite=True)
        assert json.loads((out / "teacher.json").read_text("utf-8"))["spec"]["name"] == "other"


def test_an_imported_teacher_initializes_another_network(tmp_path: Path, dino: nn.Module) -> None:
    from dermedge.models.initialize import narrow

    file = saved(tmp_path / "dino.pth", dino.state_dict())
    teacher = import_with(file, tmp_path / "teacher", **PLAIN)
    network = Network(teacher.backbone, teacher.spec.tasks).eval()
    narrow(load_model_folder(tmp_path / "teacher"), network, 56)
    with torch.no_grad():
        assert torch.equal(network.features(pixels(3, 56)), features(teacher))
