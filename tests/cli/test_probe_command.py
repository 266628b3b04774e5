"""Test the command `dermedge probe`."""

import json

import pytest

from dermedge.data.draw import draw_data_set
from support.command import dermedge, process, refused, snapshot

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
    folder = tmp_path_factory.mktemp("probing")
    draw_data_set(folder / "lesions", count=120, size=(64, 48))
    narrow = ("--backbone-arg", "channels=[8,8,16,16]", "--size", "32")
    taught = dermedge(
        "finetune", "--data", folder / "lesions", "-o", folder / "teacher", *SMALL, *narrow
    )
    assert taught.code == 0, taught.err
    return folder


def asked(place, *options):
    return dermedge(
        "probe", place / "teacher", "--data", place / "lesions", "--replicates", "50", *options
    )


def test_the_table_the_json_and_the_file_hold_the_same_numbers(place):
    out = place / "report.json"
    for_people, as_json = (
        asked(place, "--protocol", "knn", "-o", out),
        asked(place, "--protocol", "knn", "--json"),
    )
    assert for_people.code == as_json.code == 0, for_people.err + as_json.err
    report = as_json.json()
    assert json.loads(out.read_text("utf-8")) == report
    value = report["results"][0]["metrics"]["balanced_accuracy"]
    assert f"{value['value']:.3f} ({value['low']:.3f}-{value['high']:.3f})" in for_people.out
    for word in (
        "hit_at_1",
        "recall of class",
        "mel",
        "worst group",
        f"{report['images']['test']} test images",
    ):
        assert word in for_people.out
    assert (place / "teacher.features").is_dir()


def test_the_test_split_of_the_training_gives_no_warning(place):
    assert asked(place).err == ""


def test_every_option_reaches_the_report(place):
    cache = place / "kept"
    options = (
        "--protocol",
        "fewshot",
        "--fraction",
        "0.2",
        "--fraction",
        "0.5",
        "--epochs",
        "3",
        "--lr",
        "0.01",
    )
    settings = asked(
        place,
        *options,
        "--batch-size",
        "32",
        "--normalise",
        "--seed",
        "4",
        "--cache",
        cache,
        "--json",
    )
    report = settings.json()
    expected = {
        "fractions": [0.2, 0.5],
        "epochs": 3,
        "lr": 0.01,
        "batch_size": 32,
        "normalise": True,
        "seed": 4,
    }
    assert expected.items() <= report["settings"].items()
    assert [result["name"] for result in report["results"]] == ["20 %", "50 %"]
    assert len(list(cache.iterdir())) == 1
    masks = asked(place, "--protocol", "segment", "--head", "linear", "--epochs", "1")
    assert masks.code == 0, masks.err
    assert "mean_iou" in masks.out
    malignancy = asked(place, "--task", "malignancy", "--epochs", "2")
    assert "threshold of malignancy, chosen on val: linear" in malignancy.out


def test_a_file_is_replaced_only_with_overwrite(place):
    out = place / "old.json"
    out.write_text("mine")
    assert str(out) in refused(asked(place, "-o", out), 2)
    assert out.read_text() == "mine"
    assert asked(place, "-o", out, "--overwrite").code == 0
    assert json.loads(out.read_text("utf-8"))["protocol"] == "linear"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--task", "segment"), 2, "protocol linear does not measure the task segment"),
        (("--fraction", "0.1"), 2, "uses all train labels"),
        (("--protocol", "knn", "--epochs", "2"), 2, "trains nothing"),
    ],
)
def test_conflicting_options_are_refused_without_leaving_files(place, options, code, message):
    before = snapshot(place)
    assert message in refused(asked(place, *options), code)
    assert snapshot(place) == before


def test_a_folder_that_is_no_teacher_is_refused(place):
    ran = dermedge("probe", place / "lesions", "--data", place / "lesions")
    assert "holds neither student.json nor teacher.json" in refused(ran, 1)


def test_help_imports_no_torch(place):
    code = (
        "import sys\nfrom dermedge.cli import main\n"
        "try:\n    main(['probe', '--help'])\nexcept SystemExit: pass\n"
    )
    ran = process(code=code + "assert 'torch' not in sys.modules and 'pandas' not in sys.modules")
    assert ran.code == 0, ran.err
    assert "--protocol" in ran.out
