"""`finetune`, `distill` and `export` on the command line."""

import json

import pytest

from dermedge.data.draw import draw_data_set
from support.command import dermedge, refused

SMALL = (
    "--epochs",
    "1",
    "--batch-size",
    "16",
    "--backbone",
    "resnet10t",
    "--backbone-arg",
    "stem_width=8",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    draw_data_set(folder / "lesions", count=72, size=(64, 48))
    return folder


def test_a_teacher_a_student_and_a_bundle_from_the_command_line(place):
    data = str(place / "lesions")
    wide, narrow = "channels=[8,16,24,32]", "channels=[8,8,16,16]"

    taught = dermedge(
        "finetune",
        "--data",
        data,
        "-o",
        str(place / "teacher"),
        "--size",
        "32",
        *SMALL,
        "--backbone-arg",
        wide,
        "--json",
    )
    assert taught.code == 0, taught.err
    assert taught.json()["parameters"] > 0
    settings = json.loads((place / "teacher" / "run.json").read_text("utf-8"))["settings"]
    assert settings["balance"] is True
    assert settings["schedule"]["epochs"] == 1

    arguments = (
        "--data",
        data,
        "-o",
        str(place / "student"),
        *SMALL,
        "--backbone-arg",
        narrow,
        "--views",
        "1",
    )
    distilled = dermedge("distill", str(place / "teacher"), *arguments, "--no-balance", "--json")
    assert distilled.code == 0, distilled.err
    assert distilled.json()["parameters"] < taught.json()["parameters"]
    assert (
        json.loads((place / "student" / "run.json").read_text("utf-8"))["settings"]["balance"]
        is False
    )

    exported = dermedge(
        "export", str(place / "student"), "--target", "cpu", "-o", str(place / "out")
    )
    assert exported.code == 0, exported.err
    bundle = place / "out" / "resnet10t-student-cpu.dermedge"
    assert str(bundle) in exported.out
    assert dermedge("verify", bundle).code == 0


def test_only_commands_that_train_tune_the_allocator(place, monkeypatch):
    tuned = []
    monkeypatch.setattr("dermedge.cli.keep_freed_memory", lambda: tuned.append(True))
    nowhere = ("--data", str(place / "nowhere"), "-o", str(place / "none"))
    for command in (("predict", str(place)), ("inspect", str(place)), ("targets",)):
        dermedge(*command)
    assert not tuned
    for command in (("finetune", *nowhere), ("distill", str(place), *nowhere)):
        assert dermedge(*command).code != 0
    assert tuned == [True, True]


def test_an_unknown_backbone_is_a_one_line_error_and_leaves_no_files(place):
    out = place / "unknown"
    ran = dermedge(
        "finetune", "--data", str(place / "lesions"), "-o", str(out), "--backbone", "mobilnetv2"
    )
    assert "mobilnetv2" in refused(ran, 2)
    assert not out.exists()


def test_pretraining_warns_about_a_collapsed_head(place, monkeypatch):
    monkeypatch.setattr("dermedge.train.hybrid.loss_log.STEPS_BEFORE_WARNING", 1)
    out = place / "pretrained"
    sizes = ("--size", "32", "--local-size", "32", "--local-crops", "1")
    short = ("--epochs", "1", "--steps", "1", "--batch-size", "8", "--workers", "0")
    backbone = (*SMALL[4:], "--backbone-arg", "channels=[8,16,24,32]")
    ran = dermedge(
        *(
            "pretrain",
            "--data",
            str(place / "lesions"),
            "-o",
            str(out),
            "--preset",
            "mobile",
            "--json",
        ),
        *(*sizes, *short, *backbone, "--temperature", "10", "10"),
    )
    assert ran.code == 0, ran.err
    assert ran.json()["sources"] == "procedural"
    assert "Warning: The dino loss ended at" in ran.err
    assert "lower --temperature" in ran.err
