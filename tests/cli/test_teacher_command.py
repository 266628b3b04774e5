"""`dermedge teacher import` on the command line."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dermedge.cli.teacher import import_command
from dermedge.models import load_model_folder
from dermedge.models.formats import FORMATS
from dermedge.models.import_teacher import RESIZES, ImportOptions
from support.command import dermedge, refused, snapshot
from support.originals import DinoV2, randomised

NET = ("--backbone", "vit_small_patch14_dinov2")
ARGS = [
    word for text in ("embed_dim=32", "depth=4", "num_heads=2") for word in ("--backbone-arg", text)
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    weights = {
        f"backbone.{name}": tensor
        for name, tensor in randomised(DinoV2(chunks=2)).state_dict().items()
    }
    file = tmp_path / "teacher_checkpoint.pth"
    torch.save({"teacher": weights | {"dino_head.0.weight": torch.ones(2)}}, file)
    return file


def test_a_checkpoint_becomes_a_teacher(tmp_path, checkpoint):
    command = (
        "teacher",
        "import",
        checkpoint,
        "--format",
        "dermnio",
        "-o",
        tmp_path / "teacher",
        *NET,
        *ARGS,
    )
    done = dermedge(
        *command, "--size", "42", "--pos-embed", "bicubic", "--licence", "mine", "--json"
    )
    assert done.code == 0, done.err
    printed = done.json()
    assert (printed["weights of"], printed["positions"]) == (
        "teacher.backbone",
        "resized (bicubic)",
    )
    assert printed["dropped tensors"] == "1 of mask_token, 1 of teacher.dino_head"
    teacher = load_model_folder(tmp_path / "teacher")
    assert teacher.spec.preprocess.size == 42
    assert teacher.spec.lineage["teacher"]["licence"] == "mine"
    assert (
        json.loads((tmp_path / "teacher" / "teacher.json").read_text("utf-8"))["role"] == "teacher"
    )
    assert "--overwrite" in refused(dermedge(*command), 2)
    again = dermedge(*command, "--overwrite")
    assert again.code == 0, again.err
    assert "positions        as they were" in again.out


def test_a_checkpoint_that_cannot_be_imported_is_a_one_line_error(tmp_path, checkpoint):
    before = snapshot(tmp_path)
    out = ("-o", tmp_path / "teacher")
    deeper = (*NET, *ARGS, "--backbone-arg", "depth=5")
    message = refused(
        dermedge("teacher", "import", checkpoint, "--format", "dinov2", *out, *deeper), 1
    )
    assert "teacher_checkpoint.pth" in message
    assert "5 blocks" in message
    message = refused(dermedge("teacher", "import", checkpoint, "--format", "dinov2", *out), 2)
    assert "--backbone" in message
    (tmp_path / "text.pth").write_text("no checkpoint")
    assert "text.pth" in refused(
        dermedge("teacher", "import", tmp_path / "text.pth", "--format", "dinov2", *out), 1
    )
    (tmp_path / "text.pth").unlink()
    assert snapshot(tmp_path) == before


def test_the_command_has_the_choices_and_defaults_of_the_function():
    options = {option.name: option for option in import_command.params}
    assert sorted(options["format"].type.choices) == sorted(FORMATS)
    assert tuple(options["pos_embed"].type.choices) == tuple(RESIZES)
    given = import_command.make_context("import", ["f", "--format", "timm", "-o", "o"]).params
    defaults = {field.name: field.default for field in dataclasses.fields(ImportOptions)}
    assert given.keys() - {"as_json", "file", "out", "format", "overwrite"} == defaults.keys()
    for name, default in defaults.items():
        assert given[name] == default or (given[name] or None) == default, name
